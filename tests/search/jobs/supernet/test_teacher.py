"""Distillation: zero where there is nothing to learn, against formulas by hand, in place and from a folder."""

import pytest
import torch
from torch.nn import functional as F

from models import Supernet
from search.jobs.supernet.outputs import outputs_of
from search.jobs.supernet.teacher import distance, divergence, matched
from tests.search.supernets import BLOCK, Steps, gradients, parameters, supernet_spec, train_into

MAIN = {"kind": "fixed", "placements": {"all:attention": 1.0}}
OTHER = {"kind": "fixed", "placements": {"all:gdn": 1.0}}


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kl", ["forward", "reverse"])
@pytest.mark.parametrize("hidden_weight", [0.0, 3.0])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_student_that_is_its_teacher_has_exactly_no_loss(kl, hidden_weight, dropout):
    """The main placement drawn from the main placement, to the last bit, with no gradient anywhere but rounding's."""
    teacher = {"source": "main", "kl": kl, "temperature": 2.0, "weight": 1.0, "hidden_weight": hidden_weight}
    spec = supernet_spec(sampler=MAIN, teacher=teacher, block={**BLOCK, "dropout": dropout})
    loss = Steps(spec).backward()
    assert (loss == 0.0) is (dropout == 0.0)  # the student drops out, the teacher does not


@pytest.mark.parametrize("kl", ["forward", "reverse"])
@pytest.mark.parametrize("hidden_weight", [0.0, 3.0])
def test_a_student_that_is_a_trained_teacher_has_exactly_no_loss(tmp_path, kl, hidden_weight):
    train_into(tmp_path, supernet_spec(n_steps=2, eval_every=2))
    teacher = {"source": str(tmp_path), "kl": kl, "weight": 1.0, "hidden_weight": hidden_weight}
    steps = Steps(supernet_spec(sampler=MAIN, teacher=teacher))
    assert steps.backward() > 0
    steps.model.load_state_dict(steps.gradients.teacher.model.state_dict())
    assert steps.backward() == 0.0


def test_the_divergence_is_what_torch_says():
    student, teacher = some(2, 5, 7), some(2, 5, 7, seed=1)
    weights = torch.full((2, 5), 0.1)
    for kl, (true, other) in {"forward": (teacher, student), "reverse": (student, teacher)}.items():
        expected = F.kl_div(
            F.log_softmax(other / 3, -1).flatten(0, 1),
            F.log_softmax(true / 3, -1).flatten(0, 1),
            log_target=True,
            reduction="batchmean",
        )
        found = divergence(student, teacher, weights, kl=kl, temperature=3.0)
        torch.testing.assert_close(found, 9 * expected)


def test_positions_that_are_not_asked_do_not_count():
    student, teacher, weights = some(2, 5, 7), some(2, 5, 7, seed=1), torch.zeros(2, 5)
    weights[0, 2] = 1.0
    changed = teacher.clone()
    changed[1], changed[0, 0] = 5.0, -3.0
    for kl in ("forward", "reverse"):
        one, other = (divergence(student, each, weights, kl=kl, temperature=1.0) for each in (teacher, changed))
        assert one == other
    assert distance([student], [teacher], weights) == distance([student], [changed], weights)


def test_the_distance_is_the_squared_error_not_the_norm():
    """The trap: a norm has a gradient of size one however near the student is."""
    student, teacher = [some(1, 3, 4, seed=seed) for seed in (0, 1)], [some(1, 3, 4, seed=seed) for seed in (2, 3)]
    expected = sum(F.mse_loss(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)) / 2
    torch.testing.assert_close(distance(student, teacher, torch.full((1, 3), 1 / 3)), expected)


@pytest.mark.parametrize(
    ("n_teacher", "n_student", "expected"),
    [(4, 4, [0, 1, 2, 3]), (6, 3, [1, 3, 5]), (3, 6, [0, 0, 1, 1, 2, 2]), (4, 3, [1, 2, 3]), (5, 1, [4]), (1, 3, [0, 0, 0])],
)
def test_layers_of_unlike_depths_are_matched_by_position(n_teacher, n_student, expected):
    assert matched(list(range(n_teacher)), n_student) == expected


def test_the_main_placement_teaches_but_does_not_learn_from_it():
    teacher = {"source": "main", "weight": 1.0, "hidden_weight": 1.0}
    steps = Steps(supernet_spec(sampler=OTHER, teacher=teacher))
    assert steps.backward() > 0
    found = gradients(steps.model)
    assert any(".mixers.gdn." in name for name in found)
    assert not any(".mixers.attention." in name for name in found)
    assert steps.model.active == ("gdn", "gdn")
    assert all(module.training for module in steps.model.modules())


def test_the_loss_is_mixed_of_cross_entropy_and_teacher():
    parts = {weight: Steps(supernet_spec(sampler=OTHER, teacher={"source": "main", "weight": weight})) for weight in (0.25, 1.0)}
    plain = Steps(supernet_spec(sampler=OTHER)).backward()
    found, kl = (parts[weight].backward() for weight in (0.25, 1.0))
    assert found == pytest.approx(0.75 * plain + 0.25 * kl, rel=1e-5)


def test_a_teacher_pays_off_and_the_teacher_stays_as_it_is(tmp_path):
    train_into(tmp_path, supernet_spec(n_steps=4))
    student = Steps(supernet_spec(sampler=OTHER, teacher={"source": str(tmp_path), "weight": 1.0}, lr=3e-3))
    before = parameters(student.gradients.teacher.model)
    losses = [student(0) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    after = parameters(student.gradients.teacher.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in student.gradients.teacher.model.parameters())


def test_a_teacher_of_another_depth_teaches_hidden_states(tmp_path):
    deep = supernet_spec(n_steps=2, rack={"stacks": [{"n_blocks": 4, "block": BLOCK}]})
    train_into(tmp_path, deep)
    steps = Steps(supernet_spec(teacher={"source": str(tmp_path), "hidden_weight": 1.0}))
    assert steps(0) > 0


def test_teacher_and_placements_share_a_look_at_micro_batches():
    teacher = {"source": "main", "weight": 0.5, "hidden_weight": 0.5}
    whole = Steps(supernet_spec(teacher=teacher, placements_per_step=2))
    parts = Steps(supernet_spec(teacher=teacher, placements_per_step=2, accumulate=4))
    assert parts.backward() == pytest.approx(whole.backward(), rel=1e-5)
    expected = gradients(whole.model)
    for name, tensor in gradients(parts.model).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_a_teacher_that_does_not_fit_is_a_readable_error(tmp_path):
    train_into(tmp_path / "other", supernet_spec(n_steps=1, rack={"vocab_size": 9, "d_model": 8}))
    with pytest.raises(ValueError, match=r"teacher.source: .*other: vocab_size is 9 there, but 8 here"):
        Steps(supernet_spec(teacher=str(tmp_path / "other")))
    with pytest.raises(ValueError, match=r"none: no finished supernet run is there \(weights.safetensors is missing\)"):
        Steps(supernet_spec(teacher=str(tmp_path / "none")))
    hidden = {"source": str(tmp_path / "other"), "hidden_weight": 1.0}
    with pytest.raises(ValueError, match="d_model is 8 there, but 16 here"):
        Steps(supernet_spec(teacher=hidden, rack={"vocab_size": 9}))


def test_outputs_have_a_state_for_each_block_also_of_shared_ones():
    block = {**BLOCK, "mixer": {"kind": "attention", "n_heads": 2}, "share": "one"}
    model = Supernet(supernet_spec(rack={"stacks": [{"n_blocks": 3, "block": block}]}).rack)
    seen = outputs_of(model, torch.zeros(2, 5, dtype=torch.long), is_read_out=False, with_hidden=True)
    assert [tuple(state.shape) for state in seen.hidden] == [(2, 5, 16)] * 3
    assert not model.rack.blocks()[0]._forward_hooks

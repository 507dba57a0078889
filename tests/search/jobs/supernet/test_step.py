"""A step of a supernet: what moves and what does not, micro-batches, several placements, weights of tasks, counts."""

import re
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from models import Supernet
from search.jobs.supernet.job import train_supernet
from search.jobs.supernet.report import trained_counts
from search.jobs.supernet.step import SupernetStep
from search.samplers.shared.sampler import placements_of_step
from search.training import metrics
from search.training.loop import train
from search.training.optimizer import make_optimizer, set_rates
from search.training.ranks import Ranks
from search.training.schedules import ScheduleSpec
from tests.search.supernets import BLOCK, Steps, gradients, parameters, supernet_member, supernet_spec


def fixed(*placements):
    return {"kind": "fixed", "placements": {text: 1 / len(placements) for text in placements}}


def unmeasured(pack, running):  # noqa: ARG001 - the shape of the contract
    return {name: torch.zeros(len(running)) for name in metrics.NAMES}


def inside(name, mixer):
    return f".mixers.{mixer}." in name


def test_what_is_not_selected_does_not_move_not_even_what_had_momentum():
    """50 steps under weight decay: bitwise the same, with momentum from earlier steps, without any, and as many steps counted."""
    steps = Steps(supernet_spec(weight_decay=1.0))
    model, optimizer = steps.model, steps.optimizer

    def go(placement, n):
        steps.gradients.sampler = type("Always", (), {"n_per_step": 1, "draw": lambda *_: placement})()
        for step in range(n):
            steps(step)

    go(("gdn", "gdn"), 3)
    before = parameters(model)
    momentum = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.named_parameters() if inside(name, "gdn")}
    assert all(tensor.any() for tensor in momentum.values())
    go(("attention", "attention"), 50)
    after = parameters(model)
    for name, parameter in model.named_parameters():
        if inside(name, "gdn"):
            assert torch.equal(after[name], before[name])
            assert torch.equal(optimizer.state[parameter]["exp_avg"], momentum[name])
            assert optimizer.state[parameter]["step"] == 3
        elif inside(name, "linear"):
            assert torch.equal(after[name], before[name])
            assert parameter not in optimizer.state
        else:
            assert not torch.equal(after[name], before[name])
            assert optimizer.state[parameter]["step"] == (50 if inside(name, "attention") else 53)


def test_zero_gradients_would_have_moved_them():
    """The trap: with zeros in place of None, the same optimizer decays what was not selected, and moves it on by momentum."""
    steps = Steps(supernet_spec(weight_decay=1.0))
    before = parameters(steps.model)
    steps.backward()
    for parameter in steps.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    steps.optimizer.step()
    weights = {name: tensor for name, tensor in parameters(steps.model).items() if tensor.ndim > 1}  # vectors do not decay
    assert not any(torch.equal(before[name], tensor) for name, tensor in weights.items())


def test_the_loss_is_the_mean_of_each_task_by_its_share():
    steps = Steps(supernet_spec())
    (placement,) = placements_of_step(steps.gradients.sampler, 0, 5)
    batch = steps.member.batches[5]
    steps.model.activate(placement)
    expected = 0.0
    for share, rows in ((1 / 3, slice(0, 4)), (2 / 3, slice(4, 12))):
        loss = F.cross_entropy(steps.model(batch.inputs[rows]).flatten(0, 1), batch.targets[rows].flatten())
        expected += share * loss.item()
    assert steps.backward(5) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulate", [2, 3, 5, 12])
def test_micro_batches_are_the_whole_batch(accumulate):
    whole, parts = Steps(supernet_spec()), Steps(supernet_spec(accumulate=accumulate))
    assert parts.backward() == pytest.approx(whole.backward(), rel=1e-5)
    expected, found = gradients(whole.model), gradients(parts.model)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_several_placements_a_step_are_the_mean_of_their_subnets():
    together = Steps(supernet_spec(placements_per_step=3, sampler="uniform"))
    placements = placements_of_step(together.gradients.sampler, 0, 0, 3)
    losses, expected = [], {}
    for placement in placements:
        alone = Steps(supernet_spec(sampler=fixed(", ".join(placement))))
        losses.append(alone.backward())
        for name, tensor in gradients(alone.model).items():
            expected[name] = expected.get(name, 0.0) + tensor / 3
    assert together.backward() == pytest.approx(sum(losses) / 3, rel=1e-5)
    found = gradients(together.model)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "n_of_name"),
    [({"placements_per_step": 2}, 4), ({"sampler": {"kind": "sandwich", "n": 1}}, None)],  # balanced: two blocks of three steps
    ids=str,
)
def test_what_is_counted_is_what_steps_train(keys, n_of_name, monkeypatch):
    spec, trained = supernet_spec(**keys), []
    activate = Supernet.activate
    monkeypatch.setattr(Supernet, "activate", lambda model, names: (trained.append(names), activate(model, names)))
    steps = Steps(spec)
    for step in range(6):
        steps.backward(step)
    counts = trained_counts(spec, 6)
    assert len(trained) == 6 * (3 if n_of_name is None else 2)
    for index, slot in enumerate(steps.model.slots):
        found = Counter(names[index] for names in trained)
        assert counts[index] == {"slot": str(slot), **{name: found[name] for name in slot.names}}
        assert n_of_name is None or set(found.values()) == {n_of_name}


@pytest.mark.parametrize("clip", [None, 0.05])
def test_training_one_placement_is_training_the_extracted_rack(clip):
    """To the bit, also where gradients are clipped: what is not active does not count."""
    spec = supernet_spec(sampler=fixed("gdn, attention"), train={"device": "cpu", "grad_clip": clip})
    ours, theirs = supernet_member(spec), supernet_member(spec.placed("gdn, attention"))
    theirs.model.rack.load_state_dict(ours.model.extract("gdn, attention").state_dict())
    for single, own in ((ours, spec), (theirs, spec.placed("gdn, attention"))):
        keys = {"n_steps": 5, "eval_every": 5, "evaluate": unmeasured}
        train([single], own.train, **keys, gradients=SupernetStep(own, Ranks()))
    assert ours.losses == theirs.losses
    assert len(set(ours.losses)) == 5
    extracted = ours.model.extract("gdn, attention").state_dict()
    assert all(torch.equal(tensor, extracted[name]) for name, tensor in theirs.model.rack.state_dict().items())


class Disagreeing(Ranks):
    """Another rank that has seen something else."""

    def check_same(self, text):
        raise RuntimeError(f"ranks disagree: {text}")


def test_debug_compares_the_placements_of_ranks():
    for debug in (False, True):
        steps = Steps(supernet_spec(debug=debug))
        steps.gradients.ranks = Disagreeing()
        if debug:
            with pytest.raises(RuntimeError, match=r"ranks disagree: step 7: \w+"):
                steps.backward(7)
        else:
            steps.backward(7)


@pytest.mark.parametrize("n_placements", [1, 2])
def test_debug_tells_what_every_layer_draws_at_every_step(tmp_path, n_placements):
    """Under the numbers that steps have in the history, and what is told is what is trained."""
    mlp = {"kind": "stochastic", "main": "wide", "mixers": {"wide": {"kind": "swiglu", "d_ff": 24}, "none": None}}
    spec = supernet_spec(block={**BLOCK, "mlp": mlp}, debug=True, n_steps=4, placements_per_step=n_placements)
    told, slots = [], spec.rack.slots()
    train_supernet(spec, tmp_path, say=told.append)
    drawn = [line for line in told if re.fullmatch(r"step \d+(, placement \d of 2)?: layer 0 .*", line)]
    expected = []
    for step in range(4):
        for number, placement in enumerate(placements_of_step(spec.make_sampler(), spec.seed, step, n_placements), start=1):
            which = f", placement {number} of 2" if n_placements == 2 else ""
            names = ", ".join(f"{slot} {name}" for slot, name in zip(slots, placement, strict=True))
            expected.append(f"step {step + 1}{which}: {names}")
    assert drawn == expected
    assert all(str(slot) in drawn[0] for slot in slots)
    told.clear()
    train_supernet(supernet_spec(n_steps=2), tmp_path / "quiet", say=told.append)
    assert not any("layer 0" in line for line in told)


def frozen_spec():
    block = {**BLOCK, "mlp": {**BLOCK["mlp"], "lr_scale": 0}, "mixer_norm": {"kind": "rmsnorm", "lr_scale": 0.5}}
    return supernet_spec(block=block, weight_decay=1.0)


def test_frozen_parts_have_no_gradient_and_no_place_in_the_optimizer():
    steps = Steps(frozen_spec())
    frozen = {name for name, parameter in steps.model.named_parameters() if ".mlp." in name}
    assert frozen
    before = parameters(steps.model)
    for step in range(3):
        assert not frozen & gradients(steps.model).keys()
        steps(step)
    assert all(torch.equal(before[name], tensor) for name, tensor in parameters(steps.model).items() if name in frozen)
    listed = {id(parameter) for group in steps.optimizer.param_groups for parameter in group["params"]}
    for name, parameter in steps.model.named_parameters():
        assert (id(parameter) in listed) == (name not in frozen)


def test_rates_are_scaled_over_the_whole_schedule():
    member = supernet_member(frozen_spec())
    optimizer = make_optimizer([member], frozen_spec().train)
    schedule = ScheduleSpec(kind="cosine", warmup_steps=2, min_lr=1e-3)
    for step in range(10):
        set_rates(optimizer, schedule, step, 10)
        full, half = sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
        assert half == full / 2
    half_group = min(optimizer.param_groups, key=lambda group: group["lr"])
    assert len(half_group["params"]) == 2  # the norms before the mixers


def test_nothing_to_train_is_a_readable_error():
    with pytest.raises(ValueError, match="nothing to train: every parameter is frozen"):
        Steps(supernet_spec(rack={"lr_scale": 0}))

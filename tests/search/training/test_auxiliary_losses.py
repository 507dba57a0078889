"""What parts report while they train: into the gradients, out of the loss, and into the metrics of evaluations."""

import json

import pytest
import torch
from torch.nn import functional as F

from models.rack.reports import collecting
from search.jobs.mad.run_trials import run_trials
from search.training import metrics
from search.training.loop import batch_gradients
from search.training.metrics import weighted_loss
from search.training.mixture import Mixture
from search.training.packing import Pack
from search.training.ranks import Ranks
from search.training.sharding import gathered, shard
from search.training.spec import TrainSpec
from tests.search.cases import LAYERS, data, evaluate_on, mad_spec, member, rack_spec, run
from tests.search.ranks import on_ranks
from tests.search.supernets import BLOCK, CPU, Steps, gradients, supernet_spec, train_into
from tests.search.training.test_packing import assert_same_curves

MOE = {"kind": "moe", "n_experts": 4, "n_active": 2, "d_expert": 8, "balance": 0.5}
REPORTED = {"load_balance", "largest_expert_share"}
Z_LOSS = {"kind": "language_model", "z_loss": 0.1}
SPARSE = rack_spec([LAYERS[0], MOE], head=Z_LOSS)


def expected_losses(model, inputs, targets):
    """Cross entropy, and what is trained, each said by itself."""
    hidden = []
    hooks = [
        module.register_forward_hook(lambda module, x, _: hidden.append((module, x[0])))
        for module in model.modules()
        if type(module).__name__ == "MoE"
    ]
    logits = model(inputs)
    for hook in hooks:
        hook.remove()
    entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    total = entropy + 0.1 * logits.logsumexp(-1).square().mean()
    for moe, x in hidden:
        chances = moe.router(x).flatten(0, 1).softmax(-1)
        chosen = torch.zeros_like(chances).scatter(1, chances.topk(2).indices, 1.0)
        total = total + 0.5 * 4 * (chosen.mean(0) / 2 * chances.mean(0)).sum()
    return entropy, total


def test_the_gradient_is_of_all_losses_and_the_loss_of_the_targets_alone():
    first, second = (member(rack_spec([LAYERS[0], MOE, MOE], head=Z_LOSS), data()) for _ in range(2))
    loss = batch_gradients(Pack([first.model]), [first], 3, TrainSpec(device="cpu"))
    entropy, total = expected_losses(second.model, *second.batches[3])
    total.backward()
    torch.testing.assert_close(loss, entropy.detach()[None])
    assert gradients(first.model).keys() == gradients(second.model).keys()
    for name, gradient in gradients(first.model).items():
        torch.testing.assert_close(gradient, gradients(second.model)[name], rtol=1e-4, atol=1e-6)
    plain = member(rack_spec([LAYERS[0], MOE, {**MOE, "balance": 0.0}], head=Z_LOSS), data())
    batch_gradients(Pack([plain.model]), [plain], 3, TrainSpec(device="cpu"))
    ours, theirs = (single.model.stacks[0].blocks[-1].mlp.router.weight.grad for single in (first, plain))
    assert not torch.allclose(ours, theirs)


def test_without_weights_it_is_as_if_there_were_no_reports():
    """To the bit, though the values are computed and collected in evaluations."""
    spec = rack_spec([LAYERS[0], {**MOE, "balance": 0.0}])
    first, second = member(spec, data()), member(spec, data())
    for step in range(3):
        with collecting():
            loss = batch_gradients(Pack([first.model]), [first], step, TrainSpec(device="cpu"))
        inputs, targets = second.batches[step]
        expected = F.cross_entropy(second.model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)
        expected.backward()
        assert torch.equal(loss[0], expected.detach())
    assert all(torch.equal(gradient, gradients(second.model)[name]) for name, gradient in gradients(first.model).items())


def test_a_packed_grid_with_auxiliary_losses_equals_separate_runs():
    batches, keys = data(), {"n_steps": 30, "eval_every": 10}
    packed = run([member(SPARSE, batches, lr=lr) for lr in (1e-4, 1e-3, 1e-2)], **keys)
    for single in packed:
        (alone,) = run([member(SPARSE, batches, lr=single.lr)], **keys)
        assert_same_curves(single, alone)
        for ours, theirs in zip(single.history, alone.history, strict=True):
            for name in REPORTED:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    assert packed[0].history[-1]["load_balance"] != packed[2].history[-1]["load_balance"]


def test_members_with_their_own_data_report_for_themselves():
    models = [SPARSE.build(seed).eval() for seed in range(2)]
    inputs = torch.stack([data(seed)[0][0] for seed in range(2)])
    with collecting() as together:
        Pack(models)(inputs)
    for index, model in enumerate(models):
        with collecting() as alone:
            model(inputs[index])
        for name in REPORTED:
            torch.testing.assert_close(together.metrics[name][index], alone.metrics[name])


def test_balance_is_learned():
    curves = []
    for balance in (0.0, 0.5):
        single = member(rack_spec([LAYERS[0], {**MOE, "balance": balance}]), data(), lr=1e-2)
        with torch.no_grad():
            single.model.stacks[0].blocks[0].mlp.router.weight[:2] += 0.2
        run([single], n_steps=60, eval_every=60)
        curves.append(single.history[-1]["load_balance"])
    assert curves[1] < curves[0]
    assert curves[1] < 1.1


def test_columns_are_there_where_something_reports():
    (dense,), (sparse,) = run([member()]), run([member(SPARSE)])
    assert set(sparse.history[0]) - set(dense.history[0]) == REPORTED  # the z-loss is of training
    assert 0.25 <= sparse.history[-1]["largest_expert_share"] <= 0.5


def test_metrics_of_reports_are_averaged_over_batches_by_size():
    single = member(SPARSE)
    single.model.eval()
    batches = list(data(n_examples=20, batch_size=16).in_order())
    assert [len(inputs) for inputs, _ in batches] == [16, 4]
    found = metrics.evaluate(Pack([single.model]), batches)
    own = [metrics.evaluate(Pack([single.model]), [batch]) for batch in batches]
    for name in REPORTED:
        assert found[name].item() == pytest.approx((16 * own[0][name].item() + 4 * own[1][name].item()) / 20)
        bare = metrics.evaluate(lambda x: single.model(x)[None], batches)
        assert bare[name].tolist() == found[name].tolist()


def test_best_weights_and_ends_go_by_the_cross_entropy():
    (single,) = run([member(rack_spec([LAYERS[0], {**MOE, "balance": 1e3}]))])
    assert single.status == "finished"
    assert max(single.losses) < 10
    again = evaluate_on(data(split="test"))(Pack([single.model.eval()]), [single])
    assert again["loss"].item() == single.history[-1]["loss"]


def test_a_trial_of_the_suite_has_the_columns_of_both_splits():
    layers = {"dense": ["attention", "mlp"], "sparse": ["attention", MOE]}
    trials = mad_spec(architectures=layers, weight_decays=[0.0]).trials()
    dense, sparse = (run_trials([single])[0] for single in trials)
    assert set(sparse) - set(dense) == {f"{split}_{name}" for split in ("test", "train") for name in REPORTED}
    assert sparse["test_load_balance"] >= 0.9
    assert set(sparse["history"][0]) - set(dense["history"][0]) == REPORTED


SPACE = {**BLOCK, "mlp": {"kind": "stochastic", "main": "sparse", "mixers": {"sparse": MOE, "none": None}}}


def test_a_step_of_a_supernet_adds_what_is_active_for_each_placement(monkeypatch):
    placements = [("attention", "sparse", "attention", "none"), ("gdn", "none", "gdn", "none")]
    monkeypatch.setattr("search.jobs.supernet.step.placements_of_step", lambda *_: placements)
    steps, alone = (Steps(supernet_spec(block=SPACE, rack={"head": Z_LOSS}, placements_per_step=2)) for _ in range(2))
    batch, shown = alone.member.batches[0], 0.0
    for placement in placements:
        alone.model.activate(placement)
        plain, total = expected_losses(alone.model, batch.inputs, batch.targets)
        entropy = weighted_loss(alone.model(batch.inputs), batch.targets, batch.weights)
        ((entropy + total - plain) / 2).backward()
        shown += entropy.item() / 2
    assert steps.backward() == pytest.approx(shown, rel=1e-5)
    found = gradients(steps.model)
    assert found.keys() == gradients(alone.model).keys()
    for name, gradient in gradients(alone.model).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [2, 5])
def test_a_mean_over_positions_is_the_same_in_micro_batches(accumulate):
    whole, parts = (Steps(supernet_spec(rack={"head": Z_LOSS}, accumulate=n)) for n in (1, accumulate))
    plain = Steps(supernet_spec(accumulate=accumulate))
    assert parts.backward() == pytest.approx(whole.backward(), rel=1e-5) == pytest.approx(plain.backward(), rel=1e-5)
    for name, gradient in gradients(whole.model).items():
        torch.testing.assert_close(gradients(parts.model)[name], gradient, rtol=1e-4, atol=1e-5)
    output = "rack.head.output.weight"
    assert not torch.allclose(gradients(parts.model)[output], gradients(plain.model)[output])


def test_the_job_tells_of_balance(tmp_path):
    train_into(tmp_path / "sparse", supernet_spec(block={**BLOCK, "mlp": MOE}))
    train_into(tmp_path / "dense")
    rows = {}
    for name in ("sparse", "dense"):
        rows[name] = [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert (set(results) & REPORTED) == (REPORTED if name == "sparse" else set())
    assert set(rows["sparse"][0]) - set(rows["dense"][0]) == REPORTED


def steps_of(rank, n_ranks):
    spec = supernet_spec(rack={"head": Z_LOSS}, block={**BLOCK, "mlp": MOE})
    steps = Steps(spec)
    steps.member.batches = Mixture(spec.data, seed=0, device=CPU, rank=rank, n_ranks=n_ranks)
    return steps


def gradients_on_a_rank(way):
    ranks = Ranks()
    steps = steps_of(ranks.rank, ranks.n_ranks)
    if way == "fsdp":
        shard(steps.model)
    loss = steps.backward(2)
    return ranks.is_main, loss, gathered(gradients(steps.model))


@pytest.mark.parametrize("way", ["data", "fsdp"])
def test_ranks_add_up_what_each_reports(tmp_path, way):
    steps, loss = steps_of(0, 2), 0.0
    for rank in range(2):  # gradients add up where none is taken away
        steps.member.batches = steps_of(rank, 2).member.batches
        loss += steps.backward(2)
    for is_main, found_loss, found in on_ranks(gradients_on_a_rank, 2, tmp_path, way):
        assert found_loss == pytest.approx(loss, rel=1e-5)
        if is_main or way == "data":
            assert found.keys() == gradients(steps.model).keys()
            for name, gradient in gradients(steps.model).items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_reports_do_not_wait_for_the_device():
    steps = Steps(supernet_spec(rack={"head": Z_LOSS}, block={**BLOCK, "mlp": MOE}, accumulate=2), torch.device("cuda"))
    for step in range(3):  # what is made once is made here
        steps.without_waiting(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 6):
            steps.without_waiting(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")

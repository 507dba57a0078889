"""Traps of growth: nothing leaks, times and objectives reach the loss, dropout rests in the trunk, scales of losses."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from models.rack.modules import Stack
from search.jobs.progressive import stages as stages_module
from search.jobs.progressive.fields import GrowthDataSpec
from search.jobs.progressive.stage import StageRun
from search.jobs.progressive.weights import load_rack, load_stage
from search.training import checkpoint
from tasks import IGNORED
from tasks.samples.samples import ArraySamples
from tests.search.growths import AHEAD, BLOCK, STACK, growth_spec, rows, same_bits, stages_here, state

CPU = torch.device("cpu")
VOCAB_SIZE, N_TRAIN, N_HELD_OUT, TIME = 8, 64, 64, 12
LINEAR = {"kind": "mlm", "schedule": "linear", "mask_ratio": 0.1, "final_mask_ratio": 0.9}
TOLD = {"time_interpretation": "input", "time_sampling": "sample", "time_embedding_dim": 8, "num_time_steps": 20}


@pytest.fixture
def seen(monkeypatch):
    """The stages as they are about to train."""
    found = []

    class Seen(StageRun):
        def train(self):
            found.append(self)
            return super().train()

    monkeypatch.setattr(stages_module, "StageRun", Seen)
    return found


@pytest.fixture
def noise(monkeypatch):
    """Tokens that know nothing of each other; as targets, themselves."""
    tokens = np.random.default_rng(0).integers(VOCAB_SIZE, size=(N_TRAIN + N_HELD_OUT, TIME))
    samples = ArraySamples(tokens, vocab_size=VOCAB_SIZE, targets=tokens, n_validation=N_HELD_OUT)
    monkeypatch.setattr(GrowthDataSpec, "samples", lambda _self, _seed: samples)


LEARNS = {"n_steps": 30, "eval_every": 30, "eval_batch_size": 32, "lr": 1e-2, "block": AHEAD, "data": {"batch_size": 16}}


@pytest.mark.usefixtures("noise")
@pytest.mark.parametrize("growth", [{}, {"trunk_strategy": "full"}, {**TOLD, "building_mode": "prepend"}])
def test_of_masked_noise_nothing_is_learned(tmp_path, growth):
    """Also by stacks that look ahead, in any stage: at the masks there is nothing to see."""
    stages_here(growth_spec(**LEARNS, growth=growth, objective={"kind": "mlm", "mask_ratio": 0.3}), tmp_path)
    assert all(row["loss"] >= math.log(VOCAB_SIZE) - 0.05 for row in rows(tmp_path))


@pytest.mark.usefixtures("noise")
def test_what_can_be_seen_would_be_learned(tmp_path):
    """By the same racks in as many steps."""
    stages_here(growth_spec(**LEARNS, objective="custom"), tmp_path)
    assert rows(tmp_path)[-1]["loss"] < 0.5 * math.log(VOCAB_SIZE)


@pytest.mark.usefixtures("noise")
def test_the_next_of_noise_is_not_learned_either(tmp_path):
    stages_here(growth_spec(**{**LEARNS, "block": BLOCK}), tmp_path)
    assert all(row["loss"] >= math.log(VOCAB_SIZE) - 0.05 for row in rows(tmp_path))


@pytest.mark.parametrize("direction", ["increasing", "decreasing"])
def test_time_by_depth_gives_each_stage_its_share_of_masks(tmp_path, seen, direction):
    growth = {"time_interpretation": "depth", "noise_direction": direction}
    stages_here(growth_spec(objective=LINEAR, block=AHEAD, growth=growth, data={"n_train": 96, "batch_size": 96}), tmp_path)
    shares = [float((run.batches[0].targets != IGNORED).float().mean()) for run in seen]
    expected = [0.1, 0.5, 0.9] if direction == "increasing" else [0.9, 0.5, 0.1]
    assert shares == pytest.approx(expected, abs=0.04)
    assert [row["time_step"] for row in rows(tmp_path)] == ([0, 100, 200] if direction == "increasing" else [200, 100, 0])
    held_out = [float(np.mean([(batch.targets != IGNORED).float().mean() for batch in run.evaluation.batches])) for run in seen]
    assert held_out == pytest.approx(expected, abs=0.1)


def half_way(index, max_stacks, n_time_steps):
    """A mapping of one's own."""
    return 0.5 * (n_time_steps - 1) * index / (max_stacks - 1)


def test_a_mapping_of_ones_own_is_followed(tmp_path):
    """What is written of it is what it says: the folder is read, and goes on, where nobody knows the function."""
    growth = {
        "time_interpretation": "depth",
        "stack_time_mapping": "custom",
        "custom_time_mapping": half_way,
        "num_time_steps": 101,
    }
    spec = growth_spec(objective=LINEAR, block=AHEAD, growth=growth)
    stages_here(spec, tmp_path)
    assert [row["time_step"] for row in rows(tmp_path)] == [0, 25, 50]
    again = type(spec).model_validate(spec.to_dict())
    assert again.growth.custom_time_mapping == (0, 25, 50)
    assert again.fingerprint() == spec.fingerprint()
    assert pickle.loads(pickle.dumps(spec)).depth_time().table == (0, 25, 50)  # as Ray sends it


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_a_rack_that_is_told_the_time_learns_of_it(tmp_path, seen, kind):
    growth = {**TOLD, "time_encoding_type": kind}
    stages_here(growth_spec(objective=LINEAR, block=AHEAD, growth=growth), tmp_path)
    started = load_stage(tmp_path / "stages/01", CPU)[0].rack.build(0).state_dict()
    first, last = state(tmp_path, 1), state(tmp_path, 3)
    times = {name for name in first if name.startswith("time_embedding.")}
    assert times
    assert all(not torch.equal(started[name], first[name]) for name in times)
    assert all(torch.equal(first[name], last[name]) for name in times)  # beside a frozen trunk it rests as the embedding does
    steps = torch.cat([run.batches[step].time_steps for run in seen[:1] for step in range(6)])
    assert len(steps.unique()) > 5
    assert [row.get("cache_hit_rate") for row in rows(tmp_path)] == [None, 1.0, 1.0]


def test_losses_may_weigh_as_the_bound_of_masked_diffusion(tmp_path, seen):
    bound = {"kind": "mlm", "schedule": "linear", "mask_ratio": 0.0, "final_mask_ratio": 1.0, "loss_weighting": "elbo"}
    stages_here(growth_spec(objective=bound, block=AHEAD, growth=TOLD), tmp_path)
    batch = seen[1].batches[0]
    ratios = batch.time_steps.double() / 19
    expected = torch.where(ratios > 0, 1 / ratios.clamp(min=1e-9), 0.0) / batch.inputs.numel()
    supervised = batch.targets != IGNORED
    assert torch.allclose(batch.weights.double(), supervised * expected[:, None], atol=1e-7)
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path))


def test_what_rests_drops_nothing_out(tmp_path, seen):
    stages_here(growth_spec({**BLOCK, "dropout": 0.3}, growth={"cache_activations": False}), tmp_path)
    model = seen[2].model.train()
    assert [stack.training for stack in model.rack.stacks] == [False, False, True]
    assert not model.rack.embedding.training
    batch = seen[2].batches[0]
    assert torch.equal(model.below(batch, 2), model.below(batch, 2))
    assert not torch.equal(model(batch), model(batch))


def test_a_step_is_the_same_with_and_without_the_cache(tmp_path):
    """But for rounding: rows go through the trunk one by one where they are cached."""
    cached, computed = tmp_path / "cached", tmp_path / "computed"
    train = {"device": "cpu", "eps": 1e-3}  # far above what rounding leaves in gradients
    stages_here(growth_spec(train=train), cached)
    stages_here(growth_spec(train=train, growth={"cache_activations": False}), computed)
    for ours, theirs in zip(rows(cached), rows(computed), strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert [row["trunk_forwards"] for row in rows(computed)] == [0, 6, 6]


@pytest.mark.parametrize(
    ("growth", "is_scaled"),
    [
        ({"new_stack_precision": "half"}, True),
        ({"trunk_strategy": "qlora", "quantization_type": "half", "progressive_qlora_rank": 2}, True),  # through the trunk
        ({"new_stack_precision": "bfloat16"}, False),
    ],
)
def test_losses_are_scaled_where_products_in_float16_go_backward(tmp_path, seen, growth, is_scaled):
    stages_here(growth_spec(growth={"target_stacks": 2, **growth}), tmp_path)
    assert (seen[-1].member.loss_scale is not None) == is_scaled


def test_a_gradient_that_is_not_finite_changes_nothing_and_halves_the_scale(tmp_path, seen, monkeypatch):
    """The first scale is too large here: float16 ends at 65504."""
    monkeypatch.setattr("search.jobs.progressive.training.gradients.FIRST_LOSS_SCALE", 2.0**40)
    growth = {"new_stack_precision": "half", "target_stacks": 1}
    stages_here(growth_spec(growth=growth), tmp_path / "large")
    assert seen[-1].member.loss_scale == 2.0**34
    started = load_stage(tmp_path / "large/stages/01", CPU)[0].rack.build(0).state_dict()
    assert same_bits(started, state(tmp_path / "large"))
    monkeypatch.setattr("search.jobs.progressive.training.gradients.FIRST_LOSS_SCALE", 1.0)
    stages_here(growth_spec(growth=growth), tmp_path / "none")
    monkeypatch.setattr("search.jobs.progressive.training.gradients.FIRST_LOSS_SCALE", 2.0**10)
    stages_here(growth_spec(growth=growth), tmp_path / "usual")
    assert rows(tmp_path / "usual")[0]["losses"] == pytest.approx(rows(tmp_path / "none")[0]["losses"], abs=1e-2)


def test_a_stack_that_denoises_learns_what_the_trunk_expects(tmp_path, seen):
    growth = {"building_mode": "prepend", "prepend_loss": "denoise_mse", "target_stacks": 2}
    spec = growth_spec(objective={"kind": "mlm", "mask_ratio": 0.3}, block=AHEAD, growth=growth, n_steps=30, eval_every=30)
    stages_here(spec, tmp_path)
    losses = rows(tmp_path)[1]["losses"]
    assert losses[-1] < 0.8 * losses[0]
    first, second = state(tmp_path, 1), state(tmp_path, 2)
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith(("head", "embedding")))
    batch, model = seen[1].batches[0], seen[1].model.eval()
    with torch.no_grad():
        denoised, clean = model.rack.stacks[0](model.rack.embedding(batch.inputs)), model.rack.embedding(batch.clean)
    assert float((denoised - clean).square().mean()) < 0.8 * losses[0]


def test_moments_are_of_the_parameters_that_they_were_kept_for(tmp_path):
    """A stage that starts without them comes to other weights, and so would one that mixes them up."""
    stages_here(growth_spec(growth={"target_stacks": 2}), tmp_path / "whole")
    interrupted = tmp_path / "without"
    stages_here(growth_spec(growth={"target_stacks": 1}), interrupted)
    (interrupted / "results.json").unlink()
    path = interrupted / "stages/01/moments.safetensors"
    tensors, notes = checkpoint.read(path, CPU)
    stages_here(growth_spec(growth={"target_stacks": 2}), interrupted)
    assert same_bits(state(interrupted), state(tmp_path / "whole"))
    assert {name.partition("|")[2] for name in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    for name in ("result.json", "weights.safetensors", "moments.safetensors"):
        (interrupted / "stages/02" / name).unlink()
    without = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoint.save(path, without, notes)
    stages_here(growth_spec(growth={"target_stacks": 2}), interrupted)
    assert not same_bits(state(interrupted), state(tmp_path / "whole"))


def test_stacks_of_other_widths_and_mixers_grow_on_each_other(tmp_path):
    other = {"n_blocks": 2, "block": {"mixer": {"kind": "gated_delta_net", "n_heads": 2}, "mlp": {"kind": "swiglu", "d_ff": 20}}}
    stages_here(growth_spec(rack={"stacks": [STACK]}, stack=other), tmp_path)
    told = rows(tmp_path)
    assert all(row["loss_grown"] == pytest.approx(row["loss_before"], rel=1e-5) for row in told[1:])
    _, rack = load_stage(tmp_path / "stages/03", CPU)
    assert [len(stack.blocks) for stack in rack.stacks if isinstance(stack, Stack)] == [1, 2, 2]


@pytest.mark.parametrize(("objective", "block"), [("mlm", AHEAD), ("clm", BLOCK)])
def test_pads_are_seen_by_nothing(tmp_path, seen, objective, block):
    """The loss of padded windows, some shorter than others, is that of each by itself, cut where its text ends."""
    rng = np.random.default_rng(0)
    for number in range(60):
        words = rng.choice(["one", "two", "three", "four"], size=int(rng.integers(1, 6)))
        (tmp_path / f"{number}.txt").write_text(" ".join([str(number), *words]))
    task = {"kind": "text", "files": str(tmp_path / "*.txt"), "seq_len": 16, "validation_fraction": 0.3, "folder": str(tmp_path)}
    data = {"task": task, "n_train": None, "n_validation": None}
    stages_here(growth_spec(block, objective=objective, data=data, eval_batch_size=4), tmp_path / "out")
    assert seen[-1].model.uses_attention_mask == (objective == "mlm")
    total, n_supervised = 0.0, 0
    rack = load_rack(tmp_path / "out")
    for batch in seen[-1].evaluation.batches:
        assert not batch.attention_mask.all()
        for inputs, targets, attention_mask in zip(batch.inputs, batch.targets, batch.attention_mask, strict=True):
            length = int(attention_mask.sum())
            with torch.no_grad():
                logits = rack(inputs[None, :length])[0]
            total += float(cross_entropy(logits, targets[:length], ignore_index=IGNORED, reduction="sum"))
            n_supervised += int((targets != IGNORED).sum())
    assert n_supervised > 8
    assert rows(tmp_path / "out")[-1]["loss"] == pytest.approx(total / n_supervised, rel=1e-5)
    assert rows(tmp_path / "out")[-1]["cache_hit_rate"] == 1.0

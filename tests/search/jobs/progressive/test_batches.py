"""Batches of growth: functions of seed, stage, step and sample; the whole batch on any number of ranks; losses that add up."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from configs import ConfigError
from models import RackSpec
from search.jobs.progressive.training.batches import GrowthBatches, StageTime
from tasks import IGNORED
from tasks.objectives import OBJECTIVES
from tasks.samples.samples import ArraySamples

CPU = torch.device("cpu")
N, N_HELD_OUT, TIME, VOCAB_SIZE = 23, 6, 12, 11
DEPTH = StageTime(interpretation="depth", n_steps=101, step=50)
BY_SAMPLE = StageTime(interpretation="input", n_steps=20, sampling="sample")
BY_BATCH = StageTime(interpretation="input", n_steps=20, sampling="batch")
LINEAR = {"schedule": "linear", "mask_ratio": 0.0, "final_mask_ratio": 1.0}

CASES = {
    "clm": ("clm", {}, StageTime()),
    "custom": ("custom", {}, StageTime()),
    "mlm": ("mlm", {"mask_ratio": 0.4}, StageTime()),
    "depth": ("mlm", LINEAR, DEPTH),
    "diffusion": ("mlm", {**LINEAR, "loss_weighting": "elbo"}, BY_SAMPLE),
    "time of a batch": ("mlm", LINEAR, BY_BATCH),
    "clm told a time": ("clm", {}, BY_SAMPLE),
}
each_case = pytest.mark.parametrize("case", CASES)


def samples_of(*, has_pads=True, seed=0):
    rng = np.random.default_rng(seed)
    n_all = N + N_HELD_OUT
    lengths = rng.integers(1, TIME + 1, n_all)
    return ArraySamples(
        rng.integers(VOCAB_SIZE, size=(n_all, TIME)),
        vocab_size=VOCAB_SIZE,
        attention_mask=np.arange(TIME) < lengths[:, None] if has_pads else None,
        targets=rng.integers(VOCAB_SIZE, size=(n_all, TIME)),
        n_validation=N_HELD_OUT,
    )


def batches_of(case="mlm", *, samples=None, **options):
    kind, keys, time = CASES[case]
    objective = OBJECTIVES[kind](vocab_size=VOCAB_SIZE, **keys)
    options = {"stage": 1, "time": time, "batch_size": 5, "seed": 0, "device": CPU, **options}
    return GrowthBatches(samples or samples_of(), objective, **options)


def same(first, second):
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def rows_by_name(batches):
    """(sample, variant) -> what it reads, is asked and told; the same every time that it comes."""
    found = {}
    for batch in batches:
        for row in range(len(batch.inputs)):
            name = int(batch.sample_ids[row]), int(batch.variants[row])
            told = None if batch.time_steps is None else int(batch.time_steps[row])
            content = tuple(batch.inputs[row].tolist()), tuple(batch.targets[row].tolist()), told
            assert found.setdefault(name, content) == content
    return found


@each_case
def test_the_ranks_together_have_the_batch_of_one_process(case):
    for step in (0, 4):  # the second one ends an epoch and begins the next
        whole = batches_of(case)[step]
        for n_ranks in (2, 3, 5):
            parts = [batches_of(case, rank=rank, n_ranks=n_ranks)[step] for rank in range(n_ranks)]
            for rank, part in enumerate(parts):
                for mine, tensor in zip(part, whole, strict=True):
                    assert (mine is None and tensor is None) or torch.equal(mine, tensor[rank::n_ranks])
            total = sum(part.weights.sum() for part in parts).item()
            assert total == pytest.approx(whole.weights.sum().item(), rel=1e-5)


@each_case
def test_batches_are_a_function_of_seed_stage_and_step(case):
    batches = batches_of(case)
    assert same(batches[7], batches_of(case)[7])
    batches[0]
    assert same(batches[7], batches_of(case)[7])
    for other in (batches[8], batches_of(case, seed=1)[7], batches_of(case, stage=2)[7]):
        assert not torch.equal(other.sample_ids, batches[7].sample_ids)


@each_case
def test_every_sample_comes_once_an_epoch_as_what_it_is(case):
    batches, samples = batches_of(case), samples_of()
    found = [batches[step] for step in range(N)]  # five epochs, each of which ends within a step
    ids = torch.cat([batch.sample_ids for batch in found]).tolist()
    orders = [tuple(ids[first : first + N]) for first in range(0, 5 * N, N)]
    assert [Counter(order) for order in orders] == [Counter(range(N))] * 5
    assert all(before != after for before, after in pairwise(orders))
    rows = samples.sequences("train", np.array(ids))
    assert torch.equal(torch.cat([batch.clean for batch in found]), torch.from_numpy(rows.tokens))
    assert torch.equal(torch.cat([batch.attention_mask for batch in found]), torch.from_numpy(rows.attention_mask))
    assert (batches.n_samples, batches.steps_per_epoch, batches.n_positions) == (N, 5, TIME)


def test_types_are_as_promised():
    batch = batches_of("diffusion")[0]
    types = [tensor.dtype for tensor in batch]
    longs, expected = torch.int64, [torch.int64, torch.int64, torch.float32, torch.int64, torch.int64, torch.int32]
    assert types == [*expected, longs, torch.bool]
    assert batch.time_steps.shape == batch.sample_ids.shape == (5,)
    plain = batches_of("mlm", samples=samples_of(has_pads=False))[0]
    assert plain.time_steps is None
    assert plain.attention_mask is None


@each_case
def test_the_loss_is_that_of_the_whole_batch_position_by_position(case):
    """Against a loop; on two ranks."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(N, TIME, VOCAB_SIZE, generator=generator, dtype=torch.float64)
    loss = 0.0
    for rank in range(2):
        batch = batches_of(case, rank=rank, n_ranks=2)[2]
        logits = table[batch.sample_ids]
        losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="none")
        loss += float((losses * batch.weights.flatten()).sum())
    batch = batches_of(case)[2]
    terms, n_kept = [], int(batch.attention_mask.sum())
    for row in range(len(batch.inputs)):
        for place in range(TIME):
            if (target := int(batch.targets[row, place])) == IGNORED:
                assert batch.weights[row, place] == 0
                continue
            log_probabilities = F.log_softmax(table[batch.sample_ids[row], place], dim=0)
            ratio = 1.0 if case != "diffusion" else int(batch.time_steps[row]) / 19
            terms.append(-float(log_probabilities[target]) / ratio)
    assert loss == pytest.approx(sum(terms) / (n_kept if case == "diffusion" else len(terms)), rel=1e-5)


@each_case
def test_a_batch_that_asks_nothing_weighs_nothing(case):
    samples = ArraySamples(np.zeros((4, 3), dtype=int), vocab_size=VOCAB_SIZE, attention_mask=np.zeros((4, 3), dtype=bool))
    if case == "custom":
        samples = ArraySamples(np.zeros((4, 3), dtype=int), vocab_size=VOCAB_SIZE, targets=np.full((4, 3), IGNORED))
    batch = batches_of(case, samples=samples)[0]
    assert (batch.targets == IGNORED).all()
    assert (batch.weights == 0).all()


def test_an_objective_asks_what_it_says():
    clm, custom, mlm = (batches_of(case)[3] for case in ("clm", "custom", "mlm"))
    kept = clm.attention_mask
    follows = kept[:, :-1] & kept[:, 1:]
    assert torch.equal(clm.targets[:, :-1], torch.where(follows, clm.clean[:, 1:], IGNORED))
    assert (clm.targets[:, -1] == IGNORED).all()
    targets = torch.from_numpy(samples_of().sequences("train", custom.sample_ids.numpy()).targets)
    assert torch.equal(custom.targets, torch.where(custom.attention_mask, targets, IGNORED))
    for plain in (clm, custom):
        assert torch.equal(plain.inputs, plain.clean)
    is_supervised = mlm.targets != IGNORED
    assert is_supervised.any()
    assert torch.equal(mlm.inputs, torch.where(is_supervised, VOCAB_SIZE, mlm.clean))
    assert torch.equal(mlm.targets[is_supervised], mlm.clean[is_supervised])


def corrupted(case, **options):
    batches = batches_of(case, **options)
    return rows_by_name(batches[step] for step in range(5 * N))


def test_corruptions_differ_by_epoch_and_come_again_by_variant():
    fresh = corrupted("mlm")
    assert {variant for _, variant in fresh} == set(range(25))
    few = corrupted("mlm", n_variants=3)
    assert {variant for _, variant in few} == {0, 1, 2}
    assert few == {name: content for name, content in fresh.items() if name[1] < 3}
    n_alike = sum(fresh[sample, 0] == fresh[sample, 1] for sample in range(N))
    assert n_alike < N / 3  # the shortest are all pads but for a token or two
    other_stage = corrupted("mlm", stage=2, n_variants=3)
    assert sum(few[name] == other_stage[name] for name in few) < len(few) / 3


@pytest.mark.parametrize(("case", "varies"), [("clm", False), ("custom", False), ("mlm", True), ("clm told a time", True)])
def test_what_does_not_vary_is_one_variant(case, varies):
    batches = batches_of(case)
    variants = {int(variant) for step in range(15) for variant in batches[step].variants}
    assert variants == (set(range(4)) if varies else {0})
    assert (batches.n_variants is None) == varies
    assert bool(batches.corruption()) == varies


@each_case
def test_rows_by_name_are_those_of_training(case):
    batches = batches_of(case, n_variants=2, n_ranks=2)
    if case == "time of a batch":
        assert not batches.is_cacheable
        with pytest.raises(ValueError, match="draw times by sample"):
            batches.rows(batches.sample_ids, 0)
        return
    assert batches.is_cacheable
    trained = corrupted(case, n_variants=2)
    variants = range(batches.n_variants)
    filled = rows_by_name(batches.rows(ids, variant) for variant in variants for ids in np.array_split(batches.sample_ids, 4))
    assert filled == trained


def test_the_time_of_depth_is_that_of_the_stage():
    few, many = (
        batches_of("depth", time=StageTime(interpretation="depth", n_steps=101, step=step), samples=samples_of(has_pads=False))
        for step in (20, 80)
    )
    for batches, share in ((few, 0.2), (many, 0.8)):
        supervised = torch.cat([batches[step].targets != IGNORED for step in range(100)])
        assert supervised.float().mean().item() == pytest.approx(share, abs=0.03)
    assert few[0].time_steps is None
    unasked = batches_of("depth", time=StageTime(n_steps=101, step=80))
    assert (unasked[0].targets == IGNORED).all()  # without an interpretation there is no time but 0


def test_times_are_drawn_for_a_batch_or_for_each_sample():
    for case in ("time of a batch", "diffusion"):
        batches = batches_of(case)
        steps = torch.stack([batches[step].time_steps for step in range(200)])
        assert set(steps.unique().tolist()) == set(range(20))
        assert (steps == steps[:, :1]).all() == (case == "time of a batch")
        ratios = torch.stack(
            [(batches[step].targets != IGNORED).sum(1) / batches[step].attention_mask.sum(1) for step in range(200)]
        )
        for chosen in (0, 10, 19):
            assert ratios[steps == chosen].mean().item() == pytest.approx(chosen / 19, abs=0.1)


@each_case
def test_evaluation_is_fixed_apart_from_training_and_whole_on_every_rank(case):
    batches = batches_of(case)
    held_out = batches.evaluation(2, 3)
    assert [tuple(batch.inputs.shape) for batch in held_out] == [(3, TIME)] * 2
    ids = torch.cat([batch.sample_ids for batch in held_out])
    assert sorted(ids.tolist()) == list(range(N, N + N_HELD_OUT))
    for other in (batches_of(case, rank=1, n_ranks=2), batches_of(case, n_variants=2), batches_of(case, stage=2)):
        assert all(same(a, b) for a, b in zip(other.evaluation(2, 3), held_out, strict=True))
    clean = torch.from_numpy(samples_of().sequences("validation", ids.numpy() - N).tokens)
    assert torch.equal(torch.cat([batch.clean for batch in held_out]), clean)
    for batch in held_out:
        assert (batch.weights > 0).any()
    assert not torch.equal(torch.cat([batch.sample_ids for batch in batches_of(case, seed=1).evaluation(2, 3)]), ids)
    with pytest.raises(ConfigError, match="2 batches of 4 need 8 samples, but the validation split has 6"):
        batches.evaluation(2, 4)


def test_corruption_and_fingerprint_name_what_rows_depend_on():
    names = [batches_of(case).corruption() for case in CASES]
    names += [batches_of(stage=2).corruption(), batches_of(seed=1).corruption(), batches_of(time=DEPTH).corruption()]
    known = {str(name) for name in names}
    assert len(known) == len(names) - 1  # clm and custom read the tokens as they are
    assert batches_of("clm", stage=2, seed=3).corruption() == {}
    assert batches_of(n_variants=2, batch_size=7).corruption() == batches_of().corruption()
    assert batches_of(stage=2, batch_size=7).fingerprint() == batches_of().fingerprint() == samples_of().fingerprint()
    assert batches_of(samples=samples_of(seed=1)).fingerprint() != batches_of().fingerprint()


def test_a_batch_may_be_larger_than_all_samples():
    batch = batches_of("mlm", batch_size=3 * N)[1]
    assert Counter(batch.variants.tolist()) == {3: N, 4: N, 5: N}


def test_more_workers_than_rows_is_an_error():
    with pytest.raises(ConfigError, match="batch_size 5 over 6 workers leaves some without a row; give at least 6"):
        batches_of(n_ranks=6)


def floor_loss(case, *, reads="inputs", causal):
    """Held-out loss per asked position after some training on tokens that nothing predicts."""
    tokens = np.random.default_rng(0).integers(VOCAB_SIZE, size=(2000, TIME))
    samples = ArraySamples(tokens, vocab_size=VOCAB_SIZE, n_validation=400)
    batches = batches_of(case, samples=samples, batch_size=64)
    block = {"mixer": {"kind": "attention", "n_heads": 2, "causal": causal}, "mlp": {"kind": "swiglu"}}
    rack = RackSpec(d_model=32, vocab_size=VOCAB_SIZE + 1, stacks=[{"n_blocks": 1, "block": block}]).build(seed=0)
    optimizer = torch.optim.AdamW(rack.parameters(), lr=1e-2)

    def loss_of(batch):
        logits = rack(getattr(batch, reads)).flatten(0, 1)
        losses = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="none")
        return (losses * batch.weights.flatten()).sum()

    for step in range(100):
        loss_of(batches[step]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return float(loss_of(batches.evaluation(1, 400)[0]))


@pytest.mark.parametrize(("case", "causal"), [("mlm", False), ("clm", True)])
def test_nothing_is_learned_where_there_is_nothing_to_learn(case, causal):
    assert floor_loss(case, causal=causal) >= math.log(VOCAB_SIZE) - 0.05


def test_what_is_asked_could_be_read_where_nothing_is_masked():
    """What the test above would find."""
    assert floor_loss("mlm", reads="clean", causal=False) < 0.5

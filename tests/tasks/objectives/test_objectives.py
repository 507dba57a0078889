"""Objectives: what is corrupted and asked, by a draw that hangs on nothing but the sample."""

import math
import zlib
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from pydantic import ValidationError

from tasks import IGNORED
from tasks.objectives import OBJECTIVES
from tasks.objectives.shared.counters import uniform
from tasks.objectives.shared.masking import MaskSchedule, loss_weights
from tasks.objectives.shared.objective import Draw, Objective, Sequences

VOCAB_SIZE, TIME = 11, 24
DRAW = Draw(seed=3, stage=1, variant=2)
OTHER_DRAWS = [Draw(seed=4, stage=1, variant=2), Draw(seed=3, stage=2, variant=2), Draw(seed=3, stage=1, variant=3)]
MIXED = {"random_fraction": 0.1, "keep_fraction": 0.1}

each_kind = pytest.mark.parametrize("kind", OBJECTIVES)


def objective(kind, **options):
    return OBJECTIVES[kind](vocab_size=VOCAB_SIZE, **options)


def sequences(n, *, time=TIME, has_pads=True, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, time + 1, size=n) if has_pads else np.full(n, time)
    return Sequences(
        tokens=rng.integers(VOCAB_SIZE, size=(n, time)),
        sample_ids=rng.permutation(10 * n)[:n],
        attention_mask=np.arange(time) < lengths[:, None],
        targets=np.where(rng.random((n, time)) < 0.3, IGNORED, rng.integers(VOCAB_SIZE, size=(n, time))),
    )


def taken(batch, rows):
    return Sequences(**{name: getattr(batch, name)[rows] for name in ("tokens", "sample_ids", "attention_mask", "targets")})


def assert_within(share, chance, n, n_errors=4):
    assert abs(share - chance) <= n_errors * math.sqrt(chance * (1 - chance) / n)


@each_kind
def test_a_kind_is_a_frozen_objective_with_a_default_for_every_option(kind):
    built = OBJECTIVES.build(OBJECTIVES.part(kind), vocab_size=VOCAB_SIZE)
    assert isinstance(built, Objective)
    assert built == objective(kind)
    with pytest.raises(FrozenInstanceError):
        built.vocab_size = 3
    with pytest.raises(ValueError, match="vocab_size must be an integer, at least 1; got 0"):
        OBJECTIVES[kind](vocab_size=0)


@each_kind
@pytest.mark.parametrize("n", [0, 1, 30])
def test_what_is_asked_has_the_promised_shape(kind, n):
    batch = sequences(n)
    before = {name: getattr(batch, name).copy() for name in ("tokens", "sample_ids", "attention_mask", "targets")}
    targets = objective(kind).apply(batch, DRAW, 0.5)
    assert targets.inputs.shape == targets.targets.shape == targets.loss_mask.shape == (n, TIME)
    assert targets.inputs.dtype == targets.targets.dtype == np.int64
    assert targets.clm_mask.shape == (TIME,)
    assert targets.mask_ratio.shape == targets.loss_weights.shape == (n,)
    assert np.array_equal(targets.loss_mask, targets.targets != IGNORED)
    assert not (targets.loss_mask & ~targets.clm_mask).any()
    assert all(np.array_equal(getattr(batch, name), array) for name, array in before.items())


@each_kind
def test_pads_are_left_alone_and_what_stands_there_does_not_matter(kind):
    batch = sequences(200)
    targets = objective(kind).apply(batch, DRAW)
    assert targets.loss_mask.any()
    assert not targets.loss_mask[~batch.attention_mask].any()
    assert np.array_equal(targets.inputs[~batch.attention_mask], batch.tokens[~batch.attention_mask])
    scrambled = replace(batch, tokens=np.where(batch.attention_mask, batch.tokens, VOCAB_SIZE - 1 - batch.tokens))
    again = objective(kind).apply(scrambled, DRAW)
    assert np.array_equal(again.targets, targets.targets)
    assert np.array_equal(again.inputs[batch.attention_mask], targets.inputs[batch.attention_mask])


@each_kind
def test_without_a_keep_mask_there_are_no_pads(kind):
    batch = sequences(20, has_pads=False)
    whole, bare = (objective(kind).apply(given, DRAW) for given in (batch, replace(batch, attention_mask=None)))
    assert np.array_equal(whole.targets, bare.targets)
    assert np.array_equal(whole.inputs, bare.inputs)


@pytest.mark.parametrize(("kind", "options"), [("mlm", {}), ("mlm", MIXED), ("clm", {}), ("custom", {})])
def test_neither_order_nor_company_matters(kind, options):
    batch, times = sequences(40), np.linspace(0, 1, 40)
    schedule = {"schedule": "linear"} if kind == "mlm" else {}
    asker = objective(kind, **options, **schedule)
    whole = asker.apply(batch, DRAW, times)
    order = np.random.default_rng(1).permutation(40)
    for rows in (order, order[:7], *order[:5, None]):
        part = asker.apply(taken(batch, rows), DRAW, times[rows])
        for name in ("inputs", "targets", "loss_mask", "mask_ratio", "loss_weights"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[rows]), name


@each_kind
def test_only_what_says_so_corrupts(kind):
    batch = sequences(50)
    targets = [objective(kind).apply(batch, draw) for draw in (DRAW, DRAW, *OTHER_DRAWS)]
    assert np.array_equal(targets[0].inputs, targets[1].inputs)
    assert np.array_equal(targets[0].targets, targets[1].targets)
    for other in targets[2:]:
        assert np.array_equal(targets[0].targets, other.targets) != objective(kind).corrupts
    assert np.array_equal(targets[0].inputs, batch.tokens) != objective(kind).corrupts


# Masked language modelling


def test_a_masked_token_leaves_no_trace():
    batch = sequences(100)
    targets = objective("mlm").apply(batch, DRAW)
    assert (targets.inputs[targets.loss_mask] == VOCAB_SIZE).all()
    assert np.array_equal(targets.targets[targets.loss_mask], batch.tokens[targets.loss_mask])
    assert np.array_equal(targets.inputs[~targets.loss_mask], batch.tokens[~targets.loss_mask])
    other = objective("mlm").apply(replace(batch, tokens=(batch.tokens + 1) % VOCAB_SIZE), DRAW)
    assert np.array_equal(other.loss_mask, targets.loss_mask)  # what is chosen says nothing about it either


@pytest.mark.parametrize("draw", OTHER_DRAWS)
def test_draws_share_nothing(draw):
    batch, asker = sequences(4000, has_pads=False), objective("mlm", mask_ratio=0.5)
    one, other = (asker.apply(batch, given).loss_mask for given in (DRAW, draw))
    assert_within((one == other).mean(), 0.5, one.size)


def test_neighbours_share_nothing():
    numbers = uniform(np.arange(4000), 64, "test")
    assert 0 <= numbers.min() < numbers.max() < 1
    high = numbers < 0.5
    for one, other in ((high[1:], high[:-1]), (high[:, 1:], high[:, :-1]), (high[1:, 1:], high[:-1, :-1])):
        assert_within((one == other).mean(), 0.5, one.size)
    columns, rows = numbers.mean(0), numbers.mean(1)
    assert np.abs(columns - 0.5).max() < 5 / math.sqrt(12 * len(rows))
    assert rows.std() == pytest.approx(1 / math.sqrt(12 * len(columns)), rel=0.05)
    assert np.abs(np.histogram(numbers, bins=20, range=(0, 1))[0] / numbers.size - 0.05).max() < 5 * math.sqrt(
        0.05 / numbers.size
    )


@pytest.mark.parametrize("schedule", ["constant", "linear", "exponential", "cosine"])
@pytest.mark.parametrize("time", [0.0, 0.3, 1.0])
def test_as_much_is_masked_as_the_schedule_says(schedule, time):
    batch, asker = sequences(3000), objective("mlm", schedule=schedule)
    targets = asker.apply(batch, DRAW, time)
    assert (targets.mask_ratio == asker.masking.ratio(time)).all()
    assert_within(targets.loss_mask[batch.attention_mask].mean(), float(asker.masking.ratio(time)), batch.attention_mask.sum())


def test_every_sample_may_have_its_time():
    batch, asker = sequences(4000, has_pads=False), objective("mlm", schedule="linear", mask_ratio=0.0, final_mask_ratio=1.0)
    times = np.repeat([0.0, 0.25, 0.75, 1.0], 1000)
    targets = asker.apply(batch, DRAW, times)
    for time in (0.0, 0.25, 0.75, 1.0):
        mine = targets.loss_mask[times == time]
        assert_within(mine.mean(), time, mine.size)
    later = asker.apply(batch, DRAW, np.minimum(times + 0.2, 1.0))
    assert not (targets.loss_mask & ~later.loss_mask).any()


@pytest.mark.parametrize("mask_token_id", [None, 0, 5, VOCAB_SIZE - 1])
def test_of_the_chosen_some_are_random_and_some_stay(mask_token_id):
    batch = sequences(20_000, has_pads=False)
    batch = replace(batch, tokens=np.full_like(batch.tokens, 7))
    asker = objective("mlm", mask_ratio=0.5, mask_token_id=mask_token_id, random_fraction=0.2, keep_fraction=0.1)
    targets = asker.apply(batch, DRAW)
    assert (targets.targets[targets.loss_mask] == 7).all()
    seen = np.bincount(targets.inputs[targets.loss_mask], minlength=VOCAB_SIZE + 1)
    others = [token for token in range(VOCAB_SIZE) if token != asker.mask_id]
    expected = np.zeros(VOCAB_SIZE + 1)
    expected[others] = 0.2 / len(others)
    expected[asker.mask_id] += 0.7
    expected[7] += 0.1
    for token in range(VOCAB_SIZE + 1):
        assert_within(seen[token] / seen.sum(), expected[token], seen.sum())


def test_the_mask_is_a_token_more_unless_it_is_one_of_the_texts():
    sizes = [objective("mlm", mask_token_id=token).input_vocab_size for token in (None, VOCAB_SIZE, 4)]
    assert sizes == [VOCAB_SIZE + 1, VOCAB_SIZE + 1, VOCAB_SIZE]
    assert objective("clm").input_vocab_size == VOCAB_SIZE


def test_the_draws_of_a_version_stay_as_they_are():
    """Caches of activations hang on them."""
    batch = Sequences(tokens=np.arange(2400).reshape(100, 24) % VOCAB_SIZE, sample_ids=np.arange(100) ** 5)
    targets = objective("mlm", mask_ratio=0.5, **MIXED).apply(batch, DRAW)
    assert zlib.crc32(targets.inputs.tobytes() + targets.targets.tobytes()) == 0xFF5AAD3E


# Causal language modelling, and targets from elsewhere


def test_every_position_but_the_last_is_asked_the_next_token():
    batch = sequences(60)
    targets = objective("clm").apply(batch, DRAW)
    assert targets.clm_mask.tolist() == [True] * (TIME - 1) + [False]
    for row in range(60):
        for place in range(TIME):
            is_supervised = place + 1 < TIME and batch.attention_mask[row, place] and batch.attention_mask[row, place + 1]
            assert targets.targets[row, place] == (batch.tokens[row, place + 1] if is_supervised else IGNORED)


@pytest.mark.parametrize("time", [1, 2, 9])
def test_of_t_tokens_t_minus_1_are_asked(time):
    targets = objective("clm").apply(sequences(5, time=time, has_pads=False), DRAW)
    assert (targets.loss_mask.sum(1) == time - 1).all()


def test_pads_may_stand_before_the_text():
    batch = Sequences(tokens=np.arange(6)[None], sample_ids=np.array([0]), attention_mask=np.arange(6)[None] > 2)
    assert objective("clm").apply(batch, DRAW).targets.tolist() == [[IGNORED] * 3 + [4, 5, IGNORED]]


def test_custom_targets_are_the_batchs_own():
    batch = sequences(50)
    targets = objective("custom").apply(batch, DRAW)
    assert np.array_equal(targets.targets, np.where(batch.attention_mask, batch.targets, IGNORED))
    with pytest.raises(ValueError, match="objective custom needs a batch with targets"):
        objective("custom").apply(replace(batch, targets=None), DRAW)


# Schedules and weights


@pytest.mark.parametrize("ends", [(0.15, 0.9), (0.9, 0.15), (0.01, 1.0)])
@pytest.mark.parametrize("kind", ["linear", "exponential", "cosine"])
def test_a_schedule_goes_from_one_end_to_the_other(kind, ends):
    first, last = ends
    ratios = MaskSchedule(kind, first, last).ratio(np.linspace(0, 1, 101))
    assert ratios[[0, -1]].tolist() == pytest.approx(ends)
    assert (np.diff(ratios) * (last - first) > 0).all()
    middle = math.sqrt(first * last) if kind == "exponential" else (first + last) / 2
    assert ratios[50] == pytest.approx(middle)
    quarter = {"linear": 0.75 * first + 0.25 * last, "exponential": first**0.75 * last**0.25}
    wave = first + (last - first) * (0.5 - math.sqrt(2) / 4)
    assert ratios[25] == pytest.approx(quarter.get(kind, wave))


def test_the_bound_weighs_every_ratio_alike():
    """Each token is asked with the chance of the ratio and weighs one over it: in expectation, every token counts once."""
    batch = sequences(20_000, has_pads=False)
    asker = objective("mlm", schedule="linear", mask_ratio=0.05, final_mask_ratio=1.0, loss_weighting="elbo")
    for time in (0.0, 0.5, 1.0):
        targets = asker.apply(batch, DRAW, time)
        weighted = (targets.loss_weights[:, None] * targets.loss_mask).mean()
        ratio = targets.mask_ratio[0]
        assert abs(weighted - 1) <= 4 * math.sqrt((1 - ratio) / ratio / targets.loss_mask.size)
    assert loss_weights("elbo", np.array([0.0, 0.25, 1.0])).tolist() == [0.0, 4.0, 1.0]
    assert (objective("mlm").apply(batch, DRAW).loss_weights == 1).all()


@pytest.mark.parametrize("time", [-0.01, 1.01, math.nan])
def test_time_is_within_its_bounds(time):
    with pytest.raises(ValueError, match=r"times must be in \[0, 1\]"):
        objective("mlm", schedule="linear").apply(sequences(3), DRAW, time)


# What fits which stacks, and what is refused


def test_an_objective_must_suit_the_stacks():
    objective("clm").check_stacks([True, True])
    objective("mlm").check_stacks([False, False])
    objective("custom").check_stacks([False, True])
    with pytest.raises(
        ValueError, match=r"objective clm needs causal stacks, but the stacks \[0, 2\] have mixers that look ahead"
    ):
        objective("clm").check_stacks([False, True, False])
    with pytest.warns(UserWarning, match=r"objective mlm: the stacks \[1\] are causal"):
        objective("mlm").check_stacks([False, True])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_token_id": -1}, "mask_token_id must be an integer, at least 0; got -1"),
        ({"mask_token_id": 12}, "mask_token_id must be at most vocab_size = 11; got 12"),
        ({"random_fraction": 1.1}, "0 <= random_fraction <= 1; got 1.1"),
        ({"keep_fraction": "0.1"}, "0 <= keep_fraction <= 1; got '0.1'"),
        ({"random_fraction": 0.6, "keep_fraction": 0.6}, r"at most 1; got 0.6 \+ 0.6"),
        ({"schedule": "square"}, "schedule must be one of constant, linear, exponential, cosine; got 'square'"),
        ({"mask_ratio": 1.5}, "0 <= mask_ratio <= 1; got 1.5"),
        ({"schedule": "linear", "final_mask_ratio": True}, "0 <= final_mask_ratio <= 1; got True"),
        ({"final_mask_ratio": 0.9}, "constant schedule has no final_mask_ratio.* constant got 0.9"),
        ({"schedule": "exponential", "mask_ratio": 0.0}, "exponential schedule needs ratios above 0; got 0.0 and 0.9"),
        ({"loss_weighting": "snr"}, "loss_weighting must be one of none, elbo; got 'snr'"),
        ({"loss_weighting": "elbo", "keep_fraction": 0.1}, "elbo is of masks alone"),
        ({"vocab_size": 1, "mask_token_id": 0, "random_fraction": 0.1}, "random_fraction needs a token beside the mask"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OBJECTIVES["mlm"](**{"vocab_size": VOCAB_SIZE, **options})


def test_a_misspelt_option_is_an_error_that_knows_better():
    with pytest.raises(ValidationError, match="unknown key 'mask_ration'; did you mean 'mask_ratio'"):
        OBJECTIVES.part({"kind": "mlm", "mask_ration": 0.3})
    part = OBJECTIVES.part({"kind": "mlm", "mask_ratio": 0.3})
    assert OBJECTIVES.build(part, vocab_size=VOCAB_SIZE).apply(sequences(3), DRAW).mask_ratio.tolist() == [0.3] * 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": np.zeros(4, dtype=int)}, r"tokens must be \[n, time\]; got the shape \[4\]"),
        ({"tokens": np.zeros((2, 4))}, r"tokens must be an integer array of the shape \[2, 4\]; got float64 \[2, 4\]"),
        ({"sample_ids": np.arange(3)}, r"sample_ids must be an integer array of the shape \[2\]; got int64 \[3\]"),
        (
            {"attention_mask": np.ones((2, 4), dtype=int)},
            r"attention_mask must be a bool array of the shape \[2, 4\]; got int64 \[2, 4\]",
        ),
        ({"targets": [[1, 2, 3, 4]] * 2}, r"targets must be an integer array of the shape \[2, 4\]; got list"),
    ],
)
def test_a_batch_has_arrays_that_fit(arrays, message):
    with pytest.raises(ValueError, match=message):
        Sequences(**{"tokens": np.zeros((2, 4), dtype=int), "sample_ids": np.arange(2), **arrays})

"""Masks by the time of a stack, out of any form of the configuration and any form of a batch."""

import doctest
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs import ConfigError
from configs.stackwise import StackWiseConfig
from tasks import IGNORED
from tasks.objectives.shared.masking import MaskSchedule
from tasks.samples import time_step_masking
from tasks.samples.loader_batches import as_sequences
from tasks.samples.time_step_masking import TimeStepMasking

DEPTH = {"time_interpretation": "depth", "time_per_stack": 100, "num_time_steps": 1101, "max_stacks": 12}
TOKENS = np.random.default_rng(0).integers(50, size=(64, 40))


def custom_time_mapping(stack_idx, max_stacks, num_time_steps):
    return stack_idx**2 * (num_time_steps - 1) / (max_stacks - 1) ** 2


def test_the_example_of_the_class():
    found = doctest.DocTestFinder().find(TimeStepMasking, "TimeStepMasking", globs={**vars(time_step_masking), "np": np})
    results = [doctest.DocTestRunner().run(example) for example in found]
    assert [result.failed for result in results] == [0] * len(results)
    assert sum(result.attempted for result in results) == 3


def as_config(form):
    if form == "flat mapping":
        return DEPTH
    if form == "nested mapping":
        return {"training": {"progressive": DEPTH, "seed": 0}, "model": {"vocab_size": 50}}
    if form == "flat object":
        return SimpleNamespace(**DEPTH, _private=3)
    if form == "nested object":
        return SimpleNamespace(training=SimpleNamespace(progressive=SimpleNamespace(**DEPTH)))
    config = StackWiseConfig.from_dict({"model": {"vocab_size": 50}, "training": {"progressive": DEPTH}})
    return {"config": config, "training": config.training, "progressive": config.training.progressive}[form]


@pytest.mark.parametrize(
    "form", ["flat mapping", "nested mapping", "flat object", "nested object", "config", "training", "progressive"]
)
def test_every_form_of_the_configuration_says_the_same(form):
    masking = TimeStepMasking(as_config(form))
    assert [masking.get_time_step_for_stack(stack_idx=index) for index in (0, 2, 11)] == [0, 200, 1100]
    assert masking.depth_time.table == tuple(range(0, 1101, 100))
    masks = masking.generate_masks_for_stack({"input_ids": TOKENS}, stack_idx=2)
    assert np.array_equal(masks, TimeStepMasking(DEPTH).generate_masks_for_stack(TOKENS, stack_idx=2))
    assert masking.vocab_size == (50 if form in ("nested mapping", "config") else None)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, np.ndarray.tolist])
def test_a_mask_is_bool_of_the_shape_of_the_batch(form):
    tokens = form(TOKENS)
    masking = TimeStepMasking(DEPTH)
    expected = masking.generate_masks_for_stack({"input_ids": TOKENS}, stack_idx=2)
    batches = [{"input_ids": tokens}, {"inputs": tokens, "other": "x"}, (tokens, tokens), [tokens]]
    for batch in batches if form is np.ndarray.tolist else [*batches, tokens]:
        masks = masking.generate_masks_for_stack(batch, stack_idx=2)
        assert isinstance(masks, np.ndarray)
        assert masks.dtype == bool
        assert np.array_equal(masks, expected)
    assert masks.shape == TOKENS.shape


@pytest.mark.parametrize("schedule", [None, "linear", "exponential", "cosine", "constant"])
def test_as_much_is_masked_as_the_schedule_says_at_the_stacks_time(schedule):
    options = {"mask_schedule": schedule, "mask_ratio": 0.15}
    masking = TimeStepMasking({**DEPTH, **options})
    expected = MaskSchedule(schedule or "linear", 0.15, None if schedule == "constant" else 0.9)
    for index in (0, 4, 8, 11):
        ratio = float(expected.ratio(index / 11))
        found = masking.generate_masks_for_stack(TOKENS, stack_idx=index).mean()
        assert found == pytest.approx(ratio, abs=4 * (ratio * (1 - ratio) / TOKENS.size) ** 0.5 + 1e-9)


def test_the_direction_of_noise_turns_stacks_round():
    masking = TimeStepMasking({**DEPTH, "noise_direction": "decreasing"})
    assert [masking.get_time_step_for_stack(index) for index in (0, 11)] == [1100, 0]
    assert masking.generate_masks_for_stack(TOKENS, 0).mean() > 0.8


@pytest.mark.parametrize("mapping", [custom_time_mapping, f"{__name__}:custom_time_mapping"])
def test_a_custom_mapping_is_a_function_or_its_place(mapping, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, __name__, SimpleNamespace(custom_time_mapping=custom_time_mapping))
    options = {"stack_time_mapping": "custom", "custom_time_mapping": mapping, "max_stacks": 5, "num_time_steps": 1001}
    masking = TimeStepMasking({**DEPTH, **options})
    assert [masking.get_time_step_for_stack(index) for index in range(5)] == [0, 62, 250, 562, 1000]


def test_the_exponential_mapping_does_not_saturate():
    masking = TimeStepMasking({**DEPTH, "stack_time_mapping": "exponential"})
    table = [masking.get_time_step_for_stack(index) for index in range(12)]
    assert (table[0], table[-1]) == (0, 1100)
    assert (np.diff(table) > 0).all()


def test_without_a_time_every_stack_has_time_0():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # so few time steps would not do for depth
        masking = TimeStepMasking({"mask_ratio": 0.3, "num_time_steps": 2})
    assert masking.get_time_step_for_stack(stack_idx=7) == 0
    assert masking.depth_time is None
    assert masking.generate_masks_for_stack(TOKENS, 7).mean() == pytest.approx(0.3, abs=0.04)
    with pytest.warns(UserWarning, match=r"\[0, 1, 1"):
        TimeStepMasking({**DEPTH, "num_time_steps": 2})


def test_where_time_is_an_input_it_is_drawn():
    masking = TimeStepMasking({"time_interpretation": "input", "num_time_steps": 10, "mask_ratio": 0.0, "final_mask_ratio": 1.0})
    steps = [masking.get_time_step_for_stack(stack_idx=2, step=step) for step in range(300)]
    assert set(steps) == set(range(10))
    assert steps[:20] == [masking.get_time_step_for_stack(stack_idx=2, step=step) for step in range(20)]
    for step in (0, 1, 2):  # the time that is told is that of the masks
        found = masking.generate_masks_for_stack(TOKENS, stack_idx=2, step=step).mean()
        assert found == pytest.approx(steps[step] / 9, abs=0.05)
    derived = TimeStepMasking({"time_interpretation": "input", "time_per_stack": 7, "max_stacks": 3})
    assert max(derived.get_time_step_for_stack(0, step=step) for step in range(300)) == 14
    by_sample = TimeStepMasking({**masking.options.growth().to_dict(), "time_sampling": "sample", "final_mask_ratio": 1.0})
    shares = by_sample.generate_masks_for_stack(TOKENS, stack_idx=2).mean(axis=1)
    assert shares.std() > 0.2


def test_masks_hang_on_seed_stack_sample_and_variant_and_on_nothing_else():
    masking = TimeStepMasking(DEPTH)
    masks = masking.generate_masks_for_stack(TOKENS, stack_idx=2)
    assert np.array_equal(masking.generate_masks_for_stack(TOKENS, stack_idx=2), masks)
    order = np.random.default_rng(1).permutation(64)[:9]
    assert np.array_equal(masking.generate_masks_for_stack(TOKENS[order], stack_idx=2), masks[order])
    assert len({tuple(row) for row in masks.tolist()}) > 60  # different samples, different masks
    others = [
        masking.generate_masks_for_stack(TOKENS, stack_idx=2, variant=1),
        masking.generate_masks_for_stack(TOKENS, stack_idx=3),
        TimeStepMasking(DEPTH, seed=1).generate_masks_for_stack(TOKENS, stack_idx=2),
        TimeStepMasking({"training": {"seed": 2, "progressive": DEPTH}}).generate_masks_for_stack(TOKENS, stack_idx=2),
        masking.generate_masks_for_stack({"input_ids": TOKENS, "sample_id": np.arange(64)}, stack_idx=2),
    ]
    for other in others:
        assert 0.5 < (other == masks).mean() < 0.8  # 0.62 by chance
    assert len({other.tobytes() for other in others}) == len(others)


@pytest.mark.parametrize("objective", ["clm", "custom"])
def test_other_objectives_ask_what_they_ask(objective):
    masking = TimeStepMasking({"training_objective": objective})
    attention_mask = np.arange(40) < np.arange(64)[:, None]
    targets = np.where(TOKENS < 20, IGNORED, TOKENS)
    masks = masking.generate_masks_for_stack(
        {"input_ids": TOKENS, "labels": targets, "attention_mask": attention_mask * 1}, stack_idx=0
    )
    followed = attention_mask & np.roll(attention_mask, -1, axis=1) & (np.arange(40) < 39)
    assert np.array_equal(masks, followed if objective == "clm" else attention_mask & (TOKENS >= 20))


@pytest.mark.parametrize("key", ["attention_mask", "keep"])
def test_pads_are_not_masked(key):
    attention_mask = np.arange(40) < np.arange(64)[:, None]
    masks = TimeStepMasking({"mask_ratio": 1.0}).generate_masks_for_stack({"input_ids": TOKENS, key: attention_mask}, stack_idx=0)
    assert np.array_equal(masks, attention_mask)


def test_samples_without_ids_are_named_by_their_tokens():
    ids = as_sequences(TOKENS).sample_ids
    assert len(set(ids.tolist())) == 64
    assert (ids >= 0).all()
    assert np.array_equal(as_sequences({"tokens": torch.from_numpy(TOKENS[::-1].copy()).int()}).sample_ids, ids[::-1])
    assert as_sequences({"input_ids": TOKENS[:2], "sample_ids": torch.tensor([[5], [3]])}).sample_ids.tolist() == [5, 3]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"time_interpretation": "width"}, "time_interpretation.*'none', 'input' or 'depth'"),
        ({"stack_time_mapping": "cubic"}, "stack_time_mapping"),
        ({"time_encoding_type": "spiral"}, "time_encoding_type"),
        ({"noise_direction": "up"}, "noise_direction"),
        ({"mask_schedule": "square"}, "mask_schedule"),
        ({"max_stacks": 0}, "max_stacks"),
        ({"mask_ratio": 1.2}, "mask_ratio"),
        ({"time_interpretatoin": "depth"}, "unknown key 'time_interpretatoin'; did you mean 'time_interpretation'"),
        ({"training": {"progressive": {"masks": 1}}}, "unknown key 'masks'"),
        ({"stack_time_mapping": "custom"}, "custom_time_mapping: stack_time_mapping custom needs a function"),
        (SimpleNamespace(time_interpretation="width"), "time_interpretation"),
        (SimpleNamespace(time_interpretatoin="depth"), "unknown key 'time_interpretatoin'; did you mean 'time_interpretation'"),
        (SimpleNamespace(**DEPTH, something_else=3), "unknown key 'something_else'"),
        (SimpleNamespace(training=SimpleNamespace(progressive=None)), "unknown key 'progressive'"),
        (None, "NoneType says nothing of how a rack grows"),
        ("depth", "str says nothing of how a rack grows"),
    ],
)
def test_what_does_not_exist_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        TimeStepMasking(config)


@pytest.mark.parametrize("more", [{}, {"target_stacks": 3}])
def test_stacks_above_the_last_one_have_its_time(more):
    """By max_stacks, however far the rack is meant to grow."""
    masking = TimeStepMasking({**DEPTH, "num_time_steps": None, **more})
    assert [masking.get_time_step_for_stack(index) for index in (0, 3, 11, 12, 40)] == [0, 300, 1100, 1100, 1100]
    assert masking.n_time_steps == 1101


def test_who_asks_says_what_the_mask_is():
    batch = as_sequences(TOKENS)
    with pytest.raises(ConfigError, match="mask_token_id: which token is the mask"):
        TimeStepMasking(DEPTH).apply(batch, 2)
    with pytest.raises(ConfigError, match=r"random_fraction = 0\.5 draws tokens below a vocab_size"):
        TimeStepMasking({**DEPTH, "mask_token_id": 7, "random_fraction": 0.5}).apply(batch, 2)
    by_size = TimeStepMasking(DEPTH, vocab_size=50).apply(batch, 2)
    by_token = TimeStepMasking({**DEPTH, "mask_token_id": 49}).apply(batch, 2)
    assert np.array_equal(by_size.inputs, by_token.inputs)
    assert by_size.inputs.max() == 49
    assert np.array_equal(TimeStepMasking(DEPTH).generate_masks_for_stack(TOKENS, 2), by_size.weights > 0)
    others = TimeStepMasking({"training_objective": "custom"}).apply(as_sequences((TOKENS, TOKENS)), 0)
    assert np.array_equal(others.targets, TOKENS)


def test_a_stack_that_cannot_be_is_refused():
    for index in (-1, 1.5):
        with pytest.raises(ValueError, match="stack_idx must be an integer, at least 0"):
            TimeStepMasking({}).get_time_step_for_stack(index)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"words": TOKENS}, "a batch needs tokens at one of input_ids, inputs, tokens; this one has words"),
        ((TOKENS, TOKENS, TOKENS), "a pair of tokens and targets; got 3 parts"),
        (TOKENS[0], r"tokens must be \[n, time\]; got the shape \[40\]"),
        (TOKENS / 2, "tokens must be an integer array"),
        ({"input_ids": TOKENS, "sample_id": [1, 2]}, r"sample_ids must be an integer array of the shape \[64\]"),
    ],
)
def test_a_batch_that_is_none_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        TimeStepMasking({}).generate_masks_for_stack(batch, stack_idx=0)

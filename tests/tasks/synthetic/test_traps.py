"""The corners of the suite where a re-implementation goes wrong."""

from pathlib import Path

import numpy as np
import pytest

from tasks import IGNORED, TASKS
from tests.tasks.synthetic.grid import CHANGES
from tests.tasks.synthetic.measures import measure

MAD_KEY_VALUES = Path(__file__).parents[2] / "data" / "mad" / "memorization_kvmap.npz"


def test_recall_trains_on_every_token_and_is_evaluated_on_repeated_keys_alone(rng):
    task = TASKS["in_context_recall"]()
    train = task.sample(rng, 200, "train")
    np.testing.assert_array_equal(train.targets[:, :-1], train.inputs[:, 1:])
    test = task.sample(rng, 200, "test")
    for tokens, targets in zip(test.inputs.tolist(), test.targets.tolist(), strict=True):
        seen = {}
        for place in range(0, 126, 2):
            key, value = tokens[place : place + 2]
            assert targets[place : place + 2] == [value if key in seen else IGNORED, IGNORED]
            assert seen.setdefault(key, value) == value
        assert targets[-1] == seen[tokens[-1]]


def test_recall_draws_again_where_noise_leaves_nothing_to_ask(rng):
    """The reference fails on every eighth instance of this setting."""
    task = TASKS["noisy_in_context_recall"](seq_len=8, frac_noise=0.8)
    inputs = task.sample(rng, 3000, "test").inputs
    assert (inputs[:, :-1] < task.vocab_size - task.noise_vocab_size).any(axis=1).all()


def test_the_slot_that_is_safe_from_noise_may_be_the_last(rng):
    """Of three slots one is safe; the last never has noise, so that with a chance of 1/3 neither of the others is safe."""
    task = TASKS["noisy_in_context_recall"](seq_len=6, frac_noise=0.5)
    inputs = task.sample(rng, 20_000, "test").inputs
    has_no_noise = (inputs < task.vocab_size - task.noise_vocab_size).all(axis=1)
    chance = (2 / 3 * 0.5 + 1 / 3 * 0.25) / (1 - 1 / 3 * 0.25)
    assert has_no_noise.mean() == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / 20_000))


def test_a_probe_can_be_guaranteed_and_is_not_by_default():
    plain = TASKS["fuzzy_in_context_recall"](seq_len=40)
    guaranteed = TASKS["fuzzy_in_context_recall"](seq_len=40, probe_is_shown=True)
    for split in ("train", "test"):
        shares = []
        for task in (plain, guaranteed):
            examples = task.sample(np.random.default_rng(1), 1000, split)
            measures = measure("fuzzy_in_context_recall", task, examples.inputs, examples.targets)
            shares.append(measures["final_query_never_shown_before"].mean())
        assert shares[0] > 0.02
        assert shares[1] == 0


def test_the_last_data_token_stands_before_the_copy_token(rng):
    inputs = TASKS["selective_copying"]().sample(rng, 100).inputs
    assert (inputs[:, 239] == 15).all()
    assert (inputs[:, 238] < 14).all()


def test_the_key_value_map_is_that_of_the_suite():
    stored = np.load(MAD_KEY_VALUES)
    keys, values = TASKS["memorization"]().key_values()
    np.testing.assert_array_equal(keys, stored["keys"])
    np.testing.assert_array_equal(values, stored["values"])
    other_keys, _ = TASKS["memorization"](map_seed=1).key_values()
    assert not np.array_equal(keys, other_keys)


def test_the_ceiling_of_memorization_is_the_share_of_keys_that_training_shows():
    ceilings = []
    for change in CHANGES["memorization"]:
        task = TASKS["memorization"](**change)
        ceilings.append(task.ceiling(256))
        counts = [len(np.unique(task.sample(np.random.default_rng(seed), 256).inputs)) - 1 for seed in range(20)]
        assert np.mean(counts) / task.n_keys == pytest.approx(ceilings[-1], abs=0.01)
    assert np.mean(ceilings) == pytest.approx(0.915, abs=0.002)


def test_without_multi_query_one_value_is_asked_after_a_copy_token(rng):
    for kind in ("in_context_recall", "noisy_in_context_recall", "fuzzy_in_context_recall"):
        task = TASKS[kind](multi_query=False)
        assert task.input_length == task.seq_len
        examples = task.sample(rng, 200, "test")
        supervised = examples.targets != IGNORED
        n_supervised = supervised.sum(axis=1)
        assert ((examples.inputs == task.vocab_size - 1).sum(axis=1) == 1).all()
        assert n_supervised.max() <= (3 if kind.startswith("fuzzy") else 1)
        assert all(row[-n:].all() for row, n in zip(supervised, n_supervised, strict=True))

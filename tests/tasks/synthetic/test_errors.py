"""Options that cannot go together: each rule is told with the values that break it."""

import pytest

from tasks import TASKS

RECALL, NOISY, FUZZY = "in_context_recall", "noisy_in_context_recall", "fuzzy_in_context_recall"

BROKEN = [
    (RECALL, {"seq_len": 127}, "seq_len must be even.* got 127"),
    (RECALL, {"seq_len": 2}, "seq_len must be an integer, at least 4; got 2"),
    (RECALL, {"vocab_size": 1}, "no keys and values left.* >= 2; got 1 - 0 - 0 = 1"),
    (RECALL, {"vocab_size": 2, "multi_query": False}, "no keys and values left.* got 2 - 0 - 1 = 1"),
    (NOISY, {"noise_vocab_size": 31}, "no keys and values left.* got 32 - 31 - 0 = 1"),
    (NOISY, {"noise_vocab_size": 40}, "no keys and values left.* got 32 - 40 - 0 = -8"),
    (NOISY, {"noise_vocab_size": 0}, "frac_noise=0.2 needs noise tokens"),
    (NOISY, {"frac_noise": 1.0}, "0 <= frac_noise < 1; got 1.0"),
    (NOISY, {"frac_noise": -0.2}, "0 <= frac_noise < 1; got -0.2"),
    (NOISY, {"seq_len": 2}, "seq_len must be an integer, at least 4; got 2"),
    (FUZZY, {"k_motif_size": 8}, "must not exceed the key and value tokens.* got 8, 3 > 7, 8 out of 16 - 0 - 1"),
    (FUZZY, {"v_motif_size": 9}, "must not exceed the key and value tokens.* got 3, 9 > 7, 8"),
    (FUZZY, {"vocab_size": 7, "multi_query": False}, "must not exceed.* got 3, 3 > 2, 3 out of 7 - 0 - 2"),
    (FUZZY, {"noise_vocab_size": 12}, "must not exceed.* got 3, 3 > 1, 2 out of 16 - 12 - 1"),
    (FUZZY, {"frac_noise": 0.2}, "frac_noise=0.2 needs noise tokens"),
    (FUZZY, {"seq_len": 12}, r"seq_len > 2 \* \(k_motif_size \+ v_motif_size\); got 12 <= 2 \* \(3 \+ 3\)"),
    (FUZZY, {"vocab_size": 128, "k_motif_size": 10}, r"too many keys.* < 2 \*\* 60; got 64 \*\* 10 \* 128"),
    ("memorization", {"seq_len": 31}, "seq_len must be even.* got 31"),
    ("memorization", {"vocab_size": 2}, "vocab_size must be an integer, at least 3; got 2"),
    ("compression", {"seq_len": 1}, "seq_len must be an integer, at least 2; got 1"),
    ("compression", {"vocab_size": 1}, "vocab_size must be an integer, at least 2; got 1"),
    ("selective_copying", {"seq_len": 33}, r"too short for what must be copied.* got 33 <= 2 \* 16 \+ 1"),
    ("selective_copying", {"n_tokens_to_copy": 128}, r"seq_len > 2 \* n_tokens_to_copy \+ 1; got 256 <= 2 \* 128 \+ 1"),
    ("selective_copying", {"n_tokens_to_copy": 0}, "n_tokens_to_copy must be an integer, at least 1; got 0"),
    ("selective_copying", {"vocab_size": 2}, "vocab_size must be an integer, at least 3; got 2"),
    ("state_tracking", {"group": "S5"}, "vocab_size must be at least 120, the elements of S5; got 60"),
    ("state_tracking", {"group": "A4"}, "group must be one of A5, S5, Z60; got 'A4'"),
    ("needle", {"depth": 1.01}, "0 <= depth <= 1, or null; got 1.01"),
    ("needle", {"seq_len": 2}, "seq_len must be an integer, at least 3; got 2"),
    ("addition", {"seq_len": 25}, "seq_len must be a multiple of 3.* got 25"),
    ("addition", {"seq_len": 3}, "seq_len must be an integer, at least 6; got 3"),
    ("addition", {"vocab_size": 3}, "vocab_size must be an integer, at least 4; got 3"),
    ("text", {"vocab_size": 256}, "vocab_size must be 257 with tokenizer bytes.* got 256"),
    ("text", {"vocab_size": 257, "tokenizer": "bpe"}, "vocab_size must be over 257 with tokenizer bpe.* got 257"),
    ("text", {"tokenizer": "words"}, "tokenizer must be one of bytes, bpe, or {model: PATH}; got 'words'"),
    ("text", {"validation_fraction": 0.5}, "0 <= validation_fraction < 0.5; got 0.5"),
    ("text", {"files": ()}, r"files must be a path, .* got \(\)"),
    ("text", {"files": ["a.txt", 3]}, r"files must be a path, .* got \('a.txt', 3\)"),
    ("text", {"max_bytes": 0}, "max_bytes must be an integer, at least 1; got 0"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BROKEN)
def test_the_rule_and_the_values_are_told(kind, options, message):
    with pytest.raises(ValueError, match=message):
        TASKS[kind](**options)


ON_THE_EDGE = [
    (RECALL, {"vocab_size": 2, "seq_len": 4}),
    (RECALL, {"vocab_size": 3, "seq_len": 4, "multi_query": False}),
    (NOISY, {"vocab_size": 3, "noise_vocab_size": 1, "seq_len": 4, "frac_noise": 0.99}),
    (NOISY, {"frac_noise": 0.0, "noise_vocab_size": 0}),
    (FUZZY, {"vocab_size": 7, "seq_len": 13}),
    (FUZZY, {"vocab_size": 8, "seq_len": 13, "multi_query": False, "probe_is_shown": True}),
    (FUZZY, {"vocab_size": 3, "seq_len": 5, "k_motif_size": 1, "v_motif_size": 1, "probe_is_shown": True}),
    ("memorization", {"vocab_size": 3, "seq_len": 2}),
    ("compression", {"vocab_size": 2, "seq_len": 2}),
    ("state_tracking", {"seq_len": 1}),
    ("needle", {"vocab_size": 3, "seq_len": 3, "depth": 1}),
    ("addition", {"vocab_size": 4, "seq_len": 6}),
    ("selective_copying", {"vocab_size": 3, "seq_len": 4, "n_tokens_to_copy": 1}),
]


@pytest.mark.parametrize(("kind", "options"), ON_THE_EDGE)
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_the_rules_allow_can_be_drawn(kind, options, split, rng):
    task = TASKS[kind](**options)
    inputs = task.sample(rng, 500, split).inputs
    assert inputs.shape == (500, task.input_length)
    assert inputs.min() >= 0
    assert inputs.max() < task.vocab_size

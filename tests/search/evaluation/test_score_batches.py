"""Scoring by the walk of the trie: the same numbers as one placement at a time, from fewer evaluations, in bounded memory."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from configs import ConfigError
from search.evaluation.memory_count import peak_bytes
from search.evaluation.reference import teacher_of
from search.evaluation.score_batches import evaluating, score_batches
from search.evaluation.trie import PlacementTrie
from tests.search import spaces

TOLERANCE = 1e-5


def scored(net, chosen, pairs, metric="loss", **keys):
    return score_batches(net, chosen, {"task": pairs}, metric, **keys)["task"]


def accuracy(logits, targets):
    supervised = targets != -100
    return (logits.argmax(-1) == targets)[supervised].double().mean()


def kl(logits, targets, expected):
    supervised = targets != -100
    return -F.kl_div(
        logits[supervised].log_softmax(-1), expected[supervised].log_softmax(-1), log_target=True, reduction="batchmean"
    )


@pytest.mark.parametrize("n", [1, 2, 17])
@pytest.mark.parametrize("mlp", [None, "stochastic"])
def test_the_walk_gives_the_losses_of_one_placement_at_a_time(n, mlp):
    net, pairs = spaces.supernet(mlp=mlp), spaces.batches()
    chosen = spaces.placements(net.slots, n)
    expected = spaces.one_at_a_time(net, chosen, pairs)
    assert n == 1 or expected.std(0).min() > 1e-3  # placements differ by far more than the tolerance
    np.testing.assert_allclose(scored(net, chosen, pairs), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_fixed_blocks_post_norms_scales_and_a_tied_head_are_walked_too():
    attention = {"kind": "attention", "n_heads": 2}
    open_mixer = {"kind": "stochastic", "main": "linear", "mixers": spaces.MIXERS}
    fixed = {"mixer": attention, "mlp": {"kind": "mlp", "d_ff": 8}, "share": "twice", "mixer_post_norm": "rmsnorm"}
    blocks = [fixed, {"mixer": open_mixer, "output_scale": 0.5}, {"mlp": {"kind": "swiglu"}}, fixed, {"mixer": open_mixer}]
    net, pairs = spaces.supernet(stacks=[{"blocks": blocks[:2]}, {"blocks": blocks[2:]}], tie_embeddings=True), spaces.batches()
    chosen = spaces.placements(net.slots, 9)
    np.testing.assert_allclose(
        scored(net, chosen, pairs), spaces.one_at_a_time(net, chosen, pairs), rtol=TOLERANCE, atol=TOLERANCE
    )


def test_accuracy_is_the_share_of_right_answers_among_the_asked():
    net, pairs = spaces.supernet(), spaces.batches(batch_size=8, seq_len=20)
    chosen = spaces.placements(net.slots, 6)
    expected = spaces.one_at_a_time(net, chosen, pairs, accuracy)
    assert expected.std() > 0
    np.testing.assert_allclose(scored(net, chosen, pairs, "accuracy"), expected, atol=1e-12)


def test_kl_is_measured_to_the_main_placement_and_is_zero_for_itself():
    net, pairs = spaces.supernet(), spaces.batches()
    chosen = [*spaces.placements(net.slots, 6), net.main]
    found = scored(net, chosen, pairs, "kl")
    net.activate(net.main)
    with torch.no_grad():
        expected = {inputs: net(inputs) for inputs, _ in pairs}
    for index, (inputs, targets) in enumerate(pairs):
        score = partial(kl, expected=expected[inputs])
        np.testing.assert_allclose(
            found[:, index], spaces.one_at_a_time(net, chosen, [(inputs, targets)], score)[:, 0], rtol=TOLERANCE, atol=TOLERANCE
        )
    assert (found[-1] == 0).all()
    assert (found[:-1] < 0).all()


def test_kl_to_a_teacher_that_finds_some_tokens_impossible():
    net, pairs = spaces.supernet(), spaces.batches()
    teacher = spaces.supernet(seed=1).eval()

    def masked(tokens):
        logits = teacher(tokens).clone()
        logits[..., 3] = -math.inf
        return logits

    chosen = spaces.placements(net.slots, 3)
    found = scored(net, chosen, pairs, "kl", reference=teacher_of(masked))
    inputs = pairs[0][0]
    with torch.no_grad():
        expected = masked(inputs)
    expected[..., 3] = -1e9
    score = partial(kl, expected=expected)
    np.testing.assert_allclose(
        found[:, 0], spaces.one_at_a_time(net, chosen, pairs[:1], score)[:, 0], rtol=TOLERANCE, atol=TOLERANCE
    )


def test_tasks_keep_their_own_lengths_and_batches_their_own_sizes():
    net = spaces.supernet()
    chosen = spaces.placements(net.slots, 5)
    uneven = [*spaces.batches(2, batch_size=3, seq_len=6), *spaces.batches(1, batch_size=5, seq_len=9)]
    found = score_batches(net, chosen, {"short": spaces.batches(seq_len=5), "uneven": uneven})
    np.testing.assert_allclose(
        found["short"], spaces.one_at_a_time(net, chosen, spaces.batches(seq_len=5)), rtol=TOLERANCE, atol=TOLERANCE
    )
    np.testing.assert_allclose(found["uneven"], spaces.one_at_a_time(net, chosen, uneven), rtol=TOLERANCE, atol=TOLERANCE)


def test_answers_come_in_the_order_asked_and_twins_are_computed_once():
    net, pairs = spaces.supernet(), spaces.batches()
    first, second, third = spaces.placements(net.slots, 3)
    found = scored(net, [third, first, second, first], pairs)
    alone = [scored(net, [each], pairs)[0] for each in (third, first, second, first)]
    np.testing.assert_allclose(found, alone, rtol=TOLERANCE, atol=TOLERANCE)
    assert PlacementTrie(net, [first, first]).n_nodes == 4


# How much is computed.


def count_rows(net):
    """The rows that go through any block, and the calls."""
    seen = []
    for block in net.rack.blocks():
        block.register_forward_hook(lambda _block, given, _out: seen.append(len(given[0])))
    return seen


def test_every_node_is_computed_once_and_nodes_of_one_key_in_one_call():
    net, pairs = spaces.supernet(), spaces.batches(1, batch_size=4)
    chosen = spaces.placements(net.slots, 20)
    prefixes = {placement[:depth] for placement in chosen for depth in range(1, 5)}
    alike = {(len(prefix), prefix[-1]) for prefix in prefixes}
    scored(net, chosen, pairs)  # once, so that what blocks need is measured
    seen = count_rows(net)
    scored(net, chosen, pairs)
    assert sum(seen) == 4 * len(prefixes) == 4 * PlacementTrie(net, chosen).n_nodes
    assert len(seen) == len(alike)


def test_blocks_before_the_first_difference_run_once():
    net, pairs = spaces.supernet(n_blocks=6), spaces.batches(1, batch_size=4)
    chosen = [("attention",) * 5 + (last,) for last in spaces.MIXERS]
    scored(net, chosen, pairs)
    seen = count_rows(net)
    scored(net, chosen, pairs)
    assert seen == [4] * 8


def test_small_batches_are_walked_together():
    net, pairs = spaces.supernet(n_blocks=2), spaces.batches(32, batch_size=2)
    scored(net, [net.main], pairs)
    seen = count_rows(net)
    scored(net, [net.main], pairs)
    assert seen == [64, 64]


@pytest.mark.parametrize("n_blocks", [28, 48])
def test_a_beam_of_12_takes_a_fraction_of_the_block_evaluations(n_blocks):
    """The spec counts 2.4 to 2.6 times fewer over a whole search; here, a search by a landscape that likes every layer alike."""
    slots = spaces.space(n_blocks=n_blocks).slots()
    generator = np.random.default_rng(0)
    gain = generator.normal(size=n_blocks)
    beam, nodes, alone = [frozenset()], 0, 0
    for _ in range(n_blocks // 4):
        grown = list({chosen | {layer} for chosen in beam for layer in range(n_blocks) if layer not in chosen})
        placements = [tuple("attention" if layer in chosen else "linear" for layer in range(n_blocks)) for chosen in grown]
        nodes += len({placement[:depth] for placement in placements for depth in range(1, n_blocks + 1)})
        alone += len(placements) * n_blocks
        beam = sorted(grown, key=lambda chosen: -sum(gain[layer] for layer in chosen) + generator.normal() * 0.3)[:12]
    assert len(slots) == n_blocks
    assert alone / nodes > 2.0


# Memory.


@pytest.mark.parametrize(("metric", "share"), [("loss", 0.5), ("loss", 0.1), ("loss", 0.03), ("kl", 0.1)])
def test_no_more_is_held_than_allowed_and_the_numbers_stay(metric, share):
    """Every tensor that is made and lives is counted, whoever holds it; without a bound it would be the whole."""
    net, pairs = spaces.supernet(n_blocks=3), spaces.batches(2, batch_size=8, seq_len=12)
    chosen = spaces.placements(net.slots, 14)
    found = []
    whole = peak_bytes(lambda: found.append(scored(net, chosen, pairs, metric)))
    allowed = int(share * whole)
    peak = peak_bytes(lambda: found.append(scored(net, chosen, pairs, metric, max_eval_memory=allowed)))
    own_copies = 2 * sum(tensor.nbytes for pair in pairs for tensor in pair)
    assert peak <= allowed + own_copies
    np.testing.assert_allclose(found[1], found[0], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_level_that_does_not_fit_goes_depth_first_and_computes_nothing_twice():
    net = spaces.supernet(n_blocks=4)
    trie = PlacementTrie(net, spaces.placements(net.slots, 20))
    state = torch.randn(2, 5, 16)
    seen = count_rows(net)
    with torch.no_grad(), evaluating(net):
        whole = _run(trie, state, trie.peak, 100)
        for n_states in (trie.least, trie.least + 3, trie.peak - 1):
            seen.clear()
            found = _run(trie, state, n_states, 3)
            assert sum(seen) == 2 * trie.n_nodes
            for (placement, last), (expected_placement, expected) in zip(found, whole, strict=True):
                assert placement == expected_placement
                torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-5)


def _run(trie, state, n_states, n_at_once):
    """Leaves in lexicographic order."""
    found = []
    trie.run(state, found.extend, n_states=n_states, n_at_once=n_at_once)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_walk_holds_no_more_states_than_it_may(seed):
    net = spaces.supernet(n_blocks=5)
    trie = PlacementTrie(net, spaces.placements(net.slots, 10 * seed + 2, seed))
    for block in net.rack.blocks():
        block.forward = lambda x: x + 1  # one state in, one state out, nothing inside
    for n_states in (trie.least, trie.least + 1, trie.least + 4, trie.peak):
        held = peak_bytes(lambda n=n_states: trie.run(torch.zeros(1, 10), lambda _: None, n_states=n, n_at_once=1))
        assert held <= n_states * 40


def test_logits_that_do_not_fit_are_made_some_rows_at_a_time():
    net, pairs = spaces.supernet(vocab_size=5000, n_blocks=2), spaces.batches(2, batch_size=8, seq_len=20, vocab_size=5000)
    chosen = spaces.placements(net.slots, 6)
    expected = spaces.one_at_a_time(net, chosen, pairs)
    logits = 4 * 8 * 20 * 5000
    found = []
    peak = peak_bytes(lambda: found.append(scored(net, chosen, pairs, max_eval_memory=logits)))
    assert peak <= logits * 1.02
    np.testing.assert_allclose(found[0], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_sequence_that_does_not_fit_at_all_is_an_error_that_says_what_would():
    net, pairs = spaces.supernet(n_blocks=6), spaces.batches(1)
    chosen = spaces.placements(net.slots, 9)
    with pytest.raises(ConfigError, match=r"max_eval_memory: 1,000 bytes are too few.* takes ([\d,]+)") as raised:
        scored(net, chosen, pairs, max_eval_memory=1000)
    enough = int(str(raised.value).rpartition(" ")[2].replace(",", ""))
    np.testing.assert_allclose(
        scored(net, chosen, pairs, max_eval_memory=enough),
        spaces.one_at_a_time(net, chosen, pairs),
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


# What is left behind.


def test_the_supernet_is_left_as_it_was_found():
    net, pairs = spaces.supernet(dropout=0.5), spaces.batches()
    net.train()
    net.rack.blocks()[1].eval()  # frozen, by whoever trains
    active = spaces.placements(net.slots, 1)[0]
    net.activate(active)
    modes = [module.training for module in net.modules()]
    chosen = spaces.placements(net.slots, 4)
    first = scored(net, chosen, pairs)
    np.testing.assert_array_equal(first, scored(net, chosen, pairs))  # nothing is dropped out
    assert net.active == active
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(ConfigError):
        scored(net, chosen, pairs, max_eval_memory=10)
    assert net.active == active
    assert [module.training for module in net.modules()] == modes


def test_training_goes_on_after_scoring():
    net, pairs = spaces.supernet(), spaces.batches()
    scored(net, spaces.placements(net.slots, 4), pairs)
    net.train()
    net(pairs[0][0]).sum().backward()  # a tensor kept from inference mode would not have it
    assert net.rack.embedding.weight.grad is not None


def test_a_batch_that_asks_nothing_is_an_error():
    net, pairs = spaces.supernet(), spaces.batches()
    silent = [*pairs, (pairs[0][0], torch.full_like(pairs[0][1], -100))]
    with pytest.raises(ConfigError, match="evaluation batch 3 of 'task' asks nothing"):
        scored(net, [net.main], silent)


def test_bf16_scores_are_near_the_exact_ones():
    net, pairs = spaces.supernet(scale=1.0), spaces.batches()
    chosen = spaces.placements(net.slots, 4)
    np.testing.assert_allclose(scored(net, chosen, pairs, precision="bf16"), scored(net, chosen, pairs), atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(precision):
    net, pairs = spaces.supernet(scale=1.0), spaces.batches()
    chosen = spaces.placements(net.slots, 8)
    expected = spaces.one_at_a_time(net, chosen, pairs)
    on_gpu = [(inputs.cuda(), targets.cuda()) for inputs, targets in pairs]
    found = scored(net.cuda(), chosen, on_gpu, precision=precision)
    np.testing.assert_allclose(found, expected, atol=1e-3 if precision == "fp32" else 0.05)

"""Metrics against worked examples and against the same thing said dumbly."""

import math

import pytest
import torch
from torch.nn import functional as F

from search.training import metrics
from tasks import IGNORED

TARGETS = [0, 0, 1, 1, 2, 3, 4, 5, 6, 7]


def logits_for(predictions, vocab_size=9, sure=5.0):
    """Logits [time, vocab_size] whose largest is the prediction."""
    return sure * F.one_hot(torch.tensor(predictions), vocab_size).float()


def one(predictions, targets, **keys):
    """The metrics of one model on one batch of one sequence."""
    sums = metrics.batch_sums(logits_for(predictions, **keys)[None, None], torch.tensor(targets)[None])
    return {name: value.item() for name, value in sums.items()}


@pytest.mark.parametrize(
    ("wrong", "macro"),
    [
        (7, 0.9375),  # a class that is among the targets: (1/2 + 7) / 8
        (8, 0.8333),  # one that is not counts as a class of its own with zero recall: (1/2 + 7 + 0) / 9
    ],
)
def test_the_worked_example(wrong, macro):
    """Ten targets, one error."""
    found = one([wrong, *TARGETS[1:]], TARGETS)
    assert found["macro_accuracy"] == pytest.approx(macro, abs=5e-5)
    assert found["n_correct"] / found["n_supervised"] == pytest.approx(0.9)


def reference_macro(predictions, targets):
    """The mean recall over the classes that occur, said with sets; positions that are not asked do not count."""
    pairs = [(p, t) for p, t in zip(predictions, targets, strict=True) if t != IGNORED]
    classes = {p for p, _ in pairs} | {t for _, t in pairs}
    recalls = []
    for label in classes:
        supervised = [p for p, t in pairs if t == label]
        recalls.append(sum(p == label for p in supervised) / len(supervised) if supervised else 0.0)
    return sum(recalls) / len(recalls)


@pytest.mark.parametrize("seed", range(5))
def test_macro_accuracy_against_sets(seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 5, (30,), generator=generator)
    predictions = torch.where(torch.rand(30, generator=generator) < 0.4, torch.randint(0, 7, (30,), generator=generator), targets)
    targets[torch.rand(30, generator=generator) < 0.3] = IGNORED
    found = one(predictions.tolist(), targets.tolist(), vocab_size=8)
    assert found["macro_accuracy"] == pytest.approx(reference_macro(predictions.tolist(), targets.tolist()))


def test_what_is_not_asked_does_not_count():
    targets = [0, IGNORED, 1, IGNORED]
    first, second = one([0, 5, 1, 4], targets), one([0, 1, 1, 0], targets)
    for name in ("n_supervised", "n_correct", "macro_accuracy"):
        assert first[name] == second[name]
    assert first["n_supervised"] == 2
    assert first["macro_accuracy"] == 1.0
    assert first["mean_loss"] == pytest.approx(second["mean_loss"])


def batches_of(sizes, time=7, vocab_size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        inputs = torch.randn(size, time, vocab_size, generator=generator)
        targets = torch.randint(0, vocab_size, (size, time), generator=generator)
        targets[torch.rand(size, time, generator=generator) < 0.4] = IGNORED
        targets[:, 0] = 1
        yield inputs, targets


def test_micro_is_over_positions_and_the_others_over_batches_by_size():
    batches = list(batches_of([8, 8, 3]))
    found = {name: value.item() for name, value in metrics.evaluate(lambda x: x[None], batches).items()}
    assert set(found) == set(metrics.NAMES)
    logits, targets = (torch.cat([batch[index].flatten(0, 1) for batch in batches]) for index in (0, 1))
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, targets, ignore_index=IGNORED).item(), rel=1e-5)
    supervised = targets != IGNORED
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == targets)[supervised].double().mean().item())
    losses = [F.cross_entropy(x.mT, y, ignore_index=IGNORED).item() for x, y in batches]
    macros = [reference_macro(x.argmax(-1).flatten().tolist(), y.flatten().tolist()) for x, y in batches]

    def weighted(values):
        return sum(size * value for size, value in zip((8, 8, 3), values, strict=True)) / 19

    assert found["batch_loss"] == pytest.approx(weighted(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(weighted([math.exp(loss) for loss in losses]), rel=1e-5)
    assert found["macro_accuracy"] == pytest.approx(weighted(macros), rel=1e-5)
    assert found["perplexity"] > math.exp(found["batch_loss"])  # the mean of exp is not exp of the mean
    assert found["macro_accuracy"] != pytest.approx(found["accuracy"], abs=1e-3)
    assert found["loss"] != pytest.approx(found["batch_loss"], abs=1e-5)


def test_several_models_at_once_are_one_at_a_time():
    batches = list(batches_of([8, 5]))
    scales = torch.tensor([1.0, 0.3, -2.0]).view(3, 1, 1, 1)
    together = metrics.evaluate(lambda x: scales * x, batches)
    for index in range(3):
        alone = metrics.evaluate(lambda x, index=index: scales[index, None] * x, batches)
        for name in metrics.NAMES:
            assert together[name][index].item() == pytest.approx(alone[name].item(), rel=1e-5), name


def test_several_models_with_their_own_targets():
    own = [list(batches_of([8, 5], seed=seed)) for seed in (0, 1)]
    stacked = [tuple(torch.stack(parts) for parts in zip(*pair, strict=True)) for pair in zip(*own, strict=True)]
    together = metrics.evaluate(lambda x: x, stacked)
    for index, batches in enumerate(own):
        alone = metrics.evaluate(lambda x: x[None], batches)
        for name in metrics.NAMES:
            assert together[name][index].item() == pytest.approx(alone[name].item(), rel=1e-5), name


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("is_shared", [True, False])
def test_training_losses_are_means_over_what_is_asked(n_models, is_shared):
    drawn = [next(batches_of([6], seed=seed)) for seed in range(n_models)]
    logits = torch.stack([inputs for inputs, _ in drawn])
    targets = drawn[0][1] if is_shared else torch.stack([targets for _, targets in drawn])
    losses = metrics.token_losses(logits, targets)
    for index in range(n_models):
        own = targets if is_shared else targets[index]
        assert losses[index].item() == pytest.approx(
            F.cross_entropy(logits[index].mT, own, ignore_index=IGNORED).item(), rel=1e-5
        )


def test_losses_of_half_precision_logits_are_summed_in_float32():
    (inputs, targets), *_ = batches_of([64], time=50)
    half = inputs.bfloat16()
    assert metrics.token_losses(half[None], targets).dtype == torch.float32
    exact = metrics.evaluate(lambda _: half.double()[None], [(inputs, targets)])["loss"].item()
    assert metrics.evaluate(lambda _: half[None], [(inputs, targets)])["loss"].item() == pytest.approx(exact, rel=1e-5)


def test_evaluation_keeps_no_graph():
    weight = torch.ones(1, requires_grad=True)
    found = metrics.evaluate(lambda x: (x * weight)[None], batches_of([4]))
    assert not any(value.requires_grad for value in found.values())

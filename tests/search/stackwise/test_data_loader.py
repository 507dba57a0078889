"""The loader of a stage: masks that are new in every epoch and the same in every run, hidden states of the same samples."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from configs import ConfigError
from configs.stackwise import StackWiseConfig
from search.activations.cache import ActivationCache
from search.activations.key import CacheKey
from search.activations.trunk import Trunk
from search.jobs.progressive.training.batches import GrowthBatches
from search.stackwise.data_loader import ProgressiveDataLoader, compute_loss
from tasks.samples.samples import ArraySamples
from tasks.samples.time_step_masking import TimeStepMasking

N, TIME, VOCAB_SIZE, D_MODEL = 13, 10, 17, 6
TOKENS = torch.randint(VOCAB_SIZE, (N, TIME), generator=torch.Generator().manual_seed(0))
TARGETS = TOKENS.flip(1)
KEYS = {"input_ids", "targets", "training_objective", "combined_masks", "masks", "clm_mask", "weights", "attention_mask"}
KEYS |= {"sample_id", "masking_ids", "stack_idx", "time_step", "hidden", "trunk_activations"}
INPUT = {"time_interpretation": "input", "num_time_steps": 9, "time_sampling": "sample"}


class Rows(torch.utils.data.Dataset):
    def __init__(self, *, has_ids):
        self.has_ids = has_ids

    def __len__(self):
        return N

    def __getitem__(self, row):
        ids = {"sample_id": row} if self.has_ids else {}
        return {"input_ids": TOKENS[row], "labels": TARGETS[row], "attention_mask": torch.arange(TIME) < 3 + row, **ids}


def shuffled_loader(*, has_ids=True, seed=0):
    return DataLoader(Rows(has_ids=has_ids), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(seed))


def masking_of(seed=0, **options):
    tree = {"model": {"vocab_size": VOCAB_SIZE}, "training": {"progressive": {"mask_ratio": 0.4, **options}, "seed": seed}}
    if options.get("training_objective", "mlm") != "mlm":
        del tree["training"]["progressive"]["mask_ratio"]
    return TimeStepMasking(StackWiseConfig.from_dict(tree))


def loader_of(base=None, *, stack_idx=1, seed=0, trunk_activations=None, cache_activations=True, **options):
    return ProgressiveDataLoader(
        base_dataloader=base or shuffled_loader(),
        masking_strategy=masking_of(seed, **options),
        stack_idx=stack_idx,
        trunk_activations=trunk_activations,
        cache_activations=cache_activations,
    )


def by_sample(batches, *names):
    """What samples have under these names, in the order of their ids."""
    batches = list(batches)
    ids = torch.cat([batch["sample_id"] for batch in batches])
    order = ids.argsort()
    return [torch.cat([batch[name] for batch in batches])[order] for name in ("sample_id", *names)]


class Below(nn.Module):
    """A trunk that mixes positions and counts what it is asked for."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding, self.out = nn.Embedding(VOCAB_SIZE + 1, D_MODEL), nn.Linear(D_MODEL, D_MODEL)
        self.n_rows = 0

    def forward(self, tokens):
        self.n_rows += len(tokens)
        time = tokens[:, TIME:].sum(1)[:, None, None]
        return self.out(self.embedding(tokens[:, :TIME]).cumsum(1)) + time


def cache_of(module, *, n_rows=10 * N, mode="memory"):
    trunk = Trunk(module)
    key = CacheKey(trunk_hash=trunk.hash, data="rows", dtype="float32", time=TIME, d_model=D_MODEL)
    return ActivationCache(key, trunk, mode=mode, n_rows=n_rows)


def plain(module, inputs):
    with torch.no_grad():
        return torch.cat([module(row[None]) for row in inputs])


@pytest.mark.parametrize("objective", ["mlm", "clm", "custom"])
def test_a_batch_has_all_that_is_promised(objective):
    loader = loader_of(training_objective=objective)
    assert len(loader) == 4
    batches = list(loader)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 4, 1]
    for batch in batches:
        assert set(batch) == KEYS
        assert batch["training_objective"] == objective
        assert batch["stack_idx"] == 1
        assert [batch[name].dtype for name in ("input_ids", "targets", "sample_id")] == [torch.int64] * 3
        assert [batch[name].dtype for name in ("combined_masks", "masks", "clm_mask", "attention_mask")] == [torch.bool] * 4
        assert batch["combined_masks"].shape == batch["masks"].shape == batch["weights"].shape == batch["input_ids"].shape
        assert batch["clm_mask"].tolist() == [True] * (TIME - 1) + [objective != "clm"]
        assert torch.equal(batch["combined_masks"], batch["targets"] != -100)
        assert not batch["combined_masks"][~batch["attention_mask"]].any()
        assert (batch["time_step"], batch["hidden"], batch["trunk_activations"]) == (None, None, None)
        clean = TOKENS[batch["sample_id"]]
        if objective == "mlm":
            assert torch.equal(batch["masks"], batch["combined_masks"])
            assert torch.equal(batch["input_ids"], torch.where(batch["masks"], VOCAB_SIZE - 1, clean))
            assert torch.equal(batch["targets"], torch.where(batch["masks"], clean, -100))
        else:
            assert torch.equal(batch["input_ids"], clean)
            assert not batch["masks"].any()
    if objective == "custom":
        sample_id, targets, attention_mask = by_sample(batches, "targets", "attention_mask")
        assert torch.equal(targets, torch.where(attention_mask, TARGETS[sample_id], -100))
    if objective == "clm":
        _, targets, attention_mask = by_sample(batches, "targets", "attention_mask")
        follows = attention_mask[:, 1:]
        assert torch.equal(targets[:, :-1], torch.where(follows, TOKENS[:, 1:], -100))
        assert (targets[:, -1] == -100).all()


def test_masks_are_those_of_the_strategy():
    loader = loader_of(time_interpretation="depth", max_stacks=5)
    for batch in loader:
        given = {
            "input_ids": TOKENS[batch["sample_id"]],
            "attention_mask": batch["attention_mask"],
            "sample_id": batch["sample_id"],
        }
        assert np.array_equal(batch["masks"], loader.masking_strategy.generate_masks_for_stack(given, stack_idx=1))
        assert (batch["time_step"] == 100).all()


def test_what_growth_trains_on_is_masked_the_same():
    samples = ArraySamples(
        TOKENS.numpy(), vocab_size=VOCAB_SIZE, attention_mask=(torch.arange(TIME) < 3 + torch.arange(N)[:, None]).numpy()
    )
    for options in ({}, {**INPUT, "final_mask_ratio": 1.0, "loss_weighting": "elbo"}):
        masking = masking_of(3, **options)
        how = {"stage": 1, "time": masking.stage_time(1), "batch_size": N, "seed": 3, "device": torch.device("cpu")}
        batches = GrowthBatches(samples, masking.objective(), **how)
        base = [
            {
                "input_ids": TOKENS,
                "sample_id": torch.arange(N),
                "attention_mask": torch.from_numpy(samples.sequences("train", np.arange(N)).attention_mask),
            }
        ]
        loader = loader_of(base, seed=3, **options)
        for epoch in range(2):
            (batch,), own = list(loader), batches.rows(np.arange(N), epoch)
            assert torch.equal(batch["input_ids"], own.inputs)
            assert torch.equal(batch["targets"], own.targets)
            assert torch.equal(batch["weights"], own.weights)
            assert (batch["time_step"] is None and own.time_steps is None) or torch.equal(batch["time_step"], own.time_steps)


@pytest.mark.parametrize("has_ids", [True, False])
def test_masks_are_new_in_every_epoch_and_the_same_in_every_run(has_ids):
    loader, again = (loader_of(shuffled_loader(has_ids=has_ids, seed=seed)) for seed in (0, 5))
    epochs = [by_sample(loader, "input_ids", "masking_ids") for _ in range(3)]
    for epoch, (sample_id, inputs, masking_ids) in enumerate(epochs):
        assert (masking_ids == epoch).all()
        others = by_sample(again, "input_ids")  # in another order
        assert torch.equal(others[0], sample_id)
        assert torch.equal(others[1], inputs)
    assert not torch.equal(epochs[0][1], epochs[1][1])
    assert not torch.equal(by_sample(loader_of(seed=1), "input_ids")[1], by_sample(loader_of(), "input_ids")[1])
    assert not torch.equal(by_sample(loader_of(stack_idx=2), "input_ids")[1], by_sample(loader_of(), "input_ids")[1])


@pytest.mark.parametrize("options", [{}, INPUT, {"training_objective": "clm"}], ids=["mlm", "time", "clm"])
def test_hidden_states_are_those_of_the_inputs_and_are_computed_once(options):
    cache = cache_of(module := Below())
    loader = loader_of(trunk_activations=cache, cache_variants=2, **options)
    n_variants = 1 if "training_objective" in options else 2
    for epoch in range(6):
        for batch in loader:
            told = (
                batch["input_ids"]
                if batch["time_step"] is None or not options
                else torch.cat([batch["input_ids"], batch["time_step"][:, None]], 1)
            )
            assert torch.equal(batch["hidden"], plain(Below(), told))
            assert batch["trunk_activations"] is batch["hidden"]
            assert (batch["masking_ids"] == epoch % n_variants).all()
        assert module.n_rows == N * min(epoch + 1, n_variants)
    assert cache.statistics.hits == N * (6 - n_variants)


def test_a_trunk_may_compute_at_every_batch():
    cache = cache_of(module := Below(), n_rows=1)
    loader = loader_of(trunk_activations=cache, cache_activations=False)
    seen = []
    for _ in range(3):
        for batch in loader:
            assert torch.equal(batch["hidden"], plain(Below(), batch["input_ids"]))
            seen.append(int(batch["masking_ids"][0]))
    assert module.n_rows == 3 * N
    assert set(seen) == {0, 1, 2}  # with nothing kept, all maskings may be new
    streamed = loader_of(trunk_activations=cache, cache_activations=False, time_interpretation="input", time_sampling="batch")
    for batch in streamed:
        assert len(batch["time_step"].unique()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cache_activations", [True, False])
def test_a_trunk_may_be_on_another_device(cache_activations):
    cache = cache_of(module := Below().cuda())
    for batch in loader_of(trunk_activations=cache, cache_activations=cache_activations):
        assert torch.equal(batch["hidden"], plain(module, batch["input_ids"].cuda()).cpu())


@pytest.mark.parametrize("form", ["mapping", "tensor"])
def test_hidden_states_may_come_by_sample(form):
    _, inputs = by_sample(loader_of(), "input_ids")
    states = plain(Below(), inputs)
    loader = loader_of(trunk_activations=states if form == "tensor" else dict(enumerate(states)))
    for _ in range(2):
        for batch in loader:
            assert torch.equal(batch["hidden"], plain(Below(), batch["input_ids"]))
            assert (batch["masking_ids"] == 0).all()
    fewer = states[:-1] if form == "tensor" else dict(enumerate(states[:-1]))
    with pytest.raises(ConfigError, match="none of sample 12, 1 of the batch are missing"):
        list(loader_of(trunk_activations=fewer))
    with pytest.raises(ConfigError, match="give the loader's batches a sample_id"):
        list(loader_of(shuffled_loader(has_ids=False), trunk_activations=fewer))


def test_a_shuffled_loader_without_ids_still_hits():
    cache = cache_of(module := Below())
    loader = loader_of(shuffled_loader(has_ids=False), trunk_activations=cache, cache_variants=1)
    for _ in range(3):
        for batch in loader:
            assert torch.equal(batch["hidden"], plain(Below(), batch["input_ids"]))
    assert module.n_rows == N


def test_a_time_that_is_drawn_for_a_batch_differs_by_batch():
    loader = loader_of(shuffled_loader(), time_interpretation="input", num_time_steps=1000)
    steps = [batch["time_step"].unique() for _ in range(3) for batch in loader]
    assert all(len(step) == 1 for step in steps)
    assert len({int(step) for step in steps}) == 12


def test_any_iterable_will_do():
    loader = loader_of(base=[(TOKENS[:3], TARGETS[:3]), (TOKENS[3:5], TARGETS[3:5])], training_objective="custom")
    assert [batch["targets"].tolist() for batch in loader] == [TARGETS[:3].tolist(), TARGETS[3:5].tolist()]
    with pytest.raises(TypeError, match="a generator has no length"):
        len(loader_of(base=(batch for batch in [TOKENS])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trunk_activations": torch.zeros(N, TIME, D_MODEL), "cache_activations": False}, "needs a trunk that computes"),
        ({"trunk_activations": {}, "time_interpretation": "input"}, "time_sampling: batch gives a sample another time"),
    ],
)
def test_what_cannot_be_kept_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        loader_of(**options)


def test_a_mask_has_to_be_some_token():
    for options in ({}, {"mask_token_id": 3, "random_fraction": 0.1}):
        with pytest.raises(ConfigError, match="without a vocab_size"):
            ProgressiveDataLoader([TOKENS], TimeStepMasking(options))
    loader = ProgressiveDataLoader([TOKENS], TimeStepMasking({"mask_token_id": 3, "mask_ratio": 1.0}))
    assert (next(iter(loader))["input_ids"] == 3).all()


def test_the_loss_is_the_mean_over_the_mask():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, TIME, VOCAB_SIZE, generator=generator).requires_grad_()
    mask = torch.rand(4, TIME, generator=generator) < 0.3
    loss = compute_loss(logits, TARGETS[:4].where(mask, 10**6), mask)
    terms = [
        F.cross_entropy(logits[row, place], TARGETS[row, place]) for row in range(4) for place in range(TIME) if mask[row, place]
    ]
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    loss.backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, mask)
    of_clm = torch.arange(TIME) < TIME - 1
    whole = F.cross_entropy(logits[:, :-1].flatten(0, 1), TARGETS[:4, :-1].flatten())
    assert compute_loss(logits, TARGETS[:4], of_clm).item() == pytest.approx(whole.item(), rel=1e-5)
    nothing = compute_loss(logits, TARGETS[:4], torch.zeros_like(mask))
    assert nothing.item() == 0
    batch = next(iter(loader_of(**INPUT, final_mask_ratio=1.0, loss_weighting="none")))
    losses = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none").view(4, TIME)
    assert compute_loss(logits, batch["targets"], batch["combined_masks"]).item() == pytest.approx(
        (losses * batch["weights"]).sum().item(), rel=1e-5
    )

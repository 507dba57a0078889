"""Training a whole rack on a loader: modes and groupings, what is read of loaders and configurations, and what comes back."""

import copy
import doctest

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import search.stackwise.architecture_trainer
from configs import ConfigError, DataConfig, StackWiseConfig
from models.architecture import create_simple_rack
from search.stackwise.architecture_trainer import ArchitectureTrainer
from search.stackwise.loader_samples import loader_samples

VOCAB, TIME = 12, 10
GROUPINGS = {"layer-wise": (8, 1), "block-wise": (2, 4), "stack-wise": (1, 8)}
MODES = {
    "blockwise": lambda n_stacks, n_blocks: [f"stacks.{i}.blocks.{j}" for i in range(n_stacks) for j in range(n_blocks)],
    "stackwise": lambda n_stacks, _: [f"stacks.{i}" for i in range(n_stacks)],
    "rackwise": lambda *_: ["stacks"],
}


def rack(n_stacks=2, blocks_per_stack=1, *, vocab_size=VOCAB, mode="causal", **options):
    return create_simple_rack(
        n_stacks=n_stacks,
        blocks_per_stack=blocks_per_stack,
        d_model=16,
        d_ff=24,
        n_heads=2,
        vocab_size=vocab_size,
        attention_mode=mode,
        seed=0,
        **options,
    )


def config(mode="stackwise", objective="clm", **training):
    progressive = {"training_objective": objective}
    tree = {"training_architecture": mode, "device": "cpu", "max_steps": 6, "learning_rate": 0.01, "progressive": progressive}
    return StackWiseConfig.from_dict({"training": {**tree, **training}})


def counting(n=24, seed=0):
    """Rows in which each token follows from the one before."""
    starts = np.random.default_rng(seed).integers(VOCAB - 1, size=(n, 1))
    return torch.from_numpy((starts + np.arange(TIME)) % (VOCAB - 1))


def loader(tokens=None):
    return DataLoader(counting() if tokens is None else tokens, batch_size=8)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_on_every_grouping(mode, grouping):
    model = rack(*GROUPINGS[grouping])
    results = ArchitectureTrainer(config(mode, max_steps=10, learning_rate=0.02)).train_architecture(model, loader())
    assert results["mode"] == mode
    assert list(results["units"]) == MODES[mode](*GROUPINGS[grouping])
    for name, rows in results["units"].items():
        assert [row["step"] for row in rows] == list(range(11))
        assert rows[-1]["loss"] < rows[0]["loss"] - 0.2, name
    last = list(results["units"].values())[-1]
    assert results["metrics"] == results["history"][-1]
    assert results["metrics"]["loss"] == last[-1]["loss"]
    assert (results["status"], results["n_steps"]) == ("finished", 10)
    assert not model.training
    shifted = model(counting())[:, :-1].flatten(0, 1), counting()[:, 1:].flatten()
    assert torch.nn.functional.cross_entropy(*shifted).item() == pytest.approx(results["metrics"]["loss"], rel=1e-5)


def test_groupings_of_the_same_blocks_learn_the_same():
    """Blocks that stand alone in their stacks, and as many that share one; a whole rack by any name."""
    found = {}
    for mode, sizes in (
        ("blockwise", (4, 1)),
        ("stackwise", (4, 1)),
        ("blockwise", (1, 4)),
        ("rackwise", (4, 1)),
        ("stackwise", (1, 4)),
    ):
        found[mode, sizes] = ArchitectureTrainer(config(mode)).train_architecture(rack(*sizes), loader())["metrics"]["loss"]
    assert found["blockwise", (4, 1)] == found["stackwise", (4, 1)] == found["blockwise", (1, 4)]
    assert found["rackwise", (4, 1)] == found["stackwise", (1, 4)] != found["blockwise", (4, 1)]


@pytest.mark.parametrize("unit", ["blockwise", "stackwise"])
def test_one_after_another_only_the_current_unit_moves(unit, monkeypatch):
    """In the first of two parts the first unit, with the embedding; in the other one the other, with the head."""
    original, seen = search.stackwise.architecture_trainer.train, []

    def recorded(members, *arguments, **options):
        def stepped(_):
            seen.append({name: tensor.clone() for name, tensor in members[0].model.rack.state_dict().items()})
            return True

        return original(members, *arguments, **options, on_step=stepped)

    monkeypatch.setattr(search.stackwise.architecture_trainer, "train", recorded)
    model = rack(2, 1, tie_embeddings=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sequential = {"schedule": "sequential", "head_learns_from": "last"}
    ArchitectureTrainer(config(unit, local_loss=sequential, max_steps=4)).train_architecture(model, loader())
    for earlier, later, prefixes in ((before, seen[1], ("embedding.", "stacks.0.")), (seen[1], seen[3], ("stacks.1.", "head."))):
        moved = {name for name, tensor in later.items() if not torch.equal(tensor, earlier[name])}
        assert moved == {name for name in before if name.startswith(prefixes)}


@pytest.mark.parametrize(
    "options", [{"head": "tuned", "rank": 4}, {"head": "aux_block"}, {"head": "tail", "schedule": "overlap"}], ids=str
)
def test_other_heads_and_schedules(options):
    model = rack(3)
    names = set(model.state_dict())
    results = ArchitectureTrainer(config(local_loss=options, max_steps=24)).train_architecture(model, loader())
    assert all(rows[-1]["loss"] < rows[0]["loss"] - 0.3 for rows in results["units"].values())
    assert set(model.state_dict()) == names


def test_the_same_seed_gives_the_same():
    found = [ArchitectureTrainer(config(seed=seed)).train_architecture(rack(), loader())["metrics"] for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0]["loss"] != found[2]["loss"]


def test_targets_are_where_the_batch_has_them():
    """As tokens and objective; as a pair; in a mapping, with pads that are told of in either way."""
    tokens = counting()
    targets = torch.cat((tokens[:, 1:], torch.full((24, 1), -100)), dim=1)
    pairs = DataLoader(TensorDataset(tokens, targets), batch_size=8)
    mappings = [{"input_ids": part, "labels": asked} for part, asked in zip(tokens.split(8), targets.split(8), strict=True)]
    found = [
        ArchitectureTrainer(config(objective=kind)).train_architecture(rack(), given)
        for kind, given in (("clm", loader()), ("clm", pairs), ("custom", pairs), ("mlm", mappings), ("clm", [(tokens,)]))
    ]
    assert len({results["metrics"]["loss"] for results in found}) == 1
    assert [results["objective"]["kind"] for results in found] == ["clm", "custom", "custom", "custom", "clm"]


def test_targets_that_tell_nothing_are_refused():
    same = [{"input_ids": counting(), "labels": counting()}]
    with pytest.raises(ConfigError, match="training_objective clm: the loader's targets are the tokens at the same positions"):
        ArchitectureTrainer(config()).train_architecture(rack(), same)
    results = ArchitectureTrainer(config(objective="custom", max_steps=24)).train_architecture(rack(), same)
    assert results["metrics"]["accuracy"] > 0.9
    with pytest.raises(ValueError, match="objective custom needs a batch with targets"):
        ArchitectureTrainer(config(objective="custom")).train_architecture(rack(), loader())


def test_masks_are_a_token_of_the_rack():
    results = ArchitectureTrainer(config(objective="mlm", max_steps=40)).train_architecture(rack(mode="bidirectional"), loader())
    assert results["objective"]["mask_token_id"] == VOCAB - 1
    assert results["metrics"]["loss"] < results["history"][0]["loss"] - 0.3
    named = config(objective="mlm")
    named.training.progressive.mask_token_id = VOCAB
    with pytest.raises(ValueError, match="mask_token_id"):
        ArchitectureTrainer(named).train_architecture(rack(mode="bidirectional"), loader())
    named.training.progressive.mask_token_id = 3
    assert ArchitectureTrainer(named).train_architecture(rack(mode="bidirectional"), loader())["objective"]["mask_token_id"] == 3


def test_objectives_must_suit_the_rack():
    with pytest.raises(ValueError, match="objective clm needs causal stacks, but the stacks \\[0, 1\\]"):
        ArchitectureTrainer(config()).train_architecture(rack(mode="bidirectional"), loader())
    with pytest.warns(UserWarning, match="objective mlm: the stacks \\[0, 1\\] are causal"):
        ArchitectureTrainer(config(objective="mlm")).train_architecture(rack(), loader())


def test_what_is_frozen_stays():
    model = rack(freeze_up_proj=True)
    before = copy.deepcopy(model.state_dict())
    ArchitectureTrainer(config("blockwise")).train_architecture(model, loader())
    still = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert still == {f"stacks.{i}.blocks.0.mlp.up.weight" for i in range(2)}


def test_options_of_the_training_are_read():
    def losses(given):
        return [row["loss"] for row in ArchitectureTrainer(given).train_architecture(rack(), loader())["history"]]

    usual = losses(config())
    assert losses(config("stackwise", current_block_lr=0.01, learning_rate=0.5)) == usual
    assert losses(config("rackwise", current_block_lr=0.5)) == losses(config("rackwise"))
    for changed in ({"batch_size": 8}, {"weight_decay": 5.0}, {"grad_clip": 1e-8}, {"learning_rate": 0.02}):
        assert losses(config(**changed)) != usual, changed
    whole = ArchitectureTrainer(config("blockwise", strategy="end_to_end"))
    assert whole.mode == "rackwise"
    assert losses(whole.config) == losses(config("rackwise"))
    assert ArchitectureTrainer(config("blockwise", strategy="end_to_end", end_to_end_scope="stackwise")).mode == "stackwise"


def test_configurations_are_objects_or_plain_and_may_change():
    trainer = ArchitectureTrainer({"training": {"training_architecture": "rackwise", "device": "cpu", "max_steps": 2}})
    trainer.config.training.progressive.training_objective = "clm"
    assert trainer.train_architecture(rack(), loader())["mode"] == "rackwise"
    trainer.config.training.training_architecture = "blockwise"
    assert trainer.train_architecture(rack(), loader())["mode"] == "blockwise"
    with pytest.raises(ConfigError, match="training_arcitecture"):
        ArchitectureTrainer({"training": {"training_arcitecture": "rackwise"}})
    for wrong, message in (({"heads": "tail"}, "did you mean 'head'"), ({"schedule": "sequentially"}, "sequential")):
        with pytest.raises(ConfigError, match=message):
            ArchitectureTrainer(config(local_loss=wrong)).train_architecture(rack(), loader())
    with pytest.raises(ConfigError, match="trains 2 units one after another: n_steps = 1"):
        ArchitectureTrainer(config(local_loss={"schedule": "sequential"}, max_steps=1)).train_architecture(rack(), loader())


def test_loaders_are_cut_padded_and_checked():
    data, tokens = DataConfig(), counting(4)
    samples = loader_samples([tokens, tokens[:2, :6]], data, vocab_size=VOCAB)
    found = samples.sequences("train", np.arange(6))
    assert found.attention_mask.sum(1).tolist() == [TIME] * 4 + [6] * 2
    assert np.array_equal(found.tokens[:4], tokens)
    assert np.array_equal(found.tokens[4:, :6], tokens[:2, :6])
    assert loader_samples([tokens], data, vocab_size=VOCAB).sequences("train", np.arange(4)).attention_mask is None
    cut = loader_samples([(tokens, tokens)], DataConfig(seq_len=3, pad_token_id=2), vocab_size=VOCAB).sequences(
        "train", np.arange(4)
    )
    assert np.array_equal(cut.tokens, tokens[:, :3])
    assert np.array_equal(cut.targets, tokens[:, :3])
    assert np.array_equal(cut.attention_mask, tokens[:, :3] != 2)
    masked = loader_samples([{"input_ids": tokens, "attention_mask": tokens != 5}], data, vocab_size=VOCAB)
    assert np.array_equal(masked.sequences("train", np.arange(4)).attention_mask, tokens != 5)
    for given, message in (
        ([], "yields no batches"),
        ([tokens, (tokens, tokens)], "some batches of the data loader have targets"),
        ([tokens + 1], "below vocab_size"),
        ([{"ids": tokens}], "needs tokens at one of input_ids"),
    ):
        with pytest.raises(ValueError, match=message):
            loader_samples(given, data, vocab_size=VOCAB if "below" not in message else VOCAB - 1)


@pytest.mark.parametrize("mode", MODES)
def test_pads_change_nothing(mode):
    """Rows of two lengths, padded to one, before and behind, with anything in the pads."""
    first, last = torch.zeros(24, 1, dtype=torch.int64), torch.full((24, 2), 7)
    is_kept = torch.arange(TIME + 3).expand(24, -1)
    is_kept = (is_kept >= 1) & (is_kept <= TIME)
    found = []
    for filling in (0, 3):
        padded = torch.cat((first + filling, counting(), last - filling), dim=1)
        given = [{"input_ids": padded, "attention_mask": is_kept}]
        found.append(ArchitectureTrainer(config(mode)).train_architecture(rack(), given)["metrics"]["loss"])
    assert found[0] == found[1]


def test_the_example_runs():
    found = doctest.testmod(search.stackwise.architecture_trainer)
    assert (found.failed, found.attempted) == (0, 9)

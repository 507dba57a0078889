"""The guide's trainer: its examples, stacks that are there already, and what it leaves."""

import doctest

import numpy as np
import pytest
import torch

import search.stackwise.progressive_trainer
from configs import ConfigError, StackWiseConfig
from search.jobs.progressive.training.growing_model import needs_attention_mask
from search.jobs.progressive.weights import load_rack, load_stage, stage_folder
from search.runs.run_folder import CHECKPOINT
from search.stackwise.progressive_trainer import ProgressiveTrainer
from search.stackwise.rack_builder import ProgressiveRackBuilder
from tasks.samples.samples import ArraySamples

VOCAB_SIZE = 20
CPU = torch.device("cpu")


def configured(**progressive):
    model = {"vocab_size": VOCAB_SIZE, "d_model": 16, "d_ff": 32, "n_heads": 2, "architecture": {"blocks_per_stack": 1}}
    mode = "causal" if progressive.get("training_objective") == "clm" else "bidirectional"
    training = {"max_steps": 8, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu"}
    return StackWiseConfig.from_dict(
        {
            "model": {**model, "attention_mode": mode},
            "training": {**training, "progressive": {"cache_mode": "memory", "time_embedding_dim": 8, **progressive}},
        }
    )


def loader(n_batches=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, VOCAB_SIZE - 1, (n_batches, 8, 1), generator=generator)
    return list((first + torch.arange(12)) % (VOCAB_SIZE - 1))


def grown(config, target=3, *, builder=None, **options):
    builder = ProgressiveRackBuilder(config=config) if builder is None else builder
    trainer = ProgressiveTrainer(config, say=lambda _: None, **options)
    return builder, trainer.train_rack(builder, loader(), target_stacks=target)


def test_the_docstring_is_true():
    found = doctest.testmod(search.stackwise.progressive_trainer, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 5
    assert found.failed == 0


def test_a_basic_growth_adds_stacks_on_a_frozen_trunk_and_keeps_its_history():
    builder, results = grown(configured())
    assert [row["stacks"] for row in results["stages"]] == [1, 2, 3]
    assert list(results["history"]) == [0, 1, 2]
    assert all(len(losses) == 8 for losses in results["history"].values())
    assert all(row["seconds"] > 0 for row in results["stages"])
    assert [row["trunk_forwards"] for row in results["stages"]] == [0, 0, 0]
    losses = [row["loss"] for row in results["stages"]]
    assert losses == sorted(losses, reverse=True)
    assert builder.current_stacks == 3


def test_what_was_trained_is_what_the_builder_has():
    builder = ProgressiveRackBuilder(config=configured(training_objective="clm"))
    stack = builder.append_stack()
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    grown(builder.config, 2, builder=builder)
    rack = builder.build_rack()
    assert rack.stacks[0] is stack
    assert any(not torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())
    tokens = loader()[0]
    losses = torch.nn.functional.cross_entropy(rack(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    untrained = ProgressiveRackBuilder(config=builder.config)
    untrained.append_stack()
    at_first = torch.nn.functional.cross_entropy(untrained.build_rack()(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert losses < at_first - 0.2


def test_a_trunk_with_adapters_trains_them_and_nothing_else():
    ranks = {"qlora_rank": 4, "progressive_qlora_rank": 2}
    config = configured(trunk_strategy="qlora", qlora_enabled=True, progressive_qlora=True, **ranks)
    builder, results = grown(config, 2)
    trunk = builder.build_rack().stacks[0]
    assert trunk.spec.stored
    trained = {name for name, parameter in trunk.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".adapters." in name for name in trained)
    assert {name.split(".adapters.")[1].split(".")[0] for name in trained} == {"lora", "progressive"}
    ups = [parameter for name, parameter in trunk.named_parameters() if name.endswith("progressive.up")]
    assert all(up.abs().sum() > 0 for up in ups)
    assert results["stages"][1]["strategy"] == "qlora"


def test_time_as_input_reaches_the_rack():
    config = configured(time_interpretation="input", time_sampling="sample", time_encoding_type="learned", num_time_steps=10)
    builder, results = grown(config, 2)
    rack = builder.build_rack()
    assert rack.time_embedding is not None
    assert rack.time_embedding.table.weight.abs().sum() > 0
    assert results["status"] == "finished"


def test_the_number_of_time_steps_is_that_of_the_largest_rack_from_the_first_call_on():
    config = configured(time_interpretation="input", time_sampling="sample", time_encoding_type="learned", max_stacks=5)
    builder, _ = grown(config, 2)
    assert builder.spec.time.n_steps == 100 * 4 + 1
    _, results = grown(config, 4, builder=builder)
    assert [row["stacks"] for row in results["stages"]] == [3, 4]
    config.training.progressive.num_time_steps = 7
    with pytest.raises(ConfigError, match="num_time_steps = 7: the rack has learnt with 401"):
        grown(config, 5, builder=builder)


def test_time_as_depth_gives_each_stage_its_step():
    _, results = grown(configured(time_interpretation="depth", time_per_stack=50), 3)
    assert [row["time_step"] for row in results["stages"]] == [0, 50, 100]


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_the_objective_of_the_configuration_is_what_is_learnt(objective):
    _, results = grown(configured(training_objective=objective), 1)
    (row,) = results["stages"]
    assert row["loss"] < row["loss_grown"]


def test_custom_targets_come_with_the_batches():
    config = configured(training_objective="custom")
    builder, trainer = ProgressiveRackBuilder(config=config), ProgressiveTrainer(config, say=lambda _: None)
    batches = [{"input_ids": tokens, "targets": (tokens + 3) % VOCAB_SIZE} for tokens in loader()]
    results = trainer.train_rack(builder, batches, target_stacks=2)
    assert results["stages"][-1]["loss"] < results["stages"][0]["loss_grown"]
    with pytest.raises((ConfigError, ValueError), match="targets"):
        trainer.train_rack(ProgressiveRackBuilder(config=config), loader(), target_stacks=1)


def test_stacks_that_are_there_count_and_trained_ones_are_not_trained_again():
    config = configured()
    builder = ProgressiveRackBuilder(config=config)
    builder.append_stack()
    builder.append_stack()
    _, results = grown(config, 3, builder=builder)
    assert [row["stacks"] for row in results["stages"]] == [2, 3]
    _, more = grown(config, 4, builder=builder)
    assert [row["stacks"] for row in more["stages"]] == [4]
    _, none = grown(config, 4, builder=builder)
    assert none["stages"] == []
    by_hand = builder.append_stack()
    before = by_hand.blocks[0].mixer.output.weight.clone()
    _, again = grown(config, 5, builder=builder)
    assert [row["stacks"] for row in again["stages"]] == [5]
    assert not torch.equal(by_hand.blocks[0].mixer.output.weight, before)
    with pytest.raises(ConfigError, match="below the 5 stacks"):
        grown(config, 2, builder=builder)


def test_without_a_target_the_whole_rack_trains_at_once():
    config = configured()
    config.training.training_architecture = "stackwise"
    builder = ProgressiveRackBuilder(config=config)
    first, second = builder.append_stack(), builder.append_stack()
    before = [{name: tensor.clone() for name, tensor in stack.state_dict().items()} for stack in (first, second)]
    _, results = grown(config, None, builder=builder)
    assert [row["stacks"] for row in results["stages"]] == [2]
    for stack, old in zip((first, second), before, strict=True):
        assert any(not torch.equal(tensor, old[name]) for name, tensor in stack.state_dict().items())


def test_every_stage_is_left_as_a_rack_of_its_own(tmp_path):
    builder, results = grown(configured(), 2, out=tmp_path)
    for index in range(2):
        stage, rack = load_stage(stage_folder(tmp_path, index), CPU)
        assert len(rack.stacks) == index + 1 == len(stage.rack.stacks)
    tokens = loader()[0]
    assert torch.equal(rack.eval()(tokens), builder.build_rack().eval()(tokens))
    assert results["loss"] == results["stages"][-1]["loss"]


def test_a_folder_goes_on_with_the_rack_that_it_has_and_with_no_other(tmp_path):
    config = configured()
    builder, _ = grown(config, 2, out=tmp_path)
    assert len(load_rack(tmp_path).stacks) == 2
    _, more = grown(config, 4, builder=builder, out=tmp_path)
    assert [(row["stage"], row["stacks"]) for row in more["stages"]] == [(3, 3), (4, 4)]
    assert [len(load_rack(tmp_path, n_stages=n).stacks) for n in (1, 2, 3, 4)] == [1, 2, 3, 4]
    tokens, left = loader()[0], load_rack(tmp_path)
    assert torch.equal(left(tokens), builder.build_rack().eval()(tokens))
    with pytest.raises(ConfigError, match="holds stages of another rack; give another out"):
        grown(config, 2, out=tmp_path)
    assert torch.equal(load_rack(tmp_path)(tokens), left(tokens))


def test_files_of_activations_go_with_the_call_unless_they_have_a_place_of_their_own(tmp_path):
    own, out = tmp_path / "own", tmp_path / "out"
    grown(configured(cache_mode="arrow", cache_dir=str(own)), 2, out=out)
    assert list(own.rglob("*.arrow"))
    assert not (out / "caches").exists()
    _, results = grown(configured(cache_mode="arrow"), 2, out=tmp_path / "other")
    assert results["stages"][1]["cache_mode"] == "arrow"
    assert not (tmp_path / "other" / "caches").exists()


@pytest.mark.parametrize("n_stages", [1, 2])
def test_what_was_broken_off_begins_anew(tmp_path, n_stages):
    """From what the builder has, with what is said by then, not with what a checkpoint holds."""
    config = configured(trunk_strategy="qlora", progressive_qlora_rank=2)
    config.training.save_interval = 1
    builder = ProgressiveRackBuilder(config=config)

    def broken_off(line):
        if f"stage {n_stages} of {n_stages}: step 4 of" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ProgressiveTrainer(config, out=tmp_path, say=broken_off).train_rack(builder, loader(), target_stacks=n_stages)
    assert (stage_folder(tmp_path, n_stages - 1) / CHECKPOINT).exists()
    assert builder.current_stacks == n_stages
    config.training.learning_rate, config.training.max_steps = 1e-9, 6
    before = builder.build_rack().head.output.weight.detach().clone()
    _, results = grown(config, n_stages, builder=builder, out=tmp_path)
    assert {uid: len(losses) for uid, losses in results["history"].items()} == {n_stages - 1: 6}
    assert torch.allclose(builder.build_rack().head.output.weight, before, atol=1e-6)
    assert len(load_rack(tmp_path).stacks) == n_stages
    assert not list(tmp_path.rglob(CHECKPOINT))


def test_the_history_of_a_joint_stage_follows_that_of_the_newest_stack():
    _, results = grown(configured(joint_tuning_steps=3), 2)
    assert {uid: len(losses) for uid, losses in results["history"].items()} == {0: 8, 1: 11}


def test_stacks_grow_after_others_have_gone():
    """The highest uid, which no other stack gets, and one between; times go by the order of those that are there."""
    config = configured(time_interpretation="depth", time_per_stack=50)
    builder, _ = grown(config, 3)
    builder.remove_stack(2)
    _, results = grown(config, 3, builder=builder)
    assert [stack.uid for stack in builder.build_rack().stacks] == [0, 1, 3]
    builder.remove_stack(1)
    _, again = grown(config, 3, builder=builder)
    assert [stack.uid for stack in builder.build_rack().stacks] == [0, 3, 4]
    assert [row["time_step"] for row in (*results["stages"], *again["stages"])] == [100, 100]


def test_stacks_that_stay_while_others_come_and_go_keep_their_moments():
    config = configured(trunk_strategy="full")
    builder, _ = grown(config, 3)
    survivor = builder.build_rack().stacks[0].blocks[0].mixer.query.weight
    assert builder.moments[survivor]["step"] == 24
    builder.remove_stack(1)
    builder.append_stack()
    grown(config, 3, builder=builder)
    assert builder.build_rack().stacks[0].blocks[0].mixer.query.weight is survivor
    assert builder.moments[survivor]["step"] == 32
    assert builder.moments[builder.build_rack().stacks[-1].blocks[0].mixer.query.weight]["step"] == 8


def test_the_other_name_is_the_same_method():
    assert ProgressiveTrainer.train_progressively is ProgressiveTrainer.train_rack


def test_prepended_stacks_train_before_a_trunk_that_stands_still():
    config = configured(building_mode="prepend")
    builder, results = grown(config, 2)
    rack = builder.build_rack()
    assert [stack.uid for stack in rack.stacks] == [1, 0]
    assert not any(parameter.requires_grad for parameter in rack.stacks[1].parameters())
    assert results["stages"][1]["loss"] < results["stages"][1]["loss_before"]


def test_what_the_builder_was_told_holds_in_training():
    config = configured()
    builder = ProgressiveRackBuilder(config=config, building_mode="prepend", default_precision="bfloat16")
    grown(config, 2, builder=builder)
    assert [(stack.uid, stack.spec.precision) for stack in builder.build_rack().stacks] == [(1, "bfloat16"), (0, "bfloat16")]


@pytest.mark.parametrize("with_base", [False, True])
def test_a_base_beside_adapters_learns_with_them_and_in_a_trunk_not_at_all(with_base):
    ranks = {"qlora_rank": 2, "progressive_qlora_rank": 2, "quantization_type": "half"}
    config = configured(trunk_strategy="qlora", qlora_enabled=True, train_stack_lora_with_base=with_base, **ranks)
    builder = ProgressiveRackBuilder(config=config)
    query = builder.append_stack().blocks[0].mixer.query
    before = query.weight.detach().clone()
    grown(config, 1, builder=builder)
    assert not torch.equal(query.weight, before)
    assert bool(query.adapters["lora"].up.abs().sum() > 0) == with_base
    learnt = query.weight.detach().clone()
    grown(config, 2, builder=builder)
    query = builder.build_rack().stacks[0].blocks[0].mixer.query
    assert query.adapters["lora"].up.abs().sum() > 0
    assert torch.equal(query.weight.float(), learnt.half().float())


def test_pads_before_tokens_count_wherever_they_are():
    rack = ProgressiveRackBuilder(config=configured(training_objective="clm"))
    rack.append_stack()
    attention_mask = np.ones((5000, 3), dtype=bool)
    attention_mask[0, 2] = False
    tokens = np.zeros((5000, 3), dtype=np.int64)
    assert not needs_attention_mask(rack.build_rack(), ArraySamples(tokens, vocab_size=2, attention_mask=attention_mask))
    for number, n_validation in ((4999, 10), (4980, 10), (4999, 0)):
        padded = attention_mask.copy()
        padded[number, 0] = False
        samples = ArraySamples(tokens, vocab_size=2, attention_mask=padded, n_validation=n_validation)
        assert needs_attention_mask(rack.build_rack(), samples), number


@pytest.mark.parametrize("strategy", ["frozen", "full", "qlora"])
def test_what_was_changed_by_hand_stays_so_in_the_trunk(strategy):
    config = configured(trunk_strategy=strategy, qlora_rank=2, progressive_qlora_rank=2)
    builder = ProgressiveRackBuilder(config=config)
    for _ in range(3):
        builder.append_stack()
    builder.quantize_stack(0, "nf4")
    builder.quantize_stack(1, "fp8", trains=True)
    builder.add_qlora_to_all_stacks()
    grown(config, 4, builder=builder)
    stored = (builder.build_rack().stacks[index].spec for index in range(3))
    dense = {"qlora": ("qlora", True)}.get(strategy, ("full", False))
    assert [(stack.precision, stack.stored) for stack in stored] == [("qlora", True), ("fp8", strategy != "full"), dense]
    ranks = {len(parameter) for name, parameter in builder.build_rack().named_parameters() if name.endswith("lora.down")}
    assert ranks == {2}

"""A builder and a trainer that are configured apart, the guide's loop, and what is said before anything trains."""

import pytest
import torch

from configs import ConfigError, StackWiseConfig
from models.architecture import create_rack_from_config, create_stack_from_config
from search.stackwise.data_loader import ProgressiveDataLoader, compute_loss
from search.stackwise.progressive_trainer import ProgressiveTrainer
from search.stackwise.rack_builder import ProgressiveRackBuilder
from tasks.samples.time_step_masking import TimeStepMasking

VOCAB_SIZE = 20
SIZES = {"vocab_size": VOCAB_SIZE, "d_model": 16, "d_ff": 16, "n_heads": 2}
TRAINING = {"max_steps": 2, "batch_size": 8, "device": "cpu", "learning_rate": 0.01}
BATCHES = list(((torch.arange(16)[:, None] * 5 + torch.arange(8)) % (VOCAB_SIZE - 1)).split(8))


def config_of(model=None, *, training=None, **progressive):
    """Of training alone, where no model is said."""
    sections = {} if model is None else {"model": model}
    return StackWiseConfig.from_dict({**sections, "training": {**TRAINING, **(training or {}), "progressive": progressive}})


def grown(builder, config, target=2, lines=None):
    trainer = ProgressiveTrainer(config, say=(lambda _: None) if lines is None else lines.append)
    return trainer.train_rack(builder, BATCHES, target_stacks=target)


SETTINGS = {
    "trunk_strategy": "qlora",
    "time_interpretation": "depth",
    "new_stack_precision": "bfloat16",
    "building_mode": "prepend",
    "progressive_qlora_rank": 2,
    "quantization_type": "half",
}


@pytest.mark.parametrize("model", [None, SIZES, {"architecture": {"blocks_per_stack": 2}}], ids=["nothing", "sizes", "others"])
def test_a_builder_of_sizes_takes_the_settings_of_the_trainer(model):
    builder = ProgressiveRackBuilder(**SIZES)
    results = grown(builder, config_of(model, **SETTINGS))
    rack = builder.build_rack()
    assert [stack.uid for stack in rack.stacks] == [1, 0]
    assert rack.stacks[0].spec.precision == "bfloat16"
    trained = {name for name, parameter in rack.stacks[1].named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".adapters.progressive." in name for name in trained)
    assert [row["time_step"] for row in results["stages"]] == [0, 100]
    assert results["stages"][1]["strategy"] == "qlora"
    assert [len(stack.blocks) for stack in rack.stacks] == [2 if model and "architecture" in model else 4] * 2


def test_it_takes_them_with_stacks_that_are_there_already_and_from_one_trainer_after_another(tmp_path):
    builder = ProgressiveRackBuilder(**SIZES)
    builder.append_stack(n_blocks=1)
    grown(builder, config_of({"architecture": {"blocks_per_stack": 1}}, new_stack_precision="bfloat16"))
    builder.save(tmp_path / "builder.safetensors")
    for each in (builder, ProgressiveRackBuilder.load(tmp_path / "builder.safetensors")):
        results = grown(each, config_of(training={"seed": 3}, trunk_strategy="full", building_mode="prepend"), 3)
        assert [stack.spec.precision for stack in each.build_rack().stacks] == ["full", "full", "bfloat16"]
        assert results["stages"][0]["strategy"] == "full"
        assert all(parameter.requires_grad for parameter in each.build_rack().stacks[1].parameters())


def test_what_sizes_leave_open_is_the_trainers_until_there_are_stacks():
    builder = ProgressiveRackBuilder(**SIZES)
    config = config_of({"attention_mode": "causal", "architecture": {"blocks_per_stack": 1}}, training_objective="clm")
    grown(builder, config, 1)
    assert builder.build_rack().stacks[0].blocks[0].mixer.causal
    with pytest.raises(ConfigError, match=r"trainer: model\.dropout: 0\.5, but the builder's sizes says 0\.0"):
        grown(builder, config_of({"dropout": 0.5, "architecture": {"blocks_per_stack": 1}}))


def test_the_model_of_sizes_is_what_objectives_have_to_suit():
    config = config_of(training_objective="clm")
    grown(ProgressiveRackBuilder(**SIZES, attention_mode="causal"), config, 1)
    with pytest.raises(ConfigError, match=r"model\.attention_mode: the objective clm"):
        grown(ProgressiveRackBuilder(**SIZES), config, 1)


def test_a_model_that_differs_from_the_sizes_is_an_error_with_its_keys():
    with pytest.raises(ConfigError) as caught:
        grown(ProgressiveRackBuilder(**SIZES), config_of({**SIZES, "d_model": 32, "vocab_size": 30}))
    lines = str(caught.value).splitlines()
    assert [line.partition(", but")[0] for line in lines] == ["trainer: model.d_model: 32", "trainer: model.vocab_size: 30"]


def test_two_configurations_that_differ_are_an_error_with_the_keys():
    model = {**SIZES, "architecture": {"blocks_per_stack": 1}}
    builder = ProgressiveRackBuilder(config_of(model, trunk_strategy="full"))
    grown(builder, config_of(model, training={"learning_rate": 0.1, "seed": 5}, trunk_strategy="full"))
    other = {**model, "dropout": 0.1, "architecture": {"blocks_per_stack": 2}}
    with pytest.raises(ConfigError) as caught:
        grown(builder, config_of(other, building_mode="prepend"))
    assert sorted(line.partition(", but")[0] for line in str(caught.value).splitlines()) == [
        "trainer: model.architecture.blocks_per_stack: 2",
        "trainer: model.dropout: 0.1",
        "trainer: training.progressive.building_mode: 'prepend'",
        "trainer: training.progressive.trunk_strategy: 'frozen'",
    ]
    assert builder.current_stacks == 2


@pytest.mark.parametrize("time", [{}, {"time_interpretation": "input"}, {"time_interpretation": "depth"}], ids=str)
def test_the_guides_loop_runs_on_the_rack_of_the_same_configuration(time):
    config = config_of({**SIZES, "architecture": {"n_stacks": 1, "blocks_per_stack": 1}}, mask_ratio=0.5, **time)
    rack = create_rack_from_config(config)
    optimizer = torch.optim.SGD(rack.parameters(), lr=0.1)
    seen = set()
    for batch in ProgressiveDataLoader(base_dataloader=BATCHES, masking_strategy=TimeStepMasking(config)):
        seen |= set(batch["input_ids"].unique().tolist())
        loss = compute_loss(rack(batch["input_ids"]), batch["targets"], batch["combined_masks"])
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert VOCAB_SIZE - 1 in seen  # no text has it: the mask
    assert config.training.progressive.objective(VOCAB_SIZE)["mask_token_id"] == VOCAB_SIZE - 1


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ({"time_interpretation": "input"}, r"training\.progressive\.time_sampling: .* cache_activations: false"),
        ({"training_objective": "clm"}, r"model\.attention_mode: .*: set attention_mode: causal"),
        ({"mask_token_id": VOCAB_SIZE}, r"training\.progressive\.mask_token_id: 20 must be below model\.vocab_size = 20"),
        (
            {"joint_tuning_steps": 1, "fine_tune_mode": "adapters"},
            r"progressive\.fine_tune_mode: there are no adapters",
        ),
        ({"building_mode": "prepend", "prepend_loss": "denoise_mse", "train_embedding": True}, r"progressive\.train_embedding: "),
        (
            {"building_mode": "prepend", "prepend_loss": "denoise_mse", "training_objective": "custom"},
            r"progressive\.prepend_loss: .* set training_objective: mlm",
        ),
        ({"stage_steps": [1] * 13}, r"progressive\.stage_steps: 13 numbers for 12 stage"),
        ({"enabled": False, "stage_steps": [1, 2]}, r"progressive\.stage_steps: 2 numbers for 1 stage"),
        (
            {"time_interpretation": "depth", "target_stacks": 4, "num_time_steps": 150},
            r"progressive\.num_time_steps: stacks share time steps: \[0, 100, 149, 149\]",
        ),
        ({"qlora_enabled": True, "qlora_targets": ["qery"]}, r"progressive\.qlora_targets: 'qery' matches no linear"),
    ],
)
def test_what_training_refuses_validation_says_with_the_key(said, key):
    config = config_of(SIZES, **said)
    with pytest.raises(ConfigError, match=f"^StackWiseConfig: .*{key}"):
        config.validate()
    with pytest.raises(ConfigError, match=key):
        grown(ProgressiveRackBuilder(**SIZES), config_of(**said))


def test_local_losses_and_half_are_refused_by_validation():
    config = config_of(SIZES, training={"training_architecture": "stackwise"}, enabled=False, new_stack_precision="half")
    with pytest.raises(ConfigError, match=r"training\.progressive\.new_stack_precision: half needs its loss scaled"):
        config.validate()
    losses = {"training_architecture": "stackwise", "local_loss": {"head": "tail", "tail_learns": False}}
    config_of(SIZES, training=losses).validate()
    with pytest.raises(ConfigError, match=r"training\.local_loss\.tail_learns: .* set gradient_checkpointing: false"):
        config_of(SIZES, training=losses, gradient_checkpointing=True).validate()
    with pytest.raises(ConfigError, match=r"local_loss\.heads: unknown key 'heads'; did you mean 'head'"):
        config_of(SIZES, training={"local_loss": {"heads": "tail"}})


def test_what_only_training_can_know_is_told_by_the_guides_keys():
    config = config_of({**SIZES, "max_seq_len": 6, "architecture": {"blocks_per_stack": 1}})
    with pytest.raises(ConfigError, match=r"model\.max_seq_len: 6 is too short: samples have 8 positions"):
        grown(ProgressiveRackBuilder(config), config)
    config = config_of(SIZES, training={"training_architecture": "blockwise"})
    with pytest.raises(ConfigError, match=r"training\.training_architecture: blockwise is how a whole rack .*: set rackwise"):
        grown(ProgressiveRackBuilder(config), config)
    for target, message in ((0, "at least 1"), (13, "target_stacks: 13 is more than max_stacks = 12")):
        with pytest.raises(ValueError, match=message):
            grown(ProgressiveRackBuilder(**SIZES), config_of(), target)


@pytest.mark.parametrize("strategy", ["progressive", "end_to_end"])
def test_without_growth_a_target_is_the_depth_that_trains_at_once(strategy):
    said = {} if strategy == "end_to_end" else {"enabled": False}
    for config_target, target in ((3, None), (None, 3)):
        model = {**SIZES, "architecture": {"blocks_per_stack": 1}}
        config = config_of(model, training={"strategy": strategy}, target_stacks=config_target, **said)
        builder = ProgressiveRackBuilder(config)
        results = grown(builder, config, target)
        assert [row["stacks"] for row in results["stages"]] == [3]
        assert all(each.requires_grad for each in builder.build_rack().parameters())


def test_the_target_of_the_configuration_is_grown_to():
    config = config_of({**SIZES, "architecture": {"blocks_per_stack": 1}}, target_stacks=3)
    builder = ProgressiveRackBuilder(config)
    assert [row["stacks"] for row in grown(builder, config, None)["stages"]] == [1, 2, 3]
    assert grown(builder, config, None)["stages"] == []


@pytest.mark.parametrize("strategy", ["frozen", "full", "qlora"])
def test_adapters_that_never_learn_are_told_with_what_they_take(strategy):
    said = {"qlora_enabled": True, "progressive_qlora": True, "qlora_rank": 2, "progressive_qlora_rank": 2}
    config = config_of({**SIZES, "architecture": {"blocks_per_stack": 1}}, trunk_strategy=strategy, **said)
    builder, lines = ProgressiveRackBuilder(config), []
    grown(builder, config, lines=lines)
    told = [line for line in lines if "adapters stay zero" in line]
    if strategy == "qlora":
        assert told == []
        return
    sizes = dict.fromkeys(("lora", "progressive"), 0)
    for path, each in builder.build_rack().named_parameters():
        for name in sizes:
            sizes[name] += 4 * each.numel() if f".adapters.{name}." in path else 0
    why, advice = f"stay zero beside trunk_strategy: {strategy}, and take", "bytes: set trunk_strategy: qlora, or leave"
    own = [f"note: stack {uid}: its adapters {why} {sizes['lora'] // 2:,} {advice} qlora_enabled out" for uid in (0, 1)]
    assert told == [*own, f"note: trunk: its second adapters {why} {sizes['progressive']:,} {advice} progressive_qlora out"]


def test_a_cache_that_is_not_asked_for_rests_on_a_trunk_that_moves():
    config = config_of({**SIZES, "architecture": {"blocks_per_stack": 1}}, trunk_strategy="qlora", quantization_type="half")
    lines = []
    grown(ProgressiveRackBuilder(config), config, lines=lines)
    assert any("nothing is cached" in line for line in lines)


@pytest.mark.parametrize("make", ["stack", "rack"])
def test_stacks_of_a_configuration_have_its_adapters_and_precision(make):
    model = {**SIZES, "architecture": {"n_stacks": 2, "blocks_per_stack": 1}}

    def made(**progressive):
        config = config_of(model, **progressive)
        found = create_stack_from_config(1, 1, config) if make == "stack" else create_rack_from_config(config.to_dict()).stacks[1]
        builder = ProgressiveRackBuilder(config)
        builder.append_stack(n_blocks=1)
        assert found.spec.lora == builder.append_stack(n_blocks=1).spec.lora
        return found

    plain, adapted = made(), made(qlora_enabled=True, qlora_strategy="progressive", qlora_rank=2)
    assert plain.spec.lora is None
    assert not any("adapters" in name for name in plain.state_dict())
    assert adapted.spec.lora.rank == 4
    tokens = torch.randn(1, 3, 16)
    assert torch.equal(adapted(tokens), plain(tokens))
    assert {name for name, each in adapted.named_parameters() if not each.requires_grad} == {
        name for name in dict(adapted.named_parameters()) if "adapters" in name
    }
    stored = made(new_stack_precision="qlora", qlora_rank=2)
    assert stored.spec.stored
    assert made(new_stack_precision="bfloat16").spec.precision == "bfloat16"

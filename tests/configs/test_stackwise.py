"""The mutable configuration: typed, closed, read and written whole, and what it comes to as specs."""

import doctest
import json
import math

import pytest

import configs.stackwise
from configs import (
    ArchitectureConfig,
    ConfigError,
    GrowthSpec,
    ModelConfig,
    ProgressiveConfig,
    StackWiseConfig,
    TrainingConfig,
)
from configs.stackwise.training import MASKS
from tasks.objectives import OBJECTIVES

GUIDE = """
model:
  d_model: 64
  n_heads: 4
  n_kv_heads: 2
  d_ff: 128
  architecture:
    n_stacks: 2        # stacks
    blocks_per_stack: 4
training:
  progressive:
    enabled: true
    trunk_strategy: "frozen"
    new_stack_precision: "full"
    cache_activations: true
    qlora_enabled: true
    qlora_rank: 16
    qlora_alpha: 32
    qlora_strategy: "simplified"
    progressive_qlora: true
    progressive_qlora_rank: 8
    progressive_qlora_alpha: 16
    max_stacks: 12
    building_mode: "append"
    time_interpretation: "depth"
    time_embedding_dim: 512
    time_encoding_type: "sinusoidal"
    stack_time_mapping: "linear"
    time_per_stack: 100
"""

OTHER = {
    "enabled": False,
    "target_stacks": 3,
    "max_stacks": 5,
    "building_mode": "prepend",
    "init": "copy_last",
    "trunk_strategy": "full",
    "trunk_lr_scale": 0.5,
    "qlora_trunk_window": 2,
    "quantization_type": "fp8",
    "train_embedding": False,
    "train_head": False,
    "new_stack_precision": "bfloat16",
    "qlora_enabled": True,
    "qlora_rank": 4,
    "qlora_alpha": 8.0,
    "qlora_strategy": "variable",
    "qlora_configs": {"1": {"rank": 2, "alpha": None}},
    "qlora_rslora": True,
    "qlora_targets": ["query"],
    "train_stack_lora_with_base": True,
    "progressive_qlora": True,
    "progressive_qlora_rank": 3,
    "progressive_qlora_alpha": 5.0,
    "cache_activations": False,
    "cache_mode": "memory",
    "cache_dir": "elsewhere",
    "cache_bytes": 1000,
    "cache_variants": 2,
    "stage_steps": [5],
    "patience": 2,
    "min_delta": 0.1,
    "joint_tuning_steps": 7,
    "fine_tune_mode": "head",
    "gradient_checkpointing": True,
    "prepend_loss": "denoise_mse",
    "time_interpretation": "input",
    "time_embedding_dim": 64,
    "time_encoding_type": "learned",
    "stack_time_mapping": "custom",
    "custom_time_mapping": "cosine",
    "time_per_stack": 10,
    "num_time_steps": 50,
    "noise_direction": "decreasing",
    "time_sampling": "sample",
}
PATTERNS = {"qlora_strategy": "progressive", "qlora_rank_pattern": "linear", "qlora_alpha_pattern": "decreasing"}
"""A value of every key of the growth that is not its default; patterns and sizes said one by one contradict each other."""


def halfway(stack_idx, max_stacks, num_time_steps):
    return stack_idx * num_time_steps / (2 * max_stacks)


def test_the_examples():
    found = doctest.testmod(configs.stackwise, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 5
    assert not found.failed


def test_the_guides_file_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(GUIDE)
    config = StackWiseConfig.from_yaml(path)
    config.validate()
    assert config.model.architecture == ArchitectureConfig(n_stacks=2, blocks_per_stack=4)
    assert config.model.architecture.n_blocks == 8
    assert config.training.progressive.time_interpretation == "depth"
    assert config.training.progressive.qlora_alpha == 32


def test_what_is_written_is_read_again(tmp_path):
    fitting = {
        **OTHER,
        "trunk_strategy": "qlora",
        "time_interpretation": "depth",
        "trunk_lr_scale": 1.0,
        "time_sampling": "batch",
    }
    config = StackWiseConfig.from_dict({"training": {"progressive": fitting}, "model": {"d_model": 64, "max_seq_len": 12}})
    config.to_yaml(tmp_path / "config.yaml")
    assert StackWiseConfig.from_yaml(tmp_path / "config.yaml") == config
    assert StackWiseConfig.from_dict(config.to_dict()) == config
    assert config != StackWiseConfig()


def test_plain_values_at_any_depth():
    tree = StackWiseConfig.from_dict({"training": {"progressive": OTHER}}).to_dict()
    assert json.loads(json.dumps(tree)) == tree
    assert tree["training"]["progressive"]["qlora_configs"] == {"1": {"rank": 2, "alpha": None}}
    assert tree["training"]["progressive"]["stage_steps"] == [5]


def test_a_key_given_twice(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {d_model: 32}\nmodel: {d_model: 64}\n")
    with pytest.raises(ConfigError, match="'model' is given twice"):
        StackWiseConfig.from_yaml(tmp_path / "config.yaml")


def test_unknown_keys_are_told_with_their_paths_and_the_nearest_names_all_at_once():
    tree = {"model": {"architecture": {"n_stack": 2}}, "training": {"progressive": {"trunk_stratgy": "frozen", "max_stacks": 0}}}
    with pytest.raises(ConfigError) as caught:
        StackWiseConfig.from_dict(tree)
    first, second, third = sorted(str(caught.value).splitlines())
    assert "model.architecture.n_stack: unknown key 'n_stack'; did you mean 'n_stacks'?" in first
    assert "training.progressive.max_stacks: " in second
    assert "training.progressive.trunk_stratgy: unknown key 'trunk_stratgy'; did you mean 'trunk_strategy'?" in third


def test_values_are_set_one_by_one_and_checked():
    config = StackWiseConfig()
    config.training.training_architecture = "blockwise"
    config.model.architecture = {"n_stacks": 3}
    assert config.model.architecture == ArchitectureConfig(n_stacks=3)
    with pytest.raises(ConfigError, match=r"TrainingConfig: training_architecture: input should be .* \(got 'blocks'\)"):
        config.training.training_architecture = "blocks"
    assert config.training.training_architecture == "blockwise"
    with pytest.raises(ConfigError, match="unknown key 'learning_rat'; did you mean 'learning_rate'"):
        config.training.learning_rat = 0.1
    with pytest.raises(ConfigError, match="greater than 0"):
        config.training.learning_rate = -1.0


def test_two_configurations_share_nothing():
    config, other = StackWiseConfig(), StackWiseConfig()
    config.training.progressive.max_stacks = 3
    config.training.progressive.qlora_configs[0] = {"rank": 1}
    assert other.training.progressive == ProgressiveConfig()
    with pytest.raises(TypeError, match="no hash"):
        hash(config)


def test_what_does_not_fit_together_is_told_with_its_path_all_at_once():
    config = StackWiseConfig()
    config.validate()
    config.model.d_model, config.model.n_heads, config.model.n_kv_heads = 96, 9, 2
    config.training.progressive.target_stacks = 13
    with pytest.raises(ConfigError) as caught:
        config.validate()
    assert str(caught.value).splitlines() == [
        "StackWiseConfig: model.n_heads: d_model = 96 must be divisible by n_heads = 9",
        "StackWiseConfig: model.n_kv_heads: n_heads = 9 must be divisible by n_kv_heads = 2",
        "StackWiseConfig: training.progressive.target_stacks: 13 is more than max_stacks = 12",
    ]


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({"n_heads": 64}, "n_heads"),  # a head of one channel cannot turn
        ({"attention_type": "mha", "kernel_type": "elu"}, "kernel_type"),
        ({"attention_type": "kernel", "mla_rkv": 8}, "mla_rkv"),
        ({"attention_preset": "gpt_style", "attention_mode": "bidirectional"}, "attention_mode"),
        ({"attention_preset": "efficient_gqa", "attention_type": "mla"}, "attention_type"),
        ({"attention_type": "mla", "use_rope": False}, "use_rope"),
    ],
)
def test_models_that_do_not_fit_together(said, place):
    config = ModelConfig.from_dict({"d_model": 64, **said})
    with pytest.raises(ConfigError, match=f"ModelConfig: {place}: "):
        config.validate()
    with pytest.raises(ConfigError, match=place):
        config.block_options()


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({"target_stacks": 13}, "target_stacks"),
        ({"trunk_strategy": "qlora", "progressive_qlora": False}, "trunk_strategy"),
        ({"prepend_loss": "denoise_mse"}, "prepend_loss"),
        ({"stack_time_mapping": "custom"}, "custom_time_mapping"),
        ({"custom_time_mapping": "a:b"}, "custom_time_mapping"),
        ({"time_embedding_dim": 7}, "time_embedding_dim"),
        ({"qlora_configs": {0: {"rank": 2}}}, "qlora_configs"),
        ({"qlora_strategy": "progressive", "qlora_configs": {0: {"rank": 2}}}, "qlora_configs"),
        ({"qlora_strategy": "variable", "qlora_rank_pattern": "linear"}, "qlora_rank_pattern"),
        ({"qlora_alpha_pattern": "linear"}, "qlora_alpha_pattern"),
        ({"qlora_trunk_window": 1}, "qlora_trunk_window"),
    ],
)
def test_growth_that_does_not_fit_together(said, place):
    with pytest.raises(ValueError, match=place):
        GrowthSpec(**said)
    config = ProgressiveConfig.from_dict(said)
    with pytest.raises(ConfigError, match=f"ProgressiveConfig: {place}: "):
        config.validate()
    with pytest.raises(ConfigError, match=rf"training\.progressive: {place}: "):
        config.growth()


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({"random_fraction": 0.6, "keep_fraction": 0.5}, "keep_fraction"),
        ({"loss_weighting": "elbo", "keep_fraction": 0.1}, "loss_weighting"),
        ({"final_mask_ratio": 0.9}, "final_mask_ratio"),
        ({"time_interpretation": "depth", "mask_schedule": "constant", "final_mask_ratio": 0.9}, "final_mask_ratio"),
    ],
)
def test_masks_that_do_not_fit_together(said, place):
    config = ProgressiveConfig.from_dict(said)
    with pytest.raises(ConfigError, match=f"ProgressiveConfig: {place}: "):
        config.validate()
    with pytest.raises(ValueError, match=place.partition("_")[0]):
        OBJECTIVES.build(OBJECTIVES.part(config.objective()), vocab_size=9)  # which says so, too, when it is used


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"model": {"attention_mode": "bidirectional"}, "training": {"progressive": {"training_objective": "clm"}}},
            "model.attention_mode: the objective clm asks for the next token, which bidirectional attention sees",
        ),
        (
            {"model": {"attention_preset": "bert_style"}, "training": {"progressive": {"training_objective": "clm"}}},
            "model.attention_preset: the objective clm",
        ),
        (
            {"model": {"vocab_size": 30}, "training": {"progressive": {"mask_token_id": 31}}},
            "training.progressive.mask_token_id: 31 must be below model.vocab_size = 30",
        ),
        (
            {"model": {"architecture": {"n_stacks": 5}}, "training": {"progressive": {"max_stacks": 4}}},
            "model.architecture.n_stacks: 5 is more than training.progressive.max_stacks = 4",
        ),
        ({"model": {"max_seq_len": 8}, "data": {"seq_len": 9}}, "data.seq_len: 9 is more than model.max_seq_len = 8"),
        ({"model": {"d_model": 65}}, "model.d_model: 65 cannot be shared out"),
    ],
)
def test_sections_that_do_not_fit_together(tree, message, tmp_path):
    config = StackWiseConfig.from_dict(tree)
    with pytest.raises(ConfigError, match=f"^StackWiseConfig: {message}"):
        config.validate()
    with pytest.raises(ConfigError, match=message):
        config.to_yaml(tmp_path / "config.yaml")
    assert not list(tmp_path.iterdir())


def test_sections_that_do_fit_together():
    for tree in (
        {"model": {"attention_mode": "causal"}, "training": {"progressive": {"training_objective": "clm"}}},
        {"model": {"attention_preset": "gpt_style"}, "training": {"progressive": {"training_objective": "clm"}}},
        {"model": {"vocab_size": 30}, "training": {"progressive": {"mask_token_id": 29}}},
        {"model": {"architecture": {"n_stacks": 16}}},  # built at once
        {"training": {"progressive": {"max_stacks": 1}}},
        {"model": {"max_seq_len": 8}, "data": {"seq_len": 8}},
        {"model": {"d_model": 65, "use_rope": False}},
    ):
        StackWiseConfig.from_dict(tree).validate()


def test_a_trunk_of_adapters_has_some_without_being_told():
    config = ProgressiveConfig(trunk_strategy="qlora")
    config.validate()
    assert config.growth() == GrowthSpec(trunk_strategy="qlora")


def test_sizes_of_adapters_that_are_set_one_by_one():
    config = ProgressiveConfig(qlora_strategy="variable")
    config.qlora_configs[0] = {"rank": 4}
    assert config.to_dict()["qlora_configs"] == {"0": {"rank": 4, "alpha": None}}
    assert config.growth().qlora_configs[0].rank == 4
    assert ProgressiveConfig.from_dict(config.to_dict()).growth() == config.growth()
    config.qlora_configs[1] = {"rnk": 4}
    for call in (config.to_dict, config.validate, config.growth):
        with pytest.raises(ValueError, match="did you mean 'rank'"):
            call()


def test_sizes_of_adapters_by_numbers_or_text():
    by_number, by_text = (GrowthSpec(qlora_strategy="variable", qlora_configs={key: {"rank": 4}}) for key in (1, "1"))
    assert by_number == by_text
    assert by_number.qlora_configs[1].rank == 4
    with pytest.raises(ValueError, match="the key 1 is given twice"):
        GrowthSpec(qlora_configs={1: {"rank": 4}, "1": {"rank": 8}})


def test_every_key_of_the_growth_gets_through():
    assert {*OTHER, *PATTERNS} == set(GrowthSpec.model_fields)
    defaults = GrowthSpec().to_dict()
    for said in (OTHER, PATTERNS):
        config = StackWiseConfig.from_dict({"training": {"progressive": said}})
        growth = config.training.progressive.growth()
        assert type(growth) is GrowthSpec
        assert growth.to_dict() == {**defaults, **said}
        assert not [name for name, value in said.items() if defaults[name] == value]
    with pytest.raises(ValueError, match="frozen"):
        growth.enabled = True


def test_where_and_how_a_cache_is_kept_is_no_content_of_a_growth():
    how = {"cache_mode": "arrow", "cache_dir": "elsewhere", "cache_bytes": 9, "gradient_checkpointing": True}
    assert GrowthSpec(**how).fingerprint() == GrowthSpec().fingerprint()
    assert GrowthSpec(cache_variants=2).fingerprint() != GrowthSpec().fingerprint()


def test_functions_of_time(tmp_path):
    times = {"time_interpretation": "depth", "stack_time_mapping": "custom", "custom_time_mapping": halfway}
    config = ProgressiveConfig(**times, target_stacks=3)
    assert config.custom_time_mapping is halfway is config.growth().custom_time_mapping
    assert config.growth().to_dict()["custom_time_mapping"] == config.to_dict()["custom_time_mapping"] == [0, 34, 67]
    config.target_stacks = 5
    assert config.to_dict()["custom_time_mapping"] == [0, 40, 80, 120, 160]
    whole = StackWiseConfig()
    whole.training.progressive = config
    whole.to_yaml(tmp_path / "config.yaml")
    again = StackWiseConfig.from_yaml(tmp_path / "config.yaml").training.progressive
    assert again.custom_time_mapping == (0, 40, 80, 120, 160)
    assert again.growth().fingerprint() == config.growth().fingerprint()
    config.custom_time_mapping = lambda *_: math.nan
    with pytest.raises(ConfigError, match=r"custom_time_mapping: the custom mapping must return a number; got nan for stack 0"):
        config.validate()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("os:getcwd", "'os:getcwd': a file can name no code: .* or in Python the function itself"),
        ("../cosine", "'../cosine': a file can name no code"),
        ([0, 1], "2 time steps for 3 stacks: each needs one"),
        ([0, 1, 201], "201 is above the last time step: num_time_steps is 201, and they count from 0"),
    ],
)
def test_a_mapping_that_is_no_name_and_no_list_of_times(mapping, message):
    config = ProgressiveConfig(stack_time_mapping="custom", custom_time_mapping=mapping, target_stacks=3)
    with pytest.raises(ConfigError, match=f"custom_time_mapping: {message}"):
        config.validate()
    with pytest.raises(ConfigError, match=f"custom_time_mapping: {message}"):
        config.growth()


def test_every_key_of_the_objective_gets_through():
    said = {"mask_token_id": 3, "mask_schedule": "cosine", "mask_ratio": 0.2, "final_mask_ratio": 0.7, "loss_weighting": "none"}
    said |= {"random_fraction": 0.1, "keep_fraction": 0.2}
    objective = OBJECTIVES.part(ProgressiveConfig(**said).objective())
    assert {ours: getattr(objective, theirs) for ours, theirs in MASKS.items()} == said
    assert ProgressiveConfig(loss_weighting="elbo").objective()["loss_weighting"] == "elbo"


@pytest.mark.parametrize(("interpretation", "schedule"), [("none", "constant"), ("depth", "linear"), ("input", "linear")])
def test_masks_go_with_time_where_there_is_one(interpretation, schedule):
    assert ProgressiveConfig(time_interpretation=interpretation).objective()["schedule"] == schedule
    assert ProgressiveConfig(time_interpretation=interpretation, mask_schedule="constant").objective()["schedule"] == "constant"


@pytest.mark.parametrize("kind", ["clm", "custom"])
def test_masks_are_of_mlm_alone(kind):
    config = TrainingConfig()
    config.progressive.training_objective = kind
    config.validate()
    assert config.progressive.objective() == {"kind": kind}
    config.progressive.mask_ratio = 0.3
    with pytest.raises(ConfigError, match=rf"progressive\.mask_ratio: is of the objective mlm, not of {kind}"):
        config.validate()

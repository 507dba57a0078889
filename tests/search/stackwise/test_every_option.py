"""Every option of the guide's configuration changes what comes out, or is refused with the key to change."""

import hashlib
import tempfile
from pathlib import Path

import pytest
import torch

from configs import BaseConfig, ConfigError, StackWiseConfig
from configs.local_losses import LocalLossSpec
from models.architecture import create_rack_from_config
from search.runs.run_folder import CHECKPOINT
from search.stackwise.progressive_trainer import ProgressiveTrainer
from search.stackwise.rack_builder import ProgressiveRackBuilder
from tests.search.growths import OF_THE_CLOCK

VOCAB_SIZE, TIME = 20, 8
BASE = {
    "model": {"vocab_size": VOCAB_SIZE, "d_model": 16, "d_ff": 16, "n_heads": 2, "architecture.blocks_per_stack": 1},
    "training": {"max_steps": 3, "batch_size": 8, "device": "cpu", "learning_rate": 0.01},
    "training.progressive": {"cache_mode": "memory"},
}
TOKENS = (torch.arange(24)[:, None] * 5 + torch.arange(TIME)) % (VOCAB_SIZE - 1)
BATCHES = list(TOKENS.split(8))


def halfway(stack_idx, max_stacks, num_time_steps):
    return stack_idx * num_time_steps / (2 * max_stacks)


def at_the_end(stack_idx, max_stacks, num_time_steps):
    return num_time_steps - max_stacks + stack_idx


AT_ONCE = {"progressive.enabled": False}
BLOCKWISE = {**AT_ONCE, "training_architecture": "blockwise"}
DEPTH = {"progressive.time_interpretation": "depth"}
INPUT = {"progressive.time_interpretation": "input", "progressive.time_sampling": "sample", "progressive.num_time_steps": 9}
QLORA = {"progressive.trunk_strategy": "qlora", "progressive.quantization_type": "bfloat16", "progressive.qlora_rank": 4}
OWN = {**QLORA, "progressive.qlora_enabled": True, "progressive.progressive_qlora": False}
PATTERNS = {**OWN, "progressive.qlora_strategy": "progressive"}
DENOISING = {"progressive.building_mode": "prepend"}
CUSTOM = {**DEPTH, "progressive.stack_time_mapping": "custom", "progressive.custom_time_mapping": halfway}

MODEL = {
    "d_model": ({}, 32),
    "d_ff": ({}, 32),
    "n_heads": ({}, 4),
    "n_kv_heads": ({}, 1),
    "attention_type": ({}, "kernel"),
    "attention_mode": ({}, "causal"),
    "attention_preset": ({}, "gpt_style"),
    "kernel_type": ({"attention_type": "kernel"}, "elu"),
    "kernel_dim": ({"attention_type": "kernel"}, 5),
    "mla_rq": ({"attention_type": "mla"}, 4),
    "mla_rkv": ({"attention_type": "mla"}, 6),
    "mla_rope_dim": ({"attention_type": "mla"}, 2),
    "dropout": ({}, 0.5),
    "freeze_up_proj": ({}, True),
    "use_rope": ({}, False),
    "rope_theta": ({}, 10.0),
    "norm": ({}, "rmsnorm"),
    "vocab_size": ({}, 30),
    "tie_embeddings": ({}, False),
    "max_seq_len": ({}, 4),
    "architecture.n_stacks": ({}, 3),
    "architecture.blocks_per_stack": ({}, 2),
}
TRAINING = {
    "training_architecture": (AT_ONCE, "blockwise"),
    "strategy": ({}, "end_to_end"),
    "end_to_end_scope": ({"strategy": "end_to_end"}, "stackwise"),
    "local_loss.head": (BLOCKWISE, "tail"),
    "local_loss.schedule": (BLOCKWISE, "overlap"),
    "local_loss.head_learns_from": (BLOCKWISE, "last"),
    "local_loss.rank": ({**BLOCKWISE, "local_loss.head": "tuned"}, 2),
    "local_loss.tail_learns": ({**BLOCKWISE, "local_loss.head": "tail"}, False),
    "local_loss.transport": (BLOCKWISE, 10.0),
    "max_steps": ({}, 2),
    "learning_rate": ({}, 0.02),
    "current_block_lr": ({}, 0.02),
    "weight_decay": ({}, 5.0),
    "batch_size": ({}, 4),
    "grad_clip": ({}, 1e-6),
    "seed": ({}, 1),
    "device": ({}, "cuda"),
    "save_interval": ({}, 1),
}
PROGRESSIVE = {
    "enabled": ({}, False),
    "target_stacks": ({}, 3),
    "max_stacks": ({}, 1),
    "building_mode": ({}, "prepend"),
    "init": ({}, "random"),
    "trunk_strategy": ({}, "full"),
    "trunk_lr_scale": ({"progressive.trunk_strategy": "full"}, 0.1),
    "qlora_trunk_window": ({**QLORA, "progressive.target_stacks": 3}, 1),
    "quantization_type": (QLORA, "half"),
    "train_embedding": ({}, True),
    "train_head": ({}, False),
    "new_stack_precision": ({}, "bfloat16"),
    "qlora_enabled": ({}, True),
    "qlora_rank": (OWN, 2),
    "qlora_alpha": (OWN, 200.0),
    "qlora_strategy": (OWN, "progressive"),
    "qlora_rank_pattern": (PATTERNS, "decreasing"),
    "qlora_alpha_pattern": ({**PATTERNS, "progressive.target_stacks": 3}, "increasing"),
    "qlora_configs": ({**OWN, "progressive.qlora_strategy": "variable"}, {0: {"rank": 2}}),
    "qlora_rslora": (OWN, True),
    "qlora_targets": (OWN, ["mlp"]),
    "train_stack_lora_with_base": ({"progressive.qlora_enabled": True}, True),
    "progressive_qlora": ({}, True),
    "progressive_qlora_rank": (QLORA, 2),
    "progressive_qlora_alpha": (QLORA, 200.0),
    "cache_activations": ({}, False),
    "cache_mode": ({}, "arrow"),
    "cache_dir": ({"progressive.cache_mode": "arrow"}, "caches of their own"),
    "cache_bytes": ({}, 10),
    "cache_variants": ({"max_steps": 8}, 1),
    "stage_steps": ({}, [1]),
    "patience": ({"max_steps": 10, "learning_rate": 1e-9}, 2),
    "min_delta": ({"max_steps": 10, "progressive.patience": 2}, 9.0),
    "joint_tuning_steps": ({}, 2),
    "fine_tune_mode": ({"progressive.joint_tuning_steps": 2}, "head"),
    "gradient_checkpointing": ({}, True),
    "prepend_loss": (DENOISING, "denoise_mse"),
    "time_interpretation": ({}, "depth"),
    "time_embedding_dim": (INPUT, 8),
    "time_encoding_type": (INPUT, "learned"),
    "stack_time_mapping": ({**DEPTH, "progressive.target_stacks": 3}, "exponential"),
    "custom_time_mapping": (CUSTOM, at_the_end),
    "time_per_stack": (DEPTH, 50),
    "num_time_steps": (DEPTH, 400),
    "noise_direction": (DEPTH, "decreasing"),
    "time_sampling": ({**INPUT, "progressive.cache_activations": False}, "batch"),
    "training_objective": ({"model.attention_mode": "causal"}, "clm"),
    "mask_token_id": ({}, 3),
    "random_fraction": ({}, 0.5),
    "keep_fraction": ({}, 0.5),
    "mask_schedule": ({**DEPTH, "progressive.target_stacks": 3}, "exponential"),
    "mask_ratio": ({}, 0.9),
    "final_mask_ratio": (DEPTH, 0.3),
    "loss_weighting": ({}, "elbo"),
}
DATA = {"seq_len": ({}, 6), "pad_token_id": ({}, 3)}

OF_SECTIONS = {"model": MODEL, "training": TRAINING, "training.progressive": PROGRESSIVE, "data": DATA}
CASES = {f"{section}.{name}": case for section, named in OF_SECTIONS.items() for name, case in named.items()}
"""Beside which others an option counts, and a value of it that is not what it is there."""

KNOWN = {}
"""What has come out already, by what was said: most options have others beside them that are as they are by default."""

REFUSALS = ("model.max_seq_len", "training.device", "training.progressive.max_stacks", "training.progressive.cache_bytes")
"""Options that are limits: what they change is that a run is refused."""


def options(section=StackWiseConfig, place=""):
    """All options, by their places, however deep."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseConfig | LocalLossSpec):
            yield from options(field.annotation, f"{place}{name}.")
        else:
            yield f"{place}{name}"


def configured(said):
    """The configuration in which the options at these places are so."""
    tree = {}
    flat = {f"{section}.{name}": value for section, named in BASE.items() for name, value in named.items()}
    for path, value in {**flat, **said}.items():
        *sections, name = path.split(".")
        part = tree
        for section in sections:
            part = part.setdefault(section, {})
        part[name] = value
    return StackWiseConfig.from_dict(tree)


def digest(state):
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(name.encode() + tensor.cpu().float().numpy().tobytes())
    return found.hexdigest()


def built(config):
    """What the rack of a configuration is, and what it makes of tokens while it trains."""
    rack = create_rack_from_config(config)
    torch.manual_seed(0)
    logits = rack.train()(TOKENS[:2])
    parameters = [(name, list(each.shape), each.requires_grad) for name, each in rack.named_parameters()]
    return parameters, hashlib.sha256(logits.detach().numpy().tobytes()).hexdigest()


def trained(config, folder):
    """All that a growth leaves and tells in numbers."""
    out, seen = folder / "out", []
    builder = ProgressiveRackBuilder(config)
    trainer = ProgressiveTrainer(config, out=out, say=lambda _: seen.append(any(out.rglob(CHECKPOINT))))
    results = trainer.train_rack(builder, BATCHES, target_stacks=None if config.training.progressive.target_stacks else 2)
    untold = (*OF_THE_CLOCK, "fingerprint", "cache_reason", "cache_fill_seconds")
    rows = [{name: value for name, value in row.items() if name not in untold} for row in results["stages"]]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob("caches*/**/*.arrow"))
    rack = builder.build_rack()
    return rows, digest(rack.state_dict()), {each.device.type for each in rack.parameters()}, any(seen), len(files)


def outcome(said, *, of_model):
    """What comes out of the configuration in which the options at these places are so; the text of a refusal."""
    key = repr((sorted(said.items(), key=lambda pair: pair[0]), of_model))
    if key not in KNOWN:
        with tempfile.TemporaryDirectory() as folder:
            place = "training.progressive.cache_dir"
            said = {**said, place: f"{folder}/{said[place]}"} if place in said else said
            try:
                config = configured(said)
                config.validate()
                KNOWN[key] = built(config) if of_model else trained(config, Path(folder))
            except ValueError as error:
                KNOWN[key] = f"refused: {error}"
    return KNOWN[key]


def test_all_options_are_here_and_no_others():
    assert set(options()) == set(CASES)


@pytest.mark.parametrize("path", CASES)
@pytest.mark.filterwarnings("ignore:all adapters|rank", "ignore:.*half of the smaller side")
def test_an_option_changes_what_comes_out(path):
    if path == "training.device" and torch.cuda.is_available():
        pytest.skip("the device is there")
    (context, value), of_model = CASES[path], path.startswith("model.")
    prefix = "model." if of_model else "training."
    said = {place if place.startswith("model.") else f"{prefix}{place}": each for place, each in context.items()}
    usual, changed = (outcome(each, of_model=of_model) for each in (said, {**said, path: value}))
    assert not isinstance(usual, str), usual
    assert isinstance(changed, str) == (path in REFUSALS), changed
    assert usual != changed


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({"training.progressive.trunk_lr_scale": 0.5}, "trunk_lr_scale: changes nothing here: set trunk_strategy: full"),
        ({"training.progressive.quantization_type": "fp8"}, "quantization_type: changes nothing here: set trunk_strategy: qlora"),
        ({"training.progressive.qlora_trunk_window": 1}, "qlora_trunk_window: "),
        (
            {"training.progressive.qlora_trunk_window": 1, "training.progressive.trunk_strategy": "full"},
            "qlora_trunk_window: changes nothing here: set trunk_strategy: qlora",
        ),
        ({"training.progressive.train_stack_lora_with_base": True}, "train_stack_lora_with_base: .* set qlora_enabled: true"),
        ({"training.progressive.min_delta": 0.1}, "min_delta: changes nothing here: set patience"),
        ({"training.progressive.fine_tune_mode": "head"}, "fine_tune_mode: changes nothing here: set joint_tuning_steps"),
        ({"training.progressive.time_sampling": "sample"}, "time_sampling: changes nothing here: set time_interpretation: input"),
        ({"training.progressive.stack_time_mapping": "exponential"}, "stack_time_mapping: .* time_interpretation: depth"),
        ({"training.progressive.noise_direction": "decreasing"}, "noise_direction: .* time_interpretation: depth"),
        ({"training.progressive.time_per_stack": 7}, "time_per_stack: changes nothing here"),
        ({"training.progressive.num_time_steps": 7}, "num_time_steps: changes nothing here"),
        ({"training.progressive.mask_schedule": "cosine"}, "mask_schedule: changes nothing here"),
        (
            {"training.progressive.mask_schedule": "linear", "training.progressive.final_mask_ratio": 0.9},
            "final_mask_ratio: changes nothing here",
        ),
        ({"training.progressive.qlora_targets": ["qery"]}, r"qlora_targets: 'qery' matches no linear .* did you mean 'query'"),
        (
            {"training.training_architecture": "blockwise", "training.progressive.target_stacks": 3},
            "training_architecture: blockwise is how a whole rack trains .* set rackwise, or training.progressive.enabled: false",
        ),
        ({"training.end_to_end_scope": "stackwise"}, "end_to_end_scope: is of the strategy end_to_end"),
        ({"training.local_loss.transport": 1.0}, "local_loss: .* set training_architecture: stackwise"),
        ({"training.strategy": "end_to_end", "training.current_block_lr": 0.1}, "current_block_lr: .* set end_to_end_scope"),
        ({"training.progressive.enabled": False, "training.current_block_lr": 0.1}, "current_block_lr: .* training_architecture"),
        ({"data.pad_token_id": VOCAB_SIZE}, f"data.pad_token_id: {VOCAB_SIZE} must be below model.vocab_size"),
    ],
)
def test_what_would_change_nothing_is_refused_with_the_key_to_change(said, place):
    with pytest.raises(ConfigError, match=rf"StackWiseConfig: \S*{place}"):
        configured(said).validate()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"trunk_strategy": "qlora"}, "set qlora_trunk_window"),
        ({"trunk_strategy": "full"}, "trunk_strategy: full"),
        ({"building_mode": "prepend"}, "set building_mode: append"),
        ({"train_embedding": True}, "train_embedding: true"),
        ({"enabled": False}, "enabled: false"),
    ],
)
def test_a_cache_that_could_keep_nothing_is_refused_where_it_is_asked_for(said, reason):
    said = {f"training.progressive.{name}": value for name, value in said.items()}
    configured(said).validate()
    configured({**said, "training.progressive.cache_activations": False}).validate()
    with pytest.raises(ConfigError, match=rf"cache_activations: true keeps nothing here: .*{reason}"):
        configured({**said, "training.progressive.cache_activations": True}).validate()

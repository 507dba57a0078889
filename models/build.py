"""From a spec to a model with weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from configs.registry import Part
from models.learning_rates import set_learning_rates
from models.rack import Block, Rack, Stack
from models.registries import CHANNEL_MIXERS, HEADS, MIXERS, NORMS

if TYPE_CHECKING:
    from models.spec import BlockSpec, RackSpec


def build(spec: RackSpec, seed: int = 0) -> Rack:
    """The rack of a spec on the current default device; the same seed gives the same weights, and no other generator moves."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the GPUs' generators too
        rack = _assemble(spec)
        initialise(rack, spec.init_std)
    set_learning_rates(rack, spec)
    return rack


def without_memory(spec: RackSpec) -> Rack:
    """The rack of a spec on torch's meta device: all shapes and names, no weights."""
    with torch.device("meta"):
        return build(spec)


def _assemble(spec: RackSpec) -> Rack:
    def norm(part: Part | None) -> nn.Module | None:
        return None if part is None else NORMS.build(part, d_model=spec.d_model)

    def block(block_spec: BlockSpec) -> Block:
        mixer, mlp = block_spec.mixer, block_spec.mlp
        sizes: dict[str, Any] = {"d_model": spec.d_model, "max_length": spec.max_length}
        return Block(
            mixer and MIXERS.build(mixer, **sizes),
            mlp and CHANNEL_MIXERS.build(mlp, **sizes),
            mixer_norm=mixer and norm(block_spec.mixer_norm),
            mlp_norm=mlp and norm(block_spec.mlp_norm),
            mixer_post_norm=mixer and norm(block_spec.mixer_post_norm),
            mlp_post_norm=mlp and norm(block_spec.mlp_post_norm),
            output_scale=block_spec.output_scale,
            dropout=block_spec.dropout,
        )

    shared: dict[str, Block] = {}

    def block_or_shared(block_spec: BlockSpec) -> Block:
        if block_spec.share is None:
            return block(block_spec)
        if block_spec.share not in shared:
            shared[block_spec.share] = block(block_spec)
        return shared[block_spec.share]

    embedding = nn.Embedding(spec.vocab_size, spec.d_model)
    stacks = [Stack(block_or_shared(block_spec) for block_spec in stack.expanded()) for stack in spec.stacks]
    head = HEADS.build(
        spec.head,
        d_model=spec.d_model,
        vocab_size=spec.vocab_size,
        max_length=spec.max_length,
        make_norm=lambda: norm(spec.norm) or nn.Identity(),
    )
    return Rack(embedding, stacks, head, tie_embeddings=spec.tie_embeddings)


def initialise(rack: Rack, init_std: float | None) -> None:
    """Embeddings from N(0, 0.02), linear biases zero, and with `init_std` linear weights from N(0, init_std).

    Parameters whose start is part of a mixer's definition (mamba's time steps) carry `keep_init` and are left alone.
    """
    for module in rack.modules():
        if isinstance(module, nn.Linear):
            if module.bias is not None and not getattr(module.bias, "keep_init", False):
                nn.init.zeros_(module.bias)
            if init_std is not None and not getattr(module.weight, "keep_init", False):
                nn.init.normal_(module.weight, std=init_std)
    nn.init.normal_(rack.embedding.weight, std=0.02)

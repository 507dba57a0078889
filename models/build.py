"""From a spec to a model with weights."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from configs import ConfigError
from configs.registry import Part
from models.rack import Block, Rack, Stack
from models.registries import CHANNEL_MIXERS, EMBEDDINGS, HEADS, MIXERS, NORMS
from models.settings import Settings
from models.start import adapt, freeze, initialise, set_biases
from models.unfilled import Unfilled

if TYPE_CHECKING:
    from models.spec import BlockSpec, RackSpec


def build(spec: RackSpec, seed: int = 0) -> Rack:
    """The rack of a spec on the current default device; the same seed gives the same weights, and no other generator moves.

    Raises:
        ConfigError: if something that it needs is not there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the GPUs' generators too
        try:
            rack = _assemble(spec)
        except ValueError as error:  # what only shows where it is built: a kernel that is not installed
            raise ConfigError(str(error)) from None
        settings = Settings(rack, spec)
        set_biases(settings)
        initialise(settings)
        adapt(settings)
    freeze(settings)
    return rack


@lru_cache(maxsize=2)
def without_memory(spec: RackSpec) -> Rack:
    """The rack of a spec on torch's meta device: all shapes and names, no weights. It is kept: do not change it."""
    with torch.device("meta"), Unfilled():
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

    sizes: dict[str, Any] = {"d_model": spec.d_model, "vocab_size": spec.vocab_size, "max_length": spec.max_length}
    residual_dtype = None if spec.residual_dtype is None else getattr(torch, spec.residual_dtype)
    embedding = EMBEDDINGS.build(spec.embedding, **sizes, residual_dtype=residual_dtype)
    stacks = [Stack(block_or_shared(block_spec) for block_spec in stack.expanded()) for stack in spec.stacks]
    head = HEADS.build(spec.head, **sizes, make_norm=lambda: norm(spec.norm) or nn.Identity())
    return Rack(embedding, stacks, head, tie_embeddings=spec.tie_embeddings)

"""Builds a Rack from its description: constructs the modules, initialises, adapts, quantises, freezes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from configs import ConfigError
from configs.registry import Part
from models.assembly.initialise import adapt, freeze, initialise, set_biases
from models.assembly.parameter_settings import ParameterSettings
from models.assembly.precision import COMPUTED, set_precision
from models.rack.modules import Block, Rack, Stack
from models.spec.backbone import stack_uids
from models.spec.block import BlockSpec
from models.spec.meta_device import FastMeta
from models.spec.rack_fields import RackFields
from models.spec.registries import CHANNEL_MIXERS, EMBEDDINGS, HEADS, MIXERS, NORMS


def build(spec: RackFields, seed: int = 0) -> Rack:
    """The rack of a spec on the current default device; the same seed gives the same weights, and no other generator moves.

    Raises:
        ConfigError: if something that it needs is not there.
    """
    with seeded(seed):
        rack = _assemble(spec)
        settings = ParameterSettings(rack, spec)
        set_biases(settings)
        initialise(settings)
        adapt(settings)
    for stack, stack_spec in zip(rack.stacks, spec.stacks, strict=True):
        set_precision(stack, stack_spec)
    freeze(settings)
    return rack


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's own generator starts from the seed, and afterwards is where it was; no other one moves.

    Raises:
        ConfigError: for a ValueError, of what only shows where something is built: a kernel that is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the GPUs' generators too
        try:
            yield
        except ValueError as error:
            raise ConfigError(str(error)) from None


@lru_cache(maxsize=16)
def without_memory(spec: RackFields) -> Rack:
    """The rack of a spec on torch's meta device: all shapes and names, no weights. It is kept: do not change it."""
    with torch.device("meta"), FastMeta():
        return build(spec)


def without_numbers(spec: RackFields) -> Rack:
    """A rack of one's own as `without_memory` has it, to be `filled`."""
    with torch.device("meta"), FastMeta():
        return build(spec)


@torch.no_grad()
def filled(rack: Rack, read: Callable[[str], Tensor]) -> Rack:
    """A rack `without_numbers`, given its tensors by name, one after the other: nothing is drawn, nothing is held twice.

    The tensors become the rack's own. Tied weights are asked for once, by their first name; what is no part of the state (tables
    that are computed) is computed, and lies where the weights do. All else (what is frozen, `lr_scale`) is as `build` leaves it.
    """
    given: dict[int, nn.Parameter] = {}
    computed: list[tuple[nn.Module, str]] = []
    state = rack.state_dict().keys()
    for module_name, module in rack.named_modules(remove_duplicate=True):
        inside = f"{module_name}." if module_name else ""
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in given:
                given[id(parameter)] = _like(parameter, read(f"{inside}{name}"))
            module.register_parameter(name, given[id(parameter)])
        for name, _ in list(module.named_buffers(recurse=False)):
            if f"{inside}{name}" in state:
                module.register_buffer(name, read(f"{inside}{name}"))
            else:
                computed.append((module, name))
    device = next(rack.parameters()).device
    for module, name in computed:
        module.register_buffer(name, module.tables()[name].to(device), persistent=False)  # type: ignore[operator]
    return rack


def _like(parameter: nn.Parameter, values: Tensor) -> nn.Parameter:
    """The values as a parameter that is treated alike in training: frozen or not, and with the same marks."""
    made = nn.Parameter(values, requires_grad=parameter.requires_grad)
    made.__dict__.update(parameter.__dict__)
    return made


def _assemble(spec: RackFields) -> Rack:
    sizes: dict[str, Any] = {"d_model": spec.d_model, "vocab_size": spec.vocab_size, "max_length": spec.max_length}
    residual_dtype = None if spec.residual_dtype is None else getattr(torch, spec.residual_dtype)
    embedding = EMBEDDINGS.build(spec.embedding, **sizes, residual_dtype=residual_dtype)
    shared: dict[str, Block] = {}
    stacks = [assemble_stack(spec, index, shared) for index in range(len(spec.stacks))]
    head = HEADS.build(spec.head, **sizes, make_norm=lambda: _norm(spec, spec.norm) or nn.Identity())
    with torch.random.fork_rng(devices=[]):  # other parts start alike with it and without
        time_embedding = None if spec.time is None else spec.time.build(d_model=spec.d_model)
    return Rack(embedding, stacks, head, tie_embeddings=spec.tie_embeddings, time_embedding=time_embedding)


def assemble_stack(spec: RackFields, index: int, shared: dict[str, Block]) -> Stack:
    """A stack of a rack as its parts' constructors make it; blocks that share a name are taken from `shared`, or put there."""
    blocks = []
    for block_spec in spec.stacks[index].expanded():
        block = None if block_spec.share is None else shared.get(block_spec.share)
        if block is None:
            block = _assemble_block(spec, block_spec)
        if block_spec.share is not None:
            shared[block_spec.share] = block
        blocks.append(block)
    return Stack(blocks, uid=stack_uids(spec)[index], compute_dtype=COMPUTED.get(spec.stacks[index].precision))


def _assemble_block(spec: RackFields, block: BlockSpec) -> Block:
    mixer, mlp = block.mixer, block.mlp
    sizes: dict[str, Any] = {"d_model": spec.d_model, "max_length": spec.max_length}
    return Block(
        mixer and MIXERS.build(mixer, **sizes),
        mlp and CHANNEL_MIXERS.build(mlp, **sizes),
        mixer_norm=mixer and _norm(spec, block.mixer_norm),
        mlp_norm=mlp and _norm(spec, block.mlp_norm),
        mixer_post_norm=mixer and _norm(spec, block.mixer_post_norm),
        mlp_post_norm=mlp and _norm(spec, block.mlp_post_norm),
        output_scale=block.output_scale,
        dropout=block.dropout,
    )


def _norm(spec: RackFields, part: Part | None) -> nn.Module | None:
    return None if part is None else NORMS.build(part, d_model=spec.d_model)

"""Enumerates every distinct part that racks of a space may consist of, as built there."""

import inspect
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from configs import ConfigError, Registry
from configs.registry import Part
from models import RackSpec
from models.assembly.assemble import without_memory
from models.linears.adapters import Adapter, replace, set_bias
from models.linears.convert import fake_quantised, quantised, with_adapters
from models.linears.fake_quantised import FakeQuantisedLinear
from models.linears.quantised import QuantisedLinear
from models.rack.choice import STOCHASTIC
from models.rack.modules import Block
from models.spec.registries import CHANNEL_MIXERS, HEADS, MIXERS, NORMS


class Linear(NamedTuple):
    """A linear of a part: whether it has a bias, the rank of its adapter (0: none), and the format of its weight (None: dense).

    With `trains` the weight is rounded to the format for every product, and not stored in it.
    """

    has_bias: bool
    rank: int
    format: str | None = None
    trains: bool = False


class RackPart(NamedTuple):
    """A part of a rack, the registry that builds it, and its linears by name that are not as its constructor makes them.

    `compute_dtype` is what its stack computes products in; None: as around it.
    """

    registry: Registry
    part: Part
    linears: tuple[tuple[str, Linear], ...] = ()
    compute_dtype: torch.dtype | None = None

    @property
    def key(self) -> str:
        """What its time depends on: its settings, biases and adapters, but not how it starts and learns."""
        text = f"{self.registry.noun} {self.part.kind} {json.dumps(self.part.options(), sort_keys=True)}"
        changed: dict[str, Any] = {name: _changes(linear) for name, linear in self.linears}
        text = f"{text} {json.dumps(changed, sort_keys=True)}" if changed else text
        return text if self.compute_dtype is None else f"{text} in {str(self.compute_dtype).removeprefix('torch.')}"

    @property
    def is_sized_by_length(self) -> bool:
        """Whether it is built for the longest sequence of the rack: then its time is that of this length."""
        return "max_length" in inspect.signature(self.registry[self.part.kind]).parameters

    def build(self, space: RackSpec) -> nn.Module:
        """The part by itself, at the sizes of the space; ConfigError if something that it needs is not there."""
        sizes: dict[str, Any] = {"d_model": space.d_model, "max_length": space.max_length, "vocab_size": space.vocab_size}

        def norm() -> nn.Module:
            return nn.Identity() if space.norm is None else NORMS.build(space.norm, d_model=space.d_model)

        try:
            module: nn.Module = self.registry.build(self.part, **sizes, make_norm=norm)
        except ValueError as error:  # what only shows where it is built: a kernel that is not installed
            raise ConfigError(str(error)) from None
        for name, as_built in self.linears:
            linear = module.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            replace(module, name, _made(linear, as_built))
        return module

    def in_precision(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, with products computed as in the part's stack, on the current default device."""
        if self.compute_dtype is None:
            return call
        return torch.autocast(torch.get_default_device().type, dtype=self.compute_dtype)(call)


def _changes(linear: Linear) -> dict[str, Any]:
    changes: dict[str, Any] = {"bias": linear.has_bias, "rank": linear.rank}
    return changes if linear.format is None else {**changes, "format": linear.format, "trains": linear.trains}


def _made(linear: nn.Linear, as_built: Linear) -> nn.Linear:
    set_bias(linear, has_bias=as_built.has_bias)
    if as_built.format is not None:
        linear = (fake_quantised if as_built.trains else quantised)(linear, as_built.format)
    if not as_built.rank:
        return linear
    adapter = Adapter(linear.in_features, linear.out_features, rank=as_built.rank, alpha=as_built.rank)
    return with_adapters(linear, {"lora": adapter})


class SublayerParts(NamedTuple):
    """A mixer or channel mixer: the part that it is, or those that it may be by name, where there is a choice; and its norms."""

    part: RackPart | None
    choices: dict[str, RackPart | None] | None
    norms: list[RackPart]


def parts_of(space: RackSpec) -> list[RackPart]:
    """Everything that a rack of the space may consist of, but for the embedding: every choice; equal parts once."""
    found = [head_of(space)]
    for half in sublayers_of(space):
        parts = [half.part] if half.choices is None else list(half.choices.values())
        if parts != [None]:
            found += [part for part in (*parts, *half.norms) if part is not None]
    return list({part.key: part for part in found}.values())


def head_of(space: RackSpec) -> RackPart:
    """The head."""
    return _as_built(space, HEADS, space.head, without_memory(space).head)


def sublayers_of(space: RackSpec) -> Iterator[SublayerParts]:
    """The sublayers of the blocks in the order of the data flow."""
    blocks = (block for stack in space.stacks for block in stack.expanded())
    for block, module in zip(blocks, without_memory(space).blocks(), strict=True):
        yield _half(space, MIXERS, block.mixer, module, (block.mixer_norm, block.mixer_post_norm))
        yield _half(space, CHANNEL_MIXERS, block.mlp, module, (block.mlp_norm, block.mlp_post_norm))


def _half(space: RackSpec, registry: Registry, part: Part | None, block: Block, norms: tuple[Part | None, ...]) -> SublayerParts:
    around = [RackPart(NORMS, norm) for norm in norms if norm is not None]
    if part is None:
        return SublayerParts(None, None, around)
    module: Any = block.mixer if registry is MIXERS else block.mlp
    if part.kind != STOCHASTIC:
        return SublayerParts(_as_built(space, registry, part, module, block.compute_dtype), None, around)
    inner: dict[str, Part | None] = part.options()["mixers"]
    choices = {
        name: None if each is None else _as_built(space, registry, each, module.get(name), block.compute_dtype)
        for name, each in inner.items()
    }
    return SublayerParts(None, choices, around)


def _as_built(
    space: RackSpec, registry: Registry, part: Part, module: nn.Module, compute_dtype: torch.dtype | None = None
) -> RackPart:
    plain = _plain_linears(registry, part, space.d_model, space.max_length, space.vocab_size)
    changed = tuple((name, linear) for name, linear in _linears(module) if plain[name] != linear)
    return RackPart(registry, part, changed, compute_dtype)


@lru_cache(maxsize=256)
def _plain_linears(registry: Registry, part: Part, d_model: int, max_length: int | None, vocab_size: int) -> dict[str, Linear]:
    with torch.device("meta"):
        sizes: dict[str, Any] = {"d_model": d_model, "max_length": max_length, "vocab_size": vocab_size}
        return dict(_linears(registry.build(part, **sizes, make_norm=nn.Identity)))


def _linears(module: nn.Module) -> Iterator[tuple[str, Linear]]:
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            ranks = [adapter.down.shape[0] for adapter in part.modules() if isinstance(adapter, Adapter)]
            trains = isinstance(part, FakeQuantisedLinear)
            kept_as = part.format if isinstance(part, FakeQuantisedLinear | QuantisedLinear) else None
            yield name, Linear(part.bias is not None, sum(ranks), kept_as, trains)

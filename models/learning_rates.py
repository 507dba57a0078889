"""Gives every parameter of a rack the learning rate scale that its spec says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import filter as matching_names
from typing import TYPE_CHECKING, Any

from torch import nn

from models.parameters import ParameterFields
from models.rack import Rack
from models.registries import NORMS
from models.stochastic import Choice

if TYPE_CHECKING:
    from models.spec import RackSpec

PARTS = ("mixer_norm", "mixer", "mixer_post_norm", "mlp_norm", "mlp", "mlp_post_norm")


def set_learning_rates(rack: Rack, spec: RackSpec) -> None:
    """Multiply `lr_scale` along the path to every parameter and leave it in its attribute `lr_scale`, where it is not 1.

    With 0 the parameter requires no gradient. A tied weight is the embedding's, whatever is said of the head. The norms in a
    head are the rack's `norm`, so they have the scale of both.
    """
    for parameter, factor in _scales(rack, spec).items():
        if factor != 1.0:
            parameter.lr_scale = factor  # type: ignore[attr-defined]
        parameter.requires_grad_(factor != 0.0)


def _scales(rack: Rack, spec: RackSpec) -> dict[nn.Parameter, float]:
    scales: dict[nn.Parameter, float] = {}

    def scale(module: nn.Module, *path: ParameterFields) -> None:
        scales.update(dict.fromkeys(module.parameters(), math.prod(fields.lr_scale for fields in path)))

    places = [(stack, block) for stack in spec.stacks for block in stack.expanded()]
    for (stack_spec, block_spec), block in zip(places, rack.blocks(), strict=True):
        for name in PARTS:
            for module, *path in _parts(getattr(block, name), getattr(block_spec, name)):
                scale(module, spec, stack_spec, block_spec, *path)
    scale(rack.head, spec, spec.head)
    for module in rack.head.modules():
        if spec.norm is not None and isinstance(module, NORMS[spec.norm.kind]):
            scale(module, spec, spec.head, spec.norm)
    scale(rack.embedding, spec)
    by_name = dict(rack.named_parameters())
    for glob, fields in spec.parameters.items():
        for name in matching_names(by_name, glob):
            scales[by_name[name]] *= fields.lr_scale
    return scales


def _parts(module: nn.Module | None, part: Any) -> Iterator[tuple[Any, ...]]:
    """A part's module and its fields; of a choice, that of every choice with the fields of both."""
    if isinstance(module, Choice):
        yield from ((inner, part, part.mixers[name]) for name, inner in module.named() if inner is not None)
    elif module is not None:
        yield module, part

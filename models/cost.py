"""What a rack costs, part by part, counted on torch's meta device: parameters, state, operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.mixer import ChannelMixer, Head, Mixer
from models.spec import RackSpec

ISO_STATE = 4096
"""Total numbers of state that fixed-state racks of the MAD protocol have (Poli et al. 2024, section 3)."""


@dataclass(frozen=True)
class PartCost:
    """One part of a rack: where, what, and its counts (`state` per sequence, `flops` per token, forward).

    Parameters of a part that is shared or tied are counted at its first place alone.
    """

    path: str
    kind: str
    options: dict[str, Any]
    n_parameters: int
    state: int
    flops: float


@dataclass(frozen=True)
class RackCost:
    """All parts in the order of the data flow, and what they add up to."""

    parts: tuple[PartCost, ...]
    n_parameters: int
    state: int
    flops: float
    warnings: tuple[str, ...]


def cost(spec: RackSpec, seq_len: int) -> RackCost:
    """Counts for sequences of `seq_len`; builds the rack without memory."""
    with torch.device("meta"):
        rack = spec.build()
    seen: set[int] = set()
    parts = [_part("embedding", "embedding", rack.embedding, options={}, seq_len=seq_len, seen=seen)]
    blocks = [
        (f"stacks[{i}].blocks[{j}]", block) for i, stack in enumerate(spec.stacks) for j, block in enumerate(stack.expanded())
    ]
    modules = rack.blocks()
    for (path, block_spec), block in zip(blocks, modules, strict=True):
        for name in ("mixer_norm", "mixer", "mixer_post_norm", "mlp_norm", "mlp", "mlp_post_norm"):
            module, part = getattr(block, name), getattr(block_spec, name)
            if module is not None:
                parts.append(_part(f"{path}.{name}", part.kind, module, options=part.options(), seq_len=seq_len, seen=seen))
    parts.append(_part("head", spec.head.kind, rack.head, options=spec.head.options(), seq_len=seq_len, seen=seen))
    mixers = [block.mixer for block in modules if isinstance(block.mixer, Mixer)]
    return RackCost(
        tuple(parts),
        sum(parameter.numel() for parameter in rack.parameters()),
        sum(part.state for part in parts),
        sum(part.flops for part in parts),
        iso_state_warnings(mixers, seq_len),
    )


def _part(path: str, kind: str, module: nn.Module, *, options: dict[str, Any], seq_len: int, seen: set[int]) -> PartCost:
    new = [parameter for parameter in module.parameters() if id(parameter) not in seen]
    seen.update(id(parameter) for parameter in new)
    resolved = {name: getattr(module, name, value) if value is None else value for name, value in options.items()}
    flops = module.flops(seq_len) / seq_len if isinstance(module, Mixer | ChannelMixer | Head) else 0.0
    state = module.state_size(seq_len) if isinstance(module, Mixer) else 0
    return PartCost(path, kind, resolved, sum(parameter.numel() for parameter in new), state, flops)


def iso_state_warnings(mixers: list[Mixer], seq_len: int) -> tuple[str, ...]:
    """Where the rack departs from the iso-state rule.

    The rule is for mixers whose state does not grow with the sequence: over a rack they hold 4096 numbers, so a hybrid in which
    half of the mixers are of that kind holds half of it.
    """
    fixed = [mixer for mixer in mixers if mixer.state_size(2 * seq_len) == mixer.state_size(seq_len)]
    if not fixed:
        return ()
    total, expected = sum(mixer.state_size(seq_len) for mixer in fixed), ISO_STATE * len(fixed) / len(mixers)
    if total == expected:
        return ()
    text = (
        f"fixed-state mixers ({len(fixed)} of {len(mixers)}) hold {total:,} numbers of state; the MAD iso-state rule asks for "
        f"{expected:,.0f}, so scores of this rack do not compare with those of racks that keep it"
    )
    return (text,)

"""Counts what a rack or a space costs, part by part: parameters, cache and state bytes, FLOPs; on the meta device."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from configs.registry import Part
from models.assembly.assemble import without_memory
from models.linears.quantised import QuantisedLinear
from models.rack.choice import Choice
from models.rack.contracts import ChannelMixer, Head, Mixer
from models.rack.modules import Rack
from models.rack.time_embedding import TimeEmbedding
from models.spec.rack_fields import RackFields
from models.spec.registries import PARTS

ISO_STATE = 4096
"""Total numbers of state that fixed-state racks of the MAD protocol have (Poli et al. 2024, section 3)."""


@dataclass(frozen=True)
class PartCost:
    """One part of a rack: where, what, and its counts (`state` per sequence, `flops` per token, forward).

    Parameters of a part that is shared or tied are counted at its first place alone. The choices of a space are parts too, of
    which the main one `is_active`: the others have parameters, but what they would keep and compute is in no total.
    """

    path: str
    kind: str
    options: dict[str, Any]
    n_parameters: int
    state: int
    flops: float
    is_active: bool = True
    chosen: frozenset[str] = frozenset()
    """The options that are not the kind's defaults."""


@dataclass(frozen=True)
class RackCost:
    """All parts in the order of the data flow, and what they add up to; for a space, all parameters and its main placement."""

    parts: tuple[PartCost, ...]
    n_parameters: int
    state: int
    flops: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """What a piece of a rack adds: parameters, operations per token (forward), and numbers kept per sequence.

    What is kept is `cache` if it grows with the sequence, be it at the start alone (attention in a window), else `state`, both as
    the MAD protocol counts them. `state_bytes` is what is really held beside caches: states, normalisers, and what convolutions
    and token shifts remember, in the precision that they have. `modules` are what was counted.
    """

    n_parameters: int = 0
    flops: float = 0.0
    cache: int = 0
    state: int = 0
    state_bytes: int = 0
    modules: tuple[nn.Module, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class SpaceCost:
    """A space piece by piece: the base and one choice for every slot add up to the rack that they make.

    `choices` has, slot by slot, the counts by name in declared order. A choice counts the norms of its half of the block as
    well, since null does without them; `base` is all else. `n_parameters` is that of the supernet: all choices, norms once.
    """

    base: Count
    choices: tuple[dict[str, Count], ...]
    n_parameters: int


def cost(spec: RackFields, seq_len: int) -> RackCost:
    """Counts for sequences of `seq_len`; builds the rack without memory."""
    rack = without_memory(spec)
    parts = tuple(_parts(spec, rack, seq_len))
    mixers = [block.mixer for block in rack.blocks()]
    return RackCost(
        parts,
        _n_parameters([rack], set()),
        sum(part.state for part in parts if part.is_active),
        sum(part.flops for part in parts if part.is_active),
        iso_state_warnings([mixer for mixer in mixers if isinstance(mixer, Mixer) and mixer.state_size(seq_len)], seq_len),
    )


def space_cost(space: RackFields, seq_len: int) -> SpaceCost:
    """Counts for sequences of `seq_len` of every choice in a space, and of what is outside of the choices."""
    rack = without_memory(space)
    outside: list[nn.Module] = [part for part in (rack.embedding, rack.time_embedding, rack.head) if part is not None]
    choices: list[dict[str, Count]] = []
    for block in rack.blocks():
        for norm, part, post_norm in block.sublayers():
            norms = [module for module in (norm, post_norm) if module is not None]
            if isinstance(part, Choice):
                choices.append({name: _count([each, *norms], seq_len) if each else Count() for name, each in part.named()})
            elif part is not None:
                outside += [part, *norms]
    return SpaceCost(_count(outside, seq_len), tuple(choices), _n_parameters([rack], set()))


def _parts(spec: RackFields, rack: Rack, seq_len: int) -> Iterator[PartCost]:
    seen: set[int] = set()

    def counted(path: str, part: Part | None, module: nn.Module | None, *, is_active: bool = True) -> PartCost:
        if part is None or module is None:
            return PartCost(path, "null", {}, 0, 0, 0.0, is_active)
        new, found = _n_parameters([module], seen), _count([module], seq_len)
        resolved = {name: getattr(module, name, value) if value is None else value for name, value in part.options().items()}
        defaults = {name: field.default for name, field in type(part).model_fields.items()}
        chosen = frozenset(name for name, value in part.options().items() if value != defaults[name])
        return PartCost(path, part.kind, resolved, new, found.cache + found.state, found.flops, is_active, chosen)

    yield counted("embedding", spec.embedding, rack.embedding)
    if spec.time is not None and rack.time_embedding is not None:
        found, (kind, n_steps, d_time) = _count([rack.time_embedding], seq_len), spec.time.sizes()
        n_parameters = _n_parameters([rack.time_embedding], seen)
        options = {"n_steps": n_steps, "d_time": d_time}
        yield PartCost("time_embedding", kind, options, n_parameters, 0, found.flops, chosen=frozenset(options))
    places = [
        (f"stacks[{i}].blocks[{j}]", block) for i, stack in enumerate(spec.stacks) for j, block in enumerate(stack.expanded())
    ]
    for (path, block_spec), block in zip(places, rack.blocks(), strict=True):
        for name in PARTS:
            module, part = getattr(block, name), getattr(block_spec, name)
            if isinstance(module, Choice):
                for choice, inner in module.named():
                    yield counted(f"{path}.{name}.{choice}", part.mixers[choice], inner, is_active=choice == module.main)
            elif module is not None:
                yield counted(f"{path}.{name}", part, module)
    yield counted("head", spec.head, rack.head)


def _count(modules: Sequence[nn.Module], seq_len: int) -> Count:
    computing = [module for module in modules if isinstance(module, Mixer | ChannelMixer | Head | TimeEmbedding)]
    flops = sum(module.flops(seq_len) for module in computing) / seq_len
    mixers = [module for module in modules if isinstance(module, Mixer)]
    growing = [mixer for mixer in mixers if mixer.state_size(2) > mixer.state_size(1)]
    cache, kept = (sum(mixer.state_size(seq_len) for mixer in which) for which in (growing, mixers))
    held = sum(state_bytes(module) for module in modules if isinstance(module, Mixer | ChannelMixer))
    return Count(_n_parameters(modules, set()), flops, cache, kept - cache, held, tuple(modules))


def state_bytes(part: Mixer | ChannelMixer) -> int:
    """Bytes that a part with a step form holds for each sequence beside its cache, which is empty at first.

    Of what has none the states that MAD counts, as float32 numbers: it is bookkeeping, but a hyena is not to look free.
    """
    if part.has_step:
        # The position is one for all sequences.
        one, two = (sum(tensor.nbytes for tensor in tree_leaves(part.initial_state(n_sequences))) for n_sequences in (1, 2))
        return two - one
    if not isinstance(part, Mixer) or part.state_size(1) < part.state_size(2):
        return 0
    return part.state_size(1) * torch.float32.itemsize


def _n_parameters(modules: Iterable[nn.Module], seen: set[int]) -> int:
    """Parameters that are not `seen` yet, which they are from now on; weights that are stored in few bits are some too."""
    new = {id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}
    stored = {id(part): part for module in modules for part in module.modules() if isinstance(part, QuantisedLinear)}
    new |= {key: part.in_features * part.out_features for key, part in stored.items()}
    n_new = sum(number for key, number in new.items() if key not in seen)
    seen.update(new)
    return n_new


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

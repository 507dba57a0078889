"""Grows a rack with weights: trained stacks are carried over by uid, new ones are started as asked."""

import hashlib

from torch import nn

from models.assembly.assemble import assemble_stack, seeded
from models.assembly.initialise import adapt, freeze, initialise, set_biases
from models.assembly.parameter_settings import ParameterSettings
from models.assembly.precision import COMPUTED, set_precision
from models.growth.checks import check_growth, origins_of
from models.growth.start import Init, set_start
from models.rack.modules import Rack, Stack
from models.spec.backbone import stack_uids
from models.spec.rack_fields import RackFields


def grow(rack: Rack, before: RackFields, after: RackFields, *, seed: int, init: Init = "identity") -> Rack:
    """The rack of the spec `after`, grown out of that of `before`.

    Stacks that are there in both, by uid, are carried over with their modules, as are embedding, head and time embedding: their
    parameters are the same objects, and the old rack is not to be used any more. What they get (adapters, storage in few bits, a
    weight of the head's own) they get in place; no weight that stays dense changes. Learning rates, decay and what is frozen are
    those of `after` alone. Names and shapes are those of `after.build()`, so that its state can be loaded there.

    A new stack is a function of the seed and its uid, and of what it is started from:

    - `identity`: each half of its blocks adds exactly zero, by what ends it; all else is drawn;
    - `random`: as a rack starts;
    - `copy_last`, `copy_middle`: with the weights, adapters added in, of the last or the middle stack that was there (of an
      even number the lower one).

    A time embedding that is new starts at zero.

    Raises:
        ValueError: if the rack is not of the spec `before`; for what cannot be carried over: other sizes, embeddings or heads,
            other blocks under a known uid, stored weights in another format, adapters that go or change their rank; if a new
            stack cannot be started so. Nothing has been changed then.
    """
    check_growth(rack, before, after)
    uids, origins = stack_uids(after), origins_of(before, after)
    trained = {uid: stack for uid, stack in zip(stack_uids(before), rack.stacks, strict=True) if isinstance(stack, Stack)}
    stacks = {uid: _carried([trained[each] for each in origins[uid]]) for uid in origins}
    for index, uid in enumerate(uids):
        if uid not in stacks:
            with seeded(_seed(seed, f"stack {uid}")):
                stacks[uid] = assemble_stack(after, index, {}).to(rack.embedding.weight)
    grown = Rack(rack.embedding, [stacks[uid] for uid in uids], rack.head, time_embedding=rack.time_embedding)
    for index, uid in enumerate(uids):
        if uid not in origins:
            _start(grown, after, f"stacks.{index}", _seed(seed, f"start of stack {uid}"))
            freeze(ParameterSettings(grown, after, below=f"stacks.{index}"))  # how it starts hangs on what will train
            set_start(stacks[uid], init, list(trained.values()))
    if rack.time_embedding is None and after.time is not None:
        with seeded(_seed(seed, "time embedding")):
            grown.time_embedding = after.time.build(d_model=after.d_model).to(rack.embedding.weight)
        _start(grown, after, "time_embedding", _seed(seed, "start of the time embedding"))
    if before.tie_embeddings:
        weight = rack.embedding.weight
        grown.head.output.weight = weight if after.tie_embeddings else nn.Parameter(weight.detach().clone())
    _convert(grown, after, seed)
    return grown.train(rack.training)


def _carried(stacks: list[Stack]) -> Stack:
    """The stack itself, or those that have been fused as one."""
    if len(stacks) == 1:
        return stacks[0]
    fused = Stack((block for stack in stacks for block in stack.blocks), uid=stacks[0].uid, compute_dtype=stacks[0].compute_dtype)
    fused.checkpointing = stacks[0].checkpointing
    return fused


def _start(grown: Rack, after: RackFields, path: str, seed: int) -> None:
    """Draw a new part of the rack as its settings say."""
    settings = ParameterSettings(grown, after, below=path)
    with seeded(seed):
        set_biases(settings)
        initialise(settings)


def _convert(grown: Rack, after: RackFields, seed: int) -> None:
    """Give every part the adapters and the precision that its settings name, and freeze what they freeze."""
    parts = {f"stacks.{index}": f"stack {uid}" for index, uid in enumerate(stack_uids(after))}
    for path, name in {"time_embedding": "the time embedding", "head": "the head", **parts}.items():
        with seeded(_seed(seed, f"adapters of {name}")):
            adapt(ParameterSettings(grown, after, below=path))
    for stack, spec in zip(grown.stacks, after.stacks, strict=True):
        assert isinstance(stack, Stack)
        set_precision(stack, spec)
        stack.compute_in(COMPUTED.get(spec.precision))
    freeze(ParameterSettings(grown, after))


def _seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose: what is drawn for one does not depend on what else there is to draw."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "big")

"""The stages of a growth as data: which rack each stage trains, and what of it is frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from configs import GrowthSpec
from models import RackSpec, StackSpec
from models.growth.edit_spec import next_uid, stack_uids, with_stack
from models.growth.new_stack import new_stack
from models.spec.parameters import ParameterFields
from models.spec.time import TimeSpec
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.trunk_strategy import trunk_stack

Kind = Literal["first", "grow", "joint"]


@dataclass(frozen=True)
class Stage:
    """One stage: the rack as it trains there, and the one before it that it grows from.

    `uid` is the stack that is new, or the newest of those that start. `initial` are the stacks by uid as they were when they were
    new, without what being in a trunk has made of them.
    """

    index: int
    kind: Kind
    rack: RackSpec
    before: RackSpec | None
    initial: Mapping[int, StackSpec]
    uid: int
    n_steps: int

    @property
    def position(self) -> int:
        """Where the newest stack stands."""
        return stack_uids(self.rack).index(self.uid)

    @property
    def created(self) -> int:
        """How many of the stacks that are there were created before the newest one."""
        return sorted(self.initial).index(self.uid)


def first_stage(spec: ProgressiveSpec) -> Stage:
    """The rack that a run starts with; all of it at once, if it is not to grow; a model as it is, which no step trains."""
    growth = spec.growth
    stacks = list(spec.rack.stacks)
    if not growth.enabled:
        stacks += [spec.added] * (spec.n_target - len(stacks))
    initial = {uid: stack.model_copy(update={"uid": uid}) for uid, stack in enumerate(stacks)}
    if spec.model is None:
        initial = {uid: new_stack(stack, growth, uid) for uid, stack in initial.items()}
    rack = _with(spec.rack, stacks=tuple(initial.values()), next_uid=None)
    before = None if spec.model is None else spec.rack
    return Stage(0, "first", with_time(spec, rack), before, initial, max(initial), spec.steps_of(0))


def with_time(spec: ProgressiveSpec, rack: RackSpec) -> RackSpec:
    """The rack with an embedding of time, where time is an input of it."""
    growth = spec.growth
    if growth.time_interpretation != "input" or rack.time is not None:
        return rack
    time = TimeSpec(kind=growth.time_encoding_type, n_steps=spec.n_time_steps, d_time=growth.time_embedding_dim)
    return _with(rack, time=time)


def next_stage(spec: ProgressiveSpec, last: Stage, stack: StackSpec | None = None) -> Stage:
    """The stage after another; `stack` is what was chosen for it (None: what the run adds)."""
    index = last.index + 1
    is_joint = bool(spec.growth.joint_tuning_steps) and index == spec.n_stages - 1
    if is_joint:
        return Stage(index, "joint", _jointly_tuned(spec, last), last.rack, last.initial, last.uid, spec.steps_of(index))
    return grown_stage(spec, last, stack or spec.added, n_steps=spec.steps_of(index))


def grown_stage(spec: ProgressiveSpec, last: Stage, stack: StackSpec, *, n_steps: int) -> Stage:
    """The rack of the stage before with one more stack, and what becomes of the others."""
    growth, uid = spec.growth, next_uid(last.rack)
    fresh = new_stack(stack.model_copy(update={"uid": uid}), growth, uid)
    trunk = []
    for place, (each, before) in enumerate(zip(stack_uids(last.rack), last.rack.stacks, strict=True)):
        distance = place if growth.building_mode == "prepend" else len(last.rack.stacks) - 1 - place
        in_window = growth.qlora_trunk_window is None or distance < growth.qlora_trunk_window
        trunk.append(before.model_copy(update=_fields(trunk_stack(last.initial[each], growth, in_window=in_window))))
    beneath = last.rack.model_copy(update={"stacks": tuple(trunk), **_frozen_ends(spec, last.rack)})  # with_stack checks it
    rack = with_stack(beneath, fresh, position=0 if growth.building_mode == "prepend" else len(trunk))
    return Stage(last.index + 1, "grow", rack, last.rack, {**last.initial, uid: fresh}, uid, n_steps)


def _frozen_ends(spec: ProgressiveSpec, rack: RackSpec) -> dict[str, Any]:
    """Embedding, time and head as they are beside a trunk; a tied table that stands still lets go of a head that moves."""
    growth, frozen = spec.growth, []
    if not trains_embedding(growth):
        frozen += ["embedding", "time"]
    if not growth.train_head:
        frozen += ["head"]
    ends = {name: _scaled(getattr(rack, name), 0.0) for name in frozen}
    return {**ends, "tie_embeddings": rack.tie_embeddings and (trains_embedding(growth) or not growth.train_head)}


def trains_embedding(growth: GrowthSpec) -> bool:
    """Whether the embedding moves after the first stage."""
    return growth.trunk_strategy == "full" if growth.train_embedding is None else growth.train_embedding


def _jointly_tuned(spec: ProgressiveSpec, last: Stage) -> RackSpec:
    """All of the rack as it was when it was new, but for weights that are stored by now; or its adapters, or its head, alone."""
    mode, rack, stacks = spec.growth.fine_tune_mode, last.rack, []
    for uid, stack in zip(stack_uids(rack), rack.stacks, strict=True):
        loras = {name: getattr(stack, name) for name in ("lora", "progressive_lora")}
        has_adapters = any(lora is not None and lora.apply for lora in loras.values())
        scale = {"full": last.initial[uid].lr_scale, "adapters": float(has_adapters), "head": 0.0}[mode]
        if mode == "full":  # where weights are stored, what learns is adapters
            change: dict[str, Any] = {"trains": True} if stack.stored else {"freeze_others": False, "freeze_base": False}
            loras = {name: lora and lora.model_copy(update=change) for name, lora in loras.items()}
        if mode == "adapters":
            change = {"trains": True, "freeze_others": True, "freeze_base": True}
            loras = {name: lora and lora.model_copy(update=change) for name, lora in loras.items()}
        stacks.append(stack.model_copy(update={"lr_scale": scale, **loras}))
    embedding = _scaled(rack.embedding, spec.rack.embedding.lr_scale if mode == "full" else 0.0)
    head = _scaled(rack.head, 0.0 if mode == "adapters" else spec.rack.head.lr_scale)
    return _with(rack, stacks=tuple(stacks), embedding=embedding, head=head, time=_scaled(rack.time, float(mode == "full")))


def _scaled(part: ParameterFields | None, lr_scale: float) -> ParameterFields | None:
    return part and part.model_copy(update={"lr_scale": lr_scale})


def _fields(stack: StackSpec) -> dict[str, Any]:
    return {name: getattr(stack, name) for name in ("precision", "stored", "lora", "progressive_lora", "lr_scale")}


def _with(rack: RackSpec, **parts: Any) -> RackSpec:
    """The rack with other parts, checked as a whole."""
    return RackSpec.model_validate(rack.model_copy(update=parts).to_dict())

"""A rack whose stacks come and go, freeze and thaw, while their modules stay; what it is at any time is one spec."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.architecture import Rack, Stack
from models.assembly.quantise import memory_bytes
from models.growth.edit_spec import stack_position, stack_uids, with_stacks_fused, without_stack
from models.growth.grow import grow
from models.growth.new_stack import capped_notes
from models.growth.start import Init
from models.rack import modules as base
from models.rack_spec import RackSpec
from models.spec.stack import StackSpec
from search.stackwise import stack_edits


class EditedRack:
    """A rack that is changed by specs: what changes has the effect that a rack built so would have, and keeps its weights.

    What freezes and adapts stacks takes their places, as `stack_id` says them; what changes single stacks takes their `uid`,
    which is theirs for good, in the order in which they were created. A stack keeps its modules all along.
    `trained` are the uids of those that a trainer has trained, `moments` what its optimizer knew of parameters: those that are
    still there go on from them when they train again. `stages_in` are the folders that a trainer has left stages of it in.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self.trained: set[int] = set()
        self.moments: dict[nn.Parameter, dict[str, Tensor]] = {}
        self.stages_in: set[Path] = set()
        self._rack: Rack | None = None
        self._initial: dict[int, StackSpec] = {}
        self._warnings: set[str] = set()

    @property
    def spec(self) -> RackSpec:
        """What the rack is."""
        return self.build_rack().spec

    @property
    def initial(self) -> dict[int, StackSpec]:
        """The stacks by uid as they were when they were new: what they go back to when they train again."""
        return dict(self._initial)

    @property
    def current_stacks(self) -> int:
        """How many stacks there are."""
        return len(self._initial)

    @property
    def qlora_adapters(self) -> dict[int, dict[str, Any]]:
        """The adapters that stacks have of their own, by place."""
        stacks = enumerate(self.spec.stacks if self._rack else ())
        return {place: stack_edits.adapter_size(stack) for place, stack in stacks if stack.lora is not None and stack.lora.apply}

    def build_rack(self) -> Rack:
        """The rack as it is now, with the embedding and the head that have been trained."""
        if self._rack is None:
            raise ValueError("there are no stacks yet: append_stack makes the first")
        return self._rack

    def adopt(self, rack: base.Rack, spec: RackSpec, initial: Mapping[int, StackSpec]) -> None:
        """Go on with a rack of a spec that others have built or grown; `initial` are its stacks as they were when they were new.

        A warning says, once, where all adapters of a stack are smaller than was asked for.
        """
        self._rack, self._initial = Rack.of(rack, spec), {uid: initial[uid] for uid in sorted(stack_uids(spec))}
        for place, stack in enumerate(self._rack.stacks):
            assert isinstance(stack, Stack)
            stack.stack_id, stack.trainable = place, stack_edits.trainable(stack.spec, self._initial[stack.uid])
        for text in capped_notes(self._rack, spec):
            if text not in self._warnings:
                warnings.warn(text, stacklevel=4)
                self._warnings.add(text)

    def become(self, after: RackSpec, fresh: StackSpec | None = None, *, init: Init = "identity") -> Stack:
        """Grow into another spec; a stack that is new in it starts as `fresh`, and returned (if none is: the lowest)."""
        rack, before = self.build_rack(), self.spec
        grown = grow(rack, before, after, seed=self.seed, init=init)
        new = set(stack_uids(after)) - set(stack_uids(before))
        self.adopt(grown, after, self._initial if fresh is None else {**self._initial, **dict.fromkeys(new, fresh)})
        return self.at(stack_position(after, new.pop()) if new else 0)

    def at(self, place: int) -> Stack:
        """The stack at a place."""
        stack = self.build_rack().stacks[place]
        assert isinstance(stack, Stack)
        return stack

    def remove_stack(self, uid: int) -> None:
        """Take a stack away; the others go on as they are."""
        self.become(without_stack(self.spec, uid))

    def fuse_stacks(self, uids: Sequence[int]) -> Stack:
        """Put neighbours, lowest first, together as one stack with the uid of the first: the same blocks, the same function."""
        self.become(with_stacks_fused(self.spec, uids))
        return self.at(stack_position(self.spec, uids[0]))

    def quantize_stack(self, uid: int, precision: str, *, trains: bool = False) -> None:
        """Store the weights of a stack in a format or precision; with `trains` they train as they will be stored (fp8, nvfp4)."""
        self._change([uid], lambda _, stack: stack_edits.quantised_stack(stack, precision, trains=trains))

    def freeze_trunk(self, trunk_indices: Iterable[int]) -> None:
        """Let nothing in these stacks train, adapters included."""
        self._change(self.uids(trunk_indices), lambda _, stack: stack_edits.frozen(stack))

    def freeze_all_but_qlora(self, trunk_indices: Iterable[int]) -> None:
        """Let nothing but the adapters of these stacks train; their weights stay in the precision that they have."""
        self._change(self.uids(trunk_indices), lambda uid, stack: stack_edits.with_adapters_alone(stack, self._initial[uid]))

    def unfreeze_trunk(self, trunk_indices: Iterable[int]) -> None:
        """Let train in these stacks what trained when they were new, but for weights that are stored by now."""
        self._change(self.uids(trunk_indices), lambda uid, stack: stack_edits.trainable(stack, self._initial[uid]))

    enable_qlora_training = freeze_all_but_qlora
    disable_qlora_training = freeze_trunk

    def memory_bytes(self) -> int:
        """What the rack takes, measured."""
        return memory_bytes(self.build_rack())

    def info(self) -> dict[str, Any]:
        """What there is, in plain numbers."""
        rack = self.build_rack()
        stacks = [stack_edits.described(stack) for stack in rack.stacks if isinstance(stack, Stack)]
        n_trainable = rack.get_parameter_count(trainable_only=True)
        return {
            "parameters": rack.get_parameter_count(),
            "trainable": n_trainable,
            "bytes": self.memory_bytes(),
            "stacks": stacks,
        }

    def uids(self, places: Iterable[int]) -> list[int]:
        """The stacks at these places."""
        uids, places = stack_uids(self.spec), list(places)
        for place in places:
            if not 0 <= place < len(uids):
                raise ValueError(f"there is no stack at place {place}: there are {len(uids)}, counted from 0")
        return [uids[place] for place in places]

    def _change(self, uids: Iterable[int], change: Callable[[int, StackSpec], StackSpec]) -> None:
        self.become(stack_edits.changed(self.spec, uids, change))

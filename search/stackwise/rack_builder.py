"""A rack that is built stack by stack, by hand or by the trainer; what it is at any time is one spec and one model.

>>> from configs import StackWiseConfig
>>> config = StackWiseConfig()
>>> config.model.vocab_size, config.model.d_model, config.model.d_ff, config.model.n_heads = 100, 32, 64, 2
>>> config.training.progressive.qlora_enabled = True
>>> builder = ProgressiveRackBuilder(config=config, building_mode="append", default_precision="full")
>>> stack1 = builder.append_stack(n_blocks=4, precision="full")
>>> stack2 = builder.append_stack(n_blocks=4, precision="half")
>>> stack3 = builder.prepend_stack(n_blocks=4, precision="qlora")
>>> rack = builder.build_rack()
>>> [stack.spec.precision for stack in rack.stacks]
['qlora', 'full', 'half']
>>> rack.stacks[0] is stack3, stack3.stack_id, stack3.uid
(True, 0, 2)

What trains of the stacks that were there before:

>>> builder.freeze_trunk([1, 2])
>>> any(parameter.requires_grad for parameter in stack1.parameters())
False
>>> builder.freeze_all_but_qlora([1])
>>> all(("adapters" in name) == parameter.requires_grad for name, parameter in stack1.named_parameters())
True
>>> builder.qlora_adapters[1]
{'rank': 16, 'alpha': 32.0, 'enabled': True}
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor

from configs import ConfigError, GrowthSpec, StackWiseConfig
from configs.errors import raise_unknown
from configs.growth import BuildingMode
from configs.load import check_version, validate, validate_saved
from configs.records import DamagedError
from models.architecture import Stack
from models.architecture.helpers import rack_spec, stack_spec
from models.assembly.assemble import without_memory
from models.growth.edit_spec import next_uid, stack_position, stack_uids, with_stack, with_stack_replaced
from models.growth.new_stack import new_stack, with_second_adapters
from models.rack_spec import RackSpec
from models.spec.precision import Precision
from models.spec.stack import StackSpec
from search.stackwise import stack_edits
from search.stackwise.agreement import of_sizes, refuse_differences
from search.stackwise.edited_rack import EditedRack
from search.training import checkpoint

SAVED = frozenset(("config", "sizes", "rack", "initial", "adapters", "seed", "building_mode", "default_precision", "trained"))
"""What a saved builder says of itself."""


class ProgressiveRackBuilder(EditedRack):
    """Builds the rack of a configuration, or of the sizes of one (`vocab_size`, `d_model`, ...: the options of `ModelConfig`).

    New stacks come to stand above the others (`append`) or below them (`prepend`), in `default_precision` (None: what the
    configuration says by then), whether they are added here or by a trainer. Where the configuration says another
    `building_mode` or `new_stack_precision` than the builder was told, a ConfigError says so when the next stack is added.

    Sizes say nothing of training: all settings are those of the trainer that the builder is given to.
    """

    def __init__(
        self,
        config: StackWiseConfig | None = None,
        building_mode: BuildingMode | None = None,
        default_precision: Precision | None = None,
        *,
        seed: int | None = None,
        **sizes: Any,
    ) -> None:
        if config is not None and sizes:
            raise ConfigError(f"give a config or sizes, not both: {', '.join(sizes)}")
        self.config = StackWiseConfig.from_dict({"model": sizes}) if config is None else config
        self.config.validate_sections()  # whether it can train as it says is for the trainer to check
        super().__init__(seed=self.config.training.seed if seed is None else seed)
        self._sizes, self._has_seed = sizes if config is None else None, seed is not None
        self.building_mode, self.default_precision = building_mode, default_precision
        for name, choices in (("building_mode", get_args(BuildingMode)), ("default_precision", get_args(Precision))):
            if getattr(self, name) not in (None, *choices):
                raise_unknown(name, getattr(self, name), choices)
        self._adapters: dict[str, Any] = {}

    @property
    def max_stacks(self) -> int:
        """How many stacks there may be."""
        return self.config.training.progressive.max_stacks

    @property
    def growth(self) -> GrowthSpec:
        """How stacks are added, with what the builder was told, and what has been said of adapters since."""
        told = {"building_mode": self.building_mode, "new_stack_precision": self.default_precision}
        said = {name: value for name, value in told.items() if value is not None}
        growth = self.config.training.progressive.growth()
        for name, value in said.items():
            if (other := getattr(growth, name)) not in (value, GrowthSpec.model_fields[name].default):
                argument = "default_precision" if name == "new_stack_precision" else name
                text = f"{other}, but the builder was made with {argument} = '{value}': leave one of them out"
                raise ConfigError(f"training.progressive.{name}: {text}")
        return growth.model_copy(update={**said, **self._adapters})

    def agree(self, config: StackWiseConfig) -> StackWiseConfig:
        """What builder and trainer have in common; of a builder that was made from sizes it is the configuration from now on.

        Raises:
            ConfigError: with the keys in which the trainer's configuration differs from the builder's.
        """
        if self._sizes is None:
            if config is not self.config:
                refuse_differences(self.config, config)
            return config
        self.config = of_sizes(self._sizes, self.config.model, config, has_stacks=self.current_stacks > 0)
        if not self._has_seed:
            self.seed = config.training.seed
        return self.config

    def append_stack(self, n_blocks: int | None = None, precision: Precision | None = None) -> Stack:
        """A new stack above all others."""
        return self.add_stack(self.current_stacks, n_blocks=n_blocks, precision=precision)

    def prepend_stack(self, n_blocks: int | None = None, precision: Precision | None = None) -> Stack:
        """A new stack below all others."""
        return self.add_stack(0, n_blocks=n_blocks, precision=precision)

    def add_stack(self, position: int | None = None, *, n_blocks: int | None = None, precision: Precision | None = None) -> Stack:
        """A new stack at a place (None: that of the building mode); those that are there get the trunk's adapters, frozen."""
        if self.current_stacks >= self.max_stacks:
            raise ConfigError(f"there are {self.current_stacks} stacks already: max_stacks = {self.max_stacks}")
        if position is None:
            position = self.current_stacks if self.growth.building_mode == "append" else 0
        fresh = self._fresh(n_blocks, precision)
        if not self.current_stacks:
            spec = rack_spec(self.config.model, [fresh])
            self.adopt(spec.build(self.seed), spec, {0: fresh})
            return self.at(0)
        growth = self.growth
        trunk = stack_edits.changed(self.spec, stack_uids(self.spec), lambda _, stack: with_second_adapters(stack, growth))
        return self.become(with_stack(trunk, fresh, position=position), fresh, init=growth.init)

    def replace_stack(
        self,
        uid: int,
        stack: Stack | StackSpec | None = None,
        *,
        n_blocks: int | None = None,
        precision: Precision | None = None,
    ) -> Stack:
        """Put another stack at the place of one: of a spec, with the weights of a stack, or a new one; it has its own uid."""
        if isinstance(stack, Stack):
            placed = self.become(_with_placed(self.spec, uid, stack), stack.trainable, init="random")
            placed.load_state_dict(stack.state_dict())
            return placed
        fresh = self._fresh(n_blocks, precision) if stack is None else stack
        return self.become(with_stack_replaced(self.spec, uid, fresh), fresh, init=self.growth.init)

    def add_qlora_to_all_stacks(self, rank: int | None = None, alpha: float | None = None) -> None:
        """Give all stacks, also those to come, adapters of their own, frozen; those that have some keep them."""
        self._say({"qlora_enabled": True, "qlora_rank": rank, "qlora_alpha": alpha})
        growth = self.growth
        uids = stack_uids(self.spec) if self.current_stacks else ()
        if uids:
            self._change(uids, lambda uid, stack: stack_edits.with_own_adapters(stack, growth, uid))

    def add_qlora_to_trunk(
        self, trunk_indices: Iterable[int] | None = None, *, rank: int | None = None, alpha: float | None = None
    ) -> None:
        """Give stacks (None: all but the newest) the second adapters of a trunk, frozen; those that have some keep them."""
        self._say({"progressive_qlora": True, "progressive_qlora_rank": rank, "progressive_qlora_alpha": alpha})
        growth, newest = self.growth, max(self.initial, default=0)
        uids = [uid for uid in stack_uids(self.spec) if uid != newest] if trunk_indices is None else self.uids(trunk_indices)
        self._change(uids, lambda _, stack: with_second_adapters(stack, growth))

    def save(self, path: str | Path) -> None:
        """Write rack, specs and configuration to one safetensors file."""
        initial = {str(uid): stack.to_dict() for uid, stack in self.initial.items()}
        what = {"config": self.config.to_dict(), "rack": self.spec.saved(), "initial": initial, "adapters": self._adapters}
        how = {"seed": self.seed, "building_mode": self.building_mode, "default_precision": self.default_precision}
        sizes = None if self._sizes is None else {name: what["config"]["model"][name] for name in self._sizes}
        state = {**what, **how, "sizes": sizes, "trained": sorted(self.trained)}
        checkpoint.save(Path(path), checkpoint.weights(self.build_rack()), state)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The builder that a file holds, its rack with the very weights that were saved, stored ones as they are stored.

        Raises:
            ConfigError: for a file that is not there, or that no builder has saved.
        """
        tensors, state = _read(Path(path))
        config = StackWiseConfig.from_dict(state["config"])
        builder = cls(config, state["building_mode"], state["default_precision"], seed=state["seed"])
        builder._sizes = state["sizes"]
        spec = validate_saved(RackSpec, state["rack"], str(path))
        rack = spec.build(builder.seed)
        checkpoint.load_weights(rack, tensors)
        builder.adopt(rack, spec, {int(uid): validate(StackSpec, stack, str(path)) for uid, stack in state["initial"].items()})
        builder.trained = set(state["trained"])
        builder._say(state["adapters"])
        return builder

    def _fresh(self, n_blocks: int | None, precision: Precision | None) -> StackSpec:
        """What the next stack starts as."""
        uid = next_uid(self.spec) if self.current_stacks else 0
        growth = self.growth
        if precision is not None:
            growth = validate(GrowthSpec, {**growth.to_dict(), "new_stack_precision": precision}, "append_stack")
        return new_stack(stack_spec(self.config.model, uid, n_blocks), growth, uid)

    def _say(self, adapters: dict[str, Any]) -> None:
        said = {**self._adapters, **{name: value for name, value in adapters.items() if value is not None}}
        validate(GrowthSpec, {**self.growth.to_dict(), **said}, "adapters")
        self._adapters = said


def _with_placed(spec: RackSpec, uid: int, stack: Stack) -> RackSpec:
    """The rack with a stack that has weights at the place of one; ValueError if they do not fit there."""
    if stack.d_model != spec.d_model:
        raise ValueError(f"the stack has d_model = {stack.d_model}, but the rack has d_model = {spec.d_model}")
    after = with_stack_replaced(spec, uid, stack.spec)
    modules = without_memory(after).stacks[stack_position(spec, uid)], stack
    needed, given = ({name: tensor.shape for name, tensor in module.state_dict().items()} for module in modules)
    if needed != given:
        differing = sorted(name for name in needed | given if needed.get(name) != given.get(name))
        raise ValueError(f"the stack's weights are not those of its spec: {', '.join(differing[:4])} differ")
    return after


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, state = checkpoint.read(path, torch.device("cpu"))
    except (OSError, DamagedError):
        why = "it is damaged, or of something else" if path.exists() else "there is no such file"
        raise ConfigError(f"{path} is no file that a builder has saved: {why}") from None
    if isinstance(state, dict) and isinstance(state.get("rack"), dict):
        check_version({"spec_version": 1, **state["rack"]}, str(path))
    if not isinstance(state, dict) or (missing := sorted(SAVED - state.keys())):
        lacks = f"it lacks {', '.join(missing)}" if isinstance(state, dict) else "it says nothing of one"
        raise ConfigError(f"{path} is no file that a builder has saved: {lacks}")
    return tensors, state

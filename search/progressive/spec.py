"""What the growth of a rack is: where it starts, what is added, how each stage trains, which candidates compete."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from configs import GrowthSpec, Problems, Spec
from configs.errors import message_of
from configs.growth import Misfit
from models import RackSpec, StackSpec
from search.budget import BudgetValue
from search.local_losses import LocalLossSpec
from search.member import TrainSpec
from search.progressive.lora import progressive_lora_of
from search.strategies import STRATEGIES
from search.supernet.spec import WorkersSpec
from tasks import TASKS, Task
from tasks.objectives import OBJECTIVES
from tasks.objectives.shared.objective import Objective
from tasks.objectives.shared.time_steps import DepthTime
from tasks.samples import Samples, task_samples

FOLDER_NAME = re.compile(r"[\w-]+")
TAKEN_NAMES = ("tune",)  # where Ray Tune keeps its own


class GrowthDataSpec(Spec):
    """The samples: windows of a text, or `n_train` and `n_validation` instances of any other task, drawn once by the seed.

    Of a text these numbers are limits (null: all there is). `batch_size` counts the rows of a step over all workers.
    """

    task: TASKS.field()  # type: ignore[valid-type]
    batch_size: PositiveInt = 32
    n_train: PositiveInt | None = None
    n_validation: PositiveInt | None = None

    def instance(self) -> Task:
        """The task that is described; ValueError if its options contradict each other."""
        task: Task = TASKS.build(self.task)
        return task

    def sizes(self) -> tuple[int, int]:
        """The vocabulary, and the positions of a sample."""
        task = self.instance()
        if task.read_out != "language_model":
            raise ValueError(f"the task needs the head {task.read_out}; growth has that of language models")
        return task.vocab_size, task.input_length

    def samples(self, seed: int) -> Samples:
        """What there is to learn from."""
        return task_samples(self.instance(), seed=seed, n_train=self.n_train, n_validation=self.n_validation)


class ChoiceSpec(Spec):
    """How the next stack is chosen where it is a space: a placement search over its layers within a budget.

    `n_steps` are the steps that each candidate, listed or found, trains on the trunk's cached output before it is ranked by its
    held-out loss: loss at growth misleads, loss some hundred steps later predicts (Du et al. 2024, arXiv 2406.02469).
    """

    n_steps: PositiveInt = 50
    strategy: STRATEGIES.field() = Field(default_factory=lambda: STRATEGIES.part("beam"))  # type: ignore[valid-type]
    budget: BudgetValue | None = None


class ProgressiveSpec(Spec):
    """A rack that grows stack by stack.

    `rack` is what the first stage trains; each further stage adds `stack` (null: the rack's last one again) until there are
    `growth.target_stacks`, and trains it for `n_steps` (or `growth.stage_steps`) beside a trunk that is frozen, has adapters, or
    trains on. With `candidates` (stacks by name), or where `stack` has a choice of mixers, every stage first ranks them on the
    trunk as it is. `growth.joint_tuning_steps` end the run with all of the rack in training.

    With `growth.enabled: false` the whole rack trains at once; then `training_architecture` says by which losses: `rackwise`, end
    to end, or `stackwise` and `blockwise`, each unit by a loss of its own (`local_loss`).

    `vocab_size` and `max_length` of the rack are what task and objective need, if they are not given. `decay` says which stages
    a schedule's decay ends: `each`, or the `last` alone, the others staying at their peak (a decay in every stage wastes steps).
    """

    how_fields = ("checkpoint_every", "workers")
    job: Literal["progressive"] = "progressive"
    rack: RackSpec
    data: GrowthDataSpec
    objective: OBJECTIVES.field() = Field(default_factory=lambda: OBJECTIVES.part("clm"))  # type: ignore[valid-type]
    growth: GrowthSpec = GrowthSpec()
    stack: StackSpec | None = None
    candidates: Annotated[dict[str, StackSpec], Field(min_length=2)] | None = None
    choice: ChoiceSpec = ChoiceSpec()
    training_architecture: Literal["rackwise", "stackwise", "blockwise"] = "rackwise"
    local_loss: LocalLossSpec = LocalLossSpec()
    n_steps: PositiveInt = 100
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.1
    train: TrainSpec = TrainSpec()
    decay: Literal["each", "last"] = "last"
    eval_every: PositiveInt = 50
    n_eval_batches: PositiveInt = 4
    eval_batch_size: PositiveInt = 32
    seed: NonNegativeInt = 0
    checkpoint_every: PositiveInt | None = None
    workers: WorkersSpec = WorkersSpec()

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Take a bare objective for its kind; fill in the sizes that task and objective need."""
        del problems
        if isinstance(raw.get("rack"), dict):
            raw["rack"] = {**_sizes(raw.get("data"), raw.get("objective")), **raw["rack"]}
        return raw

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = Problems()
        for location, message in (*self._size_misfits(), *self._growth_misfits(), *self._time_misfits(), *self._choice_misfits()):
            problems.add(location, message)
        problems.raise_if_any(type(self).__name__)
        return self

    @property
    def n_target(self) -> int:
        """How many stacks there are at last."""
        return self.growth.final_stacks

    @property
    def n_stages(self) -> int:
        """Stages of the run, the joint one included."""
        n_grown = self.n_target - len(self.rack.stacks) if self.growth.enabled else 0
        return 1 + n_grown + bool(self.growth.joint_tuning_steps)

    def steps_of(self, index: int) -> int:
        """Steps of a stage."""
        if index == self.n_stages - 1 and self.growth.joint_tuning_steps:
            return self.growth.joint_tuning_steps
        steps = self.growth.stage_steps
        if isinstance(steps, tuple):
            return steps[min(index, len(steps) - 1)]
        return self.n_steps if steps is None else steps

    @property
    def added(self) -> StackSpec:
        """The stack that each stage adds, or the space that it is chosen from."""
        return self.stack or self.rack.stacks[-1]

    @property
    def chooses(self) -> bool:
        """Whether stages rank candidates."""
        return self.candidates is not None or (self.stack is not None and bool(self.space(self.stack).slots()))

    def space(self, stack: StackSpec) -> RackSpec:
        """A stack by itself in the rack: what placements of it are placements of."""
        return RackSpec.model_validate({**self.rack.to_dict(), "stacks": [stack.to_dict()]})

    def make_objective(self) -> Objective:
        """What is asked of the samples; ValueError if its options contradict each other."""
        objective: Objective = OBJECTIVES.build(self.objective, vocab_size=self.data.sizes()[0])
        return objective

    @property
    def n_time_steps(self) -> int:
        """N, the number of time steps."""
        return self.growth.num_time_steps or self.growth.time_per_stack * (self.n_target - 1) + 1

    def depth_time(self) -> DepthTime:
        """Time steps by the order in which stacks are created."""
        growth = self.growth
        return DepthTime(
            max_stacks=self.n_target,
            mapping=growth.stack_time_mapping,
            time_per_stack=growth.time_per_stack,
            n_time_steps=self.n_time_steps,
            custom=growth.custom_time_mapping,
            noise_direction=growth.noise_direction,
        )

    def _stacks(self) -> dict[tuple[int | str, ...], StackSpec]:
        """All stacks that are said, by their place."""
        return {**{("rack", "stacks", index): stack for index, stack in enumerate(self.rack.stacks)}, **self._added()}

    def _added(self) -> dict[tuple[int | str, ...], StackSpec]:
        """Those that may be added, if any are said."""
        said: dict[tuple[int | str, ...], StackSpec] = {} if self.stack is None else {("stack",): self.stack}
        return said | {("candidates", name): stack for name, stack in (self.candidates or {}).items()}

    def _size_misfits(self) -> Iterator[Misfit]:
        place: tuple[int | str, ...] = ("data", "task")
        try:
            _, seq_len = self.data.sizes()
            place = ("objective",)
            objective = self.make_objective()
        except ValueError as error:
            yield place, str(error)
            return
        if self.rack.head.kind != "language_model":
            yield ("rack", "head"), f"growth has the head language_model, not {self.rack.head.kind}"
        if objective.input_vocab_size > self.rack.vocab_size:
            text = (
                f"{self.rack.vocab_size} is too small: with {self.objective.kind} there are {objective.input_vocab_size} tokens"
            )
            yield ("rack", "vocab_size"), text
        if self.rack.max_length is not None and seq_len > self.rack.max_length:
            yield ("rack", "max_length"), f"{self.rack.max_length} is too short: samples have {seq_len} positions"
        for where, stack in self._stacks().items() if objective.on_bidirectional_stacks == "refused" else ():
            if not looks_back(stack):
                text = f"the objective {self.objective.kind} needs causal stacks, and this one looks ahead and would copy what is"
                yield where, f"{text} asked; use mlm or custom"
        if self.data.batch_size < self.workers.n:
            yield ("workers", "n"), f"{self.workers.n} workers for the {self.data.batch_size} rows of data.batch_size"

    def _growth_misfits(self) -> Iterator[Misfit]:
        growth, n_first = self.growth, len(self.rack.stacks)
        if self.rack.slots():
            yield ("rack",), "stacks that are trained first have no choices: place them; a choice is for the stack that is added"
        if self.n_target < n_first:
            yield ("growth", "target_stacks"), f"{self.n_target} is below the {n_first} stacks that the rack starts with"
        n_listed = self.n_stages - bool(growth.joint_tuning_steps)
        if isinstance(growth.stage_steps, tuple) and len(growth.stage_steps) > n_listed:
            yield ("growth", "stage_steps"), f"{len(growth.stage_steps)} numbers for {n_listed} stage(s)"
        if growth.enabled and self.training_architecture != "rackwise":
            text = f"{self.training_architecture} is how a whole rack trains: it needs growth.enabled: false"
            yield ("training_architecture",), text
        has_adapters = growth.qlora_enabled or growth.new_stack_precision == "qlora" or progressive_lora_of(growth) is not None
        says_adapters = any(stack.lora or stack.progressive_lora for stack in self._stacks().values())
        if growth.joint_tuning_steps and growth.fine_tune_mode == "adapters" and not (has_adapters or says_adapters):
            text = "there are no adapters to tune: set qlora_enabled or progressive_qlora, or choose full or head"
            yield ("growth", "fine_tune_mode"), text
        if growth.prepend_loss == "denoise_mse" and not OBJECTIVES[self.objective.kind].corrupts:  # type: ignore[attr-defined]
            yield ("growth", "prepend_loss"), f"denoise_mse needs an objective that corrupts its input, not {self.objective.kind}"

    def _time_misfits(self) -> Iterator[Misfit]:
        growth = self.growth
        if self.rack.time is not None:
            yield ("rack", "time"), "time comes from growth.time_interpretation: say it there"
        if growth.time_interpretation == "input" and growth.time_sampling == "batch" and growth.cache_activations:
            text = "one time step for a whole batch cannot be cached: give time_sampling: sample, or cache_activations: false"
            yield ("growth", "time_sampling"), text
        if growth.time_interpretation != "depth":
            return
        try:
            with warnings.catch_warnings(action="ignore"):  # of what is told below
                table = self.depth_time().table
        except ValueError as error:
            yield ("growth", "stack_time_mapping"), str(error)
            return
        if len(set(table)) < len(table):
            yield ("growth", "num_time_steps"), f"stacks share time steps: {list(table)}; give more of them, or null"

    def _choice_misfits(self) -> Iterator[Misfit]:
        misfits = list(self._added_misfits())
        yield from misfits
        if misfits:  # whether there is a choice is not known then
            return
        if self.choice.budget is not None and (self.stack is None or not self.chooses):
            yield ("choice", "budget"), "only a stack with choices has placements to keep within a budget"
        if self.chooses and not self.growth.enabled:
            yield ("growth", "enabled"), "only a stack that a rack grows by is chosen: set enabled: true, or place the stack"
        if self.chooses and self.growth.building_mode == "prepend":
            yield ("growth", "building_mode"), "candidates are ranked on the output of what stands below them: they need append"

    def _added_misfits(self) -> Iterator[Misfit]:
        if self.candidates is not None and self.stack is not None:
            yield ("candidates",), "give candidates, or one stack, not both"
        for name in self.candidates or ():
            if not FOLDER_NAME.fullmatch(name) or name in TAKEN_NAMES:
                yield ("candidates", name), "a candidate's name is its folder's: letters, digits, _ and -, and not tune"
        for place, stack in self._added().items():
            try:
                is_space = bool(self.space(stack).slots())
            except ValidationError as error:
                yield from (((*place, *line["loc"][2:]), message_of(line)) for line in error.errors())
            else:
                if is_space and place != ("stack",):
                    yield place, "a candidate has no choices itself: place it, or give a space as stack"


def looks_back(stack: StackSpec) -> bool:
    """Whether no mixer of a stack, nor any that one may become, looks ahead."""
    return all(_is_causal(block.mixer) for block in stack.expanded())


def _is_causal(mixer: Any) -> bool:
    options = {} if mixer is None else mixer.options()
    return options.get("causal", True) and all(map(_is_causal, options.get("mixers", {}).values()))


def _sizes(data: Any, objective: Any) -> dict[str, int]:
    """The vocabulary and length that task and objective need; any, where they are wrong themselves and will be told of."""
    try:
        vocab_size, seq_len = GrowthDataSpec.model_validate(data).sizes()
        asked: Objective = OBJECTIVES.build(OBJECTIVES.part(objective or "clm"), vocab_size=vocab_size)
    except (ValidationError, ValueError):  # PydanticCustomError is a ValueError
        return {"vocab_size": 1, "max_length": 1}
    return {"vocab_size": asked.input_vocab_size, "max_length": seq_len}

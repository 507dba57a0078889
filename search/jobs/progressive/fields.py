"""The fields of a growth's configuration, without the checks of what does not fit together."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from configs import GrowthSpec, Spec
from configs.errors import below
from configs.local_losses import LocalLossSpec
from models import RackSpec, StackSpec
from search.budget import BudgetValue
from search.runs.isolation import IsolationSpec
from search.runs.workers import WorkersSpec
from search.strategies import STRATEGIES
from search.training.spec import TrainSpec
from tasks import TASKS, Task
from tasks.objectives import OBJECTIVES
from tasks.objectives.shared.objective import Objective
from tasks.objectives.shared.time_steps import DepthTime
from tasks.samples.samples import Samples, task_samples


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
        """What there is to learn from; ConfigError, which names keys below `data`, where files cannot be read."""
        with below("data"):
            return task_samples(self.instance(), seed=seed, n_train=self.n_train, n_validation=self.n_validation)


class ChoiceSpec(IsolationSpec):
    """How the next stack is chosen where it is a space: a placement search over its layers within a budget.

    `n_steps` are the steps that each candidate, listed or found, trains on the trunk's cached output before it is ranked by its
    held-out loss: loss at growth misleads, loss some hundred steps later predicts (Du et al. 2024, arXiv 2406.02469).
    `isolate_trials` trains each in a process of its own, and `trial_timeout` also ends it after so many seconds.
    """

    n_steps: PositiveInt = 50
    strategy: STRATEGIES.field() = Field(default_factory=lambda: STRATEGIES.part("beam"))  # type: ignore[valid-type]
    budget: BudgetValue | None = None


class ProgressiveFields(Spec):
    """The fields of a growth, and what follows from them; `ProgressiveSpec` is the same, checked."""

    outside_fingerprint = ("checkpoint_every", "workers")
    job: Literal["progressive"] = "progressive"
    model: str | None = None
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
        n_taken = 0 if self.model is None else 1  # a model is taken as it is
        if index < n_taken:
            return 0
        steps = self.growth.stage_steps
        if isinstance(steps, tuple):
            return steps[min(index - n_taken, len(steps) - 1)]
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
        return self.growth.n_time_steps

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


def sizes_needed(data: Any, objective: Any) -> dict[str, int]:
    """The vocabulary and length that task and objective need; any, where they are wrong themselves and will be told of."""
    try:
        vocab_size, seq_len = GrowthDataSpec.model_validate(data).sizes()
        asked: Objective = OBJECTIVES.build(OBJECTIVES.part(objective or "clm"), vocab_size=vocab_size)
    except (ValidationError, ValueError):  # PydanticCustomError is a ValueError
        return {"vocab_size": 1, "max_length": 1}
    return {"vocab_size": asked.input_vocab_size, "max_length": seq_len}

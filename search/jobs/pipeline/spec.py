"""What a pipeline is: a supernet, a search over it, and how the chosen racks and their rivals are trained."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from configs import Problems, Spec
from models.spec.parameters import learning_rate_scales
from search.jobs.placement.spec import SearchSpec
from search.jobs.supernet.spec import SupernetSpec
from search.runs.isolation import IsolationSpec


class RetrainSpec(IsolationSpec):
    """How single racks are trained from scratch: as the supernet, but for what is given here.

    Each is trained once for every seed, and scored on `n_test_batches` batches of `test_batch_size` instances that nothing was
    picked by. `isolate_trials` trains each in a process of its own, and `trial_timeout` also ends it after so many seconds.
    """

    n_steps: PositiveInt | None = None
    lr: PositiveFloat | None = None
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    n_test_batches: PositiveInt = 8
    test_batch_size: PositiveInt = 64

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: the same seed is given twice: {', '.join(map(str, self.seeds))}")
        return self


class PipelineSpec(Spec):
    """Train a supernet, search placements under budgets, train what was found beside its rivals, compare."""

    job: Literal["pipeline"] = "pipeline"
    supernet: SupernetSpec
    placement: SearchSpec
    retrain: RetrainSpec = RetrainSpec()

    @model_validator(mode="after")
    def _check_search(self) -> Self:
        from models.assembly.assemble import without_memory

        problems, space = Problems(), self.supernet.rack
        if not space.slots():
            problems.add(("supernet", "rack"), "nothing to search: no part is of kind stochastic")
        elif 0.0 in learning_rate_scales(without_memory(space)).values():
            frozen = "parts are frozen (lr_scale 0): racks trained from scratch would keep them at their random start"
            problems.add(("supernet", "rack"), f"{frozen}; use the jobs supernet and placement one after the other")
        for location, message in self.placement.problems_in(space) if space.slots() else ():
            problems.add(("placement", *location), message)
        problems.raise_if_any("PipelineSpec")
        return self

"""What the training of a supernet is: space, data, sampler, optimizer, teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from configs import Problems, Spec
from configs.growth import Problem
from models import RackSpec
from models.spec.placement import Placement
from search.runs.run_folder import BESIDE
from search.runs.workers import WorkersSpec
from search.samplers import SAMPLERS
from search.samplers.shared.sampler import Sampler
from search.training.mixture_spec import MixtureSpec
from search.training.spec import TrainSpec


class TeacherSpec(Spec):
    """What the model is drawn towards while it trains.

    `source` is `main` (the main placement of the same weights, as they are at that step) or the folder of a finished run, whose
    main placement teaches (`run:../start`: beside the run's own folder). The loss is `(1 - weight) * cross_entropy + weight *
    temperature^2 * KL + hidden_weight * distance`: KL between the distributions at `temperature` (Hinton et al. 2015), of the
    student from the teacher (`forward`) or the other way round; distance is the mean squared error of the hidden states after
    each layer, layers of unlike depths being matched by their relative position. Both count at the positions that are asked, by
    the weights of the tasks.

    With `keep` the teacher of a folder runs once: its `keep` highest log probabilities at every asked position, and what is left
    for all other tokens together, are kept in the folder `kept_in`, and KL is over these `keep` + 1 outcomes, forward and at
    temperature 1. Runs with the same teacher, data and seed share the files where they name the same folder.
    """

    outside_fingerprint = ("kept_in",)
    source: str
    kl: Literal["forward", "reverse"] = "forward"
    temperature: PositiveFloat = 1.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    hidden_weight: NonNegativeFloat = 0.0
    keep: PositiveInt | None = None
    kept_in: str = f"{BESIDE}teacher"

    @model_validator(mode="after")
    def _check_kept(self) -> Self:
        problems = Problems()
        if self.keep is not None:
            if self.source == "main":
                problems.add(
                    ("source",), "main moves at every step, and nothing of it can be kept: name a folder, or leave keep out"
                )
            if self.kl != "forward":
                problems.add(("kl",), f"{self.kl} asks for all of the teacher's logits: forward, or leave keep out")
            if self.temperature != 1:
                problems.add(("temperature",), f"{self.temperature:g} asks for all of the teacher's logits: 1, or leave keep out")
            if self.hidden_weight:
                problems.add(("hidden_weight",), "hidden states are not kept: 0, or leave keep out")
        problems.raise_if_any(type(self).__name__)
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.weight == 0 and self.hidden_weight == 0:
            raise ValueError("weight and hidden_weight are both 0: the teacher would be asked for nothing")
        return self


class SupernetSpec(Spec):
    """The training of a supernet, or of a rack without choices.

    `vocab_size` and `max_length` of the rack are what the tasks need, if they are not given. Every step trains
    `placements_per_step` draws of `sampler` (balanced, if none is given) on the same batch, in `accumulate` micro-batches. Every
    `eval_every` steps, `n_eval_batches` held-out batches of `eval_batch_size` rows of each task are scored with the main
    placement, and with `n_eval_placements` fixed draws of the sampler. `initialise_from` is the folder of a finished run whose
    weights this one starts from; where that one has a space, and this one is of one of its placements, `initial_placement` says
    which. `trains` are globs of the parameters' names: the others stay as they are (null: all train).

    With `gradient_checkpointing` a block keeps its input alone for the backward pass and computes the rest anew: less memory,
    about a third more time, the same numbers. A checkpoint is written every `checkpoint_every` steps (null: every 20 seconds or
    so) and on interruption. `debug` tells at every step what every layer draws, and checks that all workers draw the same.
    `parallel` says what workers share out among them: the `data`, or the weights too (`fsdp`).
    """

    outside_fingerprint = ("checkpoint_every", "debug", "workers", "parallel", "gradient_checkpointing")
    job: Literal["supernet"] = "supernet"
    rack: RackSpec
    data: MixtureSpec
    sampler: SAMPLERS.field() = None  # type: ignore[valid-type]
    placements_per_step: PositiveInt = 1
    accumulate: PositiveInt = 1
    n_steps: PositiveInt
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.1
    train: TrainSpec = TrainSpec()
    eval_every: PositiveInt = 100
    n_eval_batches: PositiveInt = 4
    eval_batch_size: PositiveInt = 32
    n_eval_placements: NonNegativeInt = 4
    seed: NonNegativeInt = 0
    teacher: TeacherSpec | None = None
    initialise_from: str | None = None
    initial_placement: str | None = None
    trains: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    gradient_checkpointing: bool = False
    checkpoint_every: PositiveInt | None = None
    debug: bool = False
    workers: WorkersSpec = WorkersSpec()
    parallel: Literal["data", "fsdp"] = "data"

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Expand `teacher: main`; fill in the sizes that the tasks need, and the sampler of a rack with choices."""
        del problems
        if isinstance(raw.get("teacher"), str):
            raw["teacher"] = {"source": raw["teacher"]}
        if isinstance(raw.get("rack"), dict):
            raw["rack"] = {**_sizes(raw.get("data")), **raw["rack"]}
        return raw

    @model_validator(mode="after")
    def _fill_sampler(self) -> Self:
        if self.sampler is None and self.rack.slots():
            object.__setattr__(self, "sampler", SAMPLERS.part("balanced"))
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = Problems()
        for location, message in (*self._size_problems(), *self._row_problems(), *self._choice_problems()):
            problems.add(location, message)
        if self.initial_placement is not None and self.initialise_from is None:
            problems.add(("initial_placement",), "is one of the space in initialise_from: name its folder")
        problems.raise_if_any("SupernetSpec")
        return self

    def _size_problems(self) -> Iterator[Problem]:
        for name, share in self.data.tasks.items():
            task = share.instance()
            if task.vocab_size > self.rack.vocab_size:
                yield ("rack", "vocab_size"), f"{self.rack.vocab_size} is too small: '{name}' has {task.vocab_size} tokens"
            if self.rack.max_length is not None and task.input_length > self.rack.max_length:
                yield ("rack", "max_length"), f"{self.rack.max_length} is too short: '{name}' has {task.input_length} positions"
        if self.rack.head.kind != "language_model":
            yield ("rack", "head"), f"the tasks need the head language_model, not {self.rack.head.kind}"

    def _row_problems(self) -> Iterator[Problem]:
        n_rows = self.data.batch_size // self.workers.n
        if n_rows == 0:
            yield ("workers", "n"), f"{self.workers.n} workers for the {self.data.batch_size} rows of data.batch_size"
        elif self.accumulate > n_rows:
            yield ("accumulate",), f"{self.accumulate} micro-batches of {n_rows} row(s) a worker"

    def _choice_problems(self) -> Iterator[Problem]:
        if not self.rack.slots():
            nothing = "the rack has no stochastic part, so there is nothing to draw"
            if self.sampler is not None:
                yield ("sampler",), nothing
            if self.placements_per_step > 1:
                yield ("placements_per_step",), nothing
            if self.teacher is not None and self.teacher.source == "main":
                yield ("teacher", "source"), "the rack has no stochastic part, so main is itself; give the folder of a run"
            return
        try:
            self.make_sampler()
        except ValueError as error:
            yield ("sampler",), str(error)

    def make_sampler(self) -> Sampler | None:
        """What draws the placements; None for a rack without choices."""
        return self.sampler and SAMPLERS.build(self.sampler, slots=self.rack.slots(), space=self.rack)

    def placed(self, placement: str | Placement) -> SupernetSpec:
        """The training of one placement from scratch: same data, steps and seed, with neither a teacher nor a trained start."""
        alone = {"sampler": None, "placements_per_step": 1, "teacher": None}
        alone |= {"initialise_from": None, "initial_placement": None, "trains": None}
        return type(self).model_validate({**self.to_dict(), **alone, "rack": self.rack.place(placement).to_dict()})


def _sizes(data: Any) -> dict[str, int]:
    """The vocabulary and length that the tasks need; any, where they are wrong themselves and will be told of."""
    try:
        tasks = [share.instance() for share in MixtureSpec.model_validate(data).tasks.values()]
    except ValidationError:
        return {"vocab_size": 1, "max_length": 1}
    return {"vocab_size": max(task.vocab_size for task in tasks), "max_length": max(task.input_length for task in tasks)}

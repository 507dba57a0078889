"""What a MAD run is: architectures, task settings, the grid, the mode; expanded on load to the trials it consists of."""

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from configs import ConfigError, Problems
from configs.merge import merge
from models import BackboneSpec
from models.spec.short_forms import LISTED
from search.jobs.mad.racks import backbone_in
from search.jobs.mad.sweep import SweepSpec
from search.jobs.mad.task import TaskSpec
from search.jobs.mad.task_files import expand_tasks, select
from search.jobs.mad.trial import TEST_PICKS, Trial, TrialSpec, rack_for
from search.runs.isolation import IsolationSpec
from search.runs.workers import TrialWorkerSpec
from search.training.spec import TrainSpec

# Each mode fills in what the file leaves out. `mad` is what the reference code does: macro accuracy a batch, model selection
# and stopping on the test set itself, one seed. `clean` is what one would publish.
MODES: dict[str, dict[str, Any]] = {
    "mad": {
        "seeds": [12345],
        "train": {"stop_at": 0.999, "stop_metric": "macro_accuracy", "select_metric": "perplexity"},
    },
    "clean": {
        "seeds": [0, 1, 2],
        "train": {"stop_at": 0.999, "stop_metric": "accuracy", "select_metric": "loss"},
    },
}


class MadSpec(IsolationSpec):
    """One run of the MAD suite.

    `architectures` maps names to backbones; a list of layers is short for `{layers: [...]}`, a text for the stacks of a rack file
    (`racks.py`), and `d_model` (128, if not given) is handed down to those that give none. `tasks` is a list of names, or
    a mapping from names to what differs from `configs/tasks/<name>.yaml`; `only` picks some of them. `changes` keeps, in every
    task, `all` difficulty changes, `none` (baselines alone), or those listed. `mode` fills in seeds, stop rule and the selection
    of models (`MODES`).

    Up to `pack_size` trials that differ in rate, decay and seed alone are trained as one; `packing: auto` does so on a GPU, where
    it pays. A pack gives what separate trials give, but for the masks of dropout. `data_folder` keeps data sets between runs; one
    that holds those of MAD's public benchmark (folders `t-*`) is read instead, and nothing is written into it. `save_weights`
    keeps the best and last weights of every trial. `isolate_trials` gives each trial or pack a process of its own, and
    `trial_timeout` also ends it after so many seconds (of a pack, for each of its trials).
    """

    short_forms = ("changes", "d_model", "only")
    outside_fingerprint = (*IsolationSpec.outside_fingerprint, "packing", "pack_size", "data_folder", "workers")
    job: Literal["mad"] = "mad"
    mode: Literal["mad", "clean"] = "clean"
    architectures: Annotated[dict[str, BackboneSpec | None], Field(min_length=1)]
    tasks: Annotated[dict[str, TaskSpec], Field(min_length=1)]
    lrs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1e-4, 5e-4, 1e-3)
    weight_decays: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (0.0, 0.1)
    sweep: SweepSpec = SweepSpec()
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    epochs: PositiveInt = 200
    batch_size: PositiveInt = 128
    train: TrainSpec
    packing: Literal["auto", "always", "never"] = "auto"
    pack_size: PositiveInt = 6
    data_folder: str | None = None
    save_weights: bool = False
    workers: TrialWorkerSpec = TrialWorkerSpec()

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Expand the mode, the names of tasks, the layers of architectures."""
        raw = merge(MODES.get(str(raw.get("mode")), MODES["clean"]), raw)
        d_model, changes, only = raw.pop("d_model", 128), raw.pop("changes", "all"), raw.pop("only", None)
        if isinstance(raw.get("tasks"), list | tuple):
            raw["tasks"] = {str(name): {} for name in raw["tasks"]}
        if isinstance(raw.get("tasks"), dict):
            raw["tasks"] = select(raw["tasks"], only, problems)
            raw["tasks"] = expand_tasks(raw["tasks"], changes, problems)
        if isinstance(raw.get("architectures"), dict):
            raw["architectures"] = _expand_architectures(raw["architectures"], d_model, problems)
        return raw

    @model_validator(mode="after")
    def _check_test_lengths(self) -> Self:
        problems = Problems()
        for name, task in self.tasks.items() if self.mode == "mad" else ():
            if task.test_seq_len is not None:
                problems.add(("tasks", name, "test_seq_len"), TEST_PICKS)
            elif task.changes.get("test_seq_len"):
                problems.add(("tasks", name, "changes", "test_seq_len"), TEST_PICKS)
        problems.raise_if_any("MadSpec")
        return self

    @model_validator(mode="after")
    def _check_racks(self) -> Self:
        problems = Problems()
        for name, backbone in self.architectures.items():
            for task in self.tasks.values():
                try:
                    _model(name, backbone, task, task.longest_for(task))
                except ValidationError as error:
                    problems.adopt(("architectures", name), error)
                    break
        problems.raise_if_any("MadSpec")
        return self

    @model_validator(mode="after")
    def _check_sweep(self) -> Self:
        if self.packing == "always" and (self.sweep.asha or self.sweep.method == "optuna"):
            raise ValueError("packing always trains a grid in step: with sweep.asha or sweep.method optuna give auto or never")
        return self

    @model_validator(mode="after")
    def _check_repetitions(self) -> Self:
        """The same trial has one result, so what asks for it twice would never be complete."""
        problems = Problems()
        for name in ("lrs", "weight_decays", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                problems.add((name,), f"the same value is given twice: {', '.join(map(str, values))}")
        first: dict[TrialSpec, Trial] = {}
        for trial in self.settings():
            twin = first.setdefault(trial.spec, trial)
            if twin.architecture != trial.architecture:
                problems.add(("architectures", trial.architecture), f"the same as '{twin.architecture}'")
                break
            if twin.task != trial.task:
                problems.add(("tasks", trial.task), f"the same as '{twin.task}'")
                break
        problems.raise_if_any("MadSpec")
        return self

    def trials(self) -> list[Trial]:
        """All trials of the grid, those that can be packed together next to each other."""
        points = list(itertools.product(self.seeds, self.lrs, self.weight_decays))
        return [trial.at(seed, lr, decay) for trial in self.settings() for seed, lr, decay in points]

    def settings(self) -> Iterator[Trial]:
        """Every architecture on every task setting, at the first point of the grid."""
        shared = self.model_dump(include={"mode", "epochs", "batch_size", "train"})
        first = {"seed": self.seeds[0], "lr": self.lrs[0], "weight_decay": self.weight_decays[0]}
        for architecture, backbone in self.architectures.items():
            for task_name, task in self.tasks.items():
                for change, setting in task.settings().items():
                    model = _model(architecture, backbone, setting, task.longest_for(setting))
                    spec = TrialSpec(setting=setting, **model, **shared, **first)
                    yield Trial(architecture, task_name, change, spec)


def _expand_architectures(raw: dict[Any, Any], d_model: Any, problems: Problems) -> dict[str, Any]:
    expanded: dict[str, Any] = {}
    for name, given in raw.items():
        value = {LISTED: given} if isinstance(given, list | tuple) else given
        if isinstance(value, str) or (isinstance(value, dict) and "rack" in value):
            try:
                value = backbone_in(value)
            except ConfigError as error:
                for line in str(error).splitlines():
                    problems.add(("architectures", str(name)), line)
                value = None
        expanded[str(name)] = {"d_model": d_model, **value} if isinstance(value, dict) else value
    return expanded


def _model(architecture: str, backbone: BackboneSpec | None, setting: TaskSpec, max_length: int) -> dict[str, Any]:
    return {"model_id": architecture} if backbone is None else {"rack": rack_for(backbone, setting, max_length)}

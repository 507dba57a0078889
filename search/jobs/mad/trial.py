"""A trial of the suite as data: all that its result depends on, and the names it is reported under."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from configs import Problems, Spec
from models import BackboneSpec, RackSpec
from search.jobs.mad.task import TaskSpec
from search.training.spec import TrainSpec

TEST_PICKS = (
    "mode mad stops and picks weights on the test split, so it has no test of another length: give mode clean, or leave it out "
    "(changes: [seq_len, n_train] keeps those alone)"
)


class TrialSpec(Spec):
    """All that a trial's result depends on; its fingerprint names the result.

    The model is the rack, or, when a caller brings its own, whatever `model_id` stands for.
    """

    rack: RackSpec | None = None
    model_id: str | None = None
    setting: TaskSpec
    mode: Literal["mad", "clean"]
    epochs: PositiveInt
    batch_size: PositiveInt
    train: TrainSpec
    seed: NonNegativeInt
    lr: PositiveFloat
    weight_decay: NonNegativeFloat

    @model_validator(mode="after")
    def _check_test_length(self) -> Self:
        problems = Problems()
        if self.mode == "mad" and self.setting.test_seq_len is not None:
            problems.add(("setting", "test_seq_len"), TEST_PICKS)
        problems.raise_if_any("TrialSpec")
        return self

    @property
    def n_steps(self) -> int:
        """Optimizer steps, if nothing stops the trial early."""
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches that the training data make; the last one may be smaller."""
        return -(-self.setting.n_train // self.batch_size)


@dataclass(frozen=True)
class Trial:
    """A trial and the names it is reported under."""

    architecture: str
    task: str
    change: str
    spec: TrialSpec

    def at(self, seed: int, lr: float, weight_decay: float) -> Trial:
        """The same setting at another point of the grid."""
        return replace(self, spec=self.spec.model_copy(update={"seed": seed, "lr": lr, "weight_decay": weight_decay}))

    def labels(self) -> dict[str, Any]:
        """The columns that say which trial a result is of."""
        spec = self.spec
        names = {"key": spec.fingerprint(), "architecture": self.architecture, "task": self.task, "change": self.change}
        return {**names, "seed": spec.seed, "lr": spec.lr, "weight_decay": spec.weight_decay}


def rack_for(backbone: BackboneSpec, setting: TaskSpec, max_length: int) -> RackSpec:
    """The backbone with the embedding and head that the task needs, as the suite defines them.

    Untied, with biases; the autoencoder's linears start from N(0, 0.02), as the reference's do.
    """
    task = setting.instance()
    head = {"kind": task.read_out, "bias": True}
    init = {"init": {"kind": "normal", "std": 0.02}} if task.read_out == "autoencoder" and backbone.init is None else {}
    sizes = {"vocab_size": task.vocab_size, "max_length": max_length, "head": head, **init}
    return RackSpec.model_validate({**backbone.to_dict(), **sizes})

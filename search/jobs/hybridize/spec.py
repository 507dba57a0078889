"""What a conversion is: a trained model, what may stand in for its layers, a search, and how what was found is distilled."""

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from configs import Problems, Spec
from models.spec.parameters import LoraSpec
from search.budget import BudgetValue
from search.jobs.imported.tokenizer import with_tokenizer
from search.jobs.placement.spec import SearchSpec
from search.runs.isolation import IsolationSpec
from search.runs.workers import WorkersSpec
from search.training.mixture_spec import MixtureSpec
from search.training.spec import TrainSpec

CHANGED_LAYERS = "{changed}"
"""In a glob of `trains`: every block in which something else stands than in the model."""

Choices = dict[str, dict[str, Any] | None]
"""By name, what may stand in for a part: options that differ from its own, a part of another kind, or null for none."""


def _window() -> Choices:
    return {"window": {"window": 31, "n_sink_tokens": 1}}


class AlignSpec(IsolationSpec):
    """How new mixers are fitted to what the attention of their layer puts out, before anything else.

    Each of every layer is trained alone for `n_steps` steps of `batch_size` rows at `lr`, on what that layer gets in the trained
    model, computed once for `n_rows` rows of the training data. 0 steps leave them as they start from the attention. Attention
    with other options (a window) is that of the model already, and is left as it is.
    """

    outside_fingerprint: ClassVar = (*IsolationSpec.outside_fingerprint, "workers")
    n_steps: NonNegativeInt = 100
    n_rows: PositiveInt = 64
    batch_size: PositiveInt = 8
    lr: PositiveFloat = 2e-3
    workers: WorkersSpec = WorkersSpec()

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.workers.n != 1:
            raise ValueError("workers.n: layers are aligned side by side, each by one worker")
        return self


class SupernetStageSpec(Spec):
    """Stochastic training of the space, from the aligned mixers, with the trained model as teacher, before the search.

    `trains` are globs of the parameters' names; null is all that may stand in: the model itself stays as it is, and is what
    the search measures from. `gradient_checkpointing` takes less memory, and a third more time.
    """

    outside_fingerprint: ClassVar = ("workers", "gradient_checkpointing")
    n_steps: PositiveInt
    batch_size: PositiveInt | None = None
    lr: PositiveFloat = 1e-4
    trains: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    gradient_checkpointing: bool = False
    workers: WorkersSpec = WorkersSpec()


class FinalsSpec(Spec):
    """Short distillations of the `n` best placements of a budget: the better half goes on for twice the steps, until one is left.

    The first round takes `n_steps`. Rounds are judged by KL to the model on the data of the search.
    """

    n: Annotated[int, Field(ge=2)] = 4
    n_steps: PositiveInt = 4


class DistilSpec(IsolationSpec):
    """How placements are distilled: KL to the trained model on `n_steps` batches of the training data, the same for all.

    `budgets` are those of the search whose winner and rivals are distilled (null: all). `trains` are globs of parameters'
    names, with `{changed}` for the blocks in which something else stands than in the model; the others stay as they are. With
    `lora` none of them changes: the linears among them that are its targets get adapters, which alone train and stay beside the
    weights. `hidden_weight` adds the distance of hidden states, layer by layer. With `keep_logits` the model runs once for all
    of them: so many of its highest log probabilities at every position are kept in `teacher/` until all are distilled, and KL is
    over these and all other tokens as one. `finals` picks among the best by short distillations first.
    `gradient_checkpointing` takes less memory, and a third more time. What comes out is measured on `n_test_batches` batches of
    `test_batch_size` rows that nothing was picked by.
    """

    outside_fingerprint: ClassVar = (*IsolationSpec.outside_fingerprint, "workers", "checkpoint_every", "gradient_checkpointing")
    budgets: Annotated[tuple[BudgetValue, ...], Field(min_length=1)] | None = None
    n_steps: PositiveInt = 16
    batch_size: PositiveInt = 2
    lr: PositiveFloat = 3e-4
    weight_decay: NonNegativeFloat = 0.0
    trains: Annotated[tuple[str, ...], Field(min_length=1)] = (f"{CHANGED_LAYERS}.mixer.*",)
    lora: LoraSpec | None = None
    hidden_weight: NonNegativeFloat = 0.0
    finals: FinalsSpec | None = None
    keep_logits: PositiveInt | None = None
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    n_test_batches: PositiveInt = 2
    test_batch_size: PositiveInt = 4
    gradient_checkpointing: bool = False
    checkpoint_every: PositiveInt | None = None
    train: TrainSpec = TrainSpec()
    workers: WorkersSpec = WorkersSpec()

    @model_validator(mode="after")
    def _check_what_learns(self) -> Self:
        problems, usual = Problems(), LoraSpec()
        for name in ("apply", "trains", "freeze_base", "freeze_others"):
            if self.lora is not None and getattr(self.lora, name) != getattr(usual, name):
                problems.add(("lora", name), "cannot be said here: the adapters train, and nothing else does")
        if self.keep_logits is not None and self.hidden_weight:
            problems.add(("hidden_weight",), "hidden states are not kept: 0, or leave keep_logits out")
        if len(set(self.seeds)) < len(self.seeds):
            problems.add(("seeds",), f"the same seed is given twice: {', '.join(map(str, self.seeds))}")
        problems.raise_if_any(type(self).__name__)
        return self


class HybridizeSpec(Spec):
    """From a trained model to racks in which only some layers keep their attention.

    `model` is a Hugging Face folder, a GGUF file, or `package:NAME` for the one GGUF file of an installed package. `choices`
    are what may stand in for the attention of any layer, beside it (`attention`); `mlp_choices` for its channel mixer, beside
    that (`mlp`); `layers` are the numbers of those that have a choice (null: all). An option that is not given is the model's
    own where the kind is attention, and starts from it where that can be. `data` needs no tokenizer: it is the model's. `dtype`
    is that of the start (`file`: the model's own); what is aligned or distilled learns in float32.
    """

    job: Literal["hybridize"] = "hybridize"
    model: str
    dtype: Literal["file", "float32", "bfloat16", "float16"] = "float32"
    choices: Choices = Field(default_factory=_window)
    mlp_choices: Choices = Field(default_factory=dict)
    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    data: MixtureSpec
    align: AlignSpec = AlignSpec()
    supernet: SupernetStageSpec | None = None
    search: SearchSpec
    distil: DistilSpec = DistilSpec()
    seed: NonNegativeInt = 0

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Have texts be read by the model's tokenizer, and the search go by KL with `exact`, unless they say otherwise."""
        del problems
        data, model = raw.get("data"), raw.get("model")
        if isinstance(data, dict) and isinstance(data.get("tasks"), dict):
            tasks = {name: with_tokenizer(share, model) for name, share in data["tasks"].items()}
            raw["data"] = {**data, "tasks": tasks}
        if isinstance(raw.get("search"), dict):
            raw["search"] = {"metric": "kl", "strategy": "exact", "importance": False, **raw["search"]}
            finals = raw["distil"].get("finals") if isinstance(raw.get("distil"), dict) else None
            if isinstance(finals, dict) and "n_best" not in raw["search"]:
                raw["search"]["n_best"] = finals.get("n", FinalsSpec().n)
        return raw

    def fingerprint_of_start(self) -> str:
        """Of all that the first weights depend on: twelve hexadecimal digits."""
        asked = {name: value for name, value in self.content().items() if name not in ("search", "distil", "supernet")}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        problems = Problems()
        for key, own, choices in (("choices", "attention", self.choices), ("mlp_choices", "mlp", self.mlp_choices)):
            if own in choices:
                problems.add((key, own), f"'{own}' is what the model has: call it otherwise")
        if not self.choices and not self.mlp_choices:
            problems.add(("choices",), "nothing may stand in for anything: there is nothing to search")
        for index, budget in enumerate(self.distil.budgets or ()):
            if budget not in self.search.budgets:
                problems.add(("distil", "budgets", index), "is none of search.budgets")
        if self.distil.finals is not None and self.search.n_best < self.distil.finals.n:
            text = f"search.n_best tells of {self.search.n_best} alone: give as many there, or leave it out"
            problems.add(("distil", "finals", "n"), text)
        problems.raise_if_any(type(self).__name__)
        return self

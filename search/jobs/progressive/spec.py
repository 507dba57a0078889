"""What the growth of a rack is: where it starts, what is added, how each stage trains, which candidates compete."""

from typing import Any, Self

from pydantic import model_validator

from configs import ConfigError, Problems
from configs.trained_model import model_path
from search.jobs.imported.tokenizer import with_tokenizer
from search.jobs.progressive.fields import ProgressiveFields, sizes_needed


class ProgressiveSpec(ProgressiveFields):
    """A rack that grows stack by stack.

    `rack` is what the first stage trains; each further stage adds `stack` (null: the rack's last one again) until there are
    `growth.target_stacks`, and trains it for `n_steps` (or `growth.stage_steps`) beside a trunk that is frozen, has adapters, or
    trains on. With `candidates` (stacks by name), or where `stack` has a choice of mixers, every stage first ranks them on the
    trunk as it is. `growth.joint_tuning_steps` end the run with all of the rack in training.

    With `growth.enabled: false` the whole rack trains at once; then `training_architecture` says by which losses: `rackwise`, end
    to end, or `stackwise` and `blockwise`, each unit by a loss of its own (`local_loss`).

    In the place of `rack`, `model` names a trained one: a Hugging Face folder, a GGUF file, `package:NAME` for the one GGUF file
    of an installed package, or what the command `import` has left. It is the first stage as it is, in float32, and its stacks are
    the trunk of those that are added; the steps of `growth.stage_steps` begin with the second stage. A text that `data` names
    needs no tokenizer: it is the model's.

    `vocab_size` and `max_length` of the rack are what task and objective need, if they are not given. `decay` says which stages
    a schedule's decay ends: `each`, or the `last` alone, the others staying at their peak (a decay in every stage wastes steps).
    """

    @classmethod
    def expand_short_forms(cls, raw: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """Take the rack of a model; fill in the sizes that task and objective need."""
        if isinstance(model := raw.get("model"), str):
            raw["data"] = with_tokenizer(raw.get("data"), model)
            if raw.get("rack") is None:  # what is saved has both
                from search.jobs.imported.trained import trained_tree

                try:
                    raw["rack"] = trained_tree(model_path(model))
                except ConfigError as error:
                    problems.add(("model",), str(error).removeprefix("model: "), model)
                    problems.raise_if_any(cls.__name__)
        if isinstance(raw.get("rack"), dict):
            raw["rack"] = {**sizes_needed(raw.get("data"), raw.get("objective")), **raw["rack"]}
        return raw

    @model_validator(mode="after")
    def _check(self) -> Self:
        from search.jobs.progressive.checks import problems_of

        problems = Problems()
        for location, message in problems_of(self):
            problems.add(location, message)
        problems.raise_if_any(type(self).__name__)
        return self

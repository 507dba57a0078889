"""Training a whole rack at once on what a data loader yields: block by block, stack by stack, or end to end.

>>> import torch
>>> from models.architecture import create_simple_rack
>>> sizes = {"d_model": 32, "d_ff": 64, "n_heads": 2, "vocab_size": 50}
>>> rack = create_simple_rack(n_stacks=2, blocks_per_stack=4, attention_mode="bidirectional", **sizes)
>>> config = StackWiseConfig()
>>> config.training.training_architecture, config.training.max_steps, config.training.device = "blockwise", 3, "cpu"
>>> dataloader = torch.randint(0, 49, (4, 16, 12))  # four batches of 16 rows
>>> results = ArchitectureTrainer(config).train_architecture(rack, dataloader)
>>> results["mode"], len(results["units"]), results["status"], results["metrics"]["step"]
('blockwise', 8, 'finished', 3)
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from configs import ConfigError, StackWiseConfig
from models import Rack
from search.jobs.progressive.training.batches import GrowthBatches, StageTime
from search.jobs.progressive.training.growing_model import is_causal, needs_attention_mask
from search.stackwise.loader_samples import evaluated_batches, loader_samples, steps_between_evaluations
from search.training.devices import resolve_device
from search.training.local_losses.evaluation import ExitEvaluation
from search.training.local_losses.model import LocalUnits
from search.training.local_losses.step import LocalLosses
from search.training.local_losses.units import UnitKind
from search.training.loop import train
from search.training.ranks import Ranks
from search.training.spec import TrainSpec
from search.training.state import TrainState
from tasks import IGNORED
from tasks.objectives import OBJECTIVES
from tasks.objectives.shared.objective import Objective
from tasks.samples.samples import ArraySamples

UNITS: dict[str, UnitKind] = {"blockwise": "block", "stackwise": "stack", "rackwise": "rack"}
"""What learns from a loss of its own, by the training architecture."""


class ArchitectureTrainer:
    """Trains racks as a configuration says, which may be changed until they are trained.

    Of `training` it reads `training_architecture` (or `end_to_end_scope`, where the strategy is `end_to_end`), `local_loss`, how
    long, how fast and where; of `training.progressive` the objective; and `data`. The rack is given: `model` need not be its.

    Args:
        config: the configuration, or one in plain values.

    Raises:
        ConfigError: where it is wrong: here, or when it is used.
    """

    def __init__(self, config: StackWiseConfig | Mapping[str, Any]) -> None:
        self.config = StackWiseConfig.from_dict(config) if isinstance(config, Mapping) else config
        self.config.validate_sections()

    @property
    def mode(self) -> str:
        """What learns from a loss of its own: blockwise, stackwise or rackwise."""
        return self.config.training.mode

    def train_architecture(self, rack: Rack, dataloader: Iterable[Any]) -> dict[str, Any]:
        """Train the rack, in place, on the samples of a loader; batches of `batch_size` are drawn from all of them.

        Targets that batches bring along are what is asked. Where there are none the configuration's objective asks; its mask, if
        no token is named, is the last one that the rack knows.

        Args:
            rack: a model; it ends up on the device of the training, in evaluation mode.
            dataloader: yields tokens, pairs of tokens and targets, or mappings, as `as_sequences` reads them.

        Returns:
            `mode`; `units`, by the names that they have in the rack, and the losses [{step, loss}] of the exits behind them, from
            before the training on; `history`, rows of the whole rack on samples of the loader, and the last one as `metrics`;
            `objective`, in plain values; `status`, finished or diverged; `n_steps`; `seconds`.
        """
        self.config.validate_sections()
        samples = loader_samples(dataloader, self.config.data, vocab_size=rack.vocab_size)
        objective = self._objective(rack, samples)
        rack.to(resolve_device(self.config.training.device))
        model = LocalUnits(rack, self.config.training.local_loss, unit=UNITS[self.mode], seed=self.config.training.seed)
        member, rows = self._trained(model, samples, objective)
        rack.eval()
        history = [{name: value for name, value in row.items() if not name.startswith("loss.")} for row in rows]
        return {
            "mode": self.mode,
            "units": {
                unit.name: [{"step": row["step"], "loss": row[f"loss.{unit.name}"]} for row in rows] for unit in model.units
            },
            "history": history,
            "metrics": history[-1],
            "objective": {"kind": type(objective).__name__.lower(), **asdict(objective)},
            "status": member.status,
            "n_steps": member.step,
            "seconds": member.seconds,
        }

    def _trained(
        self, model: LocalUnits, samples: ArraySamples, objective: Objective
    ) -> tuple[TrainState, list[dict[str, float]]]:
        """The member that has been trained, and its rows, with one of before."""
        training, ranks, uses_attention_mask = self.config.training, Ranks(), needs_attention_mask(model.rack, samples)
        batches = GrowthBatches(
            samples,
            objective,
            stage=0,
            time=StageTime(),
            batch_size=training.batch_size,
            seed=training.seed,
            device=resolve_device(training.device),
            rank=ranks.rank,
            n_ranks=ranks.n_ranks,
        )
        evaluation = ExitEvaluation(
            model, batches.evaluation(*evaluated_batches(training, samples)), uses_attention_mask=uses_attention_mask
        )
        model.eval()
        first = {"step": 0.0, **{name: value.item() for name, value in evaluation.score().items()}}
        lr = training.learning_rate if self.mode == "rackwise" else training.current_block_lr or training.learning_rate
        member = TrainState(model, batches, lr, training.weight_decay, keeps_best=False)
        train(
            [member],
            TrainSpec(device=training.device, grad_clip=training.grad_clip),
            n_steps=training.max_steps,
            eval_every=steps_between_evaluations(training),
            evaluate=evaluation,
            gradients=LocalLosses(model, n_steps=training.max_steps, ranks=ranks, uses_attention_mask=uses_attention_mask),
            seed=training.seed + (ranks.rank << 32),  # ranks have other rows, and drop out other units
            ranks=ranks,
        )
        return member, [first, *member.history]

    def _objective(self, rack: Rack, samples: ArraySamples) -> Objective:
        options = self.config.training.progressive.objective(rack.vocab_size)
        given = samples.sequences("train", np.arange(samples.n_samples("train")))
        if given.targets is not None:
            if options["kind"] != "custom" and ((given.targets == given.tokens) | (given.targets == IGNORED)).all():
                text = "are the tokens at the same positions: leave them out, and it makes its own, or set it to custom"
                raise ConfigError(f"training_objective {options['kind']}: the loader's targets {text}")
            options = {"kind": "custom"}
        objective: Objective = OBJECTIVES.build(OBJECTIVES.part(options), vocab_size=rack.vocab_size)
        if objective.input_vocab_size > rack.vocab_size:
            text = f"{options['mask_token_id']} is none of the rack's {rack.vocab_size} tokens"
            raise ConfigError(f"training.progressive.mask_token_id: {text}")
        objective.check_stacks([is_causal(stack) for stack in rack.stacks])
        return objective

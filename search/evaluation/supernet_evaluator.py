"""The evaluator of this process: a supernet on its device, scored by the walk of the trie."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from torch import nn

from models import Placement, Supernet
from search.evaluation.evaluator import Evaluator
from search.evaluation.head_scores import Metric
from search.evaluation.reference import teacher_of
from search.evaluation.score_batches import MAX_EVAL_MEMORY, Values, batch_scorer, check_batches
from search.evaluation.score_log import ScoreLog, weights_fingerprint
from search.evaluation.trie import PlacementTrie
from search.training.batches import Batch
from search.training.devices import computes_in
from search.training.spec import TrainPrecision


class SupernetEvaluator(Evaluator):
    """Scores placements of a supernet. Its weights must not change meanwhile: the log knows them by their fingerprint.

    `counts` adds the block evaluations that the walks took, and those that one pass a placement would have taken.
    """

    def __init__(
        self,
        supernet: Supernet,
        batches: Mapping[str, Sequence[Batch]],
        shares: Mapping[str, float],
        *,
        data_fingerprint: str,
        metric: Metric = "loss",
        teacher: nn.Module | None = None,
        log: ScoreLog | None = None,
        max_eval_memory: int = MAX_EVAL_MEMORY,
        precision: TrainPrecision = "auto",
        race: bool = False,
        confidence: float = 0.99,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Say what is scored, on what.

        Args:
            supernet: on the device of the batches.
            batches: as many of each task, on the same device; each task's own length.
            shares: weights of the tasks, which add up to 1.
            data_fingerprint: of the batches (`Mixture.fingerprint`).
            metric: `loss`, `accuracy`, or `kl` to the teacher, or to the main placement if there is none.
            teacher: tokens [batch, time] -> logits, in evaluation mode.
            log: where measurements are kept beyond this process.
            max_eval_memory: bytes, for everything but weights and batches.
            precision: of the computation.
            race: whether `keep` is heeded.
            confidence: of the race.
            say: is told of measurements that took long.

        Raises:
            ConfigError: if tasks differ in their number of batches, a batch asks nothing, or a race has too few of them.
        """
        super().__init__(
            self._measured,
            n_batches=check_batches(batches),
            shares=shares,
            key=score_key(supernet, data_fingerprint, metric, teacher=teacher, precision=precision),
            log=log,
            race=race,
            confidence=confidence,
            say=say,
        )
        self._supernet, self._batches = supernet, {task: list(own) for task, own in batches.items()}
        self._metric, self._teacher, self._max_eval_memory, self._precision = metric, teacher, max_eval_memory, precision

    @cached_property
    def _score(self) -> Callable[..., Values]:
        """Made at the first measurement: a log may know all that is asked."""
        return batch_scorer(
            self._supernet,
            self._batches,
            self._metric,
            reference=None if self._teacher is None else teacher_of(self._teacher),
            max_eval_memory=self._max_eval_memory,
            precision=self._precision,
        )

    def _measured(self, placements: Sequence[Placement], batches: range) -> Values:
        trie = PlacementTrie(self._supernet, placements)
        self.counts.n_layer_evaluations += trie.n_nodes * len(batches)
        self.counts.n_layer_evaluations_alone += trie.n_alone * len(batches)
        chosen = {task: own[batches.start : batches.stop] for task, own in self._batches.items()}
        return self._score(placements, chosen, trie=trie)


def score_key(
    supernet: Supernet,
    data_fingerprint: str,
    metric: Metric,
    *,
    teacher: nn.Module | None = None,
    precision: TrainPrecision = "auto",
) -> str:
    """What numbers depend on beside the placement: weights, data, metric, and what they were computed in and compared with."""
    device = supernet.rack.embedding.weight.device
    words = [weights_fingerprint(supernet), data_fingerprint, metric, computes_in(device, precision)]
    if metric == "kl" and teacher is not None:
        words.append(weights_fingerprint(teacher))
    return ":".join(words)

"""Scores placements of a supernet on fixed batches: the walk of their trie, in pieces that fit a bounded memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from configs import ConfigError
from models import Placement, Supernet
from search.evaluation.head_scores import HeadScorer, Metric
from search.evaluation.memory_plan import MemoryPlan
from search.evaluation.reference import KeptPredictions, Reference, main_of
from search.evaluation.trie import PlacementTrie
from search.training.batches import Batch
from search.training.devices import autocast
from search.training.spec import TrainPrecision
from tasks import IGNORED

Values = dict[str, np.ndarray]
"""By task: [n_placements, n_batches] float64, higher is better."""

MAX_EVAL_MEMORY = 2**30


def score_batches(
    supernet: Supernet,
    placements: Sequence[Placement],
    batches: Mapping[str, Sequence[Batch]],
    metric: Metric = "loss",
    *,
    reference: Reference | None = None,
    max_eval_memory: int = MAX_EVAL_MEMORY,
    precision: TrainPrecision = "auto",
    trie: PlacementTrie | None = None,
    head_scorer: HeadScorer | None = None,
) -> Values:
    """Score placements on batches, each distinct (prefix, choice) once.

    The numbers are those of one placement at a time (1e-5 in float32): means over the asked positions of a batch of the log
    probability in nats (`loss`, so the negative cross entropy), of right answers (`accuracy`), of the negative KL divergence from
    the reference's prediction (`kl`). The supernet is left as it was found, whatever happens.

    Args:
        supernet: on the device of the batches.
        placements: in any order; the same one twice is computed once.
        batches: pairs of inputs and targets [batch, time] by task, `IGNORED` where nothing is asked. Small ones are computed
            together.
        metric: what is measured.
        reference: what `kl` compares with (`search/evaluation/reference.py`); None is the main placement. It runs at every call.
        max_eval_memory: bytes for everything but weights and batches; half for hidden states, half for what a call needs inside.
        precision: of the computation, as in training.
        trie: of these placements, if there is one already.
        head_scorer: of this metric and reference, if there is one already.

    Raises:
        ConfigError: if a placement does not fit the slots, a batch asks nothing, or a single sequence does not fit the memory.
    """
    n_batches = check_batches(batches)
    if not placements:
        return {task: np.empty((0, n_batches)) for task in batches}
    trie = trie or PlacementTrie(supernet, placements)
    place = {placement: index for index, placement in enumerate(trie.placements)}
    order = [place[placement] for placement in placements]
    head_scorer = head_scorer or HeadScorer(supernet.rack.head, metric, reference or main_of(supernet))
    values = {}
    # Not inference mode: what a mixer keeps between calls (a mask, a table) would be of no use to training afterwards.
    with torch.no_grad(), evaluating(supernet), autocast(supernet.rack.embedding.weight.device, precision):
        for task, own in batches.items():
            means = _TaskTrie(supernet, trie, head_scorer, max_eval_memory).means(own)
            values[task] = means.cpu().numpy()[order]
    return values


def batch_scorer(
    supernet: Supernet,
    batches: Mapping[str, Sequence[Batch]],
    metric: Metric,
    *,
    reference: Reference | None = None,
    max_eval_memory: int = MAX_EVAL_MEMORY,
    precision: TrainPrecision = "auto",
) -> Callable[..., Values]:
    """`score_batches` of some of these batches, for many calls.

    What `kl` compares with is kept, if a quarter of the memory is enough: in a race it would cost as much as the rest.
    """
    memory = max_eval_memory
    if metric == "kl":
        flat = (batch for own in batches.values() for batch in own)
        with torch.no_grad(), evaluating(supernet), autocast(supernet.rack.embedding.weight.device, precision):
            kept = KeptPredictions.of(reference or main_of(supernet), flat, memory // 4)
        if kept is not None:
            reference, memory = kept, memory - kept.n_bytes
    head_scorer = HeadScorer(supernet.rack.head, metric, reference or main_of(supernet))
    return partial(score_batches, supernet, max_eval_memory=memory, precision=precision, head_scorer=head_scorer)


@contextmanager
def evaluating(supernet: Supernet) -> Iterator[None]:
    """Evaluation mode for a while; then every part's own mode, and the active placement, are as before."""
    modes, active = [(module, module.training) for module in supernet.modules()], supernet.active
    supernet.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        supernet.activate(active)


class _TaskTrie:
    """The batches of one task, taken through the walk some rows at a time: several batches, one, or a part of one."""

    def __init__(self, supernet: Supernet, trie: PlacementTrie, head_scorer: HeadScorer, max_eval_memory: int) -> None:
        self._supernet, self._trie, self._head_scorer, self._max_eval_memory = supernet, trie, head_scorer, max_eval_memory
        self._index = {placement: index for index, placement in enumerate(trie.placements)}

    def means(self, batches: Sequence[Batch]) -> Tensor:
        """Over the asked positions of each batch: [distinct placements, batches] float64."""
        sums = [self._sums(list(own)) for _, own in groupby(batches, key=lambda batch: batch[0].shape[1])]
        return torch.cat(sums, dim=1) / torch.stack([(targets != IGNORED).sum() for _, targets in batches])

    def _sums(self, batches: Sequence[Batch]) -> Tensor:
        """Of batches of one length. Where rows belong is all that is left of batches, so that they may be cut anywhere."""
        inputs, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        sizes = torch.tensor([len(own) for own, _ in batches], device=inputs.device)
        owners = torch.arange(len(batches), device=inputs.device).repeat_interleave(sizes)
        sums = torch.zeros(len(self._index), len(batches), dtype=torch.float64, device=inputs.device)
        most = int((targets != IGNORED).sum(1).argmax())  # the row that the head has most of
        row = inputs[most : most + 1], targets[most : most + 1]
        plan = MemoryPlan.of(self._supernet, self._trie, self._head_scorer, row, self._max_eval_memory)
        # A batch stays whole, its levels cut into chunks, unless it is too large even for the walk node by node.
        n_rows = max(plan.rows_level_by_level, min(plan.rows, int(sizes.max())))
        for rows in torch.arange(len(inputs)).split(n_rows):
            piece = slice(int(rows[0]), int(rows[-1]) + 1)
            self._add(sums, inputs[piece], targets[piece], owners[piece], plan)
        return sums

    def _add(self, sums: Tensor, inputs: Tensor, targets: Tensor, owners: Tensor, plan: MemoryPlan) -> None:
        def take(leaves: list[tuple[Placement, Tensor]]) -> None:
            scores = self._head_scorer.score([state for _, state in leaves], inputs, targets, plan.leaf_rows)
            for (placement, _), row_scores in zip(leaves, scores, strict=True):
                sums[self._index[placement]].index_add_(0, owners, row_scores)

        embedding = self._supernet.rack.embedding
        n_states, n_at_once = plan.n_states // len(inputs), plan.rows_at_once // len(inputs)
        self._trie.run(embedding(inputs), take, n_states=n_states, n_at_once=n_at_once)


def check_batches(batches: Mapping[str, Sequence[Batch]]) -> int:
    """How many batches each task has; ConfigError if that differs, or if a batch asks nothing: it has no mean."""
    sizes = {task: len(pairs) for task, pairs in batches.items()}
    if len(set(sizes.values())) != 1:
        raise ConfigError(f"evaluation batches: tasks are scored on equally many; here are {sizes}")
    for task, pairs in batches.items():
        silent = [index for index, (_, targets) in enumerate(pairs) if not bool((targets != IGNORED).any())]
        if silent:
            raise ConfigError(f"evaluation batch {silent[0]} of '{task}' asks nothing; give larger batches")
    return next(iter(sizes.values()))

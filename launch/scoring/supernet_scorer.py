"""Scores placements of a supernet on Ray: weights and batches lie in the object store, workers walk the trie."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from launch.cluster import cluster, may_use_gpus
from launch.scoring.shared_tensors import Array, to_arrays, to_tensors
from launch.scoring.tune_scorer import TuneScorer
from models import Placement, RackSpec, Supernet
from models.assembly.assemble import filled, without_numbers
from search.evaluation.evaluator import Scorer
from search.evaluation.head_scores import Metric
from search.evaluation.score_batches import MAX_EVAL_MEMORY, Values, batch_scorer
from search.runs.workers import ScorerSpec
from search.training.batches import Batch
from search.training.devices import computes_in, resolve_device
from search.training.spec import Device, TrainPrecision

BatchName = tuple[str, int]
"""A task, and the number of a batch."""


@contextmanager
def supernet_scorer(
    supernet: Supernet,
    batches: Mapping[str, Sequence[Batch]],
    metric: Metric,
    out: Path,
    workers: ScorerSpec,
    *,
    device: Device = "auto",
    max_eval_memory: int = MAX_EVAL_MEMORY,
    precision: TrainPrecision = "auto",
) -> Iterator[TuneScorer]:
    """What `score_batches` measures, on Ray workers that hold the supernet once each, for a `with` block.

    Args:
        supernet: its weights go to the workers through the object store, which the processes of a node share.
        batches: by task, all of them; calls say which.
        metric: what is measured.
        out: the folder of the search; Tune's own files go to `tune/` in it.
        workers: how many there are, and what Ray reserves for each.
        device: what they compute on; `auto` is a GPU where the cluster has any, wherever the driver's supernet lies.
        max_eval_memory: of each worker, in bytes.
        precision: of the computation; `auto` is what it is where the driver's supernet lies, for so the log's key has it.
    """
    precision = computes_in(supernet.rack.embedding.weight.device, precision)
    pairs = {(task, number): batch for task, own in batches.items() for number, batch in enumerate(own)}
    with cluster() as resources:
        make_scorer = partial(
            _make_scorer,
            space=supernet.space.to_dict(),
            weights=to_arrays(supernet.rack.state_dict()),
            inputs=to_arrays({key: inputs for key, (inputs, _) in pairs.items()}),
            targets=to_arrays({key: targets for key, (_, targets) in pairs.items()}),
            device="cuda" if may_use_gpus(workers, device, resources) else "cpu",
            options={"metric": metric, "max_eval_memory": max_eval_memory, "precision": precision},
        )
        with TuneScorer(make_scorer, out, workers, device) as scorer:
            yield scorer


def _make_scorer(
    space: dict[str, Any],
    weights: dict[str, Array],
    inputs: dict[BatchName, Array],
    targets: dict[BatchName, Array],
    *,
    device: Device,
    options: dict[str, Any],
) -> Scorer:
    """The trie walk over a supernet whose weights lie in the object store, and batches likewise, by task and number."""
    place = resolve_device(device)
    described, tensors = RackSpec.model_validate(space), to_tensors(weights)
    supernet = Supernet(described, rack=filled(without_numbers(described), lambda name: tensors[name]))
    supernet.requires_grad_(requires_grad=False).to(place).eval()
    batches: dict[str, list[Batch]] = {}
    found = to_tensors(targets)
    for (task, number), tensor in to_tensors(inputs).items():
        batches.setdefault(task, []).append((tensor.to(place), found[task, number].to(place)))

    measure = batch_scorer(supernet, batches, **options)

    def score(placements: Sequence[Placement], numbers: range) -> Values:
        return measure(placements, {task: own[numbers.start : numbers.stop] for task, own in batches.items()})

    return score

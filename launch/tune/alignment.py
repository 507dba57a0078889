"""Aligns the new mixers of a trained model's layers on Ray: a trial a layer, which reads what that layer gets from a file."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from configs.records import Row
from launch.cluster import cluster
from launch.tune.train_many import Summaries, train_side_by_side
from search.jobs.hybridize.alignment import LayerAlignmentSpec, align_layer, finished_alignment, limits_of_alignment
from search.training.loop import OnEvaluation


def align_layers_on_ray(layers: Mapping[str, LayerAlignmentSpec], out: Path) -> dict[str, Row]:
    """Align what the folders below `out`, one a layer, do not hold yet; the rows by name.

    Workers read the inputs and write the folders under the same path: on several machines, on storage that they share.

    Raises:
        ConfigError: if a worker asks for more than the cluster has, or a folder belongs to another layer.
        KeyboardInterrupt: on Ctrl-C, after Tune has wound up.
    """
    told = Summaries(len(layers))
    for name, spec in layers.items():
        if (row := finished_alignment(spec, out / name, partial(told.say_of, name))) is not None:
            told.known(name, row)
    left = {name: spec for name, spec in layers.items() if name not in told.rows}
    if left:
        with cluster() as resources:
            train_side_by_side(left, out, _trial, told, resources, limits=limits_of_alignment(layers))
    return {name: told.rows[name] for name in layers}


def _trial(spec: dict[str, Any], out: Path, on_evaluation: OnEvaluation) -> Row:
    tell: Any = on_evaluation
    return align_layer(LayerAlignmentSpec.model_validate(spec), out, tell=partial(tell, None))

"""`load_model`: the rack that a run, an import, or a trained model of Hugging Face comes to, whatever kind of folder it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from configs import ConfigError
from configs.errors import known_names
from configs.load import validate_saved
from configs.records import Row, read_json
from models import Rack, Supernet, parse_placement
from models.huggingface.folder import CONFIG_JSON
from models.huggingface.importing import import_rack
from search.jobs.hybridize.start import PLACEMENT, START, SUPERNET
from search.jobs.imported.weights import load_imported
from search.jobs.pipeline.spec import PipelineSpec
from search.jobs.placement.results import PLACEMENTS
from search.jobs.progressive.report import RESULT
from search.jobs.progressive.weights import load_rack, load_stage
from search.jobs.supernet.weights import load_supernet
from search.jobs.validate.spec import ValidateSpec
from search.runs.run_folder import RESULTS, SPEC, WEIGHTS, saved_spec

KINDS = (
    "a run of supernet, placement, pipeline, hybridize, validate or progressive, a stage or a rack of one, what import has left, "
    "or a trained model of Hugging Face (a folder with config.json, or a .gguf file)"
)


@dataclass(frozen=True)
class _Wish:
    """What a caller asks of a folder."""

    best: bool
    placement: str | Sequence[str] | None
    device: torch.device


def load_model(
    path: str | Path,
    *,
    best: bool = True,
    placement: str | Sequence[str] | None = None,
    device: torch.device | str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
) -> Rack:
    """The model in a folder, in evaluation mode; nothing is drawn for it, and nothing is run that lies there.

    What an import has left, a model of Hugging Face and a GGUF file are the model itself; of a growth it is the rack of the last
    stage that is done, of a stage's folder the rack of that stage. Of a supernet it is the main placement, or the one asked for,
    extracted; without choices, the rack as it is. Of a placement search it is what was found under the last of its budgets that
    was met, extracted from its supernet. Of a pipeline, and of a validation, it is a rack that was trained from scratch: the one
    asked for, else the one with the lowest test loss of those within a budget, rivals included; of several seeds the best. Of a
    conversion it is the distilled rack that is asked for, else the one with the lowest KL to the model of those within a budget,
    rivals included; a placement that was not distilled is extracted from the supernet that was searched, as is what was found
    where nothing was distilled.

    Args:
        path: the folder or file; that of a run is the one its command printed last.
        best: of a search, a pipeline and a conversion, the best as told above; False is the main placement of its supernet, which
            of a conversion is the trained model itself.
        placement: names, or a short text such as `all:gdn`.
        device: where the weights are to lie; the CPU, if not given.
        dtype: of the weights; None leaves them as they are.

    Raises:
        ConfigError: if there is no such model there, with what there is.
    """
    path, wish = Path(path), _Wish(best, placement, torch.device(device or "cpu"))
    if dtype is not None and dtype not in (known := ("float32", "bfloat16", "float16")):
        raise ConfigError(f"dtype: unknown type '{dtype}'; {known_names(str(dtype), known)}")
    if not path.exists():
        raise ConfigError(f"{path}: no such folder or file")
    if not (path / SPEC).exists() and (path.is_file() or (path / CONFIG_JSON).exists()):
        _refuse_placement(path, wish)
        return import_rack(path, dtype=dtype or "file", device=wish.device)[1]
    rack = _loader(path)(path, wish).eval()
    return rack if dtype is None else rack.to(getattr(torch, dtype))


def _loader(path: Path) -> Callable[[Path, _Wish], Rack]:
    if not (path / SPEC).exists():
        if (path / RESULT).exists():
            return _of_stage
        if (path / PLACEMENTS).exists():
            return _of_search
        if path.resolve().name == START and (path / WEIGHTS).exists():
            return _of_supernet
        raise ConfigError(f"{path}: no model is there; what can be loaded: {KINDS}")
    job = str(saved_spec(path).get("job"))
    if job not in _LOADERS:
        raise ConfigError(f"{path}: a run of '{job}' leaves no rack; what can be loaded: {KINDS}")
    return _LOADERS[job]


def _of_import(path: Path, wish: _Wish) -> Rack:
    _refuse_placement(path, wish)
    return load_imported(path, wish.device)


def _of_supernet(path: Path, wish: _Wish) -> Rack:
    return _placed(path, wish, lambda supernet: supernet.main)


def _of_placement(path: Path, wish: _Wish) -> Rack:
    """Of a run of its own, whose supernet is elsewhere."""
    folder = Path(saved_spec(path)["supernet"])
    if not folder.exists():
        raise ConfigError(f"{path}: its supernet, {folder}, is not there; a path that is not absolute is read from here")
    return _placed(folder, wish, lambda _: _found(path))


def _of_search(path: Path, wish: _Wish) -> Rack:
    """Of the search in a pipeline or a conversion, whose supernet is beside it."""
    return _placed(_searched(path.parent), wish, lambda _: _found(path))


def _searched(path: Path) -> Path:
    """The supernet that a pipeline or a conversion has searched: of a conversion that has trained none, its start."""
    is_start = (path / START).exists() and saved_spec(path).get("supernet") is None
    return path / (START if is_start else SUPERNET)


def _found(path: Path) -> Sequence[str]:
    placement: Sequence[str] = _summary(path, PLACEMENTS)["budgets"][-1]["best"]["placement"]
    return placement


def _placed(folder: Path, wish: _Wish, found: Callable[[Supernet], Sequence[str]]) -> Rack:
    """The placement asked for, else the one found, else the main one, of the supernet in a folder."""
    model = load_supernet(folder, wish.device)
    if isinstance(model, Rack):
        _refuse_placement(folder, wish)
        return model
    if wish.placement is not None:
        return model.extract(wish.placement)
    return model.extract(found(model) if wish.best else model.main)


def _of_pipeline(path: Path, wish: _Wish) -> Rack:
    if wish.placement is None and not wish.best:
        return _of_supernet(path / SUPERNET, wish)
    spec = validate_saved(PipelineSpec, saved_spec(path), str(path / SPEC))
    return _retrained(path, wish, spec, [row for row in _summary(path, RESULTS)["rows"] if row["error"] is None])


def _of_conversion(path: Path, wish: _Wish) -> Rack:
    if wish.placement is None and not wish.best:
        return _of_supernet(path / START, wish)
    source = _searched(path)
    rows = [row for row in _summary(path, RESULTS)["rows"] if row.get("kl_distilled") is not None]
    if wish.placement is not None:
        searched = load_supernet(source)
        assert isinstance(searched, Supernet)  # the space has choices
        wanted = parse_placement(wish.placement, searched.slots)
        rows = [row for row in rows if tuple(row["placement"]) == wanted]
    row = min(rows, key=lambda row: row["kl_distilled"], default=None)
    if row is None:
        return _placed(source, wish, lambda _: _found(path / PLACEMENT))
    if not row["folders"]:  # nothing of it had anything to learn
        return _placed(source, wish, lambda _: row["placement"])
    folder = row["folders"][min(range(len(row["kls"])), key=row["kls"].__getitem__)]
    return _of_supernet(path / folder, _Wish(best=True, placement=None, device=wish.device))


def _of_validation(path: Path, wish: _Wish) -> Rack:
    if not wish.best:
        raise ConfigError(f"{path}: best=False is for one supernet; a validation has several: give one of them")
    spec = validate_saved(ValidateSpec, saved_spec(path), str(path / SPEC))
    return _retrained(path, wish, spec, _summary(path, RESULTS)["placements"])


def _retrained(path: Path, wish: _Wish, spec: PipelineSpec | ValidateSpec, rows: Sequence[Row]) -> Rack:
    """Of racks trained from scratch the one asked for, else the best; of its seeds the best."""
    inside = [row for row in rows if row.get("budget") != "outside"]
    if wish.placement is not None:
        wanted = parse_placement(wish.placement, spec.supernet.rack.slots())
        inside = [row for row in rows if tuple(row["placement"]) == wanted]
    if not inside:
        known = " | ".join(dict.fromkeys(row["text"] for row in rows))
        asked = "no rack within a budget" if wish.placement is None else f"no rack of {wish.placement}"
        raise ConfigError(f"{path}: {asked} was trained from scratch there; those were: {known or 'none'}")
    row = min(inside, key=lambda row: row["loss"])
    folder = row["folders"][min(range(len(row["losses"])), key=row["losses"].__getitem__)]
    return _of_supernet(path / folder, _Wish(best=True, placement=None, device=wish.device))


def _of_growth(path: Path, wish: _Wish) -> Rack:
    _refuse_placement(path, wish)
    return load_rack(path, device=wish.device)


def _of_stage(path: Path, wish: _Wish) -> Rack:
    _refuse_placement(path, wish)
    return load_stage(path, wish.device)[1]


def _refuse_placement(path: Path, wish: _Wish) -> None:
    if wish.placement is not None:
        raise ConfigError(f"{path}: placement: the model there has no choices; leave it out")


def _summary(path: Path, name: str) -> dict[str, Any]:
    """What a finished run says of itself."""
    if not (path / name).exists():
        raise ConfigError(f"{path}: the run is not finished ({name} is missing); the same command goes on")
    return read_json(path / name)


_LOADERS: Mapping[str, Callable[[Path, _Wish], Rack]] = {
    "import": _of_import,
    "supernet": _of_supernet,
    "placement": _of_placement,
    "pipeline": _of_pipeline,
    "hybridize": _of_conversion,
    "validate": _of_validation,
    "progressive": _of_growth,
}
"""By the job that a folder is of."""

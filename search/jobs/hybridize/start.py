"""The start of a conversion: a supernet whose main placement is the trained model, its new mixers from the attention, aligned."""

import shutil
from pathlib import Path

import torch

from configs import ConfigError
from configs.records import DamagedError, Row
from configs.trained_model import model_path
from models import Placement, RackSpec, Supernet
from models.supernet.from_attention import Origin, initialise_supernet
from search.jobs.backend import Backend
from search.jobs.hybridize.aligner import Aligner
from search.jobs.hybridize.spec import HybridizeSpec
from search.jobs.imported.trained import model_fingerprint, trained_rack
from search.runs.report import Say
from search.runs.run_folder import WEIGHTS
from search.training import checkpoint

START, ALIGNMENT, SUPERNET, PLACEMENT = "start", "alignment", "supernet", "placement"
"""Folders of the parts of a conversion, within its own."""


def make_start(spec: HybridizeSpec, space: RackSpec, out: Path, backend: Backend, say: Say) -> None:
    """See to it that `out/start` holds the first weights of the space, as they were written.

    They are those of a finished supernet run: its main placement is the trained model, and teaches and starts what comes after.

    Raises:
        ConfigError: if the model cannot be read, or is not the one that the folder began with.
    """
    model = model_path(spec.model)
    path, fingerprint, content = out / START / WEIGHTS, spec.fingerprint_of_start(), model_fingerprint(model)
    try:
        _, state = checkpoint.read(path, torch.device("cpu"), fingerprint=fingerprint)
    except DamagedError as error:
        if path.exists():
            say(f"{error}; it is made again")
    else:
        if state["model"] != content:
            raise ConfigError(f"model: {model}: the model has changed since {out} began; give another out=")
        shutil.rmtree(out / ALIGNMENT, ignore_errors=True)  # a kill may have come before
        return
    _, rack = trained_rack(model, torch.device("cpu"), dtype=spec.dtype)
    trained = rack.state_dict()
    say(f"model: {model}, {sum(each.numel() for each in rack.parameters()):,} parameters, {len(rack.blocks())} layers")
    del rack
    supernet = Supernet(space)
    supernet.rack.to(next(iter(trained.values())).dtype)
    origins = initialise_supernet(supernet, trained)
    del trained
    rows = Aligner(spec, supernet, fingerprint, out / ALIGNMENT / content).run(backend, say)
    state = {
        "fingerprint": fingerprint,
        "model": content,
        "spec": {"rack": space.to_dict(), "spec_version": space.saved()["spec_version"]},
        "results": {"status": "finished", "alignment": rows, "starts": [_told(origin) for origin in origins]},
        "history": [],
    }
    checkpoint.save(path, checkpoint.weights(supernet.rack), state)
    shutil.rmtree(out / ALIGNMENT, ignore_errors=True)  # all of it is in the start


def _told(origin: Origin) -> Row:
    return {"slot": str(origin.slot), "name": origin.name, "text": origin.text}


def changed_blocks(space: RackSpec, placement: Placement) -> list[str]:
    """Paths of the blocks in which something else stands than in the model."""
    paths = [f"stacks.{i}.blocks.{j}" for i, stack in enumerate(space.stacks) for j in range(len(stack.expanded()))]
    return [
        paths[layer]
        for layer in dict.fromkeys(slot.layer for slot, name in zip(space.slots(), placement, strict=True) if name != slot.main)
    ]

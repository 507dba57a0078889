"""The results.json of a supernet run: losses, metrics, parameter counts, machine."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from configs.records import DamagedError, Row, read_json, read_rows, write_json, write_rows
from models.spec.placement import placement_text
from search.jobs.supernet.spec import SupernetSpec
from search.runs.report import HISTORY, Say
from search.runs.run_folder import CHECKPOINT, RESULTS, WEIGHTS
from search.samplers.shared.sampler import placements_of_step
from search.training import checkpoint
from search.training.devices import machine
from search.training.state import TrainState


def trained_counts(spec: SupernetSpec, n_steps: int) -> list[Row]:
    """How often so many steps train each name of each slot: what they draw is a function of seed and step alone."""
    sampler = spec.make_sampler()
    if sampler is None:
        return []
    drawn = (placements_of_step(sampler, spec.seed, step, spec.placements_per_step) for step in range(n_steps))
    counts = Counter(choice for placements in drawn for placement in placements for choice in enumerate(placement))
    slots = enumerate(spec.rack.slots())
    return [{"slot": str(slot), **{name: counts[index, name] for name in slot.names}} for index, slot in slots]


def summary(spec: SupernetSpec, member: TrainState, data_fingerprint: str, *, n_workers: int, peak_bytes: int | None) -> Row:
    """What `results.json` says of a run that has ended; `peak_bytes` are those of the main worker."""
    last = member.history[-1]
    slots, parameters = spec.rack.slots(), list(member.model.parameters())
    tasks = {task: {name: last[f"{name}.{task}"] for name in ("loss", "accuracy")} for task in spec.data.tasks}
    return {
        "job": spec.job,
        "fingerprint": spec.fingerprint(),
        "status": member.status,
        "seed": spec.seed,
        "steps": member.step,
        "seconds": round(member.seconds, 3),
        "main": placement_text(tuple(slot.main for slot in slots)),
        **{name: last[name] for name in last if name not in ("step", "lr") and "." not in name},
        "unsupervised_steps": len(member.unsupervised),
        "tasks": tasks,
        "best": member.best,
        "counts": trained_counts(spec, member.step),
        "starts": [],
        "initial_losses": {},
        **member.origins,
        "n_parameters": sum(parameter.numel() for parameter in parameters),
        "n_trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "data_fingerprint": data_fingerprint,
        "n_workers": n_workers,
        "peak_bytes": peak_bytes,
        **machine(),
        "losses": member.losses,
    }


def write_outcome(out: Path, results: Row, history: Sequence[Row]) -> None:
    """Write history and summary of a run that has ended."""
    write_rows(out / HISTORY, history)
    write_json(out / RESULTS, results)


def finished(spec: SupernetSpec, out: Path, say: Say) -> Row | None:
    """The summary of the run in a folder, if it has ended: if its weights are there, as they were written.

    They hold history and summary too, so that these are written again where they are missing or damaged. None says that there is
    work to do; what is of no use is told, and gone.
    """
    weights, history, results = (out / name for name in (WEIGHTS, HISTORY, RESULTS))
    try:
        _, state = checkpoint.read(weights, torch.device("cpu"), fingerprint=spec.fingerprint())
    except DamagedError as error:
        if weights.exists() or results.exists():
            say(f"{error}; the run is done again")
            for path in (weights, history, results):
                path.unlink(missing_ok=True)
        return None
    (out / CHECKPOINT).unlink(missing_ok=True)  # a kill may have come before
    try:
        is_whole = read_rows(history) == (state["history"], 0)
        found = read_json(results)
        if is_whole and found == state["results"]:
            return found
        told = f"{history if found == state['results'] else results}: is not what this run has written"
    except DamagedError as error:
        told = str(error)
    say(f"{told}; it is written again")
    write_outcome(out, state["results"], state["history"])
    return read_json(results)

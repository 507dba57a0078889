"""The results.json of a supernet run: losses, metrics, parameter counts, machine."""

from __future__ import annotations

from pathlib import Path

from models.spec.placement import placement_text
from search.jobs.supernet.spec import SupernetSpec
from search.runs.report import HISTORY
from search.runs.run_folder import RESULTS, Row, to_json, write_text
from search.training.devices import machine
from search.training.state import TrainState


def write_results(spec: SupernetSpec, out: Path, member: TrainState, data_fingerprint: str, n_ranks: int) -> None:
    """Write history and summary of a run that has ended."""
    write_text(out / HISTORY, "".join(to_json(row) + "\n" for row in member.history))
    last = member.history[-1]
    slots, parameters = spec.rack.slots(), list(member.model.parameters())
    tasks = {task: {name: last[f"{name}.{task}"] for name in ("loss", "accuracy")} for task in spec.data.tasks}
    results: Row = {
        "job": spec.job,
        "fingerprint": spec.fingerprint(),
        "status": member.status,
        "seed": spec.seed,
        "steps": member.step,
        "seconds": round(member.seconds, 3),
        "main": placement_text(tuple(slot.main for slot in slots)),
        **{name: last[name] for name in last if name not in ("step", "lr") and "." not in name},
        "tasks": tasks,
        "best": member.best,
        "counts": [{"slot": str(slot), **names} for slot, names in zip(slots, member.notes["counts"], strict=True)],
        "starts": member.notes.get("starts", []),
        "initial_losses": member.notes.get("initial_losses", {}),
        "n_parameters": sum(parameter.numel() for parameter in parameters),
        "n_trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "data_fingerprint": data_fingerprint,
        "n_workers": n_ranks,
        **machine(),
        "losses": member.losses,
    }
    write_text(out / RESULTS, to_json(results) + "\n")

"""What a training run tells while it works, and what it leaves: history, results."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from models.placement import placement_text
from search.devices import hardware
from search.member import Member
from search.progress import duration
from search.results import Row, to_json, write_text
from search.supernet.spec import SupernetSpec

HISTORY, RESULTS = "history.jsonl", "results.json"

Say = Callable[[str], None]


class Report:
    """Writes the history as it grows, and says how far the run is and how long it will still take; silent on other ranks."""

    def __init__(self, spec: SupernetSpec, out: Path, say: Say, *, is_main: bool) -> None:
        self.spec, self.path, self.is_main = spec, out / HISTORY, is_main
        self.say: Say = say if is_main else lambda _: None
        self.started = time.monotonic()
        self.first: int | None = None
        self.is_open = False

    def stepped(self, step: int) -> None:
        """A step is done; the first one of this process tells whether the run goes on from a checkpoint."""
        if self.first is None:
            self.first = step - 1
            if self.first:
                self.say(f"going on from step {self.first} of {self.spec.n_steps}")

    def evaluated(self, member: Member, row: dict[str, float]) -> None:
        """An evaluation; the first one of this process writes what came before it, too, and cuts off what a kill left."""
        if not self.is_main:
            return
        if not self.is_open:
            write_text(self.path, "".join(to_json(each) + "\n" for each in member.history[:-1]))
            self.is_open = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")
        step, n_steps = int(row["step"]), self.spec.n_steps
        seconds = (time.monotonic() - self.started) / (step - (self.first or 0)) * (n_steps - step)
        told = f"step {step} of {n_steps}: training loss {row['train_loss']:.4f}, held-out loss {row['loss']:.4f}"
        told += f", accuracy {row['accuracy']:.3f}"
        if "sampled_loss" in row:
            told += f" (other placements {row['sampled_loss']:.4f}, {row['sampled_accuracy']:.3f})"
        self.say(told + (f"; about {duration(seconds)} to go" if step < n_steps and member.status == "running" else ""))


def divergence(results: Row) -> str | None:
    """What there is to say of a run that diverged, by its summary; None of any other."""
    if results["status"] != "diverged":
        return None
    return f"diverged: at step {results['steps']} the training or the held-out loss is no finite number; give a smaller lr"


def write_results(spec: SupernetSpec, out: Path, member: Member, data_fingerprint: str, n_ranks: int) -> Row:
    """Write history and summary of a run that has ended; returns the summary."""
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
        "hardware": hardware(),
        "n_cpus": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "losses": member.losses,
    }
    write_text(out / RESULTS, to_json(results) + "\n")
    return results

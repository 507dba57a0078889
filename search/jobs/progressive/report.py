"""What a run of growth leaves: a row for each stage, the table of them, the summary."""

from collections.abc import Sequence
from pathlib import Path

from configs.records import Row, read_json, write_json
from search.jobs.progressive.spec import ProgressiveSpec
from search.runs.report import diverged_message
from search.runs.run_folder import RESULTS
from search.training.devices import machine

RESULT = "result.json"

_COLUMNS = {
    "stage": ("stage", "{}"),
    "stacks": ("stacks", "{}"),
    "new": ("uid", "{}"),
    "chosen": ("chosen", "{}"),
    "before": ("loss_before", "{:.4f}"),
    "grown": ("loss_grown", "{:.4f}"),
    "after": ("loss", "{:.4f}"),
    "steps": ("steps", "{:,}"),
    "step ms": ("step_ms", "{:.1f}"),
    "trained": ("n_trained_parameters", "{:,}"),
    "saved bytes": ("saved_bytes", "{:,}"),
    "cache": ("cache_mode", "{}"),
    "hits": ("cache_hit_rate", "{:.1%}"),
    "cache bytes": ("cache_bytes", "{:,}"),
    "trunk runs": ("trunk_forwards", "{:,}"),
}
"""Of the table: the title, the key in a stage's row, and how it is written."""


def table(rows: Sequence[Row]) -> str:
    """The stages in columns, as text; columns of which nothing is known are left out."""
    shown = {title: key for title, key in _COLUMNS.items() if any(row.get(key[0]) is not None for row in rows)}
    cells = [[form.format(row[key]) if row.get(key) is not None else "" for key, form in shown.values()] for row in rows]
    lines = [list(shown), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(shown))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def write_results(spec: ProgressiveSpec, out: Path, rows: Sequence[Row], n_ranks: int) -> None:
    """Write the summary of a run that has ended."""
    last = rows[-1]
    results: Row = {
        "job": spec.job,
        "fingerprint": spec.fingerprint(),
        "status": last["status"],
        "seed": spec.seed,
        "loss": last["loss"],
        "accuracy": last["accuracy"],
        "steps": sum(row["steps"] for row in rows),
        "seconds": round(sum(map(_seconds, rows)), 3),
        "n_parameters": last["n_parameters"],
        "stages": [{name: value for name, value in row.items() if name != "losses"} for row in rows],
        "n_workers": n_ranks,
        **machine(),
    }
    write_json(out / RESULTS, results)


def _seconds(row: Row) -> float:
    """Of training, of filling the cache, and of candidates, one after the other."""
    candidates = sum(each["seconds"] or 0 for each in row.get("candidates", ()))
    return float(row["seconds"] + row.get("cache_fill_seconds", 0) + candidates)


def failures(results: Row) -> list[str]:
    """What went wrong, a line each: candidates that could not be trained, and a stage that diverged."""
    found = []
    for row in results["stages"]:
        failed = {each["name"]: each["error"] for each in row.get("candidates", ()) if each.get("error")}
        texts = [f"candidate {name} failed: {error.strip().splitlines()[-1]}" for name, error in failed.items()]
        found += [f"stage {row['stage']}: {text}" for text in (*texts, diverged_message(row)) if text]
    return found


def stage_rows(folders: Sequence[Path]) -> list[Row]:
    """The rows of finished stages."""
    return [read_json(folder / RESULT) for folder in folders]

"""Outcome of a training run: its summary or its error, and a line of text for it."""

from search.runs.console import duration
from search.runs.report import diverged_message
from search.runs.run_folder import Row


def outcome(summary: Row) -> Row:
    """What `TrainRacks` gives for a rack whose run has ended with this summary."""
    text = diverged_message(summary)
    return {"error": text} if text else summary


def outcome_text(row: Row) -> str:
    """A rack's outcome in a few words."""
    if "error" in row:
        return f"failed: {row['error'].strip().splitlines()[-1]}"
    return f"held-out loss {row['loss']:.4f}, {duration(row['seconds'])}"

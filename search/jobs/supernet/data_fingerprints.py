"""Fingerprints of a run's data: notices at a restart that the data have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs import ConfigError
from search.training.mixture import Mixture


def note_data(notes: dict[str, Any], mixture: Mixture) -> None:
    """Write down, in what checkpoints keep, the fingerprint of each task whose data lie in files."""
    notes["data"] = _fingerprints(mixture)


def check_data(notes: dict[str, Any], mixture: Mixture, checkpoint: Path) -> None:
    """Hold what a run noted when it began against the data that there are now; all ranks come to the same answer.

    Raises:
        ConfigError: if some task's files, or how they become tokens, have changed.
    """
    now = _fingerprints(mixture)
    changed = [name for name, before in notes.get("data", {}).items() if now.get(name) != before]
    if changed:
        raise ConfigError(
            f"data.tasks: the files of {', '.join(changed)} have changed since this run began; delete {checkpoint} to begin anew,"
            " or give another out="
        )


def _fingerprints(mixture: Mixture) -> dict[str, str]:
    found = {name: task.data_fingerprint() for name, task in mixture.tasks.items()}
    return {name: fingerprint for name, fingerprint in found.items() if fingerprint is not None}

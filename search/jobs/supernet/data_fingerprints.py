"""Fingerprints of a run's data: notices at a restart that the data have changed."""

from pathlib import Path

from configs import ConfigError
from search.training.mixture import Mixture


def data_fingerprints(mixture: Mixture) -> dict[str, str]:
    """The fingerprint of each task whose data lie in files."""
    found = {name: task.data_fingerprint() for name, task in mixture.tasks.items()}
    return {name: fingerprint for name, fingerprint in found.items() if fingerprint is not None}


def check_data(before: dict[str, str], mixture: Mixture, checkpoint: Path) -> None:
    """Hold the fingerprints of when a run began against the data that there are now; all ranks come to the same answer.

    Raises:
        ConfigError: if some task's files, or how they become tokens, have changed.
    """
    now = data_fingerprints(mixture)
    changed = [name for name, fingerprint in before.items() if now.get(name) != fingerprint]
    if changed:
        raise ConfigError(
            f"data.tasks: the files of {', '.join(changed)} have changed since this run began; delete {checkpoint} to begin anew,"
            " or give another out="
        )

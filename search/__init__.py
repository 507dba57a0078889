"""Where models meet tasks: training, the MAD suite, what is searched over them, and growth."""

from importlib import import_module
from typing import Any

from search.jobs.mad.library import benchmark, train_task

__all__ = [
    "ArchitectureTrainer",
    "ProgressiveDataLoader",
    "ProgressiveRackBuilder",
    "ProgressiveTrainer",
    "benchmark",
    "train_task",
]

_HOMES = {
    "ArchitectureTrainer": "search.stackwise.architecture_trainer",
    "ProgressiveDataLoader": "search.stackwise.data_loader",
    "ProgressiveRackBuilder": "search.stackwise.rack_builder",
    "ProgressiveTrainer": "search.stackwise.progressive_trainer",
}
"""Where the classes of the guide are, looked up when they are asked for: commands that need none of them do not wait."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'search' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)

"""Where models meet tasks: training, the MAD suite, what is searched over them, and growth."""

from importlib import import_module
from typing import Any

_MODULES = {
    "ArchitectureTrainer": "search.stackwise.architecture_trainer",
    "ProgressiveDataLoader": "search.stackwise.data_loader",
    "ProgressiveRackBuilder": "search.stackwise.rack_builder",
    "ProgressiveTrainer": "search.stackwise.progressive_trainer",
    "benchmark": "search.jobs.mad.library",
    "train_task": "search.jobs.mad.library",
}
"""Where each name is, imported when it is asked for: who needs one part does not wait for all."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'search' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)

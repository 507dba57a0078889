"""Where models meet tasks: training, the MAD suite, what is searched over them, and growth."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.jobs.loading import load_model
    from search.jobs.mad.library import benchmark, train_task
    from search.stackwise.architecture_trainer import ArchitectureTrainer
    from search.stackwise.data_loader import ProgressiveDataLoader
    from search.stackwise.progressive_trainer import ProgressiveTrainer
    from search.stackwise.rack_builder import ProgressiveRackBuilder

__all__ = [
    "ArchitectureTrainer",
    "ProgressiveDataLoader",
    "ProgressiveRackBuilder",
    "ProgressiveTrainer",
    "benchmark",
    "load_model",
    "train_task",
]
_MODULES = {
    "ArchitectureTrainer": "search.stackwise.architecture_trainer",
    "ProgressiveDataLoader": "search.stackwise.data_loader",
    "ProgressiveRackBuilder": "search.stackwise.rack_builder",
    "ProgressiveTrainer": "search.stackwise.progressive_trainer",
    "benchmark": "search.jobs.mad.library",
    "load_model": "search.jobs.loading",
    "train_task": "search.jobs.mad.library",
}
"""Where each name is, imported when it is asked for: who needs one part does not wait for all."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'search' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

"""What is learned: tasks by name, and their instances on disk."""

from configs import Registry
from tasks.dataset import cached, draw
from tasks.rng import stream
from tasks.task import IGNORED, Examples, Finite, Split, Task

TASKS = Registry("tasks.synthetic", "task", also=("tasks.text.text",))

__all__ = ["IGNORED", "TASKS", "Examples", "Finite", "Split", "Task", "cached", "draw", "stream"]

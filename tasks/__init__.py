"""What is learned: tasks by name, and their instances on disk."""

from configs import Registry
from tasks.dataset import cached, draw
from tasks.task import IGNORED, Examples, Split, Task

TASKS = Registry("tasks.synthetic", "task")

__all__ = ["IGNORED", "TASKS", "Examples", "Split", "Task", "cached", "draw"]

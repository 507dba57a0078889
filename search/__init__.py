"""Where models meet tasks: training, the MAD suite, and what is searched over them."""

from search.mad.library import benchmark, train_task

__all__ = ["benchmark", "train_task"]

"""Training objectives over sequences of tokens (causal, masked, custom), found by name; a file is a kind."""

from configs import Registry

OBJECTIVES = Registry("tasks.objectives", "objective", ("vocab_size",))

"""What is asked of sequences of tokens: objectives by name; a file is a kind."""

from configs import Registry

OBJECTIVES = Registry("tasks.objectives", "objective", ("vocab_size",))

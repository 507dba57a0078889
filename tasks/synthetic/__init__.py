"""The synthetic tasks: one kind a file, found by its name."""

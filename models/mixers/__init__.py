"""The mixers: one kind a file, found by its name."""

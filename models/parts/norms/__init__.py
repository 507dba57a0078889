"""The normalisations: one kind a file, found by its name."""

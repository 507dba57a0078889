"""The ways into a rack: one kind a file, found by its name."""

"""The read-outs of a rack: one kind a file, found by its name."""

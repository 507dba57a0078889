"""Heads, from the residual stream to logits: one kind a file, found by its name."""

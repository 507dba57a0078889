"""Embeddings, from tokens to the residual stream: one kind a file, found by its name."""

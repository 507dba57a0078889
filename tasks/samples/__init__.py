"""Rows of data that are known by number, and the objective applied to batches of them."""

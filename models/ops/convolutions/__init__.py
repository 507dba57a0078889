"""Causal convolutions, short and long, and token shifts."""

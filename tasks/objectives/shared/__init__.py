"""The contract of objectives, and what they are made of."""

"""The contract of samplers, and what they are made of."""

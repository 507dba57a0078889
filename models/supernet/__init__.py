"""One set of weights for every placement of a space."""

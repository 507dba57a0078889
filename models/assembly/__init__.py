"""From a description to weights: assembled, initialised, quantised, placed, counted."""

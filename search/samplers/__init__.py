"""Samplers: which placement (or placements) each supernet step trains; a file is a kind."""

from configs import Registry

SAMPLERS = Registry("search.samplers", "sampler", ("slots", "space"))

Nested = SAMPLERS.field()
"""The annotation of an option that holds a sampler."""

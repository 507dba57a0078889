"""The activation cache: what a frozen trunk makes of the data, computed once and read by the stacks that grow on it."""

from search.activations.cache import ActivationCache, Batch, Mode
from search.activations.choice import Decision, Limits, Rates, Reuse, break_even_parameters, choose
from search.activations.key import CacheKey
from search.activations.previous_cache import PreviousCache
from search.activations.statistics import Statistics
from search.activations.trunk import Trunk, trunk_hash

__all__ = [
    "ActivationCache",
    "Batch",
    "CacheKey",
    "Decision",
    "Limits",
    "Mode",
    "PreviousCache",
    "Rates",
    "Reuse",
    "Statistics",
    "Trunk",
    "break_even_parameters",
    "choose",
    "trunk_hash",
]

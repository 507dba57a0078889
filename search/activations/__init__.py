"""The activation cache: what a frozen trunk makes of the data, computed once and read by the stacks that grow on it."""

from search.activations.cache import ActivationCache, CacheMode, RowBatch
from search.activations.choice import Decision, Limits, Rates, Reuse, break_even_parameters, choose_cache_mode
from search.activations.key import CacheKey
from search.activations.previous_cache import PreviousCache
from search.activations.statistics import Statistics
from search.activations.trunk import Trunk, trunk_hash

__all__ = [
    "ActivationCache",
    "CacheKey",
    "CacheMode",
    "Decision",
    "Limits",
    "PreviousCache",
    "Rates",
    "Reuse",
    "RowBatch",
    "Statistics",
    "Trunk",
    "break_even_parameters",
    "choose_cache_mode",
    "trunk_hash",
]

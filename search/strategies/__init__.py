"""Ways to search for a placement; a file is a kind."""

from configs import Registry

STRATEGIES = Registry("search.strategies", "strategy")

"""Budgets: limits on counts of mixers and on costs, pinned layers; and what a placement costs."""

from search.budget.budget import Budget, BudgetValue
from search.budget.costs import CostTable

__all__ = ["Budget", "BudgetValue", "CostTable"]

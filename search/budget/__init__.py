"""What a placement may spend: counts of mixers, costs, pins; and what it does spend."""

from search.budget.budget import Budget, BudgetValue
from search.budget.costs import CostTable

__all__ = ["Budget", "BudgetValue", "CostTable"]

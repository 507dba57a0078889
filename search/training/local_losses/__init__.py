"""Local losses: every block or stack of a rack learns from a loss of its own, and no gradient passes between them."""

from search.training.local_losses.evaluation import ExitEvaluation
from search.training.local_losses.model import LocalUnits
from search.training.local_losses.spec import LocalLossSpec
from search.training.local_losses.step import LocalLosses
from search.training.local_losses.units import Unit, UnitKind, units_of

__all__ = ["ExitEvaluation", "LocalLossSpec", "LocalLosses", "LocalUnits", "Unit", "UnitKind", "units_of"]

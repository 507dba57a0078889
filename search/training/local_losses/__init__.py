"""Local losses: every block or stack of a rack learns from a loss of its own, and no gradient passes between them."""

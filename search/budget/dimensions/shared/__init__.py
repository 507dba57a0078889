"""What the budget dimensions share: their contract."""

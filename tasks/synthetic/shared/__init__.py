"""What several synthetic tasks are made of."""

"""Training: the one loop, its state, optimizer, schedules, metrics, ranks and checkpoints."""

"""What several jobs use of Ray Tune: searchers, schedulers, sessions, many models trained side by side."""

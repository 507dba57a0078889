"""What every run has: its folder, console, report, pictures, interruption, workers."""

"""The job `pipeline`: supernet, placement search, and the chosen racks trained beside their rivals."""

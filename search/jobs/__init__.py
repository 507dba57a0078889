"""The jobs, one a folder, and how each is started."""

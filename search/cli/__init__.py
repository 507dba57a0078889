"""The commands of `python -m search` and `python -m launch`, one a file."""

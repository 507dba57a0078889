"""How parameters start: one kind a file, found by its name; each fills a tensor in place from torch's default generator."""

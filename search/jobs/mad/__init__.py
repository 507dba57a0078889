"""The MAD suite: six synthetic tasks, a training protocol and a score (Poli et al. 2024, arXiv 2403.17844)."""

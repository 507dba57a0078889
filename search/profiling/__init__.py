"""How long mixers take, and how many bytes training keeps."""

"""What a rack has beside its mixers: norms, embeddings, heads, initial values."""

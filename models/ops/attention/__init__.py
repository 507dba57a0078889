"""What attention mixers compute with: scores, positions, heads, kernel features."""

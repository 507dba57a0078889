"""The activation cache: what a frozen trunk makes of the data, computed once and read by the stacks that grow on it."""

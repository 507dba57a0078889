"""Racks that gain stacks: the edit of the spec, and the move of the weights."""

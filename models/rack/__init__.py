"""A model's modules: Block, Stack, Rack, the contracts of their parts, and generation; torch alone."""

"""The description of a model as data; nothing here builds it."""

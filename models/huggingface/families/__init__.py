"""Families of models, by their `model_type`: one a file."""

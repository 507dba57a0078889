"""From a trained model to a hybrid: its space, alignment, the search, distillation of what was found and of its rivals."""

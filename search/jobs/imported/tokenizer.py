"""The tokenizer that texts of a job on a trained model are read by."""

from typing import Any


def with_tokenizer(data: Any, model: Any) -> Any:
    """The tree of what has a `task`: a text that says of no tokenizer is read by the model's."""
    if not isinstance(data, dict) or not isinstance(data.get("task"), dict) or data["task"].get("kind") != "text":
        return data
    return {**data, "task": {"tokenizer": {"model": model}, **data["task"]}}

"""The tokenizer that texts of a job on a trained model are read by."""

from typing import Any

from configs.trained_model import model_path


def with_tokenizer(data: Any, model: Any) -> Any:
    """The tree of what has a `task`: a text that says of no tokenizer is read by the model's.

    Where there is no such model it stays as it is: the job says so, and `check` goes on.
    """
    if not isinstance(data, dict) or not isinstance(data.get("task"), dict) or data["task"].get("kind") != "text":
        return data
    if not isinstance(model, str) or not model_path(model, must_be_there=False).exists():
        return data
    return {**data, "task": {"tokenizer": {"model": model}, **data["task"]}}

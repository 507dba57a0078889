"""Functions that a user gives are called by the names of their arguments, in whatever order they have them."""

import inspect
from collections.abc import Callable
from typing import Any

from configs.errors import ConfigError


def called_by_name(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """The function, to be called with the keywords `names`; one that has other names for some gets all in this order.

    Raises:
        ConfigError: for a function that takes something else.
    """
    signature = inspect.signature(function)
    if _takes(signature, **dict.fromkeys(names)):
        return function
    # What it does call so must stand where it would be given.
    is_ordered = all(names.index(name) == place for place, name in enumerate(signature.parameters) if name in names)
    if is_ordered and _takes(signature, *names):
        return lambda **given: function(*(given[name] for name in names))
    raise ConfigError(f"must be a function of {', '.join(names[:-1])} and {names[-1]}; this one takes {signature}")


def _takes(signature: inspect.Signature, *arguments: Any, **keywords: Any) -> bool:
    try:
        signature.bind(*arguments, **keywords)
    except TypeError:
        return False
    return True

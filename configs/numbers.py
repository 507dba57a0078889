"""Makes the number fields of specs refuse what Python takes for a number and YAML does not: booleans, and more than 64 bits."""

from typing import Any

from pydantic_core import CoreSchema, core_schema

from configs.limits import LARGEST_INTEGER


def _plain_number(value: Any) -> Any:
    if isinstance(value, bool):
        word = str(value).lower()
        raise ValueError(f"a number is expected, not {word} (YAML reads yes, no, on and off as true and false)")  # noqa: TRY004
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        n_bits = value.bit_length()  # the digits of a long one take minutes to make
        raise ValueError(f"an integer of {n_bits:,} bits is too large: 64 bits hold up to {LARGEST_INTEGER:,}")
    return value


def with_plain_numbers(schema: CoreSchema) -> CoreSchema:
    """The schema of a model whose own number fields, wherever in a union, list or mapping, are checked before all else."""
    found: CoreSchema = _walked(schema, is_outermost=True)
    return found


def _walked(part: Any, *, is_outermost: bool = False) -> Any:
    if isinstance(part, list | tuple):
        return type(part)(_walked(each, is_outermost=is_outermost) for each in part)
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("int", "float"):
        return core_schema.no_info_before_validator_function(_plain_number, part)
    is_checked = kind == "function-before" and part["function"]["function"] is _plain_number
    if not isinstance(part, dict) or is_checked or (kind == "model" and not is_outermost):
        return part  # another model has seen to its own
    untouched = ("keys_schema", "metadata", "serialization", "definitions", "computed_fields")  # JSON has text for keys
    still = is_outermost and kind != "model"
    return {
        name: inner if name in untouched else _walked(inner, is_outermost=still and name == "schema")
        for name, inner in part.items()
    }

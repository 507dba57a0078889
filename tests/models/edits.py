"""Racks with other fields of a stack, or a head of their own: what growth makes of them, one change at a time."""

from configs.load import validate
from models.growth.edit_spec import stack_uids


def with_stack_fields(spec, uid, **fields):
    """The rack with other fields of one stack."""
    stacks = [
        {**stack.to_dict(), "uid": each, **(fields if each == uid else {})}
        for each, stack in zip(stack_uids(spec), spec.stacks, strict=True)
    ]
    return validate(type(spec), {**spec.to_dict(), "stacks": stacks}, "rack")


def untied(spec):
    """The rack whose head has a weight of its own."""
    return type(spec)(**{**spec.to_dict(), "tie_embeddings": False})

"""What learns: racks of blocks from a tree of specs, and the mixers they are made of."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.rack.modules import Block, Rack, Stack
    from models.rack_spec import RackSpec
    from models.spec.backbone import BackboneSpec
    from models.spec.block import BlockSpec
    from models.spec.placement import Placement, Slot, parse_placement, placement_text
    from models.spec.registries import CHANNEL_MIXERS, HEADS, MIXERS, NORMS
    from models.spec.stack import StackSpec
    from models.supernet.supernet import Supernet

__all__ = [
    "CHANNEL_MIXERS",
    "HEADS",
    "MIXERS",
    "NORMS",
    "BackboneSpec",
    "Block",
    "BlockSpec",
    "Placement",
    "Rack",
    "RackSpec",
    "Slot",
    "Stack",
    "StackSpec",
    "Supernet",
    "parse_placement",
    "placement_text",
]
_MODULES = {
    "models.rack.modules": ("Block", "Rack", "Stack"),
    "models.rack_spec": ("RackSpec",),
    "models.spec.backbone": ("BackboneSpec",),
    "models.spec.block": ("BlockSpec",),
    "models.spec.placement": ("Placement", "Slot", "parse_placement", "placement_text"),
    "models.spec.registries": ("CHANNEL_MIXERS", "HEADS", "MIXERS", "NORMS"),
    "models.spec.stack": ("StackSpec",),
    "models.supernet.supernet": ("Supernet",),
}
"""Where each name is, imported when it is asked for: a spec can be had without torch."""


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'models' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]

"""What learns: racks of blocks from a tree of specs, and the mixers they are made of."""

from models.placement import Placement, Slot, parse_placement, placement_text
from models.rack import Block, Rack, Stack
from models.registries import CHANNEL_MIXERS, HEADS, MIXERS, NORMS
from models.spec import BackboneSpec, BlockSpec, RackSpec, StackSpec
from models.supernet import Supernet

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

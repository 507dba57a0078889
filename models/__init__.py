"""What learns: racks of blocks from a tree of specs, and the mixers they are made of."""

from models.rack import Block, Rack, Stack
from models.registries import CHANNEL_MIXERS, HEADS, MIXERS, NORMS
from models.spec import BackboneSpec, BlockSpec, RackSpec, StackSpec

__all__ = [
    "CHANNEL_MIXERS",
    "HEADS",
    "MIXERS",
    "NORMS",
    "BackboneSpec",
    "Block",
    "BlockSpec",
    "Rack",
    "RackSpec",
    "Stack",
    "StackSpec",
]

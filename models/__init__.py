"""What learns: racks of blocks from a tree of specs, and the mixers they are made of."""

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

"""Linears whose weights are stored in few bits; torch alone, and bitsandbytes where it is installed."""

from models.quantised.fake import FakeQuantisedLinear
from models.quantised.formats import FORMATS
from models.quantised.kinds import dequantised, fake_quantised, quantised, with_adapters
from models.quantised.linear import QuantisedLinear
from models.quantised.modules import Quantisation, fake_quantise, memory_bytes, quantise, stored_numbers

__all__ = [
    "FORMATS",
    "FakeQuantisedLinear",
    "Quantisation",
    "QuantisedLinear",
    "dequantised",
    "fake_quantise",
    "fake_quantised",
    "memory_bytes",
    "quantise",
    "quantised",
    "stored_numbers",
    "with_adapters",
]

"""Linears whose weights are stored in few bits; torch alone, and bitsandbytes where it is installed."""

from models.assembly.quantise import Quantisation, fake_quantise, memory_bytes, quantise, stored_numbers
from models.linears.convert import dequantised, fake_quantised, quantised, with_adapters
from models.linears.fake_quantised import FakeQuantisedLinear
from models.linears.formats import FORMATS
from models.linears.quantised import QuantisedLinear

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

"""Specs: what a run is, as data; read from YAML, checked whole, hashed by content."""

from configs.errors import ConfigError, Problems
from configs.load import load, read_yaml
from configs.registry import Registry
from configs.spec import Spec

__all__ = ["ConfigError", "Problems", "Registry", "Spec", "load", "read_yaml"]

"""The packages that kernels come in: found without importing them, imported at first use, and how to install them here."""

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from warnings import catch_warnings, simplefilter

import torch


@dataclass(frozen=True)
class Package:
    """What may be installed: `name` is the kernel's in configurations, `module` what is imported.

    `distributions` are what it may be installed as, `requirement` what pip is asked for. With `is_compiled` pip builds it from
    source, against the torch that is there and by the nvcc of that torch's CUDA.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    requirement: str
    is_compiled: bool = False

    def version(self) -> str | None:
        """The installed version; None if there is none. Imports nothing."""
        if importlib.util.find_spec(self.module) is None:
            return None
        for distribution in self.distributions:
            with suppress(PackageNotFoundError):
                return version(distribution)
        return "unknown version"

    def install(self) -> tuple[str, ...]:
        """The commands that install it beside this torch."""
        cuda = torch.version.cuda
        commands = []
        if cuda is None:
            plain = torch.__version__.partition("+")[0]
            commands.append(f"pip install --force-reinstall --index-url https://pypi.org/simple torch=={plain}")
        if self.is_compiled:
            commands.append("pip install ninja packaging setuptools wheel")
            home = f"CUDA_HOME=/usr/local/cuda-{cuda} " if cuda else ""
            commands.append(f'{home}pip install --no-build-isolation "{self.requirement}"')
        else:
            commands.append(f'pip install "{self.requirement}"')
        return tuple(commands)

    def missing(self) -> str | None:
        """That it is not installed, and how to install it; None if it is."""
        return (
            None if self.version() else f"{self.distributions[0]} is not installed; to install it: {' && '.join(self.install())}"
        )


FLASH_ATTENTION = Package("flash-attn", "flash_attn", ("flash-attn",), "flash-attn>=2.7", is_compiled=True)
MAMBA_SSM = Package("mamba-ssm", "mamba_ssm", ("mamba-ssm",), "mamba-ssm>=2.2.4", is_compiled=True)
CAUSAL_CONV1D = Package("causal-conv1d", "causal_conv1d", ("causal-conv1d",), "causal-conv1d>=1.5", is_compiled=True)
FLA = Package("fla", "fla", ("flash-linear-attention", "fla-core"), "flash-linear-attention>=0.3")
FLEX = Package("flex", "triton", ("triton",), "triton")
"""Torch's own FlexAttention: what it needs, and builds for CUDA bring along, is the compiler."""


@cache
def load_package(package: Package, function: str) -> Callable[..., Any] | str:
    """The function `module:name` of a package, or in words why there is none; tried once a process.

    A package of kernels may be installed and still fail to import in ways of its own: without a driver, or after torch changed.
    """
    if missing := package.missing():
        return missing
    module, _, name = function.partition(":")
    try:
        with catch_warnings():
            simplefilter("default")  # what a package warns of is no failure of it, even where warnings are errors
            found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is reported
        first_line = str(error).partition("\n")[0]
        return f"{package.distributions[0]} {package.version()} cannot be imported: {type(error).__name__}: {first_line}"
    return found

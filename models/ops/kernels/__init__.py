"""Fast kernels by name: which one replaces an op, here and now. Torch alone, until a kernel is first used."""

from models.ops.kernels.dispatch import check_kernel, run_kernel

__all__ = ["check_kernel", "run_kernel"]

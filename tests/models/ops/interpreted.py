"""Compares flash-linear-attention's own Triton code with the references, on a CPU: `python -m tests.models.ops.interpreted`.

It runs in Triton's interpreter, which is chosen before Triton is imported: hence a process of its own. Autotuned kernels take
their first configuration. Prints a JSON list of [op, dtype, time, errors of the output and of each gradient].
"""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.language as tl
from triton.runtime.autotuner import Autotuner

from models.ops.kernels import dispatch
from tests.models.kernel_cases import KERNELS, ONLY_HALVES, SMALL, arguments, errors, kernel_of

INTERPRETED = [op for op, name in KERNELS if name == "fla"]
SIZES = replace(SMALL, batch=1, n_heads=2)  # the interpreter takes one program after the other
# Over the end of a chunk of 64, and within it in the other precision. In bfloat16 the interpreter multiplies no matrices.
COMPARED = [
    (op, *case) for op in INTERPRETED for case in ([("float16", 65)] if op in ONLY_HALVES else [("float32", 65), ("float16", 17)])
]


class Index(int):
    """A number as Triton's compiler has it: the interpreter hands out plain ones in loops, and kernels convert them."""

    def to(self, dtype: tl.dtype) -> tl.tensor:
        return tl.full((), int(self), dtype)


def indices(*bounds: int | tl.tensor) -> Iterator[Index]:
    return map(Index, range(*(bound.handle.data.item() if isinstance(bound, tl.tensor) else bound for bound in bounds)))


def gather(*args: object, **options: object) -> tl.tensor:
    """What is `tl.gather` when it is called: the interpreter replaces it there, and not where it goes by another name."""
    return tl.gather(*args, **options)


def interpret(*modules: str) -> None:
    """Import modules of kernels, and make up for what the interpreter lacks in them."""
    for name in modules:
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops."):
            module.range = indices
            if hasattr(module, "gather"):
                module.gather = gather


def take_first_configurations() -> None:
    """Trying them out needs a GPU."""
    original = Autotuner.__init__

    def shortened(
        self: Autotuner, function: object, names: object, configurations: list, *args: object, **options: object
    ) -> None:
        original(self, function, names, configurations[:1], *args, **options)

    Autotuner.__init__ = shortened


def main() -> None:
    torch.set_num_threads(1)
    take_first_configurations()
    dispatch.is_on_cuda = lambda _: True
    dispatch.compute_capability = lambda _: 0
    interpret(*(kernel_of(op, "fla").function.partition(":")[0] for op in INTERPRETED))
    found = []
    for op, dtype, time in COMPARED:
        tensors, options = arguments(op, 0, time, sizes=SIZES, dtype=getattr(torch, dtype))
        found.append([op, dtype, time, errors(op, "fla", tensors, options)])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()

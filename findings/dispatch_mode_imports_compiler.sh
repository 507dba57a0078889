#!/usr/bin/env bash
# What the first operation under a `TorchDispatchMode` costs (modes that count memory or operations, in processes that compile nothing).
# Guess: some microseconds of Python; a second operation costs as much as the first.
# Seen (torch 2.13.0, Python 3.11, CPU): the first one imports torch._dynamo, torch's compiler, with sympy and 800 or so other
#        modules: one to two seconds of CPU time in every process, although nothing is compiled. The class wraps its handler so that
#        the compiler passes it by. A mode whose class says otherwise (`_should_skip_dynamo`, private) imports nothing.
# Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Unwrapped(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Plain(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def seconds(mode: TorchDispatchMode) -> float:
    started = time.process_time()
    with mode:
        torch.ones(2) + 1
    return time.process_time() - started


n_modules = len(sys.modules)
assert "torch._dynamo" not in sys.modules
without = seconds(Unwrapped())
assert "torch._dynamo" not in sys.modules
first, n_new = seconds(Plain()), len(sys.modules) - n_modules
assert "torch._dynamo" in sys.modules
again = seconds(Plain())
print(f"CPU seconds: unwrapped {without:.4f}; plain {first:.2f} the first time ({n_new} new modules), {again:.4f} the second")
assert n_new > 300
assert first > 0.2 > 0.02 > again
PYTHON
echo "as described"

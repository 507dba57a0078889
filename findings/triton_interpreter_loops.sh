#!/usr/bin/env bash
# Whether Triton's interpreter (TRITON_INTERPRET=1), which runs kernels on a CPU for debugging and tests, takes what its compiler takes.
# Expected (no guess was written down before): it does, but for bfloat16 products and speed; a kernel that compiles runs in it.
# Seen (triton 3.9.0, torch 2.13.0, Python 3.11, Linux, no GPU): two common ways of writing kernels compile for sm_90 and fail in the
#        interpreter. The index of a loop over `range(n)` is a plain Python int there, so `i.to(tl.int64)` (against overflow of offsets)
#        ends with "'int' object has no attribute 'to'". And a builtin kept under a module's own name (`gather = tl.gather`) ends with
#        "Did you forget to add @triton.jit", as only the attribute of `tl` is replaced while a kernel is interpreted; `tl.gather` spelt
#        out runs. Of eight chunked operations of flash-linear-attention 0.6.0 that were tried seven end by the first, RWKV-7 by the
#        second. Whoever tests foreign kernels on a CPU gives their modules a `range` of ints that have `to`, and a function that calls
#        `tl.gather`: then all eight run, forward and backward, and are right.
# Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check triton==3.9.0 torch==2.13.0 numpy==2.4.6 setuptools==80.9.0
cd "$folder"
export TRITON_CACHE_DIR="$folder/cache" TRITON_DEFAULT_FP_FUSION=1
cat >kernels.py <<'PYTHON'
import triton
import triton.language as tl

gather = tl.gather


@triton.jit
def loop(out, N: tl.constexpr):
    for i in range(N):
        tl.store(out + i, i.to(tl.int64).to(tl.int32))


@triton.jit
def renamed(out, N: tl.constexpr):
    place = tl.arange(0, N)
    tl.store(out + place, gather(place, N - 1 - place, 0))


@triton.jit
def spelt_out(out, N: tl.constexpr):
    place = tl.arange(0, N)
    tl.store(out + place, tl.gather(place, N - 1 - place, 0))


KERNELS = {"loop": loop, "renamed": renamed, "spelt out": spelt_out}
PYTHON
"$folder/venv/bin/python" - <<'PYTHON'
import triton
from kernels import KERNELS
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

for name, kernel in KERNELS.items():
    source = ASTSource(kernel, {"out": "*i32", "N": "constexpr"}, constexprs={"N": 16})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print(f"{name}: compiles, {'st.global' in compiled.asm['ptx']}")
    assert "st.global" in compiled.asm["ptx"]
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from kernels import KERNELS

found = {}
for name, kernel in KERNELS.items():
    out = torch.full((16,), -1, dtype=torch.int32)
    try:
        kernel[(1,)](out, N=16)
        found[name] = out.tolist()
    except Exception as error:
        found[name] = str(error)
    print(f"{name}: interpreted, {found[name]}")
assert "'int' object has no attribute 'to'" in found["loop"]
assert "Did you forget to add @triton.jit" in found["renamed"]
assert found["spelt out"] == list(range(15, -1, -1))
PYTHON
echo "as described"

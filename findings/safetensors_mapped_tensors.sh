#!/usr/bin/env bash
# Whether a tensor that safetensors has read is one's own.
# Guess: `safe_open(path).get_tensor(name)` copies; the file may be written to, or go, afterwards.
# Seen (safetensors 0.8.0, torch 2.13.0, Python 3.11, Linux): the tensor lies in the file, mapped privately: bytes that another process
#        changes in place show in a tensor that was read before, as long as its pages were not touched for writing; a write to the tensor
#        does not reach the file. A file that is replaced (renamed over) keeps what was read. So a checksum that was right when a file was
#        read says nothing of the tensor later: copy, or never write in place.
# Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

path, other = Path("a.safetensors"), Path("b.safetensors")
save_file({"weight": torch.zeros(2**20)}, path)
with safe_open(path, framework="pt") as file:
    read = file.get_tensor("weight")
with path.open("r+b") as file:  # in place
    file.seek(-4, 2)
    file.write(torch.ones(1).numpy().tobytes())
in_place = float(read[-1])
read[0] = 7.0
with safe_open(path, framework="pt") as file:
    in_file = float(file.get_tensor("weight")[0])
save_file({"weight": torch.full((2**20,), 5.0)}, other)
other.replace(path)
print(f"after a change in place the tensor's last number is {in_place}; what is written to it is {in_file} in the file")
print(f"after the file was replaced: {float(read[0])}, {float(read[-1])}")
assert (in_place, in_file, float(read[0]), float(read[-1])) == (1.0, 0.0, 7.0, 1.0)
PYTHON
echo "as described"

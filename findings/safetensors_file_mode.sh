#!/usr/bin/env bash
# What safetensors makes of the file that it is told to write.
# Guess: `save_file(tensors, path)` is like `open(path, "wb")`: the umask's mode for a new file, the old mode for one that is there,
#        and what a link points to is written.
# Seen (safetensors 0.8.0, numpy 2.4.6, Python 3.11, Linux): the file is replaced by a new one. Its mode is 0600 whatever the umask and
#        whatever mode the old file had, so colleagues who share a folder cannot read weights that they could read before; a link is
#        replaced by a plain file, and what it pointed to keeps its old content. `save(tensors)` with one's own `write_bytes` has
#        neither effect.
# Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$folder"
umask 022
"$folder/venv/bin/python" - <<'PYTHON'
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save, save_file

old, new = ({"weight": np.full(2, value, dtype=np.float32)} for value in (0.0, 1.0))


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


fresh, shared, target, link, own = (Path(f"{name}.safetensors") for name in ("fresh", "shared", "target", "link", "own"))
save_file(new, fresh)
shared.write_bytes(save(old))
before = mode(shared)
save_file(new, shared)
target.write_bytes(save(old))
link.symlink_to(target)
save_file(new, link)
own.write_bytes(save(new))
print(f"new file {mode(fresh)}; one that was {before} is {mode(shared)} afterwards; by write_bytes {mode(own)}")
print(f"the link is a link still: {link.is_symlink()}; what it pointed to holds {load_file(target)['weight'].tolist()}")
assert (mode(fresh), before, mode(shared), mode(own)) == ("0o600", "0o644", "0o600", "0o644")
assert not link.is_symlink()
assert load_file(target)["weight"].tolist() == [0.0, 0.0]
PYTHON
echo "as described"

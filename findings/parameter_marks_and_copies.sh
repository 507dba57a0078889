#!/usr/bin/env bash
# Whether a mark on a parameter (`parameter._no_weight_decay = True`, as Mamba's layers have for their optimizer) outlives a copy.
# Guess: `copy.deepcopy(model)`, as for an average of weights, and pickling keep Python attributes of parameters, as they do of modules.
# Seen (torch 2.13.0, Python 3.11, CPU): deepcopy drops them, of parameters alone; a tensor's and a module's stay. `torch.save` with
#        `torch.load(weights_only=False)` keeps them, `state_dict` has none. An optimizer whose groups follow marks decays, after a
#        deepcopy, what it should leave alone, without a word. Marks belong on the module, by parameter name.
# Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import copy
import io

import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.zeros(2))
        self.decay._no_weight_decay = True
        self.kept = torch.zeros(2)
        self.kept.mark = True
        self.no_weight_decay = {"decay"}


layer = Layer()
copied = copy.deepcopy(layer)
saved = io.BytesIO()
torch.save(layer, saved)
saved.seek(0)
loaded = torch.load(saved, weights_only=False)
found = {
    name: (hasattr(each.decay, "_no_weight_decay"), hasattr(each.kept, "mark"), each.no_weight_decay)
    for name, each in {"itself": layer, "deepcopy": copied, "torch.save": loaded}.items()
}
print("mark on a parameter, mark on a tensor, names on the module:", found)
assert found == {
    "itself": (True, True, {"decay"}),
    "deepcopy": (False, True, {"decay"}),
    "torch.save": (True, True, {"decay"}),
}
PYTHON
echo "as described"

#!/usr/bin/env bash
# A Ministral in transformers whose layers all have full attention.
# Guess: `sliding_window: null` is a model without windows, as it is for Mistral, and `layer_types` becomes full_attention throughout.
# Seen (transformers 5.23.0, torch 2.13.0, Python 3.11, CPU): the config says full_attention for every layer, and then every forward
#        pass raises ValueError, for the mask of windows is made whether a layer asks for it or not. With any number as
#        `sliding_window` and the same `layer_types` it runs, and the number changes nothing. A Mistral with null runs.
#        Whoever writes such a config.json puts a number there.
# Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from transformers import MinistralConfig, MinistralForCausalLM, MistralConfig, MistralForCausalLM

SIZES = dict(
    vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8
)
TOKENS = torch.arange(12)[None]


def logits(model, config):
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            return model(config).eval()(TOKENS).logits
    except ValueError as error:
        return str(error)


without = MinistralConfig(**SIZES, sliding_window=None)
full = ["full_attention"] * 2
found = logits(MinistralForCausalLM, without)
small, large = (logits(MinistralForCausalLM, MinistralConfig(**SIZES, sliding_window=n, layer_types=full)) for n in (3, 300))
mistral = logits(MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None))
print("layer types without a window:", set(without.layer_types))
print("Ministral without a window:", found)
print("windows of 3 and of 300 that no layer uses are the same:", torch.equal(small, large), "; Mistral runs:", torch.is_tensor(mistral))
assert set(without.layer_types) == {"full_attention"}
assert isinstance(found, str) and "sliding_window" in found
assert torch.equal(small, large) and torch.is_tensor(mistral)
PYTHON
echo "as described"

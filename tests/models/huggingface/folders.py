"""Folders as Hugging Face has them, written without transformers."""

import json

import torch
from safetensors.torch import save_file

from configs.load import validate
from models import RackSpec
from models.huggingface.importing import FAMILIES

TINY = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


def tiny_llama(folder, **changes):
    """A tiny random Llama in a folder, made once; the folder."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = {**TINY, **changes}
        family = FAMILIES["llama"](config, "tiny")
        state = validate(RackSpec, family.tree(), "tiny").build(seed=0).state_dict()
        generator = torch.Generator().manual_seed(0)
        tensors = {
            weight.theirs: weight.to_theirs(state[weight.ours] + 0.3 * torch.randn(state[weight.ours].shape, generator=generator))
            for weight in family.weights()
        }
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
    return folder

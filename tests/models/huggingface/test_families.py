"""Racks of trained models give the logits of transformers, whatever the family, its sizes and its options."""

import json

import pytest
import torch
import transformers

from models.huggingface.importing import FAMILIES, import_rack
from tests.models.huggingface.folders import TINY
from tests.models.huggingface.tiny import CASES, LINEAR, MIXED, YARN, saved


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path, case):
    model, folder = saved(case, tmp_path)
    spec, rack = import_rack(folder)
    tokens = torch.randint(spec.vocab_size, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(rack(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)
    state = rack.initial_state(2)
    with torch.inference_mode():
        for position in range(23):
            logits, state = rack.step(tokens[:, position], state)
    torch.testing.assert_close(logits, rack(tokens)[:, -1], rtol=1e-4, atol=1e-4)
    assert all(not tensor.is_meta for tensor in (*rack.parameters(), *rack.buffers()))
    assert (rack.head.output.weight is rack.embedding.weight) == spec.tie_embeddings


def test_every_family_is_tried():
    assert {CASES[case][0].lower() for case in CASES} == {kind.replace("_", "") for kind in FAMILIES}


def check_same(folder):
    """What lies in a folder gives the logits that it gives in transformers, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    spec, rack = import_rack(folder, dtype="float32")
    tokens = torch.randint(spec.vocab_size, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(rack(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)


EDITED = {
    "both forms of rope": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "both forms of rope, by layer": ("gemma3 linear", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "a first length beside rope": ("llama biases, yarn", {"original_max_position_embeddings": 4096}),
    "a first length beside rope by layer": (
        "gemma3 linear",
        {
            "rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0}},
            "original_max_position_embeddings": 4096,
        },
    ),
    "a first length of one": ("llama", {"rope_parameters": {**YARN, "original_max_position_embeddings": 1}}),
    "only the old form of rope": ("llama", {"rope_parameters": None, "rope_scaling": LINEAR}),
    "a mistral with types of layers": ("mistral", {"layer_types": MIXED}),
}


@pytest.mark.parametrize("case", EDITED)
def test_logits_are_those_of_transformers_for_a_config_that_was_edited(tmp_path, case):
    name, keys = EDITED[case]
    saved(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **keys}))
    check_same(tmp_path)


def test_norms_that_are_stored_in_bfloat16_as_a_difference_keep_their_digits(tmp_path):
    model, _ = saved("gemma3 odd", tmp_path)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    check_same(tmp_path)


def test_a_window_of_null_is_none_even_where_windows_are_used():
    keys = {"use_sliding_window": True, "max_window_layers": 0}
    windows = [FAMILIES["qwen2"]({**TINY, **keys, "sliding_window": size}, "tiny").window(2) for size in (8, None)]
    assert windows == [8, None]

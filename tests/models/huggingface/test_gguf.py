"""GGUF files give the logits of the model that they were written from; a damaged one is one message that names the file."""

import random
import re
import warnings

import gguf
import numpy as np
import pytest
import torch
import transformers

from configs import ConfigError
from models.huggingface.importing import import_rack
from tests.models.huggingface.gguf_files import rounded, write_gguf

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64}
MODELS = {
    "llama": ("Llama", {"num_hidden_layers": 2, "num_key_value_heads": 2, "rope_parameters": {"rope_theta": 5000.0}}),
    "llama tied": ("Llama", {"num_hidden_layers": 3, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama biases": ("Llama", {"num_hidden_layers": 2, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "gemma3": (
        "Gemma3",
        {"num_hidden_layers": 7, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 5},
    ),
    "gemma3 small heads": (
        "Gemma3",
        {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 3},
    ),
}


def tiny(name):
    """A model whose weights are none that it starts from."""
    family, more = MODELS[name]
    config_class = getattr(transformers, f"{family}{'Text' if family == 'Gemma3' else ''}Config")
    config = config_class(**SIZES, pad_token_id=None, bos_token_id=1, eos_token_id=2, **more)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a file that can be read."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "whole.gguf", tiny("llama tied")).read_bytes()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model(tmp_path, name, kind):
    model = tiny(name)
    path = write_gguf(tmp_path / "tiny.gguf", model, kind=kind)
    spec, rack = import_rack(path)
    tokens = torch.randint(spec.vocab_size, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(rack(tokens), rounded(model, kind)(tokens).logits, rtol=1e-4, atol=1e-4)
    assert {parameter.dtype for parameter in rack.parameters()} == {torch.float32}


def test_the_type_of_the_weights_can_be_asked_for(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny("llama"), kind="Q8_0")
    full, narrow = (import_rack(path, dtype=dtype)[1].state_dict() for dtype in ("file", "bfloat16"))
    assert all(torch.equal(tensor.to(torch.bfloat16), narrow[name]) for name, tensor in full.items())


def test_rows_are_dequantised_in_parts_to_the_same_numbers(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", tiny("llama"), kind="Q4_1")
    whole = import_rack(path)[1].state_dict()
    monkeypatch.setattr("models.huggingface.gguf_weights.NUMBERS_AT_ONCE", 200)
    parts = import_rack(path)[1].state_dict()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


REFUSED = {
    "architecture": ({"arch": "qwen2"}, "architecture qwen2 is not read from GGUF; llama, gemma3 are"),
    "tensor": ({"more": [("blk.0.attn_sinks.weight", np.ones(4, np.float32))]}, "tensor blk.0.attn_sinks.weight is not known"),
    "no such layer": (
        {"more": [("blk.7.attn_norm.weight", np.ones(64, np.float32))]},
        "model.layers.7.input_layernorm.weight [64] is not known in a llama",
    ),
    "rotary factors": (
        {"more": [("rope_freqs.weight", np.full(8, 2, np.float32))]},
        "rope_freqs.weight: rotary factors are not read from GGUF",
    ),
    "soft cap": (
        {"change": lambda writer: writer.add_final_logit_softcapping(30.0)},
        "final_logit_softcapping = 30.0: the head here has no soft cap",
    ),
    "scaling": (
        {"change": lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)},
        "rope_scaling = {'rope_type': 'longrope'}: rope_scaling: rope_type = longrope is none of",
    ),
    "scaling of yarn": (
        {"change": lambda writer: writer.add_rope_scaling_attn_factors(0.5)},
        "llama.rope.scaling.attn_factor is not read from GGUF; give the model's folder",
    ),
    "part of a head": (
        {"change": lambda writer: writer.add_uint32("llama.rope.dimension_count", 8)},
        "partial_rotary_factor = 0.5: heads of this family turn as a whole",
    ),
    "not causal": ({"change": lambda writer: writer.add_causal_attention(False)}, "is_causal = False: racks of language models"),
    "several files": (
        {"change": lambda writer: writer.add_uint16("split.count", 2)},
        "split.count = 2: several files are not read; llama-gguf-split merges them",
    ),
    "a name of two lines": (
        {"more": [("a\nb.weight", np.ones(4, np.float32))]},
        "'a\\nb.weight' is no name of a value",
    ),
    "a long name": ({"more": [("a" * 9000, np.ones(4, np.float32))]}, "(9,002 characters)"),
    "a list": (
        {"change": lambda writer: writer.add_array("llama.attention.sliding_window", [4, 8])},
        "llama.attention.sliding_window is no number, but list",
    ),
    "integers": ({"more": [("output.weight", np.ones((64, 64), np.int8))]}, "output.weight: cannot be dequantised"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_is_told_with_the_file(tmp_path, case):
    keys, told = REFUSED[case]
    path = tmp_path / "tiny.gguf"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_gguf(path, tiny("llama tied"), **keys)
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        import_rack(path)
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


@pytest.mark.parametrize("name", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_factor_without_a_type_is_linear_as_in_llama_cpp(tmp_path, name):
    path = write_gguf(tmp_path / "tiny.gguf", tiny("llama tied"), change=lambda writer: writer.add_float32(f"llama.{name}", 4.0))
    for block in import_rack(path)[1].blocks():
        assert block.mixer.rope_scaling == {"rope_type": "linear", "factor": 4.0}


def test_rotary_factors_of_one_say_nothing(tmp_path):
    import_rack(write_gguf(tmp_path / "tiny.gguf", tiny("llama tied"), more=[("rope_freqs.weight", np.ones(8, np.float32))]))


DAMAGED = {
    "empty": (lambda _: b"", "the header says more than the file has"),
    "no GGUF": (lambda whole: b"PK" + whole[2:], "it does not start with GGUF"),
    "version": (lambda whole: whole[:4] + b"\x01" + whole[5:], "version 1 is not read; 2 and 3 are"),
    "big-endian": (lambda whole: whole[:4] + b"\0\0\0\3" + whole[8:], "version 50331648 is not read"),
    "cut in the header": (lambda whole: whole[:200], "the header says more than the file has"),
    "cut in the weights": (lambda whole: whole[:-200], "cut off, the file ends at byte"),
    "counts": (lambda whole: whole[:8] + b"\xff" * 8 + whole[16:], "is too large for a count"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_message_that_names_it(tmp_path, whole, case):
    damage, told = DAMAGED[case]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage(whole))
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        import_rack(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_flipped_bytes_in_the_header_never_raise_anything_else(tmp_path, whole):
    path, dice = tmp_path / "flipped.gguf", random.Random(0)
    n_told = 0
    for position in dice.sample(range(4000), 150):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ dice.randrange(1, 256)]) + whole[position + 1 :])
        try:
            import_rack(path)
        except ConfigError as error:
            assert str(path) in str(error)  # noqa: PT017 - some flips change nothing that is read
            n_told += 1
    assert n_told > 20


def test_without_the_package_it_is_told_how_to_install_it(tmp_path, whole, monkeypatch):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(whole)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    monkeypatch.setitem(__import__("sys").modules, "gguf.quants", None)
    with pytest.raises(ConfigError, match="read by the package gguf, which is not installed: pip install gguf"):
        import_rack(path)

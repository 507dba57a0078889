"""What of a model's folder is read, what is refused and in which words, and what it costs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs import ConfigError
from configs.limits import MOST_JSON_BYTES
from models.huggingface.folder import ModelFolder
from models.huggingface.importing import import_rack
from tests.models.huggingface.tiny import LLAMA3, saved, tiny

ROOT = Path(__file__).parents[3]
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A Llama of two layers."""
    return saved("llama", tmp_path)[1]


@pytest.fixture
def shards(tmp_path):
    """The same in several files."""
    saved("llama", tmp_path, max_shard_size="12KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def refusal(folder):
    """What is told of a folder; nothing but a ConfigError may come of it."""
    with pytest.raises(ConfigError) as caught:
        import_rack(folder)
    return str(caught.value)


def edit(path, change):
    """Change the object in a JSON file."""
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def rewrite(folder, change, name=ONE):
    """Change the tensors of a file."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, metadata={"format": "pt"})


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_several_files_are_the_same_as_one(shards, tmp_path_factory):
    _, one = saved("llama", tmp_path_factory.mktemp("one"))
    assert same(import_rack(one)[1].state_dict(), import_rack(shards)[1].state_dict())


def test_what_is_read_does_not_change_with_the_file(folder):
    rack = import_rack(folder)[1]
    before = {name: tensor.clone() for name, tensor in rack.state_dict().items()}
    with (folder / ONE).open("r+b") as file:
        file.seek(4000)
        file.write(b"\xff" * 4000)
    assert same(before, rack.state_dict())


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["file", "float32", "bfloat16", "float16"])
def test_weights_have_the_type_of_the_file_or_the_one_asked_for(tmp_path, stored, dtype):
    model = tiny("gemma3").to(getattr(torch, stored))
    model.save_pretrained(tmp_path)
    _, rack = import_rack(tmp_path, dtype=dtype)
    expected = getattr(torch, stored if dtype == "file" else dtype)
    assert {parameter.dtype for parameter in rack.parameters()} == {expected}
    assert torch.equal(rack.embedding.weight, model.state_dict()["model.embed_tokens.weight"].to(expected))
    tokens = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.isfinite(rack(tokens)).all()


def test_of_files_of_several_types_the_widest_counts(folder):
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].to(torch.bfloat16)}))
    assert import_rack(folder)[1].head.output.weight.dtype == torch.float32


def test_a_tied_head_that_is_written_out_is_taken_for_what_it_is(tmp_path):
    model, folder = saved("qwen2 tied", tmp_path)
    plain = import_rack(folder)[1].state_dict()
    embedding = model.state_dict()["model.embed_tokens.weight"]
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    assert same(plain, import_rack(folder)[1].state_dict())
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    assert refusal(folder) == (f"{folder / ONE}: lm_head.weight is not the embedding's, but tie_word_embeddings is true")


KEY = "model.layers.1.mlp.up_proj.weight"
WEIGHTS = {
    "missing": (lambda tensors: tensors.pop(KEY), "{folder}: " + f"{KEY} [48, 32] is missing"),
    "unexpected": (
        lambda tensors: tensors.update({"model.layers.0.self_attn.extra": torch.ones(3)}),
        "{file}: model.layers.0.self_attn.extra [3] is not known in a llama",
    ),
    "one layer more": (
        lambda tensors: tensors.update({"model.layers.2.input_layernorm.weight": torch.ones(32)}),
        "{file}: model.layers.2.input_layernorm.weight [32] is not known in a llama",
    ),
    "shape": (lambda tensors: tensors.update({KEY: torch.ones(47, 32)}), "{file}: " + f"{KEY} is [47, 32], not [48, 32]"),
    "turned": (lambda tensors: tensors.update({KEY: torch.ones(32, 48)}), "{file}: " + f"{KEY} is [32, 48], not [48, 32]"),
    "type": (
        lambda tensors: tensors.update({KEY: torch.ones(48, 32, dtype=torch.int8)}),
        "{file}: " + f"{KEY} is of type I8; float16, bfloat16, float32 are read",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit_are_told_with_tensor_shapes_and_file(folder, case, monkeypatch):
    change, told = WEIGHTS[case]
    rewrite(folder, change)
    monkeypatch.setattr(ModelFolder, "read", lambda *_: pytest.fail("a weight was read"))
    assert refusal(folder) == told.format(folder=folder, file=folder / ONE)


def test_all_that_does_not_fit_is_told_at_once_but_no_more_than_twenty_lines(folder):
    rewrite(folder, lambda tensors: [tensors.pop(KEY), tensors.update({f"extra.{index}": torch.ones(1) for index in range(30)})])
    lines = refusal(folder).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 11 more"


def test_tables_that_old_versions_wrote_are_no_weights(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    import_rack(folder)


SHARDS = {
    "cut off": (lambda _, first: first.write_bytes(first.read_bytes()[:-100]), "{first}: damaged or cut off: "),
    "no safetensors": (lambda _, first: first.write_bytes(b"\x80\x04\x95 a pickle"), "{first}: damaged or cut off: "),
    "absent": (lambda _, first: first.unlink(), "{first}: is missing"),
    "outside": (
        lambda folder, _: edit(folder / INDEX, lambda tree: tree["weight_map"].update({KEY: "../x.safetensors"})),
        "{index}: " + f"{KEY}: '../x.safetensors' is no safetensors file of this folder",
    ),
    "absolute": (
        lambda folder, first: edit(folder / INDEX, lambda tree: tree["weight_map"].update({KEY: str(first)})),
        "{index}: " + f"{KEY}: '",
    ),
    "a pickle": (
        lambda folder, _: edit(folder / INDEX, lambda tree: tree["weight_map"].update({KEY: "pytorch_model.bin"})),
        "{index}: " + f"{KEY}: 'pytorch_model.bin' is no safetensors file of this folder",
    ),
    "a file that is not there": (
        lambda folder, _: edit(folder / INDEX, lambda tree: tree["weight_map"].update({KEY: "gone.safetensors"})),
        "{folder}/gone.safetensors: is missing",
    ),
    "another file than said": (
        lambda folder, first: edit(folder / INDEX, lambda tree: tree["weight_map"].update({KEY: first.name})),
        "{index}: " + f"{KEY} is not in ",
    ),
    "no map": (lambda folder, _: (folder / INDEX).write_text("{}"), "{index}: weight_map must name a file for each tensor"),
    "a list": (
        lambda folder, _: (folder / INDEX).write_text('{"weight_map": ["model.safetensors"]}'),
        "{index}: weight_map must name a file for each tensor",
    ),
}


@pytest.mark.parametrize("case", SHARDS)
def test_files_that_are_not_as_the_index_says_are_told(shards, case):
    damage, told = SHARDS[case]
    first = min(shards.glob("*.safetensors"))
    damage(shards, first)
    message = refusal(shards)
    assert message.startswith(told.format(folder=shards, first=first, index=shards / INDEX))
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"])
def test_pickles_are_never_opened(folder, name):
    (folder / ONE).rename(folder / name)
    assert refusal(folder) == (f"{folder / ONE}: only {name}, a pickle, which is never opened: save the model as safetensors")


CONFIGS = {
    "auto_map": (
        {"auto_map": {"AutoModel": "modeling.Model"}},
        ["auto_map: the model brings code of its own, which is never run"],
    ),
    "model_type": ({"model_type": "lama"}, ["model_type 'lama' is not read; did you mean 'llama'? Known: gemma3_text, llama, "]),
    "no model_type": ({"model_type": None}, ["model_type None is not read; Known: gemma3_text, llama, "]),
    "another family": ({"model_type": "mamba2"}, ["model_type 'mamba2' is not read; Known: gemma3_text, llama, "]),
    "quantised": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        ["quantization_config = {'quant_method': 'gptq', 'bits': 4}: quantised weights are not read: give the model in float32"],
    ),
    "soft caps": (
        {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        [
            "attn_logit_softcapping = 50.0: attention here has no soft cap",
            "final_logit_softcapping = 30.0: the head here has no soft cap",
        ],
    ),
    "dynamic": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        ["rope_parameters = {'rope_type': 'dynamic', 'factor': 2.0}: rope_scaling: rope_type = dynamic is none of linear, "],
    ),
    "longrope": (
        {"rope_parameters": None, "rope_scaling": {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
        ["rope_scaling = {'rope_type': 'longrope', 'long_factor': [1.0], 'short_fa...: rope_scaling: rope_type = longrope is "],
    ),
    "not causal": ({"is_causal": False}, ["is_causal = False: racks of language models are causal"]),
    "part of a head": ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor = 0.5: heads of this family turn as a whole"]),
    "part of a head, in rope": (
        {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}},
        ["rope_parameters = {'rope_theta': 100.0, 'partial_rotary_factor': 0.5}: partial_rotary_factor = 0.5: heads of this "],
    ),
    "no base": (
        {"rope_parameters": {"rope_theta": None}},
        ["rope_parameters = {'rope_theta': None}: rope_theta is null"],
    ),
    "rope by layer": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
        ["rope_parameters = {'full_attention': {'rope_theta': 1.0}}: full_attention: all layers of this family turn alike"],
    ),
    "kind of rope": (
        {"rope_parameters": {"rope_type": ["yarn"]}},
        ["rope_parameters = {'rope_type': ['yarn']}: rope_scaling: rope_type = ['yarn'] is none of linear, llama3, yarn"],
    ),
    "a list as a factor": (
        {"rope_parameters": {"rope_type": "linear", "factor": [2.0]}},
        ["rope_parameters = {'rope_type': 'linear', 'factor': [2.0]}: rope_scaling: factor = [2.0] must be a positive number"],
    ),
    "too large a number": ({"rms_norm_eps": 10**400}, ["rms_norm_eps = 1000"]),
    "a truncation that is neither": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": "no"}},
        ["rope_parameters = {'rope_type': 'yarn', 'factor': 2.0, 'truncate': 'no'}: rope_scaling: truncate = no must be true or"],
    ),
    "frequencies the wrong way round": (
        {"rope_parameters": {**LLAMA3, "high_freq_factor": 0.5}},
        ["rope_parameters = {'rope_type': 'llama3', 'rope_theta': 500000.0, 'factor':...: rope_scaling: high_freq_factor"],
    ),
    "layers": ({"num_hidden_layers": 2**31}, ["num_hidden_layers = 2147483648: a rack has at most 1,024 blocks"]),
    "a list as activation": (
        {"hidden_act": ["silu"]},
        ["hidden_act = ['silu']: the gated perceptron here has silu, swish"],
    ),
    "where windows start": (
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "all"},
        ["max_window_layers = 'all': must be a whole number of at least 0"],
    ),
    "activation": ({"hidden_act": "relu"}, ["hidden_act = 'relu': the gated perceptron here has silu, swish, gelu_pytorch_tanh"]),
    "sizes": (
        {"hidden_size": -1, "num_hidden_layers": "two", "rms_norm_eps": 0, "vocab_size": None},
        [
            "num_hidden_layers = 'two': must be a whole number of at least 1",
            "rms_norm_eps = 0: must be a positive number",
            "hidden_size = -1: must be a whole number of at least 1",
            "vocab_size = None: is missing",
        ],
    ),
    "several": (
        {"hidden_act": "relu", "final_logit_softcapping": 30.0, "attention_bias": "yes"},
        ["final_logit_softcapping = 30.0: ", "attention_bias = 'yes': must be true or false", "hidden_act = 'relu': "],
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_what_a_config_says_that_a_rack_cannot_be_is_told_key_by_key_before_any_weight_is_read(folder, case, monkeypatch):
    keys, told = CONFIGS[case]
    edit(folder / "config.json", lambda tree: tree.update(keys))
    monkeypatch.setattr(ModelFolder, "read", lambda *_: pytest.fail("a weight was read"))
    lines = refusal(folder).splitlines()
    place = f"{folder / 'config.json'}: "
    assert [line[: len(place)] for line in lines] == [place] * len(told), lines
    for line in told:
        assert sum(each.removeprefix(place).startswith(line) for each in lines) == 1, (line, lines)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[1, 2]", "an object is expected, found list"),
        (b'"llama"', "an object is expected, found str"),
        (b'{"model_type": "ll\xff"}', "is no JSON: "),
        (b'{"model_type": ', "is no JSON: "),
        (b"", "is no JSON: "),
        (b"[" * 100_000, "is no JSON: "),
        (b" " * (MOST_JSON_BYTES + 1), f"{MOST_JSON_BYTES + 1:,} bytes, more than {MOST_JSON_BYTES:,}"),
    ],
)
def test_a_config_that_is_none_is_told(folder, content, told):
    (folder / "config.json").write_bytes(content)
    message = refusal(folder)
    assert message.startswith(f"{folder / 'config.json'}: {told}")
    assert len(message.splitlines()) == 1


def test_what_is_no_model_is_told(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: no such folder or file"
    assert refusal(tmp_path) == f"{tmp_path / 'config.json'}: is missing"
    assert "a trained model is a folder with config.json and safetensors, or a .gguf file" in refusal(tmp_path / "weights.bin")


MEASURE = """
import resource, sys
from pathlib import Path
from models.huggingface.importing import import_rack
from tests.models.huggingface.test_importing import peak
import_rack(Path(sys.argv[1]))
before = peak()
_, rack = import_rack(Path(sys.argv[2]))
print((peak() - before) / sum(parameter.nbytes for parameter in rack.parameters()))
"""


def peak():
    """The most bytes that this process has held."""
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
def test_an_import_takes_the_memory_of_the_model_and_little_more(tmp_path):
    import transformers

    small, large = tmp_path / "small", tmp_path / "large"
    saved("llama", small)
    config = transformers.LlamaConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=10, num_attention_heads=8, vocab_size=8000
    )
    model = transformers.LlamaForCausalLM(config)
    assert 190e6 < sum(parameter.nbytes for parameter in model.parameters()) < 220e6
    model.save_pretrained(large)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[01]\.\d+", done.stdout.strip())
    assert float(done.stdout) < 1.3

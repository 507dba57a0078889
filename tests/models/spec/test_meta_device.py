"""A part built without values has the parameters that it has with them, and torch's compiler stays where it is."""

import subprocess
import sys

import pytest
import torch

from models import CHANNEL_MIXERS, MIXERS, RackSpec
from models.assembly.assemble import without_memory
from models.spec.meta_device import FastMeta
from tests.models.cases import CHANNEL_MIXER_CASES, MIXER_CASES, build

CASES = [(MIXERS, case) for case in MIXER_CASES.values()] + [(CHANNEL_MIXERS, case) for case in CHANNEL_MIXER_CASES.values()]


@pytest.mark.parametrize(("registry", "options"), CASES, ids=[f"{registry.noun} {case}" for registry, case in CASES])
def test_shapes_and_types_are_those_of_the_real_one(registry, options):
    with torch.device("meta"), FastMeta():
        unfilled = build(registry, options)
    real = build(registry, options)
    expected = {name: (value.shape, value.dtype) for name, value in real.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in unfilled.state_dict().items()} == expected
    assert all(value.is_meta for value in unfilled.state_dict().values())


def test_what_is_frozen_is_frozen_there_too():
    block = {"mixer": {"kind": "attention", "lora": {"rank": 2}}, "mlp": {"kind": "swiglu"}}
    stacks = [{"n_blocks": 1, "block": block, "lr_scale": 0}, {"n_blocks": 1, "block": block}]
    spec = RackSpec.model_validate({"vocab_size": 8, "d_model": 8, "stacks": stacks})
    trained = {name: parameter.requires_grad for name, parameter in spec.build().named_parameters()}
    assert len(set(trained.values())) == 2
    assert {name: parameter.requires_grad for name, parameter in without_memory(spec).named_parameters()} == trained


def test_checking_a_space_imports_no_compiler_and_no_kernel():
    script = (
        "import sys; from search.cli.show import read_spec; read_spec('configs/pipeline_28_layers.yaml');"
        "sys.exit(bool({'torch._dynamo', 'flash_attn', 'mamba_ssm', 'causal_conv1d', 'fla', 'triton'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=280).returncode == 0

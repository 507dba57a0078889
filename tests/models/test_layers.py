"""The MAD suite's layers at width 128: parameters, state and operations against the published sizes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.layers import LAYERS, layer, layer_names
from models.ops.long_convolution import long_convolution_flops

SIZES = {  # parameters, state at 128 positions (channel mixers: None)
    "attention": (66_048, 32_768),
    "mh-attention": (66_048, 32_768),
    "sliding-attention": (66_048, 8_448),
    "mh-sliding-attention": (66_048, 8_448),
    "linear-attention": (131_584, 16_384),
    "mh-linear-attention": (65_824, 1_024),
    "gated-linear-attention": (86_272, 16_384),
    "mh-gated-linear-attention": (86_160, 2_048),
    "gated-delta-net": (83_842, 16_384),
    "mh-gated-delta-net": (85_536, 2_048),
    "hyena": (124_348, 2_048),
    "mh-hyena": (30_862, 2_048),
    "mamba": (107_264, 1_024),
    "mlp": (131_072, None),
    "swiglu": (135_168, None),
    "moe-mlp": (50_176, None),
}
# The counter sees matrix products alone, not transforms.
UNSEEN = {"hyena": 512 * long_convolution_flops(128)}


def build_layer(name):
    registry, value = layer(name)
    return registry.build(registry.part(value), d_model=128, max_length=128)


def test_every_layer_is_listed():
    assert set(layer_names()) == set(SIZES)


@pytest.mark.parametrize("name", layer_names())
def test_every_layer_says_what_it_is(name):
    first_line = (LAYERS / f"{name}.yaml").read_text().splitlines()[0]
    assert first_line.startswith("# ")


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    module = build_layer(name)
    n_parameters, state = SIZES[name]
    assert sum(parameter.numel() for parameter in module.parameters()) == n_parameters
    if state is not None:
        assert module.state_size(128) == state


@pytest.mark.parametrize("name", SIZES)
def test_flops_are_what_torch_counts(name):
    with torch.device("meta"):
        module, x = build_layer(name), torch.empty(2, 128, 128)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(x)
    assert counter.get_total_flops() / 2 == pytest.approx(module.flops(128) - UNSEEN.get(name, 0), rel=0.1)

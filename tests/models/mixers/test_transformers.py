"""Independent truth: the same weights in the modules of Hugging Face's transformers give the same outputs."""

import pytest
import torch

from models import CHANNEL_MIXERS, MIXERS, RackSpec
from tests.models.cases import build, noise

D_MODEL, TIME = 24, 37
X = noise(2, TIME, D_MODEL)
PROJECTIONS = {"query": "q", "key": "k", "value": "v", "output": "o"}


def drawn(module):
    """The module with no parameter at a special value."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(0.3 * noise(*parameter.shape, seed=index))
    return module.eval()


def loaded(module, weights):
    """The module with exactly these weights: none missing, none left over."""
    module.load_state_dict({name: weight.detach().clone() for name, weight in weights.items()})
    return module.eval()


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert ours.abs().mean() > 1e-2


def rows(linear, *sizes):
    return linear.weight.split(sizes)


def causal_mask():
    return torch.full((TIME, TIME), -torch.inf).triu(1)[None, None]


def test_mamba():
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    config = MambaConfig(hidden_size=D_MODEL, state_size=5, conv_kernel=4, expand=2, time_step_rank=3, num_hidden_layers=1)
    theirs = drawn(MambaMixer(config, layer_idx=0))
    weights = {
        "A_log": theirs.A_log.mT,
        "D": theirs.D,
        "input.weight": theirs.in_proj.weight,
        "convolution.weight": theirs.conv1d.weight[:, 0],
        "convolution.bias": theirs.conv1d.bias,
        "select.weight": theirs.x_proj.weight,
        "time_step.weight": theirs.dt_proj.weight,
        "time_step.bias": theirs.dt_proj.bias,
        "output.weight": theirs.out_proj.weight,
    }
    ours = loaded(build(MIXERS, {"kind": "mamba", "d_state": 5, "dt_rank": 3}, d_model=D_MODEL), weights)
    assert_same(ours(X), theirs(X))


@pytest.mark.parametrize("n_groups", [1, 2])
def test_mamba2(n_groups):
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    sizes = {"state_size": 5, "head_dim": 12, "num_heads": 4, "n_groups": n_groups, "expand": 2, "conv_kernel": 3}
    config = Mamba2Config(hidden_size=D_MODEL, chunk_size=16, num_hidden_layers=1, layer_norm_epsilon=1e-5, **sizes)
    theirs = drawn(Mamba2Mixer(config, layer_idx=0))
    inner, states = 48, 5 * n_groups
    names = ("gate", "input", "write", "read", "time_step")
    parts = dict(zip(names, rows(theirs.in_proj, inner, inner, states, states, 4), strict=True))
    taps, biases = (part.split((inner, states, states)) for part in (theirs.conv1d.weight[:, 0], theirs.conv1d.bias))
    weights = {
        **{name: getattr(theirs, name) for name in ("A_log", "D", "dt_bias")},
        **{f"{name}.weight": part for name, part in parts.items()},
        **{f"convolutions.{index}.weight": part for index, part in enumerate(taps)},
        **{f"convolutions.{index}.bias": part for index, part in enumerate(biases)},
        "norm.weight": theirs.norm.weight,
        "output.weight": theirs.out_proj.weight,
    }
    options = {"kind": "mamba2", "d_state": 5, "d_head": 12, "n_groups": n_groups, "d_conv": 3}
    assert_same(loaded(build(MIXERS, options, d_model=D_MODEL), weights)(X), theirs(X))


def test_llama_attention():
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig, LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=D_MODEL, num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager")
    theirs = drawn(LlamaAttention(config, layer_idx=0))
    weights = {f"{ours}.weight": theirs.get_submodule(f"{name}_proj").weight for ours, name in PROJECTIONS.items()}
    ours = loaded(build(MIXERS, {"kind": "attention", "n_heads": 4, "n_kv_heads": 2}, d_model=D_MODEL), weights)
    turned = LlamaRotaryEmbedding(config)(X, torch.arange(TIME)[None])
    assert_same(ours(X), theirs(X, position_embeddings=turned, attention_mask=causal_mask())[0])


def test_qwen3_next_attention():
    from transformers.models.qwen3_next.modeling_qwen3_next import (
        Qwen3NextAttention,
        Qwen3NextConfig,
        Qwen3NextRotaryEmbedding,
    )

    config = Qwen3NextConfig(
        hidden_size=D_MODEL,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
        attn_implementation="eager",
    )
    theirs = drawn(Qwen3NextAttention(config, layer_idx=0))
    query, gate = theirs.q_proj.weight.unflatten(0, (4, 2, 16)).transpose(0, 1).flatten(1, 2)
    weights = {
        "query.weight": query,
        "gate.weight": gate,
        **{f"{name}.weight": theirs.get_submodule(f"{PROJECTIONS[name]}_proj").weight for name in ("key", "value", "output")},
        "query_norm.weight": 1 + theirs.q_norm.weight,  # they learn the difference from one
        "key_norm.weight": 1 + theirs.k_norm.weight,
    }
    options = {"n_heads": 4, "n_kv_heads": 2, "d_head": 16, "rope_base": 500.0, "rope_fraction": 0.25}
    options |= {"kind": "attention", "qk_norm": True, "output_gate": True}
    turned = Qwen3NextRotaryEmbedding(config)(X, torch.arange(TIME)[None])
    ours = loaded(build(MIXERS, options, d_model=D_MODEL), weights)
    assert_same(ours(X), theirs(X, position_embeddings=turned, attention_mask=causal_mask())[0])


@pytest.mark.parametrize("window", [None, 9])
def test_gpt_oss_sinks(window):
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssConfig, GptOssRotaryEmbedding

    config = GptOssConfig(
        hidden_size=D_MODEL,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attn_implementation="eager",
    )
    theirs = drawn(GptOssAttention(config, layer_idx=0))
    linears = {name: theirs.get_submodule(f"{short}_proj") for name, short in PROJECTIONS.items()}
    weights = {f"{name}.{part}": getattr(linear, part) for name, linear in linears.items() for part in ("weight", "bias")}
    options = {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "bias": True, "sinks": True, "window": window}
    ours = loaded(build(MIXERS, {**options, "rope_base": 500.0}, d_model=D_MODEL), {**weights, "sinks": theirs.sinks})
    turned = GptOssRotaryEmbedding(config)(X, torch.arange(TIME)[None])
    mask = causal_mask() + torch.full((TIME, TIME), -torch.inf).tril(-(window or TIME))
    assert_same(ours(X), theirs(X, position_embeddings=turned, attention_mask=mask)[0])


@pytest.mark.parametrize("query_rank", [None, 6])
def test_deepseek_latent_attention(query_rank):
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
        DeepseekV3Attention,
        DeepseekV3Config,
        DeepseekV3RotaryEmbedding,
    )

    sizes = {"qk_nope_head_dim": 8, "v_head_dim": 8, "qk_rope_head_dim": 4, "kv_lora_rank": 10, "q_lora_rank": query_rank}
    config = DeepseekV3Config(
        hidden_size=D_MODEL,
        num_attention_heads=3,
        num_key_value_heads=3,
        rope_interleave=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attn_implementation="eager",
        **sizes,
    )
    theirs = drawn(DeepseekV3Attention(config, layer_idx=0))
    queries = (theirs.q_proj if query_rank is None else theirs.q_b_proj).weight.unflatten(0, (3, 12))
    keys_and_values = theirs.kv_b_proj.weight.unflatten(0, (3, 16))
    latent, key_rope = rows(theirs.kv_a_proj_with_mqa, 10, 4)
    weights = {
        "query.weight": queries[:, :8].flatten(0, 1),
        "query_rope.weight": queries[:, 8:].flatten(0, 1),
        "key_up.weight": keys_and_values[:, :8].flatten(0, 1),
        "value_up.weight": keys_and_values[:, 8:].flatten(0, 1),
        "latent.weight": latent,
        "latent_norm.weight": theirs.kv_a_layernorm.weight,
        "key_rope.weight": key_rope,
        "output.weight": theirs.o_proj.weight,
    }
    if query_rank is not None:
        weights |= {"query_latent.weight": theirs.q_a_proj.weight, "query_norm.weight": theirs.q_a_layernorm.weight}
    options = {"kind": "mla", "n_heads": 3, "d_head": 8, "d_rope": 4, "kv_rank": 10, "query_rank": query_rank}
    ours = loaded(build(MIXERS, {**options, "rope_base": 500.0}, d_model=D_MODEL), weights)
    turned = DeepseekV3RotaryEmbedding(config)(X, torch.arange(TIME)[None])
    assert_same(ours(X), theirs(X, position_embeddings=turned, attention_mask=causal_mask())[0])


def test_swiglu():
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    theirs = drawn(LlamaMLP(LlamaConfig(hidden_size=D_MODEL, num_attention_heads=4, intermediate_size=40)))
    weights = {f"{name}.weight": theirs.get_submodule(f"{name}_proj").weight for name in ("gate", "up", "down")}
    assert_same(loaded(build(CHANNEL_MIXERS, {"kind": "swiglu", "d_ff": 40}, d_model=D_MODEL), weights)(X), theirs(X))


def test_moe():
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

    sizes = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 11}
    theirs = drawn(MixtralSparseMoeBlock(MixtralConfig(hidden_size=D_MODEL, hidden_act="gelu", **sizes)))
    gate, up = theirs.experts.gate_up_proj.chunk(2, dim=1)
    weights = {
        "router.weight": theirs.gate.weight,
        "gate.weight": gate.flatten(0, 1),
        "up.weight": up.flatten(0, 1),
        "down.weight": theirs.experts.down_proj.transpose(0, 1).flatten(1, 2),
    }
    ours = build(CHANNEL_MIXERS, {"kind": "moe", "n_experts": 5, "n_active": 2, "d_expert": 11}, d_model=D_MODEL)
    assert_same(loaded(ours, weights)(X), theirs(X))


@pytest.mark.parametrize("tie", [True, False])
def test_a_whole_llama(tie):
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=19,
        hidden_size=D_MODEL,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tie,
    )
    theirs = drawn(LlamaForCausalLM(config))
    block = {"mixer": {"kind": "attention", "n_heads": 4, "n_kv_heads": 2}, "mlp": {"kind": "swiglu", "d_ff": 40}}
    spec = RackSpec(vocab_size=19, d_model=D_MODEL, stacks=[{"n_blocks": 3, "block": block}], tie_embeddings=tie)
    weights = {
        "embedding.weight": theirs.model.embed_tokens.weight,
        "head.norm.weight": theirs.model.norm.weight,
        "head.output.weight": theirs.lm_head.weight,
    }
    for index, layer in enumerate(theirs.model.layers):
        named = {f"mixer.{name}": layer.self_attn.get_submodule(f"{short}_proj") for name, short in PROJECTIONS.items()}
        named |= {f"mlp.{name}": layer.mlp.get_submodule(f"{name}_proj") for name in ("gate", "up", "down")}
        named |= {"mixer_norm": layer.input_layernorm, "mlp_norm": layer.post_attention_layernorm}
        weights |= {f"stacks.0.blocks.{index}.{name}.weight": module.weight for name, module in named.items()}
    tokens = torch.arange(2 * TIME).view(2, TIME) * 7 % 19
    assert_same(loaded(spec.build(), weights)(tokens), theirs(tokens).logits)

"""GGUF files of tiny models of transformers, written as llama.cpp's converter writes them."""

import gguf
import numpy as np
import torch

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {
    "llama": {"post_attention_layernorm": "ffn_norm"},
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


def their_name(name, arch):
    """llama.cpp's name of a tensor."""
    name, _, kind = name.rpartition(".")
    layer = None
    if name.startswith("model.layers."):
        _, _, layer, name = name.split(".", 3)
    return f"{'' if layer is None else f'blk.{layer}.'}{(NAMES | NORMS[arch])[name]}.{kind}"


def permuted(weights, n_heads):
    """Rows of each head in pairs, as `LlamaModel.permute` of the converter has them."""
    return weights.reshape(n_heads, 2, weights.shape[0] // n_heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def stored(name, values, config, arch):
    """What the converter makes of a tensor."""
    if arch == "gemma3":
        return values + np.float32(1) if name.endswith("norm.weight") else values
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        return permuted(values, config.num_attention_heads)
    if name.endswith(("k_proj.weight", "k_proj.bias")):
        return permuted(values, config.num_key_value_heads)
    return values


def write_gguf(path, model, *, kind="F32", change=lambda _: None, arch=None, more=()):
    """The file of a Llama or Gemma 3; matrices in a format of GGML, the rest in float32."""
    config = model.config
    arch = arch or {"llama": "llama", "gemma3_text": "gemma3"}[config.model_type]
    family = "gemma3" if config.model_type == "gemma3_text" else "llama"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if family == "llama":
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    else:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<{index}>" for index in range(config.vocab_size)])
    change(writer)
    quantisation = gguf.GGMLQuantizationType[kind]
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, values in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        kept = np.ascontiguousarray(stored(name, values, config, family))
        own = quantisation if kept.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(their_name(name, family), gguf.quants.quantize(kept, own), raw_dtype=own)
    for name, values in more:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def rounded(model, kind):
    """The model with the matrices that come back from a format, head rows permuted while they are in it."""
    if kind == "F32":
        return model
    quantisation, config = gguf.GGMLQuantizationType[kind], model.config
    arch = "gemma3" if config.model_type == "gemma3_text" else "llama"
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 2 and not (name == "lm_head.weight" and config.tie_word_embeddings):
            values = np.ascontiguousarray(stored(name, tensor.numpy(), config, arch))
            kept = gguf.quants.dequantize(gguf.quants.quantize(values, quantisation), quantisation)
            assert np.abs(kept - values).max() > 0
            tensor.copy_(torch.from_numpy(unpermuted(name, kept, config, arch)))
    return model


def unpermuted(name, values, config, arch):
    """The rows where transformers has them."""
    if arch == "gemma3" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return values
    n_heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    order = permuted(np.arange(len(values)), n_heads)
    back = np.empty_like(values)
    back[order] = values
    return back

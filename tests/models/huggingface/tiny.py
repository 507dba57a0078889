"""Tiny random models of transformers, made on the spot, and racks of them."""

import torch
import transformers

SIZES = {
    "even": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64},
    "odd": {"hidden_size": 42, "intermediate_size": 35, "num_hidden_layers": 5, "num_attention_heads": 3, "vocab_size": 51},
    "deep": {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 7, "num_attention_heads": 6, "vocab_size": 97},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}
MIXED = ["full_attention", "sliding_attention"]
CASES = {
    "llama": ("Llama", "even", {"num_key_value_heads": 2}),
    "llama tied, llama3": ("Llama", "odd", {"num_key_value_heads": 1, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama biases, yarn": (
        "Llama",
        "deep",
        {"num_key_value_heads": 3, "attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    ),
    "llama heads of their own, linear": ("Llama", "even", {"head_dim": 10, "rope_parameters": LINEAR}),
    "llama part": ("Llama", "even", {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "rms_norm_eps": 1e-2}),
    "mistral": ("Mistral", "even", {"num_key_value_heads": 2, "sliding_window": 5, "head_dim": 8}),
    "mistral without a window": ("Mistral", "odd", {"num_key_value_heads": 1, "sliding_window": None, "head_dim": 14}),
    "mistral tied": ("Mistral", "deep", {"num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": True}),
    "ministral": ("Ministral", "even", {"num_key_value_heads": 2, "sliding_window": 5, "layer_types": MIXED, "head_dim": 8}),
    "ministral all": ("Ministral", "odd", {"num_key_value_heads": 3, "sliding_window": 7, "head_dim": 14}),
    "ministral no windows": (
        "Ministral",
        "deep",
        {"num_key_value_heads": 6, "layer_types": ["full_attention"] * 7, "head_dim": 6, "sliding_window": 4},
    ),
    "qwen2": ("Qwen2", "even", {"num_key_value_heads": 2}),
    "qwen2 windows": (
        "Qwen2",
        "odd",
        {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "qwen2 tied": ("Qwen2", "deep", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "even", {"num_key_value_heads": 2, "head_dim": 16}),
    "qwen3 biases, windows": (
        "Qwen3",
        "odd",
        {
            "num_key_value_heads": 1,
            "head_dim": 14,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", *["sliding_attention"] * 3],
        },
    ),
    "qwen3 tied": ("Qwen3", "deep", {"num_key_value_heads": 3, "head_dim": 8, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", "even", {"num_key_value_heads": 2, "no_rope_layers": [0, 1]}),
    "smollm3 windows": (
        "SmolLM3",
        "odd",
        {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 6, "tie_word_embeddings": False},
    ),
    "smollm3 types": (
        "SmolLM3",
        "deep",
        {
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 4,
            "attention_bias": True,
            "layer_types": [*MIXED * 3, "full_attention"],
        },
    ),
    "gemma3": ("Gemma3Text", "even", {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}),
    "gemma3 odd": (
        "Gemma3Text",
        "odd",
        {"num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 11, "layer_types": [*MIXED * 2, MIXED[0]]},
    ),
    "gemma3 linear": (
        "Gemma3Text",
        "deep",
        {
            "num_key_value_heads": 3,
            "head_dim": 6,
            "tie_word_embeddings": False,
            "sliding_window": 4,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}
"""By name: the family, a size, and what else its config says."""


def tiny(case, seed=0):
    """A model in evaluation mode, none of whose weights is what it starts from."""
    family, size, more = CASES[case]
    config = {**SIZES[size], "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, **more}
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(getattr(transformers, f"{family}Config")(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def saved(case, folder, **options):
    """The model, and the folder that it has been saved to."""
    model = tiny(case)
    model.save_pretrained(folder, **options)
    return model, folder

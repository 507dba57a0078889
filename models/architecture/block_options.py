"""Turns the guide's options of a block (mha, gqa, mla, kernel, ...) into a BlockSpec."""

from collections.abc import Mapping
from typing import Any

from configs.load import validate
from configs.stackwise import BlockOptions
from configs.stackwise.model import PRESETS
from models.spec.block import BlockSpec

D_HEAD = 64
"""Channels of a head, and what d_ff is a multiple of, where nothing is said."""

HEADS_PER_KEY = 4
"""Of gqa, where nothing is said."""


def validated(tree: Mapping[str, Any], source: str) -> BlockOptions:
    """The options in plain values; ConfigError with all that is wrong."""
    return resolved_options(validate(BlockOptions, tree, source), source)


def resolved_options(options: BlockOptions, source: str = "block") -> BlockOptions:
    """The same options with all that is derived filled in; of resolved ones, themselves. ConfigError where they do not fit."""
    attention_type, mode = options.attention_type, options.attention_mode
    if options.attention_preset is not None:
        attention_type, mode = PRESETS[options.attention_preset]
    n_heads = options.n_heads or _derived_heads(options.d_model)
    n_kv_heads = options.n_kv_heads or n_heads
    if attention_type == "gqa" and options.n_kv_heads is None:
        n_kv_heads = _largest_divisor(n_heads, n_heads // HEADS_PER_KEY)
    if attention_type in (None, "mha"):
        attention_type = "mha" if n_kv_heads == n_heads else "gqa"
    derived = {
        "d_ff": options.d_ff or max(round(8 * options.d_model / 3 / D_HEAD), 1) * D_HEAD,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads if attention_type in ("mha", "gqa") else None,
        "attention_type": attention_type,
        "attention_mode": mode or "bidirectional",
        "attention_preset": None,
    }
    return validate(BlockOptions, {**options.to_dict(), **derived}, source)


def block_of(options: BlockOptions) -> BlockSpec:
    """The spec of a block."""
    said = resolved_options(options)
    mlp: dict[str, Any] = {"kind": "swiglu", "d_ff": said.d_ff}
    if said.freeze_up_proj:
        mlp["parameters"] = {"up.weight": {"lr_scale": 0.0}}  # the weight alone: adapters on it may train
    return BlockSpec.model_validate({"mixer": _mixer(said), "mlp": mlp, "norm": said.norm, "dropout": said.dropout})


def _mixer(said: BlockOptions) -> dict[str, Any]:
    is_causal = said.attention_mode == "causal"
    common = {"n_heads": said.n_heads, "rope_base": said.rope_theta if said.use_rope else None}
    if said.attention_type == "mla":
        ranks = {"kv_rank": said.mla_rkv, "query_rank": said.mla_rq, "d_rope": said.mla_rope_dim}
        return {"kind": "mla", **common, **ranks, **({} if is_causal else {"causal": False})}
    if said.attention_type == "kernel":
        kernel = {"kernel_type": said.kernel_type, "kernel_dim": said.kernel_dim}
        said_of_kernel = {name: value for name, value in kernel.items() if value is not None}
        return {"kind": "kernel_attention", **common, **said_of_kernel, "causal": is_causal}
    return {"kind": "attention", **common, "n_kv_heads": said.n_kv_heads, "causal": is_causal}


def _derived_heads(d_model: int) -> int:
    """Heads of about 64 channels, evenly shared out, of an even number of channels where that can be."""
    fits = [n for n in range(1, max(d_model // D_HEAD, 1) + 1) if d_model % n == 0 and d_model // n % 2 == 0]
    return max(fits, default=1)


def _largest_divisor(number: int, limit: int) -> int:
    return max((n for n in range(1, limit + 1) if number % n == 0), default=1)

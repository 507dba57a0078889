"""What the families of models have in common: embedding, blocks of attention and a gated perceptron, norm, head."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from configs.limits import MOST_BLOCKS
from models.huggingface.family_config import FamilyConfig
from models.ops.attention.rope_scaling import check_rope_scaling

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
GATED_PERCEPTRON = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


@dataclass(frozen=True)
class CarriedWeight:
    """A tensor of both sides: ours = (theirs + `offset`) * `factor`."""

    ours: str
    theirs: str
    offset: float = 0.0
    factor: float = 1.0

    def to_ours(self, theirs: Tensor) -> Tensor:
        """Our tensor; computed in float32 and left in it, since bfloat16 has not the digits of 1 + weight."""
        if self.offset == 0 and self.factor == 1:
            return theirs
        return (theirs.to(torch.float32) + self.offset) * self.factor

    def to_theirs(self, ours: Tensor) -> Tensor:
        """Their tensor, of the type of ours; computed in float32."""
        if self.offset == 0 and self.factor == 1:
            return ours
        return (ours.to(torch.float32) / self.factor - self.offset).to(ours.dtype)


class Family:
    """How models of one `model_type` become racks. A family says what is its own; Llama's ways are the default.

    `defaults` are what the class in transformers takes for keys that are left out. `qk_norm` and `post_norms` say which norms
    there are beside those before mixer and perceptron, `norm_offset` what is added to every norm's weight.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    qk_norm: ClassVar[bool] = False
    post_norms: ClassVar[bool] = False
    norm_offset: ClassVar[float] = 0.0
    activation_key: ClassVar[str] = "hidden_act"
    activations: ClassVar[Mapping[str, str]] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        common = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}
        self.config = FamilyConfig(values, place, {**common, **self.defaults})
        self.n_layers = self.config.size("num_hidden_layers")
        self.n_heads = self.config.size("num_attention_heads")

    def window(self, layer: int) -> int | None:
        """How many positions a layer sees, the own one included; None for all."""
        del layer
        return None

    def has_positions(self, layer: int) -> bool:
        """Whether a layer's queries and keys turn."""
        del layer
        return True

    def rope(self, layer: int) -> Mapping[str, Any]:
        """`rope_theta` and what scales it, in the words of `rope_parameters`."""
        del layer
        config, length = self.config, "original_max_position_embeddings"
        rope = self._rope(config.get("rope_parameters"), config.get("rope_scaling"), config.get("rope_theta"))
        own_length = config.get(length)  # outdoes the rope's, as in transformers
        return rope if own_length is None or length not in rope else {**rope, length: own_length}

    def query_factor(self) -> float:
        """What the weight of the query's norm takes over, where scores are not divided by the root of the head's size."""
        return 1.0

    def embedding_scale(self) -> float:
        """What embedded tokens are multiplied by."""
        return 1.0

    def biased(self) -> tuple[str, ...]:
        """The linears of a block that have a bias, by our names."""
        config = self.config
        return (
            *(f"mixer.{name}" for name in ATTENTION if config.flag("attention_bias")),
            *(f"mlp.{name}" for name in GATED_PERCEPTRON if config.flag("mlp_bias")),
        )

    def tree(self) -> dict[str, Any]:
        """The description of the rack, in plain values; ConfigError that names every key which cannot be carried."""
        config, norm = self.config, {"kind": "rmsnorm", "eps": self.config.number("rms_norm_eps")}
        if self.n_layers > MOST_BLOCKS:
            config.refuse("num_hidden_layers", f"a rack has at most {MOST_BLOCKS:,} blocks")
        blocks = [self._block(layer, norm) for layer in range(min(self.n_layers, MOST_BLOCKS))]
        scale = self.embedding_scale()
        tree = {
            "vocab_size": config.size("vocab_size"),
            "d_model": config.size("hidden_size"),
            "norm": norm,
            "tie_embeddings": config.flag("tie_word_embeddings"),
            "embedding": {"kind": "token", **({} if scale == 1 else {"scale": scale})},
            "stacks": [_stack(blocks)],
        }
        config.raise_if_any()
        return tree

    def weights(self) -> Iterator[CarriedWeight]:
        """The tensors, ours and theirs, in the order of the data flow."""
        yield CarriedWeight("embedding.weight", "model.embed_tokens.weight")
        biased = self.biased()
        for layer in range(self.n_layers):
            ours, theirs = f"stacks.0.blocks.{layer}", f"model.layers.{layer}"
            for part, place, linears in (("mixer", "self_attn", ATTENTION), ("mlp", "mlp", GATED_PERCEPTRON)):
                for name, their_name in linears.items():
                    yield CarriedWeight(f"{ours}.{part}.{name}.weight", f"{theirs}.{place}.{their_name}.weight")
                    if f"{part}.{name}" in biased:
                        yield CarriedWeight(f"{ours}.{part}.{name}.bias", f"{theirs}.{place}.{their_name}.bias")
            for name, their_name, factor in self._norms():
                yield CarriedWeight(f"{ours}.{name}.weight", f"{theirs}.{their_name}.weight", self.norm_offset, factor)
        yield CarriedWeight("head.norm.weight", "model.norm.weight", self.norm_offset)
        if not self.config.flag("tie_word_embeddings"):
            yield CarriedWeight("head.output.weight", "lm_head.weight")

    def _norms(self) -> Iterator[tuple[str, str, float]]:
        """The norms of a block: our name, theirs, and the factor."""
        yield "mixer_norm", "input_layernorm", 1.0
        if self.qk_norm:
            yield "mixer.query_norm", "self_attn.q_norm", self.query_factor()
            yield "mixer.key_norm", "self_attn.k_norm", 1.0
        yield from (
            (
                ("mixer_post_norm", "post_attention_layernorm", 1.0),
                ("mlp_norm", "pre_feedforward_layernorm", 1.0),
                ("mlp_post_norm", "post_feedforward_layernorm", 1.0),
            )
            if self.post_norms
            else (("mlp_norm", "post_attention_layernorm", 1.0),)
        )

    def _block(self, layer: int, norm: Mapping[str, Any]) -> dict[str, Any]:
        config, biased = self.config, self.biased()
        d_model = config.size("hidden_size")
        n_kv_heads, d_head = config.size("num_key_value_heads", self.n_heads), config.size("head_dim", d_model // self.n_heads)
        mixer: dict[str, Any] = {"kind": "attention", "n_heads": self.n_heads, "n_kv_heads": n_kv_heads}
        mixer |= {} if d_head * self.n_heads == d_model else {"d_head": d_head}
        mixer |= {} if (window := self.window(layer)) is None else {"window": window}
        mixer |= self._positions(layer) if self.has_positions(layer) else {"rope_base": None}
        mixer |= {"qk_norm": True, "norm_eps": norm["eps"]} if self.qk_norm else {}
        activation = str(config.get(self.activation_key))
        if activation not in self.activations:
            config.refuse(self.activation_key, f"the gated perceptron here has {', '.join(self.activations)}")
        mlp = {"kind": "swiglu", "d_ff": config.size("intermediate_size")}
        mlp |= {"activation": "gelu_tanh"} if self.activations.get(activation) == "gelu_tanh" else {}
        block = {"mixer": mixer, "mlp": mlp}
        for part, fields in block.items():
            if has_bias := {name.partition(".")[2]: {"bias": True} for name in biased if name.startswith(f"{part}.")}:
                fields["parameters"] = has_bias
        return {**block, **({"mixer_post_norm": norm, "mlp_post_norm": norm} if self.post_norms else {})}

    def _positions(self, layer: int) -> dict[str, Any]:
        """The options of an attention that turn queries and keys."""
        rope = dict(self.rope(layer))
        options: dict[str, Any] = {"rope_base": rope.pop("rope_theta", 10000.0)}
        if options["rope_base"] is None:
            self._refuse_rope("rope_theta is null")
        if (fraction := rope.pop("partial_rotary_factor", None)) not in (None, 1):
            told = "heads of this family turn as a whole"  # transformers does not read it in any, other readers do
            if self.config.get("partial_rotary_factor") is None:
                self._refuse_rope(f"partial_rotary_factor = {fraction}: {told}")
            else:
                self.config.refuse("partial_rotary_factor", told)
        kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
        rope.pop("type", None)
        if kind == "default":
            if by_type := [name for name, value in rope.items() if isinstance(value, Mapping)]:
                self._refuse_rope(f"{by_type[0]}: all layers of this family turn alike")
            return options
        scaling = {"rope_type": kind, **{name: value for name, value in rope.items() if value is not None}}
        try:
            check_rope_scaling(scaling)
        except ValueError as error:
            self._refuse_rope(str(error))
        return {**options, "rope_scaling": scaling}

    def _rope(self, parameters: Any, scaling: Any, theta: Any) -> Mapping[str, Any]:
        """The new form, `rope_parameters`, or the old ones beside each other; as in transformers, `rope_scaling` outdoes it."""
        rope = scaling or parameters
        if rope is not None and not isinstance(rope, Mapping):
            self._refuse_rope("must be a mapping")
            rope = None
        fraction = self.config.get("partial_rotary_factor")
        own = {"rope_theta": theta, "partial_rotary_factor": fraction, "rope_type": None}
        rope = {**{name: value for name, value in own.items() if value is not None}, **(rope or {})}
        if (rope.get("rope_type") or rope.get("type")) in ("yarn", "llama3"):
            return {"original_max_position_embeddings": self.config.get("max_position_embeddings"), **rope}
        return rope

    def _refuse_rope(self, why: str) -> None:
        name = "rope_scaling" if self.config.get("rope_scaling") else "rope_parameters"
        if not any(problem.startswith(name) for problem in self.config.problems):  # once, not for every layer
            self.config.refuse(name, why)


def layer_types_window(config: FamilyConfig, n_layers: int, layer: int, *, default: str = "full_attention") -> int | None:
    """The window of a layer by `layer_types`: `sliding_attention` has one of `sliding_window`, `full_attention` none."""
    types = config.layers("layer_types", n_layers)
    kind = default if types is None else types[layer]
    if kind not in ("sliding_attention", "full_attention"):
        if not any(problem.startswith("layer_types") for problem in config.problems):
            config.refuse("layer_types", f"{kind!r} is neither sliding_attention nor full_attention")
        return None
    return config.size("sliding_window") if kind == "sliding_attention" else None


def _stack(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """One block, repeated, with overrides for the layers that are otherwise."""
    kinds = [block for index, block in enumerate(blocks) if block not in blocks[:index]]
    most = max(kinds, key=blocks.count)
    if len(kinds) > 2:
        return {"blocks": blocks}
    other = {str(index): block for index, block in enumerate(blocks) if block != most}
    if other and any(_lacks(block, most) for block in other.values()):
        return {"blocks": blocks}
    return {"n_blocks": len(blocks), "block": most, **({"layers": other} if other else {})}


def _lacks(block: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether an override cannot say what a block has: what it does not name stays."""
    return any(name not in block or (isinstance(value, Mapping) and _lacks(block[name], value)) for name, value in base.items())

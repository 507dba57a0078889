"""How fast the pairs of channels of a rotated head turn, also past the length that a model was first trained for."""

import math
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

RopeScaling = dict[str, float | bool | str]
"""`rope_type` and the numbers that go with it, in the words of Hugging Face's `rope_parameters`."""

NEEDED = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings"},
}
OPTIONAL = {"yarn": {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}}


def check_rope_scaling(scaling: Mapping[str, float | bool | str]) -> None:
    """ValueError that names what a scaling lacks, or has too much."""
    kind = str(scaling.get("rope_type"))
    if kind not in NEEDED:
        raise ValueError(f"rope_scaling: rope_type = {kind} is none of {', '.join(NEEDED)}")
    given = scaling.keys() - {"rope_type"}
    if missing := sorted(NEEDED[kind] - given):
        raise ValueError(f"rope_scaling: {kind} needs {', '.join(missing)}")
    if unknown := sorted(given - NEEDED[kind] - OPTIONAL.get(kind, set())):
        raise ValueError(f"rope_scaling: {kind} has no {', '.join(unknown)}")
    for name in sorted(given - {"truncate"}):
        value = scaling[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise ValueError(f"rope_scaling: {name} = {value} must be a positive number")
    if scaling.get("truncate") not in (None, True, False):
        raise ValueError(f"rope_scaling: truncate = {scaling['truncate']} must be true or false")
    if kind == "llama3" and float(scaling["high_freq_factor"]) < float(scaling["low_freq_factor"]):
        raise ValueError("rope_scaling: high_freq_factor must be at least low_freq_factor")


def frequencies(d_rope: int, base: float, scaling: Mapping[str, float | bool | str] | None, like: Tensor) -> tuple[Tensor, float]:
    """Radians a position of each pair of channels [d_rope / 2], and what cosine and sine are multiplied by.

    Without a scaling the pair i turns by base ** (-2 i / d_rope) (Su et al. 2021, arXiv 2104.09864, section 3.2). `linear`
    divides all by `factor` (Chen et al. 2023, arXiv 2306.15595); `llama3` the slow ones, and leaves the fast (Llama Team 2024,
    arXiv 2407.21783); `yarn` too, by the number of turns in the first length, and sharpens the softmax (Peng et al. 2023,
    arXiv 2309.00071, section 3).

    Args:
        d_rope: channels that turn.
        base: the wavelengths reach from 2 pi to nearly 2 pi * base.
        scaling: one that `check_rope_scaling` takes.
        like: a tensor of the device and the type, at least float32.
    """
    n_pairs = d_rope // 2
    plain = base ** (-torch.arange(n_pairs, device=like.device, dtype=like.dtype) / n_pairs)
    if scaling is None:
        return plain, 1.0
    number = {name: float(value) for name, value in scaling.items() if name != "rope_type"}
    factor = number["factor"]
    if scaling["rope_type"] == "linear":
        return plain / factor, 1.0
    length = number["original_max_position_embeddings"]
    if scaling["rope_type"] == "llama3":
        n_turns = length * plain / (2 * math.pi)
        low, high = number["low_freq_factor"], number["high_freq_factor"]
        kept = ((n_turns - low) / (high - low)).clamp(0, 1)
        return plain * (kept + (1 - kept) / factor), 1.0

    def pair_of(n_turns: float) -> float:
        """Which pair turns so often within the first length."""
        return n_pairs * math.log(length / (n_turns * 2 * math.pi)) / math.log(base)

    first, last = pair_of(number.get("beta_fast", 32.0)), pair_of(number.get("beta_slow", 1.0))
    if number.get("truncate", 1.0):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, d_rope - 1)
    slowed = ((torch.arange(n_pairs, device=like.device, dtype=like.dtype) - first) / (last - first or 1e-3)).clamp(0, 1)
    return plain * (1 - slowed + slowed / factor), _yarn_amplitude(number)


def _yarn_amplitude(number: Mapping[str, float]) -> float:
    """Of cosine and sine, so that scores are multiplied by its square."""

    def of(scale: float) -> float:
        return 0.1 * scale * math.log(max(number["factor"], 1.0)) + 1.0

    if "attention_factor" in number:
        return number["attention_factor"]
    if "mscale" in number and "mscale_all_dim" in number:
        return of(number["mscale"]) / of(number["mscale_all_dim"])
    return of(1.0)

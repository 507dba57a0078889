"""Starts new mixers from a trained attention, and a supernet from a trained rack."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from configs import ConfigError
from models.assembly.assemble import without_memory
from models.assembly.place import searched
from models.linears.convert import dense_state
from models.mixers.attention import Attention
from models.rack.contracts import ChannelMixer, Mixer
from models.spec.placement import Slot
from models.supernet.from_channels import keep_channels
from models.supernet.supernet import Supernet

MEMORY = 1024
"""Positions over which a converted mixer's memory fades: attention forgets nothing, and what is forgotten teaches nothing."""

PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Conversion:
    """How a mixer was started: its parameters by where they are from, and the attention's that had no place in it.

    `copied` are the attention's, `set` have the values that do what the attention does or remember longest, `kept` are as they
    were drawn (gates, feature maps, norms).
    """

    copied: tuple[str, ...]
    set: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        said = {name: getattr(self, name) for name in ("copied", "set", "kept", "dropped")}
        return "; ".join(f"{name} {', '.join(parameters)}" for name, parameters in said.items() if parameters)


@torch.no_grad()
def convert(attention: Attention, target: Mixer) -> Conversion:
    """Give `target` the query, key, value and output of a trained attention, head by head.

    Head h reads key and value head h // (n_heads / n_kv_heads), as it did in the attention. Biases go where the target has them.
    Short convolutions are the attention's, or let every position pass alone. Decays start with a memory of 1024 positions. Gate,
    norms and sinks go to another attention alone: a gate elsewhere is another function. What adapters add to the attention's
    linears goes into the weights; the target's own are left alone.

    Raises:
        ConfigError: naming what differs, if the target has no such heads.
    """
    if differences := list(_differences(attention, target)):
        raise ConfigError(f"{type(target).__name__} cannot start from this attention: {'; '.join(differences)}")
    shared = _n_kv_heads(target) // attention.n_kv_heads
    repeats = {"query": 1, "key": shared, "value": shared, "output": 1}
    repeats |= {f"convolutions.{index}": repeats[name] for index, name in enumerate(PROJECTIONS)}
    trained, remembered = dense_state(attention), target.set_memory_length(MEMORY)
    names: dict[str, list[str]] = {"copied": [], "set": list(remembered), "kept": []}
    for name, parameter in target.named_parameters():
        module = name.rpartition(".")[0]
        is_copied = name in trained and (module in repeats or isinstance(target, Attention))
        if is_copied:
            parameter.copy_(_in_layout(trained[name], parameter, n_heads=attention.n_kv_heads, repeats=repeats.get(module, 1)))
        elif module in repeats:
            parameter.zero_()
            if module.startswith("convolutions."):
                parameter[:, -1] = 1.0
        if name not in remembered:
            names["copied" if is_copied else "set" if module in repeats else "kept"].append(name)
    dropped = set(trained) - set(names["copied"])
    return Conversion(**{how: tuple(which) for how, which in names.items()}, dropped=tuple(sorted(dropped)))


def _in_layout(trained: Tensor, like: Tensor, *, n_heads: int, repeats: int) -> Tensor:
    """Rows of heads [n_heads * d_head, ...], each head `repeats` times in a row; missing taps of a convolution are zero."""
    if repeats > 1:
        trained = trained.unflatten(0, (n_heads, -1)).repeat_interleave(repeats, dim=0).flatten(0, 1)
    return nn.functional.pad(trained, (like.shape[-1] - trained.shape[-1], 0))


def _differences(attention: Attention, target: Any) -> Iterator[str]:
    missing = [name for name in (*PROJECTIONS, "output") if not isinstance(getattr(target, name, None), nn.Linear)]
    if missing:
        yield f"it has no {', '.join(missing)}"
        return
    if target.n_heads != attention.n_heads:
        yield f"n_heads = {target.n_heads}, not {attention.n_heads}"
    if _n_kv_heads(target) % attention.n_kv_heads:
        yield f"n_kv_heads = {_n_kv_heads(target)} is no multiple of {attention.n_kv_heads}"
    for name in PROJECTIONS:
        linear = target.get_submodule(name)
        size = linear.weight.shape[0] // (target.n_heads if name == "query" else _n_kv_heads(target))
        if size != attention.d_head:
            yield f"{name} heads of size {size}, not {attention.d_head}"
    if target.output.weight.shape[0] != attention.output.weight.shape[0]:
        yield f"d_model = {target.output.weight.shape[0]}, not {attention.output.weight.shape[0]}"
    if _n_taps(target) < _n_taps(attention):
        yield f"d_conv = {_n_taps(target)}, less than {_n_taps(attention)}"


def _n_kv_heads(mixer: Any) -> int:
    return getattr(mixer, "n_kv_heads", mixer.n_heads)


def _n_taps(mixer: Any) -> int:
    return max((convolve.weight.shape[1] for convolve in getattr(mixer, "convolutions", ())), default=0)


@dataclass(frozen=True)
class Origin:
    """Where one choice of one slot has its first weights from."""

    slot: Slot
    name: str
    text: str


@torch.no_grad()
def initialise_supernet(supernet: Supernet, trained: Mapping[str, Tensor]) -> list[Origin]:
    """Start a supernet from the state of a trained rack of its main placement.

    Main choices and all that is no choice get its weights; mixers beside a main attention are converted from it, and narrower
    channel mixers of the main one's kind have the channels of it that matter most. Choices of which nothing can be had (other
    mixers and head sizes, other channel mixers) keep their own start, and what is returned says why.

    Raises:
        ConfigError: if the trained rack is not of the main placement.
    """
    expected = without_memory(supernet.space.place(supernet.main)).state_dict()
    if strange := sorted(expected.keys() ^ trained.keys()):
        is_missing = strange[0] in expected
        raise ConfigError(f"no rack of the main placement: '{strange[0]}' is {'missing' if is_missing else 'no part of one'}")
    for name, tensor in expected.items():
        if trained[name].shape != tensor.shape:
            raise ConfigError(f"no rack of the main placement: '{name}' is {list(trained[name].shape)}, not {list(tensor.shape)}")
    supernet.rack.load_state_dict(trained, strict=False)  # all but the choices: their names are longer here
    origins = []
    for (path, _, slot), choice in zip(searched(supernet.space), supernet.choices, strict=True):
        main = choice.get(slot.main)
        if main is not None:
            main.load_state_dict(
                {name.removeprefix(f"{path}."): trained[name] for name in trained if name.startswith(f"{path}.")}
            )
        origins += [Origin(slot, name, _start(part, main, is_main=name == slot.main)) for name, part in choice.named()]
    return origins


def _start(part: nn.Module | None, main: nn.Module | None, *, is_main: bool) -> str:
    if is_main:
        return "trained"
    try:
        if isinstance(main, Attention) and isinstance(part, Mixer):
            return f"from the attention: {convert(main, part)}"
        if isinstance(main, ChannelMixer) and isinstance(part, ChannelMixer):
            return f"from the channels that matter most: {keep_channels(main, part)}"
    except ConfigError as error:
        return f"its own: {error}"
    return "its own: only mixers can start from the main choice if that is an attention, and channel mixers from another"

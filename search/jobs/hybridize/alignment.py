"""Fits the new mixers of one layer to what its attention puts out: a trial, which reads what that layer gets from a file."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F

from configs import ConfigError, Spec
from configs.records import DamagedError, Row
from models import MIXERS
from models.assembly.assemble import seeded
from models.linears.adapters import set_bias
from models.rack.contracts import Mixer
from models.spec.parameters import ModelPart
from search.jobs.hybridize.space import OWN_MIXER
from search.jobs.hybridize.spec import AlignSpec
from search.runs.interruption import interruptions
from search.runs.report import Say
from search.runs.run_folder import WEIGHTS, folder_named, run_folder
from search.runs.workers import WorkersSpec
from search.training import checkpoint
from search.training.devices import resolve_device
from search.training.optimizer import clip_gradients
from search.training.spec import TrainSpec

SEEN = "seen"
"""In a layer's file: what its mixers get [rows, time, d_model]. The weights of each are beside it, after the mixer's name."""


class LayerAlignmentSpec(Spec):
    """The new mixers of one layer, each fitted alone. `inputs` is the file of what the layer gets, and of all first weights."""

    outside_fingerprint: ClassVar = ("train",)  # of which the device alone is used
    job: Literal["alignment"] = "alignment"
    inputs: str
    inputs_fingerprint: str
    layer: NonNegativeInt
    d_model: int
    attention: MIXERS.field()  # type: ignore[valid-type]
    mixers: dict[str, MIXERS.field()]  # type: ignore[valid-type]
    align: AlignSpec
    seed: NonNegativeInt = 0
    train: TrainSpec = TrainSpec()

    @property
    def workers(self) -> WorkersSpec:
        """One worker a layer."""
        return self.align.workers


AlignLayers = Callable[[Mapping[str, LayerAlignmentSpec], Path], dict[str, Row]]
"""Aligns layers by name, each in the folder of its name; the row of one that failed has its text under `error`."""


def limits_of_alignment(layers: Mapping[str, LayerAlignmentSpec]) -> AlignSpec:
    """What is said of them all."""
    return next(iter(layers.values())).align


def align_layer(
    spec: LayerAlignmentSpec, out: Path, say: Say = lambda _: None, *, tell: Callable[[Row], object] = lambda _: None
) -> Row:
    """Fit the mixers of a layer, or take what its folder holds: by mixer the relative error before and after.

    The relative error is the mean squared distance to the attention's output over its mean square. The weights with the smaller
    error on all calibration rows, of first and last ones, are left in `weights.safetensors`.

    Raises:
        ConfigError: if the file of what the layer gets is not there or of another model, or the folder another layer's.
        KeyboardInterrupt: after SIGINT or SIGTERM; the layer starts anew.
    """
    with run_folder(out, spec):
        row = finished_alignment(spec, out, say)
        if row is None:
            with interruptions() as is_interrupted:
                tensors, row = _aligned(spec, out, is_interrupted, tell)
            checkpoint.save(out / WEIGHTS, tensors, {"fingerprint": spec.fingerprint(), "row": row})
        return row


def finished_alignment(spec: LayerAlignmentSpec, out: Path, say: Say) -> Row | None:
    """The row of a layer that is aligned; None if there is work to do, and what is of no use is told."""
    try:
        _, state = checkpoint.read(out / WEIGHTS, torch.device("cpu"), fingerprint=spec.fingerprint())
    except DamagedError as error:
        if (out / WEIGHTS).exists():
            say(f"{error}; the layer is aligned again")
        return None
    row: Row = state["row"]
    return row


def _aligned(
    spec: LayerAlignmentSpec, out: Path, is_interrupted: Callable[[], bool], tell: Callable[[Row], object]
) -> tuple[dict[str, Tensor], Row]:
    device = resolve_device(spec.train.device)
    path = folder_named(spec.inputs, out)
    try:
        given, state = checkpoint.read(path, device, fingerprint=spec.inputs_fingerprint)
    except DamagedError as error:
        raise ConfigError(f"{error}; delete the folder {path.parent.parent}, and the same command makes it anew") from None
    del state
    seen = given[SEEN].float()  # whatever the model is in: a step of AdamW is nothing in float16, and rounded in bfloat16
    attention = _with_weights(spec.attention, spec.d_model, tensors_below(given, OWN_MIXER), device).eval()
    with torch.no_grad():
        wanted = torch.cat([attention(rows) for rows in seen.split(spec.align.batch_size)])
    tensors: dict[str, Tensor] = {}
    row: Row = {"status": "finished", "layer": spec.layer}
    for name, part in spec.mixers.items():
        mixer = _with_weights(part, spec.d_model, tensors_below(given, name), device)
        before = _error(mixer, seen, wanted, spec.align.batch_size)
        _fit(mixer, seen, wanted, spec, is_interrupted)
        after = _error(mixer, seen, wanted, spec.align.batch_size)
        is_better = math.isfinite(after) and after < before
        kept = checkpoint.weights(mixer) if is_better else tensors_below(given, name)
        tensors |= {f"{name}.{key}": tensor for key, tensor in kept.items()}
        row |= {f"before.{name}": before, f"after.{name}": after if is_better else before}
        tell({"step": len(row), **{key: value for key, value in row.items() if key.endswith(name)}})
    told = (f"{name} {row[f'before.{name}']:.3f} -> {row[f'after.{name}']:.3f}" for name in spec.mixers)
    return tensors, {**row, "told": f"relative error of {', '.join(told)}"}


def _fit(mixer: Mixer, seen: Tensor, wanted: Tensor, spec: LayerAlignmentSpec, is_interrupted: Callable[[], bool]) -> None:
    """AdamW with a cosine to nothing, on batches of rows in an order drawn from the seed."""
    align, scale = spec.align, wanted.square().mean()
    parameters = list(mixer.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=align.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, align.n_steps)
    generator = torch.Generator().manual_seed(spec.seed)
    mixer.train()
    for _ in range(align.n_steps):
        rows = torch.randperm(len(seen), generator=generator)[: align.batch_size].to(seen.device)
        loss = F.mse_loss(mixer(seen[rows]), wanted[rows]) / scale
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if is_interrupted():
            raise KeyboardInterrupt
    mixer.eval()


@torch.no_grad()
def _error(mixer: Mixer, seen: Tensor, wanted: Tensor, batch_size: int) -> float:
    mixer.eval()
    pairs = zip(seen.split(batch_size), wanted.split(batch_size), strict=True)
    total = sum(float((mixer(rows) - goal).double().square().sum()) for rows, goal in pairs)
    return total / float(wanted.double().square().sum())


def _with_weights(part: ModelPart, d_model: int, weights: Mapping[str, Tensor], device: torch.device) -> Any:
    with seeded(0):
        mixer = MIXERS.build(part, d_model=d_model, max_length=None)
    _add_biases(mixer, weights)
    mixer.to(device).load_state_dict(dict(weights))
    return mixer


def _add_biases(mixer: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give linears a bias where the weights have one, and take it where not."""
    linears = {name: module for name, module in mixer.named_modules() if isinstance(module, nn.Linear)}
    for name, linear in linears.items():
        set_bias(linear, has_bias=f"{name}.bias" in weights)


def tensors_below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Of tensors by name those of one part, by their names in it."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}

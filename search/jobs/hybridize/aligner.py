"""Aligns a supernet that starts from a trained model: what each layer gets goes to a file, and trials fit its mixers."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.records import DamagedError, Row
from models import Supernet
from models.mixers.attention import Attention
from models.rack.choice import Choice
from search.jobs.backend import Backend
from search.jobs.hybridize.alignment import SEEN, LayerAlignmentSpec, tensors_below
from search.jobs.hybridize.space import OWN_MIXER
from search.jobs.hybridize.spec import HybridizeSpec
from search.jobs.supernet.data_fingerprints import data_fingerprints
from search.runs.errors import RunError
from search.runs.report import Say
from search.runs.run_folder import BESIDE, WEIGHTS
from search.training import checkpoint
from search.training.mixture import Mixture

INPUTS = "inputs"


class Aligner:
    """Fits what is new in every layer of a supernet, in place. `fingerprint` is that of what its weights depend on."""

    def __init__(self, spec: HybridizeSpec, supernet: Supernet, fingerprint: str, out: Path) -> None:
        self.spec, self.supernet, self.fingerprint, self.out = spec, supernet, fingerprint, out
        blocks = [block for stack in supernet.space.stacks for block in stack.expanded()]
        slots = [
            (slot, choice) for slot, choice in zip(supernet.slots, supernet.choices, strict=True) if slot.sublayer == "mixer"
        ]
        self.choices: dict[int, Choice] = {slot.layer: choice for slot, choice in slots}
        self.parts: dict[int, Any] = {slot.layer: blocks[slot.layer].mixer for slot, _ in slots}
        found = {layer: [name for name, part in choice.named() if _is_new(part)] for layer, choice in self.choices.items()}
        self.new = {layer: names for layer, names in found.items() if names and spec.align.n_steps}
        self.with_sinks = {
            layer: names
            for layer, choice in self.choices.items()
            if (names := [name for name in choice.names if _has_new_sinks(choice, name)])
        }

    def run(self, backend: Backend, say: Say) -> list[Row]:
        """By layer and mixer the relative error before and after.

        Raises:
            RunError: if a layer could not be aligned.
        """
        layers = sorted({*self.new, *self.with_sinks})
        if not layers:
            return []
        if data := data_fingerprints(self._mixture):  # of texts and the like: another file is another alignment
            self.out /= hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
        if not all(self._has_inputs(layer) for layer in layers):
            say(f"alignment: what {len(layers)} layer(s) get, on {self.spec.align.n_rows} rows of the training data")
            self._write_inputs(layers)
        for layer, names in self.with_sinks.items():
            given, _ = checkpoint.read(self._file(layer), torch.device("cpu"))
            self._calibrate(self.choices[layer], names, given[SEEN])
        if not self.new:
            return []
        specs = {f"layer-{layer:02d}": self._trial(layer) for layer in self.new}
        rows = backend.align_layers(specs, self.out)
        if failed := [f"{name}: {row['error']}" for name, row in rows.items() if "error" in row]:
            raise RunError("alignment failed: " + "\n".join(failed))
        for name, each in specs.items():
            tensors, _ = checkpoint.read(self.out / name / WEIGHTS, torch.device("cpu"), fingerprint=each.fingerprint())
            for mixer in each.mixers:
                self.choices[each.layer].mixers[mixer].load_state_dict(tensors_below(tensors, mixer))
        return [rows[name] for name in specs]

    def _trial(self, layer: int) -> LayerAlignmentSpec:
        part = self.parts[layer]
        return LayerAlignmentSpec(
            inputs=f"{BESIDE}../{INPUTS}/{self._file(layer).name}",
            inputs_fingerprint=self.fingerprint,
            layer=layer,
            d_model=self.supernet.space.d_model,
            attention=part.mixers[OWN_MIXER],
            mixers={name: part.mixers[name] for name in self.new[layer]},
            align=self.spec.align,
            seed=self.spec.seed,
            train=self.spec.distil.train,
        )

    @torch.no_grad()
    def _calibrate(self, choice: Choice, names: list[str], seen: Tensor) -> None:
        """Sinks of a window start from the mean score of the first token: they stand for it once it is out of sight."""
        own: Any = choice.get(OWN_MIXER)
        for name in names:
            part: Any = choice.get(name)
            part.sinks.copy_(own.first_token_logits(seen.to(part.sinks.dtype), beyond=part.window or 1))

    @torch.no_grad()
    def _write_inputs(self, layers: list[int]) -> None:
        """What the mixers of each layer get in the trained model, with the first weights of that layer's, a file a layer.

        All rows go through one block after the other, so that what is held are the hidden states of one layer.
        """
        rack, batch_size = self.supernet.rack, self.spec.align.batch_size
        self.supernet.eval()
        state = torch.cat([rack.embed(tokens) for tokens in self._rows().split(batch_size)])
        for layer, block in enumerate(rack.blocks()[: layers[-1] + 1]):
            seen: list[Tensor] = []
            hook = self.choices[layer].register_forward_pre_hook(_collecting(seen)) if layer in layers else None
            state = torch.cat([block(rows) for rows in state.split(batch_size)])
            if hook is not None:
                hook.remove()
                self._write(layer, torch.cat(seen))

    def _write(self, layer: int, seen: Tensor) -> None:
        named: Mapping[str, nn.Module | None] = dict(self.choices[layer].named())
        tensors = {
            f"{name}.{key}": tensor
            for name in (OWN_MIXER, *self.new.get(layer, ()))
            if (part := named[name]) is not None
            for key, tensor in checkpoint.weights(part).items()
        }
        checkpoint.save(self._file(layer), {SEEN: seen, **tensors}, {"fingerprint": self.fingerprint})

    @cached_property
    def _mixture(self) -> Mixture:
        return Mixture(self.spec.data, seed=self.spec.seed, device=torch.device("cpu"))

    def _rows(self) -> Tensor:
        """The calibration rows [n_rows, time]: the first ones of training."""
        rows: list[Tensor] = []
        while sum(map(len, rows)) < self.spec.align.n_rows:
            rows.append(self._mixture[len(rows)].inputs)
        return torch.cat(rows)[: self.spec.align.n_rows]

    def _file(self, layer: int) -> Path:
        return self.out / INPUTS / f"layer-{layer:02d}.safetensors"

    def _has_inputs(self, layer: int) -> bool:
        try:
            checkpoint.read(self._file(layer), torch.device("cpu"), fingerprint=self.fingerprint)
        except DamagedError:
            return False
        return True


def _collecting(seen: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda _module, args: seen.append(args[0])


def _is_new(part: nn.Module | None) -> bool:
    """Whether a mixer has something to learn that the attention, some of whose options it may change, has not."""
    return part is not None and not isinstance(part, Attention) and any(True for _ in part.parameters())


def _has_new_sinks(choice: Choice, name: str) -> bool:
    part, own = choice.get(name), choice.get(OWN_MIXER)
    return isinstance(part, Attention) and isinstance(own, Attention) and part.sinks is not None and own.sinks is None

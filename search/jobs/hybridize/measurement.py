"""Measures racks of a conversion against the trained model, on data that is kept apart."""

import math
from pathlib import Path
from typing import Literal

import torch

from configs.records import kept_json, write_json
from models import Placement, Rack, Supernet, placement_text
from search.evaluation.reference import KeptPredictions, Reference, log_probabilities, main_of
from search.jobs.hybridize.spec import HybridizeSpec
from search.jobs.hybridize.start import START
from search.jobs.placement.evaluation import thinned
from search.jobs.supernet.weights import load_supernet
from search.runs.report import Say
from search.training.batches import Batch
from search.training.devices import autocast, resolve_device
from search.training.mixture import Mixture
from tasks import IGNORED


class Measurement:
    """Measures racks on the test data of a conversion, or on those of its search (`validation`), against the model.

    Nothing is loaded until it is needed.
    """

    def __init__(self, spec: HybridizeSpec, out: Path, say: Say, split: Literal["test", "validation"] = "test") -> None:
        self.spec, self.out, self.say, self.split = spec, out, say, split
        distil, search = spec.distil, spec.search
        sizes = {"test": (distil.n_test_batches, distil.test_batch_size), "validation": (search.n_batches, search.batch_size)}
        self.n_batches, self.batch_size = sizes[split]
        self.device = resolve_device(spec.distil.train.device)
        self._reference: Reference | None = None
        self._batches: list[Batch] = []
        self._supernets: dict[Path, Supernet] = {}

    def of_folder(self, folder: Path) -> dict[str, float]:
        """KL to the model and loss of a distilled rack, kept beside its weights."""
        key = self._key(folder)
        kept = kept_json(folder / f"{self.split}.json", self.say, fingerprint=key)
        if kept is not None:
            return {name: kept[name] for name in ("kl", "loss")}
        rack = load_supernet(folder, self.device)
        assert isinstance(rack, Rack)  # it has been placed
        found = self.of(rack)
        if all(map(math.isfinite, found.values())):  # JSON has no other numbers
            write_json(folder / f"{self.split}.json", {"fingerprint": key, **found})
        return found

    def of_placement(self, source: Path, placement: Placement) -> dict[str, float]:
        """The same of a placement of the supernet in a folder, as it is there; kept beside that one's weights."""
        path, text = source / f"{self.split}.json", placement_text(placement)
        kept = kept_json(path, self.say, fingerprint=self._key(source)) or {"fingerprint": self._key(source)}
        if text not in kept:
            kept[text] = self._of_active(self._loaded(source), placement)
            if all(map(math.isfinite, kept[text].values())):
                write_json(path, kept)
        found: dict[str, float] = kept[text]
        return found

    def of_model(self) -> dict[str, float]:
        """Loss of the trained model itself; its KL is 0."""
        model = self._loaded(self.out / START)
        return self._of_active(model, model.main)

    def _of_active(self, supernet: Supernet, placement: Placement) -> dict[str, float]:
        self._prepared()  # which activates the model
        supernet.eval()
        supernet.activate(placement)
        return self.of(supernet.rack)

    def _loaded(self, folder: Path) -> Supernet:
        """The supernet in a folder, read once."""
        if folder not in self._supernets:
            supernet = load_supernet(folder, self.device)
            assert isinstance(supernet, Supernet)  # it has choices
            self._supernets[folder] = supernet
        return self._supernets[folder]

    @torch.no_grad()
    def of(self, rack: Rack) -> dict[str, float]:
        """Means over the asked positions of all batches, in nats."""
        reference, batches = self._prepared()
        kl = loss = 0.0
        n_asked = 0
        for inputs, targets in batches:
            asked = targets != IGNORED
            with autocast(self.device, self.spec.distil.train.scores_in):
                logits = rack.read_out(rack.run(rack.embed(inputs))[asked][None])[0]
            ours, theirs = log_probabilities(logits), reference(inputs, asked)
            kl += float((theirs.exp() * (theirs - ours)).sum(-1).double().sum())
            loss -= float(ours.gather(1, targets[asked][:, None]).double().sum())
            n_asked += int(asked.sum())
        return {"kl": kl / n_asked, "loss": loss / n_asked}

    def _prepared(self) -> tuple[Reference, list[Batch]]:
        if self._reference is None:
            mixture = Mixture(self.spec.data, seed=self.spec.seed, device=self.device)
            drawn = mixture.evaluation(self.n_batches, self.batch_size, self.split)
            self._batches = [batch for own in thinned(drawn, self.spec.search.positions_per_row).values() for batch in own]
            with torch.no_grad(), autocast(self.device, self.spec.distil.train.scores_in):
                kept = KeptPredictions.of(main_of(self._loaded(self.out / START)), self._batches, 2**62)
            assert kept is not None  # there is no limit
            self._reference = kept
        return self._reference, self._batches

    def _key(self, folder: Path) -> str:
        computed = (self.device.type, self.spec.distil.train.scores_in)
        asked = (folder.name, self.n_batches, self.batch_size, self.spec.search.positions_per_row, self.spec.seed, *computed)
        return "-".join(map(str, asked))

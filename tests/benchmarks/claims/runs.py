"""The runs that claims are measured by: run folders of the job `progressive`, trained once and kept."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.load import validate
from configs.merge import merge
from search.jobs.progressive.plan import first_stage, next_stage
from search.jobs.progressive.report import stage_rows
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.stage import StageRun, StageSite, Start
from search.jobs.progressive.stages import is_finished, run_stages
from search.jobs.progressive.training.batches import GrowthBatch, GrowthBatches, StageTime
from search.jobs.progressive.training.evaluation import StageEvaluation
from search.jobs.progressive.training.growing_model import GrowingRack
from search.jobs.progressive.weights import finished_folders, load_rack, stage_folder
from search.runs.report import HISTORY
from search.runs.run_folder import run_folder
from search.training.ranks import Ranks


@dataclass(frozen=True)
class Size:
    """How large claims are measured: `n_steps` are those of a stage, where a claim does not say otherwise."""

    d_model: int
    seq_len: int
    batch_size: int
    n_train: int
    n_eval_batches: int
    n_steps: int
    lr: float
    n_stacks: int
    seeds: tuple[int, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    rounds: int
    n_readers: int
    max_documents: int
    n_candidates: int | None = None


SIZES = {
    "tiny": Size(16, 8, 4, 8, 1, 2, 3e-3, 2, (0,), (1, 2, 3), (32,), 1, 0, 40, 2),
    "small": Size(64, 64, 8, 800, 4, 100, 3e-3, 4, (0, 1, 2), (1, 2, 4, 8, 16), (64, 128, 256, 512, 1024), 15, 4, 200),
}
EVAL_ROWS = 32


def stack(d_model: int, n_blocks: int = 1, **mixer: Any) -> dict[str, Any]:
    """Pre-norm blocks of attention, with these options, and SwiGLU."""
    attention = {"kind": "attention", "n_heads": max(d_model // 16, 1)} | mixer
    return {"n_blocks": n_blocks, "block": {"mixer": attention, "mlp": {"kind": "swiglu", "d_ff": 11 * d_model // 4}}}


class Runs:
    """Runs of one size in one folder. What is asked for again is read from there, and what was killed goes on."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder, self.size_name, self.size = folder, size, SIZES[size]

    def spec(self, *, seed: int = 0, **changes: Any) -> ProgressiveSpec:
        """The run that claims change: `n_stacks` stacks of one block each, by equal stages, on bytes of Python's library."""
        size = self.size
        text = {"kind": "text", "files": "stdlib", "seq_len": size.seq_len, "max_documents": size.max_documents}
        base = {
            "rack": {"d_model": size.d_model, "stacks": [stack(size.d_model)]},
            "data": {"batch_size": size.batch_size, "n_train": size.n_train, "task": text | {"max_bytes": 2_000_000}},
            "growth": {"target_stacks": size.n_stacks, "stage_steps": size.n_steps, "cache_mode": "memory"},
            "lr": size.lr,
            "train": {
                "device": "cpu",
                "grad_clip": 1.0,
                "schedule": {"kind": "wsd", "warmup_steps": max(size.n_steps // 10, 1), "decay_fraction": 0.3},
            },
            "eval_every": max(size.n_steps // 4, 1),
            "n_eval_batches": size.n_eval_batches,
            "eval_batch_size": EVAL_ROWS,
            "seed": seed,
        }
        return validate(ProgressiveSpec, merge(base, changes), "claims")

    def place(self, name: str, seed: int = 0) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / re.sub(r"\W+", "-", name) / f"seed-{seed}"

    def run(self, name: str, *, seed: int = 0, **changes: Any) -> Run:
        """The finished run of this name and seed, trained if it is not there; `changes` are laid over the spec."""
        spec, out = self.spec(seed=seed, **changes), self.place(name, seed)
        with run_folder(out, spec):
            if not is_finished(out):
                started = time.monotonic()
                run_stages(spec, out, lambda _: None)
                tell(f"{name}, seed {seed}: {time.monotonic() - started:.0f} s")
        return Run(spec, out, stage_rows(finished_folders(out)))

    def seeds(self, name: str, **changes: Any) -> list[Run]:
        return [self.run(name, seed=seed, **changes) for seed in self.size.seeds]

    def grown(self, spec: ProgressiveSpec) -> StageRun:
        """The second stage of a run, ready to train, on a first one that has not learnt anything."""
        first = first_stage(spec)
        place = StageSite(folder=self.folder, caches=self.folder / "caches", ranks=Ranks(), say=lambda _: None)
        start = Start(first.rack.build(spec.seed))
        return StageRun(spec, next_stage(spec, first), spec.data.samples(spec.seed), start, place)


@dataclass(frozen=True)
class Run:
    """A finished run: its spec, its folder, and the rows of its stages."""

    spec: ProgressiveSpec
    out: Path
    stages: list[Mapping[str, Any]]

    @property
    def loss(self) -> float:
        return self.stages[-1]["loss"]

    @property
    def seconds(self) -> float:
        """Of training and filling caches."""
        return sum(row["seconds"] + row.get("cache_fill_seconds", 0.0) for row in self.stages)

    def history(self, index: int) -> list[dict[str, float]]:
        """The evaluations of a stage."""
        lines = (stage_folder(self.out, index) / HISTORY).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def loss_on(self, batches: list[GrowthBatch], *, n_stages: int | None = None) -> float:
        """Loss of the rack of a stage (None: the last one) on held-out batches."""
        rack = load_rack(self.out, n_stages=n_stages)
        if rack.time_embedding is None:
            batches = [each._replace(time_steps=None) for each in batches]
        return float(StageEvaluation(batches, self.spec).score(GrowingRack(rack, uses_attention_mask=True))["loss"])


def held_out(spec: ProgressiveSpec, time_step: int = 0) -> list[GrowthBatch]:
    """What a run is evaluated on, all samples as noisy as at one time step, which is also in `time_steps`."""
    batches = batches_of(spec, time_step).evaluation(spec.n_eval_batches, spec.eval_batch_size)
    return [each._replace(time_steps=torch.full((len(each.inputs),), time_step)) for each in batches]


def batches_of(spec: ProgressiveSpec, time_step: int = 0) -> GrowthBatches:
    """The batches of a run's first stage, all samples at one time step."""
    return GrowthBatches(
        spec.data.samples(spec.seed),
        spec.make_objective(),
        stage=0,
        time=StageTime(interpretation="depth", n_steps=spec.n_time_steps, step=time_step),
        batch_size=spec.data.batch_size,
        seed=spec.seed,
        device=torch.device("cpu"),
    )


def tell(text: str) -> None:
    """How far it is, beside the table on the standard output."""
    print(text, file=sys.stderr, flush=True)

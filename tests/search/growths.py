"""Tiny racks that grow, and what their runs leave."""

from pathlib import Path

import torch

from configs.load import validate
from configs.records import read_json
from search.jobs.in_process import HERE
from search.jobs.progressive.job import run
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.stages import run_stages
from search.jobs.progressive.weights import load_rack
from tests.models.huggingface.folders import tiny_llama

RECALL = {"kind": "in_context_recall", "vocab_size": 8, "seq_len": 16}
BLOCK = {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "mlp", "d_ff": 24}}
AHEAD = {**BLOCK, "mixer": {"kind": "attention", "n_heads": 2, "causal": False}}
STACK = {"n_blocks": 1, "block": BLOCK}

OF_THE_CLOCK = ("seconds", "step_ms", "cache_fill_seconds", "peak_bytes")
"""What of a stage's row differs from run to run."""


def growth_spec(block=None, **keys):
    """A rack that grows from one stack to three, in a second; `growth`, `rack` and `data` are laid over what is said here."""
    rack = {"d_model": 16, "stacks": [{"n_blocks": 1, "block": block or BLOCK}], **keys.pop("rack", {})}
    data = {"task": RECALL, "batch_size": 8, "n_train": 24, "n_validation": 16, **keys.pop("data", {})}
    growth = {"target_stacks": 3, "cache_mode": "memory", **keys.pop("growth", {})}
    sizes = {"n_steps": 6, "eval_every": 3, "n_eval_batches": 2, "eval_batch_size": 8, "lr": 1e-2}
    raw = {"rack": rack, "data": data, "growth": growth, "train": {"device": "cpu"}, **sizes, **keys}
    return validate(ProgressiveSpec, raw, "test")


def model_growth(folder: Path, **keys):
    """A growth on the tiny Llama, which is made in `folder/model`: two stacks are added to its one."""
    model = keys.pop("model", None) or str(tiny_llama(folder / "model"))
    growth = {"target_stacks": 3, "cache_mode": "memory", "stage_steps": [6, 4], **keys.pop("growth", {})}
    task = {**RECALL, "vocab_size": 16, "seq_len": 12}
    data = {"task": task, "batch_size": 8, "n_train": 24, "n_validation": 16, **keys.pop("data", {})}
    sizes = {"eval_every": 3, "n_eval_batches": 2, "eval_batch_size": 8, "lr": 1e-2}
    raw = {"model": model, "stack": STACK, "data": data, "growth": growth, "train": {"device": "cpu"}, **sizes, **keys}
    return validate(ProgressiveSpec, raw, "test")


def grow_here(spec, out: Path, lines=None):
    """Run the whole job in this process, quietly or into a list of lines; its exit status."""
    return run(spec, out, HERE, say=(lambda _: None) if lines is None else lines.append)


def stages_here(spec, out: Path, **options):
    """Run the stages alone."""
    run_stages(spec, out, lambda _: None, **options)


def rows(out: Path):
    """The rows of the stages."""
    return [read_json(path) for path in sorted(out.glob("stages/*/result.json"))]


def numbers(row):
    """What of a row no clock has a part in, nor how the run is described."""
    return {name: value for name, value in row.items() if name not in (*OF_THE_CLOCK, "fingerprint")}


def results(out: Path):
    """What of the summary no clock has a part in."""
    found = read_json(out / "results.json")
    return {**{name: value for name, value in found.items() if name != "seconds"}, "stages": list(map(numbers, found["stages"]))}


def state(out: Path, n_stages=None):
    """Copies of the tensors of the rack after so many stages; of the last one, if no number is given."""
    return {name: tensor.clone() for name, tensor in load_rack(out, n_stages=n_stages).state_dict().items()}


def same_bits(first, second):
    """Whether two states are equal, in names and bits."""
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())

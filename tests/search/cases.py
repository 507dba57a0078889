"""Tiny models and data that the tests of training run on."""

import json

import torch

from models import RackSpec
from search.jobs.mad.run_trials import run_trials
from search.jobs.mad.spec import MadSpec
from search.training import metrics
from search.training.batches import EpochBatches
from search.training.loop import train
from search.training.spec import TrainSpec
from search.training.state import TrainState
from tasks import TASKS, draw

CPU = torch.device("cpu")
TASK = TASKS["in_context_recall"](vocab_size=8, seq_len=16)
LAYERS = ({"kind": "attention", "n_heads": 2}, {"kind": "mlp", "d_ff": 16})
FAR_TOO_HIGH = 1e60
"""A learning rate that is infinite in float32: its first step leaves no weight finite, on every processor. 1e30 may train on."""


def data(seed=0, split="train", n_examples=48, batch_size=16, task=TASK):
    """Batches of the task; the last of an epoch may be smaller."""
    return EpochBatches(draw(task, n_examples, seed=seed, split=split), batch_size, seed=seed, device=CPU)


def rack_spec(layers=LAYERS, **keys):
    """A rack for the task."""
    return RackSpec(**{"d_model": 16, "vocab_size": TASK.vocab_size, "max_length": TASK.seq_len, "layers": layers, **keys})


def dropout_spec():
    """A rack whose blocks drop out."""
    block = {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "mlp", "d_ff": 16}, "dropout": 0.3}
    return RackSpec(d_model=16, vocab_size=8, stacks=[{"n_blocks": 2, "block": block}])


def member(spec=None, batches=None, *, lr=1e-3, weight_decay=0.0, seed=0):
    """A member of a run on the task."""
    return TrainState((spec or rack_spec()).build(seed), data() if batches is None else batches, lr, weight_decay)


def evaluate_on(test):
    """What `train` takes as `evaluate`: the metrics on one data set for all."""
    return lambda pack, running: metrics.evaluate(pack, test.in_order())  # noqa: ARG005 - the shape of the contract


def run(members, *, n_steps=20, eval_every=5, evaluate=None, seed=0, on_evaluation=None, checkpoint=None, **keys):
    """Train members on a CPU and return them."""
    train(
        members,
        TrainSpec(device="cpu", **keys),
        n_steps=n_steps,
        eval_every=eval_every,
        evaluate=evaluate or evaluate_on(data(split="test")),
        seed=seed,
        on_evaluation=on_evaluation,
        checkpoint=checkpoint,
    )
    return members


def weights(single):
    """A copy of a member's weights."""
    return {name: tensor.clone() for name, tensor in single.model.state_dict().items()}


def same(first, second):
    """Whether two sets of weights are the same to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def mad_spec(**keys):
    """A run of the suite with tiny trials."""
    tiny = {"task": {"vocab_size": 8, "seq_len": 16}, "n_train": 32, "n_validation": 16, "n_test": 16}
    defaults = {
        "mode": "clean",
        "d_model": 8,
        "architectures": {"small": [{"kind": "attention", "n_heads": 2}, {"kind": "mlp", "d_ff": 8}]},
        "tasks": {"in-context-recall": tiny},
        "changes": "none",
        "lrs": [1e-3],
        "weight_decays": [0.0, 0.1],
        "seeds": [0],
        "epochs": 2,
        "batch_size": 16,
        "train": {"device": "cpu"},
    }
    return MadSpec(**{**defaults, **keys})


def rows_in(folder):
    """What the log of a run holds."""
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def timeless(rows):
    """Rows by key, without what the clock says, and without the checksum, which depends on it."""
    return {row["key"]: {name: value for name, value in row.items() if name not in ("seconds", "checksum")} for row in rows}


def results_in(folder):
    """The summary of a run, which is strict JSON, without what the clock says."""

    def refuse(constant):
        raise AssertionError(constant)

    results = json.loads((folder / "results.json").read_text(), parse_constant=refuse)
    del results["checksum"]  # of what the clock says, too
    return {**results, "settings": [{**cell, "best_seconds": 0} for cell in results["settings"]]}


def failing(fail, error=RuntimeError):
    """`run_trials` that raises for the trials that `fail` says, and notes all it is asked for."""
    asked = []

    def run(trials, **keys):
        asked.extend(single.spec.fingerprint() for single in trials)
        if any(fail(single) for single in trials):
            raise error("the mixer\nbroke in two")
        return run_trials(trials, **keys)

    return run, asked

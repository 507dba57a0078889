"""A MAD run that takes seconds: tiny models on a tiny task."""

from pathlib import Path

from configs.load import validate
from search.jobs.mad.spec import MadSpec
from search.runs.run_folder import TrialLog

RAW = {
    "mode": "clean",
    "d_model": 16,
    "architectures": {
        "attention": [{"kind": "attention", "d_conv": 2}, {"kind": "mlp", "d_ff": 16}],
        "gdn": [{"kind": "gated_delta_net", "n_heads": 2}],
    },
    "tasks": {
        "in-context-recall": {"task": {"vocab_size": 8, "seq_len": 16}, "n_train": 64, "n_validation": 32, "n_test": 32},
    },
    "changes": "none",
    "lrs": [1e-3, 1e-2],
    "weight_decays": [0.1],
    "seeds": [0],
    "epochs": 3,
    "batch_size": 32,
}


def tiny(**changes) -> MadSpec:
    return validate(MadSpec, {**RAW, **changes}, "test")


def rows_of(out: Path) -> dict[str, dict]:
    return TrialLog(out / "trials.jsonl").rows


def numbers(row: dict) -> dict:
    """What of a row must not depend on who ran the trial."""
    return {name: value for name, value in row.items() if name not in ("seconds", "peak_bytes", "hardware")}

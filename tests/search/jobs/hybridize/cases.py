"""A conversion of a tiny Llama that takes a second."""

from configs.load import validate
from search.jobs.hybridize.spec import HybridizeSpec
from tests.models.huggingface.folders import tiny_llama

RAW = {
    "job": "hybridize",
    "choices": {"window": {"window": 3, "n_sink_tokens": 1}, "gdn": {"kind": "gated_delta_net", "d_conv": 2}, "skip": None},
    "data": {"batch_size": 4, "tasks": {"recall": {"task": {"kind": "in_context_recall", "vocab_size": 16, "seq_len": 12}}}},
    "align": {"n_steps": 5, "n_rows": 8, "batch_size": 4},
    "search": {"budgets": [1, 2], "n_batches": 2, "batch_size": 4, "positions_per_row": 3, "rivals": {"windows": "all:window"}},
    "distil": {"budgets": [1], "n_steps": 4, "batch_size": 4, "n_test_batches": 1, "test_batch_size": 4},
}


def raw(folder, **changes):
    """The description of a conversion of the tiny model, which is made in `folder/model`; `changes` are merged into its parts."""
    merged = {"model": str(tiny_llama(folder / "model")), **RAW}
    for key, value in changes.items():
        merged[key] = {**merged[key], **value} if key in ("align", "search", "distil") else value
    return merged


def spec(folder, **changes):
    """The same as a spec."""
    return validate(HybridizeSpec, raw(folder, **changes), "test")

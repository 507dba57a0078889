"""A pipeline that takes seconds: two layers of two mixers on a tiny task."""

from copy import deepcopy

SUPERNET = {
    "rack": {
        "d_model": 16,
        "stacks": [
            {
                "n_blocks": 3,
                "block": {
                    "mixer": {
                        "kind": "stochastic",
                        "main": "attention",
                        "mixers": {
                            "attention": {"kind": "attention", "n_heads": 2},
                            "linear": {"kind": "linear_attention", "d_conv": 2},
                        },
                    },
                    "mlp": {"kind": "mlp", "d_ff": 16},
                },
            }
        ],
    },
    "data": {
        "batch_size": 8,
        "tasks": {"recall": {"task": {"kind": "in_context_recall", "vocab_size": 8, "seq_len": 12}}},
    },
    "n_steps": 6,
    "lr": 1e-2,
    "eval_every": 3,
    "n_eval_batches": 2,
    "eval_batch_size": 8,
}
SEARCH = {
    "budgets": [1, 2],
    "strategy": {"kind": "beam", "width": 2},
    "rivals": {"interleave": "interleave", "all-cheap": "all:linear", "all-attention": "all:attention"},
    "n_batches": 3,
    "batch_size": 8,
}
PIPELINE = {
    "job": "pipeline",
    "supernet": SUPERNET,
    "placement": SEARCH,
    "retrain": {"n_steps": 4, "seeds": [0, 1], "n_test_batches": 2, "test_batch_size": 8},
}
VALIDATE = {
    "job": "validate",
    "supernet": SUPERNET,
    "supernet_seeds": [0, 1],
    "budget": 1,
    "strategies": ["beam", "interleave", "random"],
    "retrain": {"n_steps": 4, "seeds": [0, 1], "n_test_batches": 2, "test_batch_size": 8},
    "n_batches": 3,
    "batch_size": 8,
}


def raw(tree, **changes):
    """A copy with other values at the top."""
    return {**deepcopy(tree), **changes}

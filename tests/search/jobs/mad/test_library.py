"""The suite from Python: models of the caller, and single tasks."""

import math

import pandas as pd
import pytest
from torch import nn

import search
from configs import ConfigError
from search.jobs.mad import data, library, run_trials
from search.jobs.mad.scores import score
from tests.search.cases import TASK, mad_spec


class Bigram(nn.Module):
    """A model of a caller: logits by the last token."""

    def __init__(self, vocab_size, max_length):
        super().__init__()
        self.max_length = max_length
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, tokens):
        return self.table(tokens)


TINY = {"n_train": 32, "n_validation": 16, "n_test": 16}


def test_benchmark_scores_a_model_of_the_caller(tmp_path):
    made = []

    def make(task, vocab_size, max_length):
        made.append((task, vocab_size, max_length))
        return Bigram(vocab_size, max_length)

    copying = {**TINY, "task": {"seq_len": 16, "n_tokens_to_copy": 2}}
    tasks = {"compression": {**TINY, "task": {"seq_len": 8}}, "selective-copying": copying}
    keys = {"changes": "none", "epochs": 30, "lrs": [0.3], "weight_decays": [0.0], "train": {"device": "cpu"}, "out": tmp_path}
    scores = library.benchmark(make, "bigram", tasks=tasks, **keys)
    assert isinstance(scores, pd.Series)
    assert scores.name == "bigram"
    assert list(scores.index) == ["compression", "selective-copying"]
    assert scores["compression"] > 0.95  # each token is its own target
    assert 0 <= scores["selective-copying"] < 0.6
    assert made == [("compression", 16, 8), ("selective-copying", 16, 16)]
    again = library.benchmark(lambda *_: pytest.fail("built"), "bigram", tasks=tasks, **keys)
    pd.testing.assert_series_equal(scores, again)


@pytest.mark.parametrize("order", ["another order", "keywords alone"])
def test_benchmark_says_by_name_what_a_model_is_for(order):
    made = []

    def make(vocab_size, max_length, task):
        made.append((task, vocab_size, max_length))
        return Bigram(vocab_size, max_length)

    def make_by_keyword(*, max_length, vocab_size, task):
        return make(vocab_size, max_length, task)

    keys = {"changes": "none", "epochs": 1, "lrs": [0.1], "weight_decays": [0.0], "train": {"device": "cpu"}}
    tasks = {"compression": {**TINY, "task": {"seq_len": 8}}}
    library.benchmark(make if order == "another order" else make_by_keyword, "bigram", tasks=tasks, **keys)
    assert made == [("compression", 16, 8)]


def test_benchmark_refuses_a_function_of_something_else():
    with pytest.raises(ConfigError, match=r"benchmark: make_model_fn: must be a function of task, vocab_size and max_length"):
        library.benchmark(Bigram, "bigram", tasks=["compression"])


def test_benchmark_gives_nan_where_there_is_no_score():
    def make(task, vocab_size, max_length):
        if task == "compression":
            raise RuntimeError("no such model")
        return Bigram(vocab_size, max_length)

    tasks = {"compression": TINY, "memorization": {**TINY, "changes": {}}}
    keys = {"changes": "none", "epochs": 1, "lrs": [0.1], "weight_decays": [0.0], "train": {"device": "cpu"}}
    with pytest.warns(UserWarning, match="1 of 2 trials of 'bigram' failed.*no such model"):
        scores = library.benchmark(make, "bigram", tasks=tasks, **keys)
    assert math.isnan(scores["compression"])
    assert not math.isnan(scores["memorization"])


def test_benchmark_in_which_every_trial_fails_says_why():
    def make(*_):
        raise RuntimeError("no such model")

    keys = {"changes": "none", "epochs": 1, "lrs": [0.1], "weight_decays": [0.0], "train": {"device": "cpu"}}
    with pytest.raises(RuntimeError, match=r"every trial of 'bigram' failed(.|\n)*no such model"):
        library.benchmark(make, "bigram", tasks={"compression": TINY}, **keys)


@pytest.mark.parametrize(
    "keys", [{"tasks": ["compresion"]}, {"tasks": ["compression"], "epochs": 0}, {"tasks": ["compression"], "epoch": 3}]
)
def test_benchmark_refuses_what_it_does_not_know(keys):
    with pytest.raises(ConfigError, match="benchmark: "):
        library.benchmark(Bigram, "bigram", **keys)


RUNS = [
    {"task": {"kind": "compression", "seq_len": 8}, **TINY},
    {"task": {"kind": "fuzzy_in_context_recall", "seq_len": 32, "k_motif_size": 2, "v_motif_size": 2}, **TINY},
    {"task": {"kind": "selective_copying", "seq_len": 16, "n_tokens_to_copy": 2}, **TINY},
    {"task": {"kind": "memorization", "vocab_size": 16}, **TINY},
    {"task": {"kind": "noisy_in_context_recall", "seq_len": 16, "noise_vocab_size": 4}, **TINY},
]


@pytest.mark.parametrize("config", RUNS, ids=lambda config: config["task"]["kind"])
@pytest.mark.parametrize("mode", ["mad", "clean"])
def test_every_task_runs_to_a_score(config, mode):
    spec = mad_spec(tasks={"one": config}, weight_decays=[0.0], mode=mode, seeds=[0])
    (single,) = spec.trials()
    scores = score(spec, run_trials.run_trials([single]))
    assert 0 <= scores.of("small").value <= 1
    assert scores.problems() == {}


@pytest.mark.parametrize("config", [*RUNS[:3], TASK])
def test_train_task_returns_a_row(config):
    if config is TASK:
        config = {"task": {"kind": "in_context_recall", "vocab_size": 8, "seq_len": 16}, **TINY}
    vocab_size = config["task"].get("vocab_size", 16)
    row = library.train_task(Bigram(vocab_size, 0), config, epochs=2, batch_size=16, lr=0.1, train={"device": "cpu"})
    assert isinstance(row, pd.Series)
    assert row["status"] == "finished"
    assert row["steps"] == 4
    assert 0 <= row["test_macro_accuracy"] <= 1
    assert row["seed"] == 12345


def test_train_task_leaves_the_model_with_its_best_weights():
    model, config = Bigram(16, 16), RUNS[2]
    nn.init.zeros_(model.table.weight)
    row = library.train_task(model, config, epochs=3, batch_size=16, lr=10.0, mode="clean", train={"device": "cpu"})
    assert row["best_step"] < row["steps"]
    (single, *_) = mad_spec(tasks={"one": config}).trials()
    batches = data.Data.of(single.spec, 12345).test
    found = search.training.metrics.evaluate(lambda inputs: model(inputs)[None], batches.in_order())
    assert found["loss"].item() == pytest.approx(row["test_loss"], rel=1e-5)


@pytest.mark.parametrize("config", ["in-context-recal", {"task": {"kind": "compresion"}}, {"kind": "compression"}, 5])
def test_train_task_refuses_what_it_does_not_know(config):
    with pytest.raises(ConfigError, match="task"):
        library.train_task(Bigram(16, 8), config)


def test_train_task_refuses_settings_it_does_not_know():
    with pytest.raises(ConfigError, match=r"train_task: train\.stop_att: unknown key 'stop_att'; did you mean 'stop_at'"):
        library.train_task(Bigram(16, 8), "compression", train={"stop_att": 1})

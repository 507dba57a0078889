"""Evaluators and the score log: metrics, errors, paired differences, and that nothing is measured twice."""

import json
import math

import numpy as np
import pytest
import torch

from configs import ConfigError
from search.evaluation.evaluator import Evaluator
from search.evaluation.score import Score, paired_difference
from search.evaluation.score_log import ScoreLog, weights_fingerprint
from search.evaluation.supernet_evaluator import SupernetEvaluator, score_key
from tests.search import spaces

SHARES = {"long": 0.75, "short": 0.25}


def data(n_batches=4):
    return {"long": spaces.batches(n_batches, seed=1), "short": spaces.batches(n_batches, seq_len=5, seed=2)}


def evaluator(net, batches=None, **keys):
    return SupernetEvaluator(net, batches or data(), SHARES, **{"data_fingerprint": "data", **keys})


def test_a_score_is_the_weighted_mean_over_tasks_of_the_means_over_batches():
    net = spaces.supernet()
    chosen, batches = spaces.placements(net.slots, 3), data()
    expected = {task: spaces.one_at_a_time(net, chosen, pairs) for task, pairs in batches.items()}
    for index, score in enumerate(evaluator(net, batches)(chosen)):
        means = {task: values[index].mean() for task, values in expected.items()}
        assert score.tasks == pytest.approx(means, rel=1e-5)
        assert float(score) == score.value == pytest.approx(0.75 * means["long"] + 0.25 * means["short"], rel=1e-5)
        series = 0.75 * expected["long"][index] + 0.25 * expected["short"][index]
        assert score.standard_error == pytest.approx(series.std(ddof=1) / 2, abs=1e-5 * np.abs(series).max())
        assert score.batches["short"] == pytest.approx(list(expected["short"][index]), rel=1e-5)
        assert score.n_batches == 4


def test_a_paired_difference_does_not_see_what_all_share():
    generator = np.random.default_rng(0)
    common, own = generator.normal(scale=10, size=20), generator.normal(scale=0.1, size=(2, 20))
    better, worse = (Score.of({"a": common + noise + gain}, {"a": 1.0}) for noise, gain in zip(own, (1.0, 0.0), strict=True))
    mean, error = paired_difference(better, worse)
    assert mean == pytest.approx(float(better) - float(worse))
    assert error == pytest.approx((own[0] - own[1]).std(ddof=1) / math.sqrt(20))
    assert error < 0.1 < better.standard_error


def test_a_paired_difference_takes_the_batches_that_both_have_seen():
    full = Score.of({"a": [1.0, 2.0, 3.0, 9.0]}, {"a": 1.0})
    short = Score.of({"a": [0.0, 1.0, 2.5]}, {"a": 1.0})
    assert paired_difference(full, short) == (pytest.approx(2.5 / 3), pytest.approx(np.std([1, 1, 0.5], ddof=1) / math.sqrt(3)))


@pytest.mark.parametrize("race", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_measurement_that_is_not_finite_is_the_worst_there_is(value, race):
    def scorer(placements, batches):
        noise = np.sin(np.arange(16.0))[batches.start : batches.stop]
        return {"a": np.array([noise + (value if name == "b" else len(name)) for (name,) in placements])}

    asked = [("a",), ("b",), ("ccc",), ("dd",)]
    measured = Evaluator(scorer, n_batches=16, shares={"a": 1.0}, key="key", race=race)
    for keep in (None, 1):
        scores = [float(score) for score in measured(asked, keep=keep)]
        assert scores[1] == -math.inf
        assert np.argsort(scores).tolist() == [1, 0, 3, 2]


def test_one_batch_tells_nothing_of_its_error():
    assert Score.of({"a": [1.0]}, {"a": 1.0}).standard_error is None
    assert Score.of({"a": [1.0, -math.inf]}, {"a": 1.0}).standard_error is None


@pytest.mark.parametrize(("metric", "best"), [("loss", 0.0), ("accuracy", 1.0), ("kl", 0.0)])
def test_higher_is_better_whatever_the_metric(metric, best):
    net = spaces.supernet()
    scores = evaluator(net, metric=metric)(spaces.placements(net.slots, 5))
    assert all(score.value < best for score in scores)
    assert len({score.value for score in scores}) > 1


def test_kl_to_a_teacher():
    net = spaces.supernet()
    chosen = spaces.placements(net.slots, 3)
    teacher = net.extract(chosen[1]).eval()
    scores = evaluator(net, metric="kl", teacher=teacher)(chosen)
    assert scores[1].value == pytest.approx(0, abs=1e-5)
    assert max(scores[0].value, scores[2].value) < -1e-3


@pytest.mark.parametrize(("max_eval_memory", "is_kept"), [(2**30, True), (80_000, False)])
def test_a_teacher_sees_all_once_where_its_logits_can_be_kept_and_says_the_same_where_not(max_eval_memory, is_kept):
    net, seen = spaces.supernet(), []
    chosen = spaces.placements(net.slots, 4)
    teacher = spaces.supernet(seed=1).eval()
    expected = evaluator(net, data(16), metric="kl", teacher=teacher)(chosen)
    teacher.register_forward_hook(lambda _, inputs, __: seen.extend(inputs[0]))
    evaluate = evaluator(net, data(16), metric="kl", teacher=teacher, max_eval_memory=max_eval_memory)
    scores = [*evaluate(chosen[:2]), *evaluate(chosen[2:])]
    assert [score.value for score in scores] == pytest.approx([score.value for score in expected], abs=1e-5)
    n_rows = sum(len(inputs) for own in data(16).values() for inputs, _ in own)
    assert (len(seen) == n_rows) == is_kept
    n_before = len(seen)
    evaluate(spaces.placements(net.slots, 2, seed=3))
    assert (len(seen) == n_before) == is_kept


def test_nothing_is_measured_twice_in_one_process():
    net = spaces.supernet()
    chosen = spaces.placements(net.slots, 6)
    evaluate = evaluator(net)
    first = evaluate([*chosen[:4], chosen[0]])
    assert first[0] == first[4]
    assert evaluate.counts.n_batch_evaluations == 4 * 4
    assert evaluate(chosen)[:4] == first[:4]
    assert evaluate.counts.n_batch_evaluations == 6 * 4
    assert evaluate.counts.n_layer_evaluations < evaluate.counts.n_layer_evaluations_alone == 6 * 4 * 4


def test_a_rerun_replays_the_log(tmp_path):
    net, path = spaces.supernet(), tmp_path / "scores.jsonl"
    chosen = spaces.placements(net.slots, 6)
    first = evaluator(net, log=ScoreLog(path))(chosen)
    again = evaluator(spaces.supernet(), log=ScoreLog(path))
    assert again(chosen) == first
    assert again.counts.n_batch_evaluations == 0
    assert again.counts.n_from_log == 6 * 4


@pytest.mark.parametrize("change", ["weights", "data", "metric", "precision", "teacher"])
def test_what_the_numbers_depend_on_is_in_the_key(tmp_path, change):
    chosen, path = spaces.placements(spaces.space().slots(), 2), tmp_path / "scores.jsonl"
    keys = {"metric": "kl"} if change == "teacher" else {}
    evaluator(spaces.supernet(), log=ScoreLog(path), **keys)(chosen)
    net = spaces.supernet()
    keys |= {
        "weights": {},
        "data": {"data_fingerprint": "other"},
        "metric": {"metric": "accuracy"},
        "precision": {"precision": "bf16"},
        "teacher": {"teacher": spaces.supernet(seed=1).eval()},
    }[change]
    if change == "weights":
        with torch.no_grad():
            net.rack.head.output.weight[0, 0] += 1e-6
    other = evaluator(net, log=ScoreLog(path), **keys)
    other(chosen)
    assert other.counts.n_batch_evaluations == 2 * 4


def test_a_torn_last_line_is_dropped_counted_and_measured_again(tmp_path):
    net, path = spaces.supernet(), tmp_path / "scores.jsonl"
    chosen = spaces.placements(net.slots, 5)
    first = evaluator(net, log=ScoreLog(path))(chosen)
    path.write_bytes(path.read_bytes()[:-30])
    log = ScoreLog(path)
    assert log.n_damaged == 1
    again = evaluator(net, log=log)
    for score, before in zip(again(chosen), first, strict=True):
        assert score.value == pytest.approx(before.value, rel=1e-5)
    assert again.counts.n_batch_evaluations == 4
    assert ScoreLog(path).n_damaged == 0
    assert len(path.read_text().splitlines()) == 5


def test_the_log_is_added_to_once_a_round_and_a_row_is_on_the_disk_when_the_round_is_over(tmp_path, monkeypatch):
    net, path = spaces.supernet(), tmp_path / "scores.jsonl"
    syncs = []
    monkeypatch.setattr("os.fsync", syncs.append)
    evaluate = evaluator(net, log=ScoreLog(path))
    chosen = spaces.placements(net.slots, 6)
    evaluate(chosen[:4])
    before = path.read_bytes()
    assert len(before.splitlines()) == 4
    evaluate(chosen)
    assert path.read_bytes().startswith(before)
    assert len(syncs) == 2


def test_numbers_that_json_has_no_word_for_come_back_as_minus_infinity(tmp_path):
    log = ScoreLog(tmp_path / "scores.jsonl")
    log.add_round({"key": (("a",), {"task": [0.5, -math.inf]})})
    assert "Infinity" not in log.path.read_text()
    assert ScoreLog(log.path).measured("key") == {"task": [0.5, -math.inf]}
    assert ScoreLog(log.path).measured("other") == {}
    assert json.loads(log.path.read_text())["n_batches"] == 2


def test_the_fingerprint_of_weights_is_that_of_every_tensor_and_of_the_space():
    net = spaces.supernet()
    print_before = weights_fingerprint(net)
    assert print_before == weights_fingerprint(spaces.supernet())
    assert print_before != weights_fingerprint(spaces.supernet(seed=1))
    net.activate(spaces.placements(net.slots, 1)[0])
    assert print_before == weights_fingerprint(net)
    assert print_before != weights_fingerprint(net.to(torch.bfloat16))
    windowed = {**spaces.MIXERS, "attention": {"kind": "attention", "n_heads": 2, "window": 3}}
    block = {"mixer": {"kind": "stochastic", "main": "attention", "mixers": windowed}, "mlp": spaces.MLPS["wide"]}
    other = spaces.supernet(stacks=[{"n_blocks": 4, "block": block}])
    assert other.state_dict().keys() == net.state_dict().keys()
    assert weights_fingerprint(other) != print_before


def test_keys_of_two_precisions_differ_and_auto_is_what_it_means_here():
    net = spaces.supernet()
    assert score_key(net, "data", "loss") == score_key(net, "data", "loss", precision="fp32")
    assert score_key(net, "data", "loss") != score_key(net, "data", "loss", precision="bf16")


def test_tasks_must_have_equally_many_batches():
    batches = {"long": spaces.batches(4), "short": spaces.batches(3)}
    with pytest.raises(ConfigError, match="equally many"):
        evaluator(spaces.supernet(), batches)


def test_a_race_over_too_few_batches_is_an_error():
    with pytest.raises(ConfigError, match=r"race: it first looks after 8 evaluation batches, and there are 4"):
        evaluator(spaces.supernet(), race=True)


def test_a_race_over_a_supernet_measures_less_and_agrees_with_the_full_evaluation():
    net = spaces.supernet(n_blocks=3)
    batches = {"task": spaces.batches(32, batch_size=2, seq_len=24)}
    chosen = spaces.placements(net.slots, 12)
    keys = {"data_fingerprint": "data", "race": True}
    race = SupernetEvaluator(net, batches, {"task": 1.0}, **keys)
    full = SupernetEvaluator(net, batches, {"task": 1.0}, data_fingerprint="data")(chosen)
    scores = race(chosen, keep=2)
    best = sorted(full, key=float)[-2:]
    assert race.races
    assert max(scores, key=float).value == pytest.approx(best[-1].value, rel=1e-5)
    assert race.counts.n_batch_evaluations + race.counts.n_saved_by_race == 12 * 32

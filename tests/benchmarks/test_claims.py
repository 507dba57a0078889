"""The table of claims: every one runs, rules are of the numbers alone, and what is done is not done again."""

import io
import json
import math
from copy import deepcopy

import pytest

from configs import ConfigError
from tests.benchmarks import bench_claims
from tests.benchmarks.claims import readers
from tests.benchmarks.claims.findings import differences, excess, falls, share_recovered, standard_error, text_of
from tests.benchmarks.claims.operations import operations
from tests.benchmarks.claims.runs import Runs


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder in which all claims have been measured, at a size that says nothing of them."""
    folder = tmp_path_factory.mktemp("claims")
    bench_claims.run(list(bench_claims.CLAIMS), folder, "tiny")
    return folder


def test_every_claim_is_measured_and_stands_in_the_table(measured):
    saved = json.loads((measured / "claims.json").read_text(encoding="utf-8"))
    lines = (measured / "claims.md").read_text(encoding="utf-8").splitlines()
    assert list(saved["claims"]) == [f"C{number}" for number in range(1, 15)]
    rows = [line.strip("| ").split(" | ") for line in lines[2 : lines.index("")]]
    assert list(dict.fromkeys(row[0] for row in rows)) == list(saved["claims"])
    assert {row[-1] for row in rows} == {"holds", "fails", "not measured here"}
    assert all(len(row) == 6 for row in rows if row[-1] != "not measured here")
    for entry in saved["claims"].values():
        assert {"numbers", "seconds", "seeds", "hardware", "torch", "python"} <= set(entry)
    assert any("one stack at the cost of growth, frozen" in line for line in lines)


def test_what_is_done_is_not_done_again(measured, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.claims.runs.run_stages", lambda *_, **__: pytest.fail("trained again"))
    before = json.loads((measured / "claims.json").read_text(encoding="utf-8"))["claims"]
    bench_claims.run(["C6", "C8"], measured, "tiny")
    after = json.loads((measured / "claims.json").read_text(encoding="utf-8"))["claims"]
    assert list(after) == list(before)
    assert {name: entry["numbers"] for name, entry in after.items()} == {name: entry["numbers"] for name, entry in before.items()}


def test_a_folder_is_of_one_size(measured):
    with pytest.raises(ConfigError, match="another size"):
        bench_claims.run(["C2"], measured, "small")


def test_a_reader_counts_what_it_holds(tmp_path, monkeypatch, capsys):
    runs = Runs(tmp_path, "tiny")
    cached = readers.opened(runs).cache.told()["cache_bytes"]
    monkeypatch.setattr("sys.stdin", io.StringIO("count\nend\n"))
    readers.read(tmp_path, "tiny")
    ready, told = capsys.readouterr().out.splitlines()
    assert ready == "ready"
    assert json.loads(told)["mapped"] >= cached > 0


def test_a_command_of_unknown_words_is_refused():
    with pytest.raises(SystemExit, match="C15"):
        bench_claims.main(["C15"])
    with pytest.raises(SystemExit, match="large"):
        bench_claims.main(["C1", "size=large"])


def verdicts(name, numbers):
    return [each.verdict for each in bench_claims.CLAIMS[name].judge(numbers)]


def curve(*losses):
    return [[float(place), loss] for place, loss in enumerate(losses, start=1)]


QUALITY = {
    "end to end": {"loss": [2.0, 2.0], "operations": 100.0, "stages": [[2.0], [2.0]], "curve": curve(3.0, 2.0)},
    "growth, full": {"loss": [2.0, 2.03], "operations": 75.0, "stages": [], "curve": curve(2.9, 2.2)},
    "growth, full, longer": {"loss": [2.0, 2.0], "operations": 75.0, "stages": [], "curve": curve(2.9, 2.2)},
    "growth, qlora": {"loss": [2.2, 2.2], "operations": 60.0, "stages": [], "curve": curve(3.1, 2.2)},
    "growth, frozen": {"loss": [2.4, 2.2], "operations": 40.0, "stages": [[2.6, 2.4], [2.5, 2.2]], "curve": curve(3.2, 2.3)},
    "one stack at the cost of growth, frozen": {"loss": [2.5, 2.3], "operations": 40.0, "stages": [], "curve": curve(3, 2.4)},
}
BITS = {"full": 32, "bfloat16": 16, "half": 16, "nvfp4": 4.5, "qlora": 4.15, "trunk bfloat16": 16, "trunk nf4": 4.15}
PREPEND = {"change": [0.0], "low before": [1.0], "low after": [1.009], "high before": [2.0], "high after": [1.99]}
LOCAL = {"end to end": [2.0], "blockwise": [2.4], "blockwise, tail": [2.19]}
TRUNK = {
    "ratios": {"64": 0.6, "1024": 0.3},
    "lowest_gradient": 0.1,
    "base_changed": [],
    "adapters_changed": 2,
    "trunk_moments_of_others": [],
    "trunk_moments_of_adapters": 4,
}
STEPS = {
    "deep": 16,
    "shallow": 2,
    "rows": {"cached": 8, "cached, larger": 32},
    "milliseconds": {"cached": 9.0, "cached, larger": 30.0},
    "ratios": {"cached": [0.9, 1.1, 3.0], "cached, larger": [1.0, 1.0, 1.2], "recomputed": [3.0, 4.0, 5.0]},
}
CURVES = {"memory": [1.0], "arrow": [1.0], "stream": [1.0], "none": [1.0]}
CACHED = {"curves": CURVES, "equal_hidden": [4, 4], "is_refused": True}
LEAKS = {"losses": {"masked": 3.3, "shown": 1.0}, "n_asked": [63], "n_positions": 64, "later_changes": [0.0, 1.0]}
PRECISION = {name: {"loss": [2.0], "bits": bits} for name, bits in BITS.items()}
TIMES = {"losses": {"none": [[2.0]], "depth": [[2.0]], "input, sinusoidal": [[2.0]], "input, learned": [[2.0]]}}
RANKED = {"local": {"a": [1.0], "b": [2.0], "c": [3.0]}, "whole": {"a": [1.0], "b": [2.0], "c": [3.0]}}
JOINT = {
    "loss": {"end to end": [2.0], "growth, frozen": [2.4], "growth, frozen, joint": [2.19]},
    "steps": {"growth, frozen": 4, "growth, frozen, joint": 5},
}
RESUMED = {"undisturbed": [[2.0, 1.0]], "killed": {"in a stage": [[2.0, 1.0]]}, "is_pickled": True,
           "readers": {"cache_bytes": 100, "memory": [{"mapped": 50, "own": 20}, {"mapped": 50, "own": 30}]}}  # fmt: skip
CASES = [
    ("C1", {"changes": {"append": 9e-6, "trunk to NF4": 0.1}}, {("changes", "append"): -2e-5}, [0]),
    (
        "C2",
        {"depths": [1, 2], "saved_bytes": {"append, frozen": [100, 104]}},
        {("saved_bytes", "append, frozen"): [100, 106]},
        [0],
    ),
    ("C3", STEPS, {("ratios", "cached"): [0.9, 1.2, 1.3]}, [0]),
    ("C3", STEPS, {("ratios", "cached, larger"): [0.9, 1.2, 1.3]}, [1]),
    ("C4", CACHED, {("curves", "arrow"): [1.1]}, [0]),
    ("C4", CACHED, {("equal_hidden",): [3, 4]}, [0]),
    ("C4", CACHED, {("is_refused",): False}, [0]),
    ("C5", TRUNK, {("ratios", "1024"): 0.31}, [0]),
    ("C5", TRUNK, {("lowest_gradient",): 0.0}, [1]),
    ("C5", TRUNK, {("adapters_changed",): 0}, [1]),
    ("C5", TRUNK, {("base_changed",): ["weight"]}, [1]),
    ("C5", TRUNK, {("trunk_moments_of_others",): ["weight"]}, [1]),
    ("C6", QUALITY, {("growth, full", "loss"): [2.02, 2.03]}, [0]),
    ("C6", QUALITY, {("growth, full", "operations"): 76.0}, [0]),
    ("C6", QUALITY, {("growth, full, longer", "loss"): [2.03, 2.03]}, [1]),
    ("C6", QUALITY, {("growth, qlora", "loss"): [2.5, 2.5]}, [2]),
    ("C6", QUALITY, {("growth, frozen", "stages"): [[2.3, 2.4], [2.2, 2.6]]}, [3]),
    ("C6", QUALITY, {("one stack at the cost of growth, frozen", "loss"): [2.2, 2.2]}, [4]),
    ("C7", {"loss": LOCAL, "exits": {"blockwise": [[2.5, 2.4]]}}, {("exits", "blockwise"): [[2.4, 2.4]]}, [0]),
    ("C7", {"loss": LOCAL, "exits": {"blockwise": [[2.5, 2.4]]}}, {("loss", "blockwise, tail"): [2.21]}, [1]),
    ("C8", JOINT, {("loss", "growth, frozen, joint"): [2.21]}, [0]),
    ("C9", PRECISION, {("bfloat16", "loss"): [2.02]}, [0]),
    ("C9", PRECISION, {("trunk nf4", "loss"): [2.07]}, [0]),
    ("C9", PRECISION, {("nvfp4", "bits"): 4.7}, [1]),
    ("C10", RANKED, {("whole", "a"): [4.0]}, [0]),
    ("C11", TIMES, {("losses", "input, learned"): [[2.1]]}, [1]),
    ("C11", TIMES, {("losses", "none"): [[1.9]]}, [0, 2]),
    ("C12", LEAKS, {("losses", "masked"): 3.2}, [0]),
    ("C12", LEAKS, {("losses", "shown"): 3.3}, [0]),
    ("C12", LEAKS, {("n_asked",): [64]}, [1]),
    ("C12", LEAKS, {("later_changes",): [0.1, 1.0]}, [2]),
    ("C13", {"cross_entropy": PREPEND}, {("cross_entropy", "low after"): [1.02]}, [0]),
    ("C13", {"cross_entropy": PREPEND}, {("cross_entropy", "high after"): [2.0]}, [0]),
    ("C13", {"cross_entropy": PREPEND}, {("cross_entropy", "change"): [1e-4]}, [0]),
    ("C14", RESUMED, {("killed", "in a stage"): [[2.0, 1.1]]}, [0]),
    ("C14", RESUMED, {("is_pickled",): False}, [1]),
    ("C14", RESUMED, {("readers", "cache_bytes"): 90}, [2]),
]


@pytest.mark.parametrize(("name", "numbers", "changes", "failing"), CASES)
def test_rules_hold_up_to_their_limit_and_fail_beyond(name, numbers, changes, failing):
    held = verdicts(name, numbers)
    assert set(held) <= {"holds", "not measured here"}
    changed = deepcopy(numbers)
    for path, value in changes.items():
        part = changed
        for key in path[:-1]:
            part = part[key]
        assert path[-1] in part
        part[path[-1]] = value
    assert [place for place, verdict in enumerate(verdicts(name, changed)) if verdict == "fails"] == failing


def test_where_there_is_no_gap_none_is_closed():
    numbers = {"loss": LOCAL | {"blockwise": [1.9]}, "exits": {"blockwise": [[2.5, 1.9]]}}
    assert verdicts("C7", numbers) == ["holds", "not measured here"]
    seeds = {"end to end": [2.0, 2.0], "blockwise": [2.4, 2.0], "blockwise, tail": [2.0, 2.0]}
    assert verdicts("C7", numbers | {"loss": seeds}) == ["holds", "not measured here"]


def test_readers_that_cannot_be_counted_are_no_failure():
    assert verdicts("C14", RESUMED | {"readers": None}) == ["holds", "holds", "not measured here"]


def test_statistics():
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    assert text_of([1.0, 3.0], ".1f") == "2.0 ± 1.0"
    assert text_of([1.0, 3.0], "+.1f") == "+2.0 ± 1.0"
    assert text_of([1.0], ".1f") == "1.0"
    assert differences([3.0, 1.0], [1.0, 2.0]) == [2.0, -1.0]
    assert excess([2.0, 2.2], [2.0, 2.0]) == pytest.approx(0.05)
    assert share_recovered(2.4, 2.0, 2.1) == pytest.approx(0.75)
    assert math.isnan(share_recovered(2.0, 2.4, 2.1))
    assert falls([3.0, 2.0])
    assert not falls([2.0, 2.0])


def test_operations_are_counted_by_what_trains(tmp_path):
    """By hand: forward passes of a block b and of the head h, for tokens in 3 steps, and rows of a cache."""
    runs = Runs(tmp_path, "tiny")
    size = runs.size
    tokens, cached = 3 * size.batch_size * size.seq_len, size.n_train * size.seq_len

    def of(**changes):
        return [each / tokens for each in operations(runs.spec(**changes))]

    (one,) = of(growth={"target_stacks": 1, "stage_steps": 3})
    (two,) = of(growth={"target_stacks": 2, "stage_steps": 3, "enabled": False})
    b, h = (two - one) / 3, (2 * one - two) / 3
    assert min(b, h) > 0
    growth = {"target_stacks": 3, "stage_steps": 3}
    known = [3 * b + 3 * h, cached / tokens * b + 3 * b + 3 * h, cached / tokens * b + 3 * b + 3 * h]
    assert of(growth=growth) == pytest.approx(known)
    recomputed = of(growth=growth | {"cache_activations": False})
    assert recomputed == pytest.approx([3 * b + 3 * h, 4 * b + 3 * h, 5 * b + 3 * h])
    assert of(growth=growth | {"trunk_strategy": "full"}) == pytest.approx([n * 3 * b + 3 * h for n in (1, 2, 3)])
    assert of(growth=growth | {"building_mode": "prepend"}) == pytest.approx([3 * b + 3 * h, 5 * b + 3 * h, 7 * b + 3 * h])
    adapters = [each - (2 * n + 1) * b - 3 * h for n, each in enumerate(of(growth=growth | {"trunk_strategy": "qlora"}), start=1)]
    assert adapters[2] - adapters[1] == pytest.approx(adapters[1] - adapters[0])
    assert adapters[0] == pytest.approx(0)
    assert adapters[1] > 0
    local = {"training_architecture": "blockwise", "growth": growth | {"enabled": False}}
    assert of(**local) == pytest.approx([9 * b + 9 * h])
    assert of(**local, local_loss={"head": "tail"}) == pytest.approx([15 * b + 9 * h])

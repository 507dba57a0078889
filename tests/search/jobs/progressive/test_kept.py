"""What a growth holds while it runs, and what it says it did: no more than is asked for, and the truth after a kill too."""

import gc
from weakref import WeakSet

import pytest

from configs import ConfigError
from configs.records import read_json
from search.activations.memory import MemoryStore
from search.jobs.progressive import stage as stage_module
from search.jobs.progressive.stages import caches
from tests.search.growths import AHEAD, STACK, grow_here, growth_spec, rows, stages_here

LINEAR = {"n_blocks": 1, "block": {"mixer": {"kind": "linear_attention", "n_heads": 2}, "mlp": {"kind": "mlp", "d_ff": 24}}}
MISSING = {"n_blocks": 1, "block": {"mixer": {"kind": "gated_delta_net", "n_heads": 2, "kernel": "fla"}, "mlp": None}}


@pytest.mark.parametrize("n_train", [20, 100])
def test_what_training_comes_to_is_filled_and_nothing_else(n_train, tmp_path):
    """Six steps of 8 rows: two epochs and a part of the third of 20 samples in two variants; a half of an epoch of 100."""
    spec = growth_spec(
        block=AHEAD,
        objective="mlm",
        data={"n_train": n_train},
        growth={"cache_mode": "arrow", "cache_variants": 3, "target_stacks": 2},
    )
    stages_here(spec, tmp_path)
    row = rows(tmp_path)[1]
    assert (row["trunk_forwards"], row["cache_misses"], row["cache_hits"]) == (0, 0, 48)
    assert row["cache_fill_forwards"] == 48


def test_one_cache_at_a_time_is_in_memory(tmp_path, monkeypatch):
    alive, held, made = WeakSet(), [], MemoryStore.__init__

    def make(self, *arguments, **options):
        made(self, *arguments, **options)
        alive.add(self)

    def look(*_):
        if len(alive) > 1:
            gc.collect()
        held.append(len(alive))

    monkeypatch.setattr(MemoryStore, "__init__", make)
    stages_here(growth_spec(growth={"target_stacks": 4}), tmp_path, on_evaluation=look)
    assert held == [0, 0, 1, 1, 1, 1, 1, 1]


def test_files_of_caches_are_given_back_with_their_stage(tmp_path):
    there = []
    spec = growth_spec(growth={"target_stacks": 4, "cache_mode": "arrow"})

    def look(*_):
        there.append(len(list(caches(spec, tmp_path).glob("*"))))

    stages_here(spec, tmp_path, on_evaluation=look)
    assert there == [0, 0, 1, 1, 1, 1, 1, 1]
    assert not caches(spec, tmp_path).exists()


def test_local_losses_keep_what_one_unit_keeps(tmp_path):
    saved = {}
    for mode in ("rackwise", "stackwise"):
        stages_here(growth_spec(growth={"enabled": False}, training_architecture=mode), tmp_path / mode)
        saved[mode] = rows(tmp_path / mode)[0]["saved_bytes"]
    assert saved["stackwise"] < 0.6 * saved["rackwise"]


def test_a_loss_of_its_own_keeps_nothing_of_the_trunk(tmp_path):
    saved = {}
    for loss in ("cross_entropy", "denoise_mse"):
        growth = {"building_mode": "prepend", "prepend_loss": loss}
        stages_here(growth_spec(block=AHEAD, objective="mlm", growth=growth), tmp_path / loss)
        saved[loss] = [row["saved_bytes"] for row in rows(tmp_path / loss)]
    assert saved["denoise_mse"][1] == saved["denoise_mse"][2] < saved["cross_entropy"][1] < saved["cross_entropy"][2]


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_counts_go_on_after_an_interrupt(mode, tmp_path, monkeypatch):
    spec = growth_spec(growth={"cache_mode": mode, "target_stacks": 2})
    stages_here(spec, tmp_path / "whole")
    stop, stepped = [(1, 4)], stage_module.StageRun._stepped

    def interrupt(self, step):
        goes_on = stepped(self, step)
        if stop and (self.stage.index, step) == stop[0]:
            stop.clear()
            return False
        return goes_on

    monkeypatch.setattr(stage_module.StageRun, "_stepped", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stages_here(spec, tmp_path / "cut")
    stages_here(spec, tmp_path / "cut")
    names = ("cache_hits", "cache_misses", "cache_hit_rate", "trunk_forwards", "saved_bytes", "losses")
    whole, cut = (rows(tmp_path / name)[1] for name in ("whole", "cut"))
    assert {name: cut[name] for name in names} == {name: whole[name] for name in names}


def test_one_that_cannot_be_built_here_is_told_by_name_and_in_the_status(tmp_path):
    spec, lines = growth_spec(candidates={"usual": STACK, "missing": MISSING}, growth={"target_stacks": 2}), []
    assert grow_here(spec, tmp_path, lines) == 1
    assert lines[-1].startswith("stage 2: candidate missing failed:")
    told = read_json(tmp_path / "results.json")["stages"][1]
    assert (told["chosen"], [bool(each["error"]) for each in told["candidates"]]) == ("usual", [False, True])


def test_a_limit_that_files_would_break_has_candidates_do_without(tmp_path):
    how = {"candidates": {"usual": STACK, "linear": LINEAR}, "choice": {"n_steps": 6}}
    assert grow_here(growth_spec(**how, growth={"target_stacks": 2, "cache_mode": "auto", "cache_bytes": 100}), tmp_path) == 0
    assert rows(tmp_path)[1]["cache_mode"] == "stream"
    told = [read_json(path)["cache_mode"] for path in tmp_path.glob("stages/02/candidates/*/result.json")]
    assert told == ["stream", "stream"]


def test_half_and_local_losses_are_not_for_each_other():
    with pytest.raises(ConfigError, match="half needs its loss scaled"):
        growth_spec(training_architecture="blockwise", growth={"enabled": False, "new_stack_precision": "half"})

"""Candidates for the next stack: ranked on one cache, the best one is what training it alone would have been, none twice."""

import fcntl
import threading
from contextlib import contextmanager

import pytest

from configs import ConfigError
from configs.records import read_json, write_json
from models.spec.placement import parse_placement
from search.activations import folder as cache_files
from search.budget import Budget
from search.jobs.progressive import stage as stage_module
from search.jobs.progressive.candidates import CandidateSpec, choose_stack, run_candidate
from search.jobs.progressive.weights import load_rack
from search.runs.errors import RunError
from search.strategies import STRATEGIES
from tests.search.cases import FAR_TOO_HIGH
from tests.search.growths import BLOCK, STACK, grow_here, growth_spec, numbers, rows, same_bits, stages_here, state

WIDE = {"n_blocks": 1, "block": {**BLOCK, "mlp": {"kind": "mlp", "d_ff": 40}}}
LINEAR = {"n_blocks": 1, "block": {**BLOCK, "mixer": {"kind": "linear_attention", "n_heads": 2}}}
WILD = {**STACK, "lr_scale": FAR_TOO_HIGH}
CANDIDATES = {"usual": STACK, "wide": WIDE, "linear": LINEAR}
STOCHASTIC = {
    "kind": "stochastic",
    "main": "attention",
    "mixers": {"attention": BLOCK["mixer"], "linear": LINEAR["block"]["mixer"]},
}
SPACE = {"n_blocks": 2, "block": {**BLOCK, "mixer": STOCHASTIC}}


def choosing(candidates=CANDIDATES, **keys):
    """A run that grows by one stack, chosen after as many steps as it then trains."""
    growth = {"target_stacks": 2, **keys.pop("growth", {})}
    return growth_spec(candidates=candidates, growth=growth, choice={"n_steps": 6, **keys.pop("choice", {})}, **keys)


def choice(out, number=2):
    """What was written down of a choice."""
    return read_json(out / f"stages/{number:02d}/choice.json")


def candidate_rows(out, number=2):
    """The rows of the candidates, by name."""
    paths = (out / f"stages/{number:02d}/candidates").glob("*/result.json")
    return {path.parent.name: read_json(path) for path in paths}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A run with three candidates, undisturbed."""
    out = tmp_path_factory.mktemp("chosen")
    assert grow_here(choosing(), out) == 0
    return out


def test_the_best_is_chosen_and_its_stage_is_its_own_training(chosen):
    told = choice(chosen)
    losses = {row["name"]: row["loss"] for row in told["candidates"]}
    assert list(losses) == list(CANDIDATES)
    assert len(set(losses.values())) == 3
    assert told["name"] == min(losses, key=losses.get)
    row, trial = rows(chosen)[1], candidate_rows(chosen)[told["name"]]
    assert row["chosen"] == told["name"]
    own = {name for name in row if name.startswith("cache_")} | {"chosen", "candidates"}
    assert {name: value for name, value in numbers(row).items() if name not in own} == {
        name: value for name, value in numbers(trial).items() if name not in own
    }


def test_each_loss_is_that_of_a_run_with_that_stack_alone(chosen, tmp_path):
    for name, stack in CANDIDATES.items():
        grow_here(growth_spec(stack=stack, growth={"target_stacks": 2}), tmp_path / name)
        assert rows(tmp_path / name)[1]["loss"] == candidate_rows(chosen)[name]["loss"]
    best = tmp_path / choice(chosen)["name"]
    assert same_bits(state(best), state(chosen))


def test_the_trunk_runs_once_for_all(tmp_path, monkeypatch):
    written = []

    def write(path, *arguments, **options):
        written.append(path.parent.name)
        return write_shard(path, *arguments, **options)

    write_shard = cache_files.write_shard
    monkeypatch.setattr(cache_files, "write_shard", write)
    grow_here(choosing(growth={"cache_mode": "auto"}), tmp_path)  # which takes the files that are there
    assert len(written) == 1
    told = [*candidate_rows(tmp_path).values(), rows(tmp_path)[1]]
    assert [row["trunk_forwards"] for row in told] == [0] * 4
    assert [row["cache_hit_rate"] for row in told] == [1.0] * 4
    assert sorted(row["cache_fill_forwards"] for row in told) == [0, 0, 0, 24]


def test_who_finds_the_cache_half_filled_waits_for_it(chosen, tmp_path, monkeypatch):
    """As another trial would that comes a moment later."""

    @contextmanager
    def filling(self, **options):
        held = (self.folder / ".lock").open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.2, held.close).start()
        with fill(self, **options):
            yield

    fill = cache_files.ArrowStore.filling
    monkeypatch.setattr(cache_files.ArrowStore, "filling", filling)
    grow_here(choosing(), tmp_path)
    assert choice(tmp_path)["name"] == choice(chosen)["name"]


@pytest.mark.parametrize("growth", [{"cache_mode": "stream"}, {"cache_activations": False}])
def test_without_files_the_ranking_is_the_same(chosen, tmp_path, growth):
    """To the last bit where rows go through the trunk one by one."""
    grow_here(choosing(growth=growth), tmp_path)
    assert choice(tmp_path)["name"] == choice(chosen)["name"]
    same = {name: row["loss"] for name, row in candidate_rows(chosen).items()}
    assert {name: row["loss"] for name, row in candidate_rows(tmp_path).items()} == pytest.approx(same, rel=1e-5)
    assert not list(tmp_path.rglob("*.arrow"))


def test_candidates_of_a_trunk_that_moves_have_no_cache(tmp_path):
    grow_here(choosing(growth={"trunk_strategy": "qlora", "progressive_qlora_rank": 2}), tmp_path)
    assert all("cache_mode" not in row for row in candidate_rows(tmp_path).values())
    assert len(load_rack(tmp_path).stacks) == 2


def test_one_that_fails_is_told_and_the_others_go_on(tmp_path):
    """One cannot start as a copy of the trunk's, the first one; one diverges."""
    spec, lines = choosing({"wide": WIDE, "wild": WILD, "usual": STACK}, growth={"init": "copy_last"}), []
    assert grow_here(spec, tmp_path, lines) == 1  # the run has ended, but not all of it went well
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "finished"]
    told = choice(tmp_path)
    errors = {row["name"]: row["error"] for row in told["candidates"]}
    assert "those of stack 0 are others" in errors["wide"]
    assert errors["wild"].startswith("diverged: at step")
    assert errors["usual"] is None
    assert told["name"] == "usual"
    assert "stage 2: usual is chosen among 3 candidate(s)" in lines
    assert rows(tmp_path)[1]["chosen"] == "usual"


def test_where_all_fail_there_is_nothing_to_choose(tmp_path):
    spec = choosing({"one": WILD, "two": {**WIDE, "lr_scale": FAR_TOO_HIGH}})
    with pytest.raises(RunError, match="no candidate could be trained: diverged: at step"):
        grow_here(spec, tmp_path)
    assert not (tmp_path / "stages/02/choice.json").exists()


@pytest.mark.parametrize("strategy", [kind for kind in STRATEGIES if kind not in ("interleave", "bookend")])
def test_every_strategy_finds_the_stack_that_trains_where_a_mixer_cannot(tmp_path, strategy):
    """All but one of eight stacks diverge, among them the cheapest, from which the default strategy starts."""
    spec = growth_spec(stack={**SPACE, "n_blocks": 3}, growth={"target_stacks": 2}, choice={"strategy": strategy})

    def rank(candidates, folder):
        del folder
        mixers = {name: [block.mixer.kind for block in each.stack.expanded()] for name, each in candidates.items()}
        wild = {"error": "diverged: at step 1"}
        return {name: wild if "linear_attention" in kinds else {"loss": 1.0} for name, kinds in mixers.items()}

    write_json(tmp_path / "stages/01/result.json", {"data": spec.data.samples(spec.seed).fingerprint()})
    choose_stack(spec, tmp_path, rank, lambda _: None)
    assert choice(tmp_path)["name"].startswith("attentionx3-")


def test_an_interrupted_choice_goes_on_and_trains_none_twice(chosen, tmp_path, monkeypatch):
    trained = []

    def train(self):
        if self.place.folder.parent.name == "candidates":
            trained.append(self.place.folder.name)
            if len(trained) == 2:
                raise KeyboardInterrupt
        return whole(self)

    whole = stage_module.StageRun.train
    monkeypatch.setattr(stage_module.StageRun, "train", train)
    with pytest.raises(KeyboardInterrupt):
        grow_here(choosing(), tmp_path)
    assert grow_here(choosing(), tmp_path) == 0
    assert trained == ["usual", "wide", "wide", "linear"]
    assert [row["name"] for row in choice(tmp_path)["candidates"]] == list(CANDIDATES)
    assert choice(tmp_path)["name"] == choice(chosen)["name"]
    assert same_bits(state(tmp_path), state(chosen))


def test_every_stage_chooses_anew(tmp_path):
    grow_here(choosing({"usual": STACK, "linear": LINEAR}, growth={"target_stacks": 3, "joint_tuning_steps": 2}), tmp_path)
    assert [row.get("chosen") is not None for row in rows(tmp_path)] == [False, True, True, False]
    assert [len(candidate_rows(tmp_path, number)) for number in (2, 3)] == [2, 2]
    final = load_rack(tmp_path)
    kinds = [type(stack.blocks[0].mixer).__name__ for stack in final.stacks[1:]]
    named = {"usual": "Attention", "linear": "LinearAttention"}
    assert kinds == [named[row["chosen"]] for row in rows(tmp_path)[1:3]]


def test_a_strategy_looks_through_a_space_within_a_budget(tmp_path):
    """Three of four placements have at most one layer of attention; an exhaustive strategy scores them all, and one time each."""
    strategy = {"kind": "random", "n_evaluations": 9, "batch_size": 2}
    spec = choosing(None, stack=SPACE, choice={"strategy": strategy, "budget": {"attention": "<=1"}, "n_steps": 3})
    grow_here(spec, tmp_path)
    told = choice(tmp_path)
    space = spec.space(spec.stack)
    budget = Budget.of({"attention": "<=1"}, space)
    placements = [tuple(block["mixer"]["kind"] for block in _blocks(row, tmp_path)) for row in told["candidates"]]
    assert len(set(placements)) == len(placements) == 3
    names = {"attention": "attention", "linear_attention": "linear"}
    assert all(budget.admits(parse_placement([names[kind] for kind in each], space.slots())) for each in placements)
    assert told["name"] == min(told["candidates"], key=lambda row: row["loss"])["name"]
    assert len(load_rack(tmp_path).stacks[1].blocks) == 2


def _blocks(row, out):
    saved = read_json(out / "stages/02/candidates" / row["name"] / "spec.json")
    return [block.to_dict() for block in CandidateSpec.model_validate(_bare(saved)).stack.expanded()]


def _bare(saved):
    return {name: value for name, value in saved.items() if name in CandidateSpec.model_fields}


def test_a_candidate_needs_the_stage_before(tmp_path):
    spec = CandidateSpec(run=choosing(), run_folder=str(tmp_path), index=1, stack=STACK)
    with pytest.raises(ConfigError, match="the stage before stage 2 is not the newest that is done"):
        run_candidate(spec, tmp_path / "candidate")
    assert not (tmp_path / "candidate").exists()


def test_what_a_strategy_scores_beyond_the_budget_is_not_chosen(tmp_path):
    """`exact` scores some to learn what each choice is worth; here more attention is always better."""
    spec, space = choosing(None, stack=SPACE, choice={"strategy": {"kind": "exact"}, "budget": {"attention": "<=1"}}), []

    def rank(candidates, _):
        space.extend(candidates)
        n_attention = {
            name: sum(block.mixer.kind == "attention" for block in each.stack.expanded()) for name, each in candidates.items()
        }
        return {name: {"loss": 2.0 - n, "status": "finished"} for name, n in n_attention.items()}

    stages_here(spec, tmp_path)
    choose_stack(spec, tmp_path, rank, lambda _: None)
    assert any(name.startswith("attentionx2") for name in space)
    chosen = choice(tmp_path)["stack"]
    assert sorted(block["mixer"]["kind"] for block in chosen["blocks"]) == ["attention", "linear_attention"]

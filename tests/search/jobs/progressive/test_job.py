"""The job that grows a rack: what moves and what stands still, what is computed, what is kept, what is told."""

import json
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from configs import ConfigError
from configs.records import read_json, read_rows
from models.assembly.quantise import memory_bytes
from models.growth.edit_spec import stack_uids
from models.linears.quantised import QuantisedLinear
from models.rack.modules import Stack
from search.jobs.progressive import stage as stage_module
from search.jobs.progressive import stages as stages_module
from search.jobs.progressive.report import table
from search.jobs.progressive.weights import load_rack, load_stage
from search.training import checkpoint
from tests.search.cases import FAR_TOO_HIGH
from tests.search.growths import (
    AHEAD,
    BLOCK,
    STACK,
    grow_here,
    growth_spec,
    numbers,
    results,
    rows,
    same_bits,
    stages_here,
    state,
)

CPU = torch.device("cpu")
MASKED = {"objective": "mlm", "block": AHEAD}
ADAPTED = {"qlora_enabled": True, "progressive_qlora": True, "qlora_rank": 2, "progressive_qlora_rank": 2}
QLORA = {"trunk_strategy": "qlora", "progressive_qlora_rank": 2}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """The folder of stages that have run to the end, made once for each spec."""
    made = {}

    def make(**keys):
        spec = growth_spec(**keys)
        name = json.dumps(spec.to_dict())  # also how it is run
        if name not in made:
            made[name] = tmp_path_factory.mktemp("run")
            stages_here(spec, made[name])
        return made[name]

    return make


@pytest.fixture
def counted(monkeypatch):
    """How often each stack ran in the loop of each stage, evaluation included: calls by (stage, uid)."""
    calls, stage = Counter(), []

    def count(module, *_):
        if stage and isinstance(module, Stack):
            calls[stage[-1], module.uid] += 1

    def train(self):
        stage.append(self.stage.index + 1)
        try:
            return trained(self)
        finally:
            stage.pop()

    trained = stage_module.StageRun.train
    monkeypatch.setattr(stage_module.StageRun, "train", train)
    handle = register_module_forward_hook(count)
    yield calls
    handle.remove()


def of_stack(tensors, position):
    """The tensors of a stack, by their names in it."""
    start = f"stacks.{position}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def changed(before, after):
    """The names of tensors that are in both, and differ."""
    return {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}


# What is computed


def test_a_cached_trunk_does_not_run_and_what_is_kept_for_the_backward_pass_stays_flat(tmp_path, counted):
    stages_here(growth_spec(growth={"target_stacks": 6}), tmp_path)
    n_passes = 6 + 2 * 2  # steps, and evaluations of two batches
    assert counted == {(stage, stage - 1): n_passes for stage in range(1, 7)}  # none of stacks below
    told = rows(tmp_path)
    assert [row["trunk_forwards"] for row in told] == [0] * 6
    assert [row["cache_hit_rate"] for row in told[1:]] == [1.0] * 5
    assert [row["cache_misses"] for row in told[1:]] == [0] * 5
    saved = [row["saved_bytes"] for row in told[1:]]
    assert max(saved) <= 1.05 * min(saved)
    # each trunk goes on from the cache of the one before: its new stack alone runs, but for a row that goes both ways
    assert {row["cache_fill_forwards"] for row in told[1:]} == {24 + 1, 24}


def test_a_trunk_that_is_not_cached_runs_at_every_step(tmp_path, counted):
    stages_here(growth_spec(growth={"cache_mode": "stream"}), tmp_path)
    n_rows = 8  # one forward pass each
    assert counted[3, 0] == counted[3, 1] == 6 * n_rows
    assert [row["trunk_forwards"] for row in rows(tmp_path)] == [0, 6 * n_rows, 6 * n_rows]


def test_below_a_trunk_what_is_kept_grows_with_depth(grown):
    saved = [row["saved_bytes"] for row in rows(grown(growth={"target_stacks": 4, "building_mode": "prepend"}))]
    steps = [after - before for before, after in pairwise(saved[1:])]
    assert min(steps) > 0.25 * saved[1]


def test_checkpointing_keeps_less_and_learns_the_same(grown):
    usual, less = (grown(growth={"building_mode": "prepend", "gradient_checkpointing": on}) for on in (False, True))
    assert rows(less)[-1]["saved_bytes"] < 0.9 * rows(usual)[-1]["saved_bytes"]
    assert same_bits(state(less), state(usual))


@pytest.mark.parametrize("keys", [MASKED, {"block": {**BLOCK, "dropout": 0.3}}])
def test_every_mode_of_the_cache_gives_the_same_weights_to_the_last_bit(grown, keys):
    growth = {"cache_variants": 1} if keys is MASKED else {}
    folders = [grown(**keys, growth={"cache_mode": mode, **growth}) for mode in ("stream", "memory", "arrow", "auto")]
    for folder in folders[1:]:
        for n_stages in (2, 3):
            assert same_bits(state(folder, n_stages), state(folders[0], n_stages))
        assert not (folder / "caches").exists()  # of no use any more
    memory, arrow = rows(folders[1])[-1], rows(folders[2])[-1]
    assert (memory["cache_hit_rate"], arrow["cache_hit_rate"]) == (1.0, 1.0)  # in the order of a shuffled epoch
    assert memory["cache_bytes"] == arrow["cache_bytes"] == 24 * memory["tokens"] // (6 * 8) * 16 * 4


def test_masks_differ_by_epoch_in_as_many_variants_as_are_kept(grown):
    one, two = (rows(grown(**MASKED, growth={"cache_variants": n}))[1] for n in (1, 2))
    assert two["cache_bytes"] == 2 * one["cache_bytes"]
    assert one["losses"][:3] == two["losses"][:3]  # a first epoch
    assert one["losses"][3:] != two["losses"][3:]


def test_a_cache_that_is_too_large_is_refused_with_numbers(tmp_path):
    with pytest.raises(ConfigError, match=r"24 samples x 15 time x 16 d_model x 4 bytes = 23040 bytes, over the limit of 1000"):
        grow_here(growth_spec(growth={"cache_bytes": 1000}), tmp_path)


@pytest.mark.parametrize("mode", ["memory", "arrow", "stream"])
def test_one_weight_of_the_trunk_that_changes_after_filling_is_refused(tmp_path, monkeypatch, mode):
    def train(self):
        if self.stage.index == 1:
            with torch.no_grad():
                self.model.rack.stacks[0].blocks[0].mlp.up.weight[0, 0] += 1e-3
        return trained(self)

    trained = stage_module.StageRun.train
    monkeypatch.setattr(stage_module.StageRun, "train", train)
    with pytest.raises(ConfigError, match="the trunk has changed"):
        stages_here(growth_spec(growth={"cache_mode": mode}), tmp_path)


# What moves


@pytest.mark.parametrize("mode", ["append", "prepend"])
def test_beside_a_frozen_trunk_the_new_stack_and_the_head_move_alone(grown, mode):
    out = grown(growth={"building_mode": mode})
    before, after = state(out, 2), state(out, 3)
    moved = {name.split(".")[0] for name in changed(before, after) if not name.startswith("stacks.")}
    assert moved == {"head"}
    for position in range(2):  # in the rack of two stacks; prepended, they stand one higher in that of three
        assert same_bits(of_stack(before, position), of_stack(after, position + (mode == "prepend")))
    born = of_stack(after, 2 if mode == "append" else 0)
    assert all(born[f"blocks.0.{name}.weight"].any() for name in ("mlp.down", "mixer.output"))  # these start at zero


def test_a_trunk_that_trains_on_moves_with_all_there_is(grown):
    out = grown(growth={"trunk_strategy": "full"})
    before, after = state(out, 1), state(out, 2)
    assert changed(before, after) == before.keys()


def test_of_a_qlora_trunk_adapters_move_and_no_stored_byte(grown):
    out = grown(growth={**QLORA, "qlora_enabled": True, "qlora_rank": 2})
    before, after = state(out, 2), state(out, 3)
    moved = {name for name in changed(before, after) if name.startswith("stacks.0.")}
    assert moved == {name for name in before if name.startswith("stacks.0.") and ".adapters." in name}
    assert {re.search(r"adapters\.(\w+)\.", name)[1] for name in moved} == {"lora", "progressive"}
    assert any(tensor.dtype == torch.uint8 for tensor in of_stack(after, 0).values())


def test_gradients_reach_the_lowest_adapter_after_every_evaluation(tmp_path):
    seen = []

    def look(member, _row):
        stack = member.model.rack.stacks[0]
        seen.append({name: each.detach().clone() for name, each in stack.named_parameters() if ".progressive." in name})

    stages_here(growth_spec(eval_every=1, growth={**QLORA, "target_stacks": 2}), tmp_path, on_evaluation=look)
    for before, after in pairwise(seen[6:]):  # the last stage; without a gradient nothing moves
        assert before
        assert {name for name in changed(before, after) if name.endswith("up")} == {n for n in before if n.endswith("up")}


def test_what_the_optimizer_knows_of_a_survivor_goes_on(grown):
    out = grown()
    moments, _ = checkpoint.read(out / "stages/03/moments.safetensors", CPU)
    steps = {name.partition("|")[0]: int(tensor) for name, tensor in moments.items() if name.endswith("|step")}
    assert steps["head.output.weight"] == 18
    assert steps["stacks.2.blocks.0.mixer.query.weight"] == 6
    assert not any(name.startswith(("embedding", "stacks.0")) for name in steps)
    assert not list(out.glob("stages/0[12]/moments*"))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("full", {"embedding", "head", "1 base", "0 lora", "0 progressive"}),
        ("adapters", {"0 lora", "0 progressive", "1 lora"}),
        ("head", {"head"}),
    ],
)
def test_joint_tuning_changes_what_it_says(grown, mode, expected):
    out = grown(growth={**QLORA, **ADAPTED, "target_stacks": 2, "joint_tuning_steps": 4, "fine_tune_mode": mode})
    found = set()
    for name in changed(state(out, 2), state(out, 3)):
        part, _, rest = name.partition(".")
        adapter = re.search(r"adapters\.(\w+)\.", name)
        found.add(f"{rest.partition('.')[0]} {adapter[1] if adapter else 'base'}" if part == "stacks" else part)
    assert found == expected
    assert rows(out)[-1]["kind"] == "joint"
    assert rows(out)[-1]["steps"] == 4


# Growth


@pytest.mark.parametrize("mode", ["append", "prepend"])
@pytest.mark.parametrize("growth", [{}, ADAPTED, {"new_stack_precision": "nvfp4"}, {"trunk_strategy": "full"}])
def test_growth_leaves_the_loss_as_it_was(grown, mode, growth):
    for row in rows(grown(growth={"building_mode": mode, **growth}))[1:]:
        assert row["loss_grown"] == pytest.approx(row["loss_before"], rel=1e-5)
        assert row["loss"] != pytest.approx(row["loss_before"], abs=1e-4)  # and then it learns


def test_what_is_drawn_does_not(grown):
    for row in rows(grown(growth={"init": "random"}))[1:]:
        assert abs(row["loss_grown"] - row["loss_before"]) > 1e-3


def test_stacks_that_are_there_count(grown):
    told = rows(grown(rack={"stacks": [STACK, STACK]}))
    assert [(row["stacks"], row["uid"]) for row in told] == [(2, 1), (3, 2)]


def test_adapters_keep_their_size_below_new_stacks(grown):
    sizes = {uid: {"rank": uid + 1} for uid in range(3)}
    growth = {**QLORA, "qlora_enabled": True, "qlora_strategy": "variable", "qlora_configs": sizes, "building_mode": "prepend"}
    spec = load_stage(grown(growth=growth) / "stages/03", CPU)[0].rack
    assert stack_uids(spec) == (2, 1, 0)
    final = state(grown(growth=growth))
    ranks = [len(of_stack(final, place)["blocks.0.mixer.query.adapters.lora.down"]) for place in range(3)]
    assert ranks == [3, 2, 1]


PRECISIONS = {"half": 0.5, "bfloat16": 0.5, "fp8": 0.25, "nvfp4": 0.14, "qlora": 0.13}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_trunk_takes_the_bytes_of_its_precision(grown, precision):
    out = grown(growth={"new_stack_precision": precision, "target_stacks": 2})
    rack = load_rack(out)
    linears = [part for part in rack.stacks[0].modules() if isinstance(part, QuantisedLinear)]
    assert len(linears) == 6
    n_weights = sum(part.in_features * part.out_features for part in linears)
    stored = sum(getattr(part, name).nbytes for part in linears for name in part.stored())
    assert PRECISIONS[precision] * 4 * n_weights <= stored <= 1.16 * PRECISIONS[precision] * 4 * n_weights
    is_stored = precision == "qlora"
    assert any(isinstance(part, QuantisedLinear) for part in rack.stacks[1].modules()) == is_stored
    first, second = rows(out)
    assert second["precision"] == precision
    assert second["weight_bytes"] == memory_bytes(rack)
    assert second["loss"] < first["loss_grown"]
    before, after = state(out, 1), state(out, 2)
    if is_stored:
        assert same_bits(of_stack(before, 0), of_stack(after, 0))


# What is left and told


def test_each_stage_leaves_a_model_with_the_loss_that_it_tells(grown):
    """The mean over all next tokens of the held-out samples, one by one: one fewer than there are positions."""
    stored = {**QLORA, "qlora_enabled": True, "qlora_rank": 2}
    for growth in ({}, {"building_mode": "prepend", **ADAPTED}, {"new_stack_precision": "nvfp4"}, stored):
        out = grown(growth=growth)
        samples = growth_spec().data.samples(0)
        tokens = torch.as_tensor(samples.sequences("validation", np.arange(16)).tokens).long()
        for number, row in enumerate(rows(out), start=1):
            rack = load_rack(out, n_stages=number)
            assert not rack.training
            with torch.no_grad():
                logits = rack(tokens)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            assert row["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_a_stage_that_is_not_there_is_told(grown, tmp_path):
    with pytest.raises(ConfigError, match="there are 3 finished stages; got n_stages = 4"):
        load_rack(grown(), n_stages=4)
    with pytest.raises(ConfigError, match="no finished stage"):
        load_rack(tmp_path)


def test_the_same_twice_is_the_same_and_another_seed_is_not(grown, tmp_path):
    out = grown()
    stages_here(growth_spec(), tmp_path / "again")
    assert same_bits(state(tmp_path / "again"), state(out))
    assert results(tmp_path / "again") == results(out)
    assert not same_bits(state(grown(seed=1)), state(out))


def test_a_finished_run_is_told_and_not_run_again(tmp_path, monkeypatch):
    out, lines = tmp_path, []
    grow_here(growth_spec(), out)
    monkeypatch.setattr(stages_module, "StageRun", None)
    assert grow_here(growth_spec(), out, lines) == 0
    assert lines == ["all 3 stages are finished", table(rows(out))]
    assert len(lines[1].splitlines()) == 4
    assert (out / "growth.png").stat().st_size > 1000


def test_what_each_stage_tells(grown):
    out = grown()
    for number, row in enumerate(rows(out), start=1):
        assert (row["stage"], row["stacks"], row["steps"], row["tokens"]) == (number, number, 6, 6 * 8 * 15)
        assert (row["status"], row["precision"], len(row["losses"])) == ("finished", "full", 6)
        assert row["seconds"] > 0
        assert row["step_ms"] > 0
        history = read_rows(out / f"stages/{number:02d}/history.jsonl")[0]
        assert [each["step"] for each in history] == [3, 6]
        assert history[-1]["loss"] == row["loss"]
        assert history[0]["train_loss"] == pytest.approx(sum(row["losses"][:3]) / 3)
    trained = [row["n_trained_parameters"] for row in rows(out)]
    stack = sum(tensor.numel() for tensor in of_stack(state(out), 0).values())
    head = sum(tensor.numel() for name, tensor in state(out).items() if name.startswith("head"))
    assert trained == [stack + head + 8 * 16, stack + head, stack + head]
    summary = read_json(out / "results.json")
    assert (summary["status"], summary["steps"], summary["loss"]) == ("finished", 18, rows(out)[-1]["loss"])


def test_steps_count_over_all_stages_for_who_draws_curves(tmp_path):
    seen = []
    stages_here(growth_spec(), tmp_path, on_evaluation=lambda member, row: seen.append((member.step, row["step"])))
    assert seen == [(3, 3), (6, 6), (3, 9), (6, 12), (3, 15), (6, 18)]


def test_a_plateau_ends_a_stage_and_the_next_one_starts(grown):
    patient = {"patience": 1, "min_delta": 10.0}
    told = rows(grown(eval_every=2, growth=patient))
    assert [(row["status"], row["steps"], len(row["losses"])) for row in told] == [("stopped", 4, 4)] * 3
    assert same_bits(state(grown(eval_every=2, growth=patient), 1), state(grown(n_steps=4, eval_every=2), 1))
    usual = grown(eval_every=2, growth={"patience": 9})
    assert [row["steps"] for row in rows(usual)] == [6] * 3


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([3.0], False), ([3.0, 2.0, 1.0], False), ([1.0, 1.0, 1.0], True), ([1.0, 0.95, 0.92], True), ([1.0, 2.0, 0.5], False)],
)
def test_a_plateau_is_where_nothing_has_improved(losses, expected):
    assert (
        stage_module.is_plateau(losses, growth_spec(growth={"patience": 2, "min_delta": 0.1 if losses[-1] == 0.92 else 0}))
        is expected
    )


def test_one_decay_ends_the_run_or_each_stage(grown):
    schedule = {"train": {"device": "cpu", "schedule": {"kind": "wsd", "warmup_steps": 1, "decay_fraction": 0.5}}}

    def rates(out):
        return [json.loads(path.read_text().splitlines()[-1])["lr"] for path in sorted(out.glob("stages/*/history.jsonl"))]

    last, each = rates(grown(**schedule)), rates(grown(**schedule, decay="each"))
    assert last[:2] == [1e-2, 1e-2]
    assert last[2] == each[0] == each[1] == each[2] < 5e-3


def test_a_run_that_diverges_ends_there(tmp_path, monkeypatch):
    spec, lines = growth_spec(lr=FAR_TOO_HIGH), []
    assert grow_here(spec, tmp_path, lines) == 1
    assert lines[-1].startswith("stage 1: diverged")
    (tmp_path / "results.json").unlink()  # as if it had been killed before
    monkeypatch.setattr(stages_module, "StageRun", None)
    assert grow_here(spec, tmp_path) == 1
    assert len(rows(tmp_path)) == 1


# A whole rack at once


@pytest.mark.parametrize("mode", ["rackwise", "stackwise", "blockwise"])
def test_without_growth_the_whole_rack_learns(grown, mode):
    out = grown(
        rack={"stacks": [{"n_blocks": 2, "block": BLOCK}]}, growth={"enabled": False}, n_steps=20, training_architecture=mode
    )
    (row,) = rows(out)
    assert (row["stacks"], row["kind"], row["status"]) == (3, "first", "finished")
    assert row["loss"] < row["loss_grown"] - 0.05
    started = load_stage(out / "stages/01", CPU)[0].rack.build(0).state_dict()
    assert changed(started, state(out)) == started.keys()


def test_local_losses_are_others_than_that_of_the_whole(grown):
    keys = {"rack": {"stacks": [{"n_blocks": 2, "block": BLOCK}]}, "growth": {"enabled": False}, "n_steps": 20}
    racks = [state(grown(**keys, training_architecture=mode)) for mode in ("rackwise", "stackwise", "blockwise")]
    assert not any(same_bits(first, second) for first, second in ((racks[0], racks[1]), (racks[1], racks[2])))


def test_numbers_of_two_runs_differ_in_nothing_but_the_clock(grown):
    assert numbers(rows(grown())[0]) == numbers(rows(grown(growth={"cache_mode": "arrow"}))[0])

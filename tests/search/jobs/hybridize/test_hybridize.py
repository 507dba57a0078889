"""A trained model becomes hybrids: the space, the start, the search, what is distilled, and what the folder says of it."""

import json
import math
from argparse import Namespace

import pandas as pd
import pytest
import torch
import yaml

from configs import ConfigError
from configs.load import validate
from models import Supernet
from models.huggingface.importing import import_rack
from search import load_model
from search.cli.show import run_show
from search.jobs.hybridize import job
from search.jobs.hybridize.finals import Finals
from search.jobs.hybridize.space import space_of
from search.jobs.hybridize.spec import HybridizeSpec
from search.jobs.hybridize.start import START, changed_blocks
from search.jobs.imported.job import import_model
from search.jobs.imported.trained import model_fingerprint
from search.jobs.in_process import HERE
from search.jobs.supernet.kept_teacher import KeptTeacher
from search.jobs.supernet.weights import load_supernet
from search.training import checkpoint
from tasks.text.text import _opened
from tests.models.huggingface.folders import tiny_llama
from tests.search.jobs.hybridize.cases import raw, spec

TOKENS = torch.arange(24).view(2, 12) % 16


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybridize")
    assert job.run(spec(folder), folder / "run", HERE) == 0
    return folder


def results(folder):
    return json.loads((folder / "run/results.json").read_text())


def test_the_main_placement_is_the_model(finished):
    _, model = import_rack(finished / "model")
    start = load_supernet(finished / "run" / START)
    with torch.inference_mode():
        torch.testing.assert_close(start(TOKENS), model(TOKENS), rtol=0, atol=0)


def test_the_table_says_who_keeps_how_much_at_which_cost(finished):
    rows = results(finished)["rows"]
    assert [(row["budget"], row["name"]) for row in rows] == [("attention = 1", "search"), ("attention = 2", "search")]
    one, two = rows
    assert one["kl"] > two["kl"] > 0
    assert one["cost"]["kv_bytes"] < two["cost"]["kv_bytes"]
    assert "kl_distilled" not in two
    assert one["kl_distilled"] > 0
    assert one["perplexity"] == pytest.approx(math.exp(one["loss"]))
    (folder,) = one["folders"]
    assert load_supernet(finished / "run/racks" / folder.rpartition("/")[2]).stacks[0].blocks[0] is not None
    assert list(pd.read_parquet(finished / "run/trials.parquet")["text"]) == [row["text"] for row in rows]
    assert (finished / "run/hybridize.png").stat().st_size > 10_000
    assert not (finished / "run/alignment").exists()  # all of it is in the start


def test_layers_are_ranked_by_what_each_part_costs_alone(finished):
    ranked = results(finished)["ranking"]
    assert len(ranked) == 3 * 3
    assert [row["kl"] for row in ranked] == sorted(row["kl"] for row in ranked)
    start = load_supernet(finished / "run" / START)
    for row in ranked[0], ranked[-1]:
        index = [str(slot) for slot in start.slots].index(row["slot"])
        start.activate([*start.main[:index], row["name"], *start.main[index + 1 :]])
        with torch.inference_mode():
            changed = start(TOKENS)
            start.activate(start.main)
            assert not torch.equal(changed, start(TOKENS))


def test_only_the_parts_that_stand_in_are_trained(finished):
    row = results(finished)["rows"][0]
    space = load_supernet(finished / "run" / START).space
    changed = changed_blocks(space, tuple(row["placement"]))
    before = load_supernet(finished / "run" / START).extract(row["placement"]).state_dict()
    after = load_supernet(finished / "run/racks" / row["folders"][0].rpartition("/")[2]).state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    assert all(any(name.startswith(f"{block}.mixer.") for block in changed) for name in moved)


def test_distillation_brings_a_placement_nearer_to_the_model(tmp_path):
    distil = {"n_steps": 60, "lr": 3e-3, "batch_size": 16, "n_test_batches": 4, "test_batch_size": 16}
    assert job.run(spec(tmp_path, search={"budgets": [1], "rivals": {}}, distil=distil), tmp_path / "run", HERE) == 0
    (row,) = results(tmp_path)["rows"]
    assert row["kl_distilled"] < 0.95 * row["kl_test"]


def test_finals_pick_among_the_best_by_what_they_distil_to(tmp_path, capsys):
    choices = {"window": {"window": 3}, "gdn": {"kind": "gated_delta_net", "d_conv": 2}}  # something of each can be trained
    distil = {"finals": {"n": 3, "n_steps": 2}, "budgets": None}
    made = spec(tmp_path, choices=choices, search={"budgets": [2], "rivals": {}}, distil=distil)
    assert job.run(made, tmp_path / "run", HERE) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "finals" in line and "KL to the model" in line]
    assert [line.count(", ") >= 2 for line in told] == [True, True]
    assert ["finals, 2 steps" in told[0], "finals, 4 steps" in told[1]] == [True, True]
    rows = results(tmp_path)["rows"]
    assert {row["name"] for row in rows} <= {"search", "finals"}
    racks = [json.loads(path.read_text()) for path in (tmp_path / "run/racks").glob("*/results.json")]
    assert sorted(rack["steps"] for rack in racks) == sorted([2, 2, 2, 4, 4, *[4] * len(rows)])
    assert job.run(made, tmp_path / "run", HERE) == 0
    assert results(tmp_path)["rows"] == rows


def test_the_model_may_run_once_for_all_that_are_distilled(tmp_path, monkeypatch, capsys):
    calls, made = [], KeptTeacher._made
    monkeypatch.setattr(KeptTeacher, "_made", lambda self, first, stop: (calls.append((first, stop)), made(self, first, stop))[1])
    search, found = {"budgets": [1], "rivals": {"last": "window, gdn, attention"}}, {}
    for name, keep in (("runs", None), ("keeps", 15), ("few", 2)):
        out = tmp_path / name
        assert job.run(spec(tmp_path, search=search, distil={"keep_logits": keep}), out, HERE) == 0
        found[name] = [row["kl_distilled"] for row in json.loads((out / "results.json").read_text())["rows"]]
        assert not (out / "teacher").exists()  # all have learned from it
        told = capsys.readouterr().out
        assert "distillation: at most " in told
        assert "parameters learn; memory of a worker, forecast: " in told
    assert len(found["runs"]) == 2
    assert calls == [(0, 4), (0, 4)]  # once for both racks
    assert found["keeps"] == pytest.approx(found["runs"], rel=1e-4)
    assert found["few"] == pytest.approx(found["runs"], rel=0.2)
    with pytest.raises(ConfigError, match=r"distil\.hidden_weight: hidden states are not kept: 0, or leave keep_logits out"):
        spec(tmp_path, distil={"keep_logits": 2, "hidden_weight": 1.0})


def test_a_finished_conversion_is_not_done_again(finished, monkeypatch, capsys):
    for place in ("search.jobs.hybridize.start.trained_rack", "search.jobs.supernet.job.train"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("was done again"))
    before = results(finished)
    assert job.run(spec(finished), finished / "run", HERE) == 0
    assert results(finished) == before
    assert "attention = 1" in capsys.readouterr().out


def test_what_is_measured_goes_by_what_it_is_computed_in(tmp_path):
    found = []
    for precision in ("fp32", "bf16"):
        distil = {"train": {"precision": precision}}
        assert job.run(spec(tmp_path, search={"budgets": [1], "rivals": {}}, distil=distil), tmp_path / "run", HERE) == 0
        found.append(results(tmp_path)["rows"][0]["kl_test"])
    assert found[0] != found[1]
    assert found[1] == pytest.approx(found[0], rel=0.2)


def test_another_model_in_the_same_folder_is_a_start_of_its_own(tmp_path):
    job.run(spec(tmp_path), tmp_path / "run", HERE)
    first = results(tmp_path)["rows"][0]["kl"]
    path = tmp_path / "model/model.safetensors"
    path.unlink()
    (tmp_path / "model/config.json").unlink()
    tiny_llama(tmp_path / "model", rms_norm_eps=1e-2)
    with pytest.raises(ConfigError, match=r"model: .*model has changed since .*run began; give another out="):
        job.run(spec(tmp_path), tmp_path / "run", HERE)
    assert results(tmp_path)["rows"][0]["kl"] == first


def test_new_mixers_are_aligned_and_sinks_start_from_the_first_token(tmp_path):
    choices = {"gdn": {"kind": "gated_delta_net", "d_conv": 2}, "sunk": {"window": 3, "sinks": True}}
    job.run(spec(tmp_path, choices=choices, align={"n_steps": 30}, search={"rivals": {}}), tmp_path / "run", HERE)
    _, state = checkpoint.read(tmp_path / "run" / START / "weights.safetensors", torch.device("cpu"))
    for row in state["results"]["alignment"]:
        assert row["after.gdn"] < 0.9 * row["before.gdn"]
    start = load_supernet(tmp_path / "run" / START)
    assert isinstance(start, Supernet)
    for choice in start.choices:
        assert choice.get("sunk").sinks.abs().min() > 0


def test_a_supernet_may_be_trained_in_between_and_the_model_stays_as_it_is(tmp_path):
    assert job.run(spec(tmp_path, search={"budgets": [1]}, supernet={"n_steps": 6, "lr": 1e-2}), tmp_path / "run", HERE) == 0
    start, trained = (load_supernet(tmp_path / "run" / name).rack.state_dict() for name in (START, "supernet"))
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, trained[name])}
    assert moved
    assert all(".mixer.mixers." in name and ".mixers.attention." not in name for name in moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": {"attention": {"window": 3}}}, r"choices\.attention: 'attention' is what the model has"),
        ({"choices": {}}, "nothing may stand in for anything"),
        ({"distil": {"budgets": [7]}}, r"distil\.budgets\[0\]: is none of search\.budgets"),
        ({"distil": {"finals": {"n": 3}}, "search": {"n_best": 2}}, r"distil\.finals\.n: search\.n_best tells of 2 alone"),
        ({"distil": {"seeds": [0, 1, 0]}}, r"distil\.seeds: the same seed is given twice: 0, 1, 0"),
        ({"align": {"workers": {"n": 2}}}, r"align.*workers\.n: layers are aligned side by side"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        spec(tmp_path, **changes)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"window": {"windw": 3}}, r"choices.*windw.*did you mean 'window'"),
        ({"gdn": {"kind": "gated_delta"}}, r"choices\.gdn: unknown mixer 'gated_delta'; did you mean 'gated_delta_net'"),
        ({"gdn": {"kind": "gated_delta_net", "n_heads": 3}}, r"choices\.gdn: n_heads = 3"),
        ({"hyena": {"kind": "hyena"}}, r"choices\.hyena: hyena needs the rack's max_length"),
        ({"a b": {"window": 3}}, "'a b' must be letters"),
    ],
)
def test_a_choice_that_cannot_stand_there_is_named(tmp_path, choices, message):
    rack, _ = import_rack(tiny_llama(tmp_path))
    with pytest.raises(ConfigError, match=message):
        space_of(rack, choices, {})


def test_a_search_that_cannot_be_is_told_before_a_weight_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("search.jobs.hybridize.start.trained_rack", lambda *_, **__: pytest.fail("was read"))
    made = spec(tmp_path, search={"budgets": [9], "rivals": {"windows": "all:windw"}}, distil={"budgets": None})
    with pytest.raises(ConfigError, match=r"(?s)budgets\[0\].*rivals\.windows: .*did you mean 'window'"):
        job.run(made, tmp_path / "run", HERE)
    assert not (tmp_path / "run").exists()


def test_show_tells_what_the_space_of_the_model_costs(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(raw(tmp_path)))
    run_show(Namespace(config=str(config), seq_len=None, parameters=False), [], None)
    told = capsys.readouterr().out
    assert "gdn" in told
    assert "attention = 1" in told
    assert "parameters learn; memory of a worker, forecast: 0.00 GiB (weights 0.00 GiB, " in told
    assert "parameters learn; memory of a worker, forecast: 0.00 GiB (weights 0.00 GiB, " in told


def test_layers_may_be_named(tmp_path):
    rack, _ = import_rack(tiny_llama(tmp_path))
    space = space_of(rack, {"skip": None}, {"none": None}, layers=[2])
    assert [str(slot) for slot in space.slots()] == ["layer 2", "channel mixer of layer 2"]
    with pytest.raises(ConfigError, match="layers: the model has layers 0 to 2, and no 7"):
        space_of(rack, {"skip": None}, {}, layers=[1, 7])


def test_channel_mixers_may_go_or_be_narrower(tmp_path):
    mlps = {"narrow": {"d_ff": 12}, "none": None}
    distil = {"trains": ["{changed}.mlp.*"], "budgets": None}
    made = spec(tmp_path, choices={}, mlp_choices=mlps, search={"budgets": [{"params": "90%"}], "rivals": {}}, distil=distil)
    assert job.run(made, tmp_path / "run", HERE) == 0
    (row,) = results(tmp_path)["rows"]
    assert set(row["placement"]) <= {"mlp", "narrow", "none"}
    assert row["kl"] > 0


def test_a_cost_of_ones_own_is_a_budget_of_a_conversion(tmp_path, capsys):
    energy = {"name": "energy", "unit": "mJ", "layers": {1: {"attention": 9, "skip": 0}, "*": {"attention": 2, "skip": 0.5}}}
    search = {"budgets": [{"energy": "<=5"}], "cost_tables": [energy], "rivals": {}}
    made = spec(tmp_path, choices={"skip": None}, search=search, distil={"budgets": None})
    assert job.run(made, tmp_path / "run", HERE) == 0
    (row,) = results(tmp_path)["rows"]
    assert row["budget"] == "energy <= 5 mJ"
    assert row["placement"][1] == "skip"
    assert row["cost"]["energy"] <= 5
    assert "mJ" in capsys.readouterr().out


def test_a_search_by_another_metric_is_told_by_its_name(tmp_path, capsys):
    made = spec(tmp_path, search={"metric": "loss", "budgets": [1], "rivals": {}})
    assert job.run(made, tmp_path / "run", HERE) == 0
    told = capsys.readouterr().out
    assert "window alone in a layer, loss score: " in told
    assert "KL in search" not in told
    found = results(tmp_path)
    (row,) = found["rows"]
    assert row["score"] < -1  # minus the loss of a random model
    assert "kl" not in row
    assert row["kl_test"] > 0
    scores = [each["score"] for each in found["ranking"]]
    assert scores == sorted(scores, reverse=True)


def test_what_has_nothing_to_learn_is_not_aligned(tmp_path):
    choices = {"identity": {"kind": "identity"}, "gdn": {"kind": "gated_delta_net", "d_conv": 2}}
    assert job.run(spec(tmp_path, choices=choices, search={"rivals": {}}), tmp_path / "run", HERE) == 0
    _, state = checkpoint.read(tmp_path / "run" / START / "weights.safetensors", torch.device("cpu"))
    assert all("after.gdn" in row and "after.identity" not in row for row in state["results"]["alignment"])


def test_mixers_of_a_model_in_half_precision_are_aligned_as_well(tmp_path):
    errors = {}
    for dtype in ("float32", "bfloat16", "float16"):
        job.run(spec(tmp_path, dtype=dtype, align={"n_steps": 30}, search={"rivals": {}}), tmp_path / dtype, HERE)
        tensors, state = checkpoint.read(tmp_path / dtype / START / "weights.safetensors", torch.device("cpu"))
        assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
        errors[dtype] = [row["after.gdn"] for row in state["results"]["alignment"]]
    assert errors["bfloat16"] == pytest.approx(errors["float32"], rel=0.02)
    assert errors["float16"] == pytest.approx(errors["float32"], rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distil": {"trains": ["{changed}.mixer.*", "{changed}.mixr.*"]}}, r"distil\.trains\[1\]: no parameter is called"),
        ({"supernet": {"n_steps": 2, "trains": ["*.mixr.*"]}}, r"supernet\.trains\[0\]: no parameter is called \*\.mixr"),
        (
            {"choices": {"skip": None}, "search": {"rivals": {}}, "supernet": {"n_steps": 2}},
            "supernet: nothing that may stand in has anything to learn",
        ),
    ],
)
def test_what_would_train_nothing_is_told_before_a_weight_is_read(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("search.jobs.hybridize.start.trained_rack", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(ConfigError, match=message):
        job.run(spec(tmp_path, **changes), tmp_path / "run", HERE)


def cut_before_the_start_is_written(made, out, monkeypatch):
    def cut(path, *given):
        if path.parent.name == START:
            raise KeyboardInterrupt
        save(path, *given)

    save = checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            job.run(made, out, HERE)
    assert list((out / "alignment").rglob("layer-00/weights.safetensors"))


def test_nothing_that_was_aligned_to_another_model_is_taken(tmp_path, monkeypatch):
    made = spec(tmp_path, search={"rivals": {}})
    cut_before_the_start_is_written(made, tmp_path / "run", monkeypatch)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "model" / name).unlink()
    tiny_llama(tmp_path / "model", rms_norm_eps=1e-2)
    found = []
    for name in ("run", "another"):
        assert job.run(made, tmp_path / name, HERE) == 0
        found.append(checkpoint.read(tmp_path / name / START / "weights.safetensors", torch.device("cpu"))[1]["results"])
    assert found[0] == found[1]


def test_nothing_that_was_aligned_on_another_text_is_taken(tmp_path, monkeypatch):
    given = {**raw(tmp_path, search={"rivals": {}}), "model": str(tiny_llama(tmp_path / "bytes", vocab_size=260))}
    files = {"files": str(tmp_path / "*.txt"), "folder": str(tmp_path / "tokens")}
    task = {"kind": "text", "tokenizer": "bytes", "seq_len": 12, **files}

    made = validate(HybridizeSpec, {**given, "data": {"batch_size": 4, "tasks": {"text": {"task": task}}}}, "test")

    def write(text):
        for number in range(20):
            (tmp_path / f"{number}.txt").write_text(f"{text} {number}\n" * 60)
        _opened.cache_clear()  # a process reads its texts once

    write("the first one of")
    cut_before_the_start_is_written(made, tmp_path / "run", monkeypatch)
    write("a quite different text,")
    found = []
    for name in ("run", "another"):
        assert job.run(made, tmp_path / name, HERE) == 0
        found.append(checkpoint.read(tmp_path / name / START / "weights.safetensors", torch.device("cpu"))[1]["results"])
    assert found[0] == found[1]


def test_how_it_is_distilled_may_change_whatever_is_done(tmp_path, monkeypatch):
    given = {"search": {"budgets": [1], "rivals": {}}, "supernet": {"n_steps": 2}}
    cut_before_the_start_is_written(spec(tmp_path, **given), tmp_path / "run", monkeypatch)
    made = spec(tmp_path, **given, distil={"train": {"schedule": {"kind": "cosine"}}})
    assert job.run(made, tmp_path / "run", HERE) == 0
    made = spec(tmp_path, **given, distil={"train": {"schedule": {"kind": "cosine"}}, "batch_size": 2})
    assert job.run(made, tmp_path / "run", HERE) == 0


def test_nobody_takes_the_results_of_another_search_for_those_of_this_one(tmp_path, monkeypatch):
    assert job.run(spec(tmp_path, search={"rivals": {}}), tmp_path / "run", HERE) == 0

    def cut(*_):
        raise KeyboardInterrupt

    with pytest.raises(ConfigError, match=r"rivals\.last"):  # of which nothing comes
        job.run(spec(tmp_path, search={"rivals": {"last": "all:windw"}}), tmp_path / "run", HERE)
    assert load_model(tmp_path / "run", best=True) is not None
    monkeypatch.setattr(job, "search_placements", cut)
    with pytest.raises(KeyboardInterrupt):
        job.run(spec(tmp_path, search={"rivals": {}, "budgets": [1]}), tmp_path / "run", HERE)
    with pytest.raises(ConfigError, match="the run is not finished"):
        load_model(tmp_path / "run", best=True)


def test_the_model_itself_may_be_what_is_found(tmp_path):
    made = spec(tmp_path, search={"budgets": [3], "rivals": {}}, distil={"budgets": None})
    assert job.run(made, tmp_path / "run", HERE) == 0
    (row,) = results(tmp_path)["rows"]
    assert row["kl"] == row["kl_test"] == row["kl_distilled"] == 0


def test_a_choice_may_say_more_of_its_parameters_and_keeps_the_biases(tmp_path):
    rack, _ = import_rack(tiny_llama(tmp_path, attention_bias=True))
    space = space_of(rack, {"window": {"window": 3, "parameters": {"query": {"lr_scale": 0.5}}}}, {})
    window = space.stacks[0].expanded()[0].mixer.mixers["window"]
    assert window.parameters["key"].bias
    assert window.parameters["query"].lr_scale == 0.5


KLS = {"gdn": 0.3, "window": 0.2, "broken": math.nan, "dead": 0.1}


@pytest.mark.parametrize(
    ("names", "n", "rounds", "winner"),
    [
        (["gdn", "window"], 2, [["gdn", "window"]], "window"),
        (["broken", "gdn", "dead", "window"], 4, [["broken", "gdn", "dead", "window"], ["window", "gdn"]], "window"),
        (["gdn", "broken", "dead"], 3, [["gdn", "broken", "dead"]], "gdn"),
        (["gdn", "dead", "broken", "window"], 3, [["gdn", "dead", "broken"]], "gdn"),
    ],
)
def test_what_fails_in_the_finals_does_not_go_on(tmp_path, names, n, rounds, winner):
    """`dead` cannot be trained, and `broken` comes to no finite number."""
    trained = []

    def train_racks(runs, *_):
        trained.append([name.partition("-")[0] for name in runs])
        return {name: {"error": "died"} if name.startswith("dead") else {} for name in runs}

    backend = Namespace(train_racks=train_racks)
    measurement = Namespace(of_folder=lambda folder: {"kl": KLS[folder.name.partition("-")[0]]})
    run = Namespace(seed=0, fingerprint=lambda: "f")
    distillation = Namespace(spec=spec(tmp_path), out=tmp_path, run_spec=lambda *_, **__: run)
    scored = [Namespace(placement=(name,), text=name) for name in names]
    result = Namespace(text="budget", best=scored[0], runners_up=tuple(scored[1:]))
    assert Finals(result, n, distillation, backend, measurement).winner(2, lambda _: None).text == winner
    assert trained == rounds


def test_what_import_has_left_is_a_model_too(tmp_path, finished):
    import_model(finished / "model", tmp_path / "imported")
    given = {**raw(tmp_path), "model": str(tmp_path / "imported")}
    assert job.run(validate(HybridizeSpec, given, "test"), tmp_path / "run", HERE) == 0
    assert [row["kl_test"] for row in results(tmp_path)["rows"]] == [row["kl_test"] for row in results(finished)["rows"]]


def test_a_model_that_is_not_there_is_told_by_its_key(tmp_path):
    given = {**raw(tmp_path), "model": str(tmp_path / "nowhere")}
    with pytest.raises(ConfigError, match=r"^model: .*nowhere: no such folder or file$"):
        job.run(validate(HybridizeSpec, given, "test"), tmp_path / "run", HERE)


def test_a_model_that_differs_in_the_middle_of_its_file_is_another(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(2**24))
    before = model_fingerprint(path)
    with path.open("r+b") as file:
        file.seek(2**22)
        file.write(b"\1" * 2**20)
    assert model_fingerprint(path) != before

"""Distillation into adapters: they bring a placement nearer to the model, and its own weights stay to the bit."""

import pytest
import torch

from configs import ConfigError
from models import RackSpec
from models.linears.adapters import is_adapter
from models.spec.parameters import LoraSpec
from search import load_model
from search.jobs.hybridize import job
from search.jobs.hybridize.lora import with_lora
from search.jobs.hybridize.start import START, changed_blocks
from search.jobs.in_process import HERE
from search.jobs.supernet.weights import load_supernet
from tests.search.jobs.hybridize.cases import spec
from tests.search.jobs.hybridize.test_hybridize import TOKENS, results

LORA = {"rank": 4, "alpha": 8}
DISTIL = {"n_steps": 60, "lr": 1e-2, "batch_size": 16, "n_test_batches": 4, "test_batch_size": 16}
SEARCH = {"budgets": [1], "rivals": {}}


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A folder with the run, and the placement that it found."""
    folder = tmp_path_factory.mktemp("lora")
    made = spec(folder, choices={"window": {"window": 2}}, search=SEARCH, distil={**DISTIL, "lora": LORA})
    assert job.run(made, folder / "run", HERE) == 0
    return folder


def racks(folder):
    """The placement as it was found, and as it was distilled, and which it is."""
    (row,) = results(folder)["rows"]
    path = folder / "run/racks" / row["folders"][0].rpartition("/")[2]
    return load_supernet(folder / "run" / START).extract(row["placement"]), load_supernet(path), row, path


def test_adapters_bring_a_placement_nearer_to_the_model(distilled):
    _, _, row, _ = racks(distilled)
    assert row["kl_distilled"] < 0.95 * row["kl_test"]


def test_the_weights_stay_to_the_bit_and_adapters_stand_on_what_trains_names(distilled):
    found, adapted, row, _ = racks(distilled)
    before, after = found.state_dict(), adapted.state_dict()
    added = after.keys() - before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    blocks = changed_blocks(load_supernet(distilled / "run" / START).space, tuple(row["placement"]))
    linears = [f"{block}.mixer.{name}" for block in blocks for name in ("query", "key", "value", "output")]
    assert added == {f"{linear}.adapters.lora.{side}" for linear in linears for side in ("down", "up")}
    for linear in linears:
        assert after[f"{linear}.adapters.lora.up"].abs().sum() > 0
        assert len(after[f"{linear}.adapters.lora.down"]) == LORA["rank"]
        assert adapted.get_submodule(linear).adapters["lora"].scale == 2.0


def test_the_finished_rack_is_read_with_its_adapters(distilled):
    found, adapted, _, path = racks(distilled)
    with torch.inference_mode():
        assert not torch.equal(adapted(TOKENS), found.eval()(TOKENS))
        loaded = load_model(path)
        assert torch.equal(loaded(TOKENS), adapted(TOKENS))
        for name, parameter in loaded.named_parameters():
            if is_adapter(name):
                parameter.zero_()
        torch.testing.assert_close(loaded(TOKENS), found(TOKENS), rtol=0, atol=0)


def test_channel_mixers_may_have_them_too_and_targets_choose(tmp_path):
    lora = {**LORA, "targets": ["*.query", "*.mlp.down"]}
    distil = {"n_steps": 2, "lora": lora, "trains": ["{changed}.mixer.*", "*.mlp.*", "*norm*"]}
    assert job.run(spec(tmp_path, choices={"window": {"window": 2}}, search=SEARCH, distil=distil), tmp_path / "run", HERE) == 0
    found, adapted, row, _ = racks(tmp_path)
    added = {name.partition(".adapters.")[0] for name in adapted.state_dict().keys() - found.state_dict().keys()}
    down = {f"stacks.0.blocks.{layer}.mlp.down" for layer in range(3)}
    queries = {f"stacks.0.blocks.{layer}.mixer.query" for layer, name in enumerate(row["placement"]) if name == "window"}
    assert added == down | queries


RACK = {"vocab_size": 8, "d_model": 16, "tie_embeddings": True, "stacks": [{"n_blocks": 2, "block": {"mixer": "attention"}}]}


def test_what_is_said_of_a_linear_already_goes_on_to_hold():
    rack = RackSpec(**RACK, parameters={"stacks.0.blocks.1.mixer.query": {"bias": True, "weight_decay": 0.5}})
    adapted, trains = with_lora(rack, LoraSpec(**LORA), ["*.mixer.query*", "head.*"])
    assert trains == [f"stacks.0.blocks.{layer}.mixer.query.adapters.lora.*" for layer in range(2)]
    query = adapted.build().get_submodule("stacks.0.blocks.1.mixer.query")
    assert query.bias is not None
    assert query.weight.weight_decay == 0.5
    assert rack.build().state_dict().keys() < adapted.build().state_dict().keys()


@pytest.mark.parametrize("globs", [["*norm*"], ["head.*"], ["embedding.weight"]], ids=str)
def test_where_no_linear_trains_there_is_nothing_to_adapt(globs):
    with pytest.raises(ConfigError, match=r"distil\.lora: none of the linears .* named by distil\.trains"):
        with_lora(RackSpec(**RACK), LoraSpec(), globs)


@pytest.mark.parametrize("option", ["apply", "trains", "freeze_base", "freeze_others"])
def test_what_would_train_other_things_is_refused(tmp_path, option):
    with pytest.raises(ConfigError, match=rf"distil\.lora\.{option}: cannot be said here"):
        spec(tmp_path, distil={"lora": {option: False}})


def test_adapters_that_have_no_place_are_refused_before_a_weight_is_read(tmp_path):
    made = spec(tmp_path, distil={"lora": LORA, "trains": ["*.mlp_norm.*"]})
    with pytest.raises(ConfigError, match=r"distil\.lora: none of the linears .* named by distil\.trains"):
        job.run(made, tmp_path / "run", HERE)
    assert not (tmp_path / "run").exists()

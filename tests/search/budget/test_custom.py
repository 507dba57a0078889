"""Costs that the user brings: how a table is read, what it refuses, and that every strategy keeps a limit on them."""

import json

import numpy as np
import pytest

from configs import ConfigError
from configs.load import validate
from search.budget import Budget, CostTable
from search.budget.custom import CustomCost
from search.budget.dimensions import axis_label, cells, compared, headings
from search.jobs.pipeline.spec import PipelineSpec
from search.jobs.placement.results import cost_axis
from search.jobs.placement.spec import PlacementSpec
from search.strategies import STRATEGIES
from search.strategies.shared.strategy import best
from tests.search.landscapes import CHOICE_OF_WIDTHS, Landscape, everything, mixed_space, space
from tests.search.pipelines import PIPELINE, SEARCH, raw

LAYERS = {0: {"attention": 3.5, "linear": 1}, 2: {"linear": 0.5, "attention": 2}, "*": {"attention": 3, "linear": 1.25}}
ENERGY = {"name": "energy", "unit": "mJ", "layers": LAYERS}


def cost(**changes):
    return CustomCost(**{**ENERGY, **changes})


def spent(placement):
    return sum(LAYERS.get(layer, LAYERS["*"])[name] for layer, name in enumerate(placement))


def test_what_a_placement_costs_is_the_sum_over_its_layers():
    costs = CostTable.of(space(4), custom=[cost()])
    for placement in everything(costs.slots):
        assert costs.of_placement(placement)["energy"] == pytest.approx(spent(placement))
    assert costs.of_shares([{"attention": 0.5, "linear": 0.5}] * 4)["energy"] == pytest.approx(7.75)
    assert costs.dearest_by("energy") == "attention"


def test_channel_mixers_have_numbers_of_their_own_or_the_others():
    widths = {"wide": 9, "narrow": 5, "none": 0}
    others = {name: number for number, name in enumerate(("attention", "linear", "window", "gdn"))}
    layers = {"1.mlp": {name: 2 * number for name, number in widths.items()}, "*.mlp": widths, "*": others}
    table = cost(layers=layers).by_slot(mixed_space())
    assert table[0] == {"attention": 0, "linear": 1}
    assert table[1] == widths
    assert table[3] == {"wide": 18, "narrow": 10, "none": 0}
    assert table[-1] == {"attention": 0, "window": 2, "gdn": 3}
    assert cost(layers={"*": {**others, **widths}}).by_slot(mixed_space())[1] == widths


@pytest.mark.parametrize("limit", ["<=7", "50%", "7..9", ">=10", 8.25])
def test_a_budget_admits_what_keeps_the_limit(limit):
    rack = space(4)
    budget = Budget.of({"energy": limit}, rack, custom=[cost()])
    low, high = {"<=7": (0, 7), "50%": (0, 11.5 / 2), "7..9": (7, 9), ">=10": (10, 99), 8.25: (0, 8.25)}[limit]
    for placement in everything(rack.slots()):
        assert budget.admits(placement) == (low <= spent(placement) <= high)
    assert budget.text().startswith("energy ")
    assert budget.text().endswith(" mJ")


@pytest.mark.parametrize("kind", ["exact", "beam", "pairwise", "evolution", "random", "interleave"])
def test_what_a_strategy_finds_keeps_the_limit(kind):
    rack = space(6)
    budget = Budget.of({"energy": "<=9", "attention": ">=1"}, rack, custom=[cost()])
    rounds = STRATEGIES[kind]().search(rack, budget, Landscape(rack.slots(), seed=3))
    found = best(rounds).placement
    assert spent(found) <= 9
    if kind == "exact":
        scores = Landscape(rack.slots(), seed=3).single
        admitted = [each for each in everything(rack.slots()) if each.count("attention") >= 1 and spent(each) <= 9]
        assert found == max(admitted, key=lambda each: scores[np.arange(6), budget.coding.encode([each])[0]].sum())


def test_a_limit_that_cannot_be_kept_is_refused_with_the_nearest_that_can():
    with pytest.raises(ConfigError, match=r"budget: energy <= 3 mJ cannot be met: the nearest that can is 4 \(the least\)"):
        Budget.of({"energy": 3}, space(4), custom=[cost()])
    with pytest.raises(ConfigError, match=r"unknown key 'enrgy'; did you mean 'energy'"):
        Budget.of({"enrgy": 3}, space(4), custom=[cost()])
    with pytest.raises(ConfigError, match="unknown key 'energy'"):
        Budget.of({"energy": 3}, space(4))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"*": {"attention": 1}}, "cost energy: no number for 'linear' in layer 0; "),
        ({**LAYERS, 2: {"attention": 1, "liner": 1}}, "no number for 'linear' in layer 2; did you mean 'liner'"),
        ({0: {"attention": 1, "linear": 1}}, "no number for 'attention' in layer 1; "),
        ({**LAYERS, 9: {}}, "cost energy: there is no layer 9: the rack has layers 0 to 3"),
    ],
    ids=str,
)
def test_a_table_that_does_not_fit_the_space_is_told_where(layers, message):
    with pytest.raises(ConfigError, match=message):
        cost(layers=layers).by_slot(space(4))


def test_numbers_of_layers_that_have_no_choice_are_of_no_account():
    rack = mixed_space()  # layer 3 is fixed
    numbers = dict.fromkeys(("attention", "linear", "window", "gdn", *CHOICE_OF_WIDTHS["mixers"]), 1)
    assert cost(layers={"3": {"attention": 5}, "*": numbers}).by_slot(rack)[0] == {"attention": 1, "linear": 1}


def test_a_choice_of_that_name_is_refused():
    with pytest.raises(ConfigError, match="cost linear: layer 0 offers a choice of that name: call the cost otherwise"):
        cost(name="linear").by_slot(space(4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "kv_bytes"}, r"cost_tables\[0\]\.name: 'kv_bytes' is the name of a built-in cost"),
        ({"name": "context"}, "'context' is the name of a key of budgets"),
        ({"name": "score"}, "'score' is the name of a column of results"),
        ({"name": "a b"}, r"cost_tables\[0\]\.name: "),
        ({"unit": ""}, r"cost_tables\[0\]\.unit: "),
        ({"layers": {}}, r"cost_tables\[0\]\.layers: "),
        ({"layers": {"first": {"attention": 1}}}, r"layers\.first: expected a layer such as 3, 3\.mlp, \* or \*\.mlp"),
        ({"layers": {"03": {"attention": 1}, "*": {"attention": 1}}}, "expected a layer such as 3"),
        ({"layers": {"*": {"attention": -1}}}, r"layers\[\"?\*\"?\]\.attention|layers\.\*\.attention"),
        ({"layers": {"*": {"attention": float("nan")}}}, "attention: "),
        ({"per_layer": {}}, "unknown key 'per_layer'"),
    ],
    ids=str,
)
def test_a_table_that_is_none_is_refused_at_its_place(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(PlacementSpec, {"supernet": "x", "budgets": [1], "cost_tables": [{**ENERGY, **changes}]}, "test")


def test_two_tables_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"cost_tables\[1\]\.name: 'energy' is the name of another table"):
        validate(PlacementSpec, {"supernet": "x", "budgets": [1], "cost_tables": [ENERGY, ENERGY]}, "test")


def test_a_file_is_read_into_the_spec_and_counts_in_its_fingerprint(tmp_path):
    path, other = tmp_path / "energy.json", tmp_path / "energy.yaml"
    path.write_text(json.dumps(ENERGY))
    other.write_text("name: energy\nunit: mJ\nlayers:\n  0: {attention: 3.5, linear: 1}\n  '*': {attention: 3, linear: 1.25}\n")
    tree = {"supernet": "x", "budgets": [{"energy": "<=4"}]}
    spec, second = (validate(PlacementSpec, {**tree, "cost_tables": [str(each)]}, "test") for each in (path, other))
    assert spec.cost_tables == (cost(),)
    assert spec.fingerprint() != second.fingerprint()
    path.unlink()
    assert validate(PlacementSpec, spec.saved(), "test") == spec
    with pytest.raises(ConfigError, match=r"cost_tables\[0\]: .*energy\.json: cannot be read: No such file"):
        validate(PlacementSpec, {**tree, "cost_tables": [str(path)]}, "test")


def test_a_pipeline_tells_of_tables_and_limits_before_anything_runs():
    search = raw(SEARCH, budgets=[{"energy": 1}], cost_tables=[ENERGY])
    with pytest.raises(ConfigError, match=r"placement\.budgets\[0\]: budget: energy <= 1 mJ cannot be met"):
        validate(PipelineSpec, raw(PIPELINE, placement=search), "test")
    search["cost_tables"] = [{**ENERGY, "layers": {"*": {"attention": 1}}}]
    with pytest.raises(ConfigError, match=r"placement\.cost_tables\[0\]: cost energy: no number for 'linear' in layer 0"):
        validate(PipelineSpec, raw(PIPELINE, placement=search), "test")


def test_tables_and_pictures_show_the_cost_with_its_unit():
    table = CostTable.of(space(4), custom=[cost()])
    costs = [table.of_placement((name,) * 4) for name in ("attention", "linear")]
    assert headings(costs[0], table.units)[-1] == axis_label("energy", table.units) == "energy, mJ"
    assert cells(costs[1])[-1] == "4"
    assert "energy" in compared(costs[0])
    assert cost_axis(costs, table.units) == ("energy", "energy, mJ")
    assert cost_axis([costs[0]] * 2, table.units)[0] == "params"
    assert cost_axis(costs, {})[0] == "kv_bytes"

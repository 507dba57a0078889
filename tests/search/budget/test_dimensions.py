"""The contract of budget dimensions, and that a new file is a limit, a column and a result on arrival."""

import re
import sys
from pathlib import Path

import pytest
from pyarrow.parquet import read_table

from configs import ConfigError
from configs.load import validate
from configs.records import read_json
from search.budget import Budget, CostTable
from search.budget import dimensions as package
from search.budget.dimensions import dimensions
from search.cli.show_space import print_budgets, print_expected, print_space
from search.jobs.in_process import HERE
from search.jobs.pipeline.report import PlacementRow, print_comparison
from search.jobs.pipeline.retrain import RetrainedRack
from search.jobs.pipeline.spec import PipelineSpec
from search.jobs.placement import job as placement
from search.jobs.placement.results import Scored
from search.jobs.placement.spec import PlacementSpec
from search.jobs.supernet.spec import SupernetSpec
from search.runs.console import make_console
from tests.search.landscapes import everything, mixed_space, space
from tests.search.pipelines import PIPELINE, SEARCH, raw

DROPPED = '''
"""How many linears a rack has."""
from torch.nn import Linear

from search.budget.dimensions.shared.dimension import Dimension


class NLinears(Dimension):
    label, axis_label = "linears", "linears"

    def price(self, piece):
        return sum(isinstance(inner, Linear) for module in piece.count.modules for inner in module.modules())
'''


class Measured:
    """A latency table by which what has the longer name takes longer."""

    def of_space(self, space, context):
        return 1.0, [{name: len(name) / context for name in slot.names} for slot in space.slots()]


@pytest.fixture(params=[False, True], ids=["ours", "with a dropped file"])
def known(request, tmp_path, monkeypatch):
    """All dimensions; the second time with one that is dropped beside them."""
    if request.param:
        (tmp_path / "n_linears.py").write_text(DROPPED)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield dimensions()
    sys.modules.pop(f"{package.__name__}.n_linears", None)


def test_every_file_is_a_dimension_that_tables_can_show(known):
    files = {path.stem for path in Path(package.__file__).parent.glob("*.py")} - {"__init__"}
    assert known.keys() - {"n_linears"} == files
    assert len({each.label for each in known.values()}) == len({each.column for each in known.values()}) == len(known)
    assert all(each.axis_label and each.text(1234.5) for each in known.values())


def test_what_a_placement_costs_is_what_its_rack_costs(known):
    rack = mixed_space()
    costs, context = CostTable.of(rack, 100), 100
    measured = [name for name, each in known.items() if each.needs_latency_table]
    assert list(costs.base) == [name for name in known if name not in measured]
    for chosen in everything(rack.slots())[::97]:
        placed = CostTable.of(rack.place(chosen), context)
        assert placed.base == pytest.approx(costs.of_placement(chosen))
    assert list(CostTable.of(rack, context, latency=Measured()).base) == list(known)


def test_every_dimension_can_be_limited(known):
    rack = space(4)
    ends = [CostTable.of(rack, 100, latency=Measured()).of_placement((name,) * 4) for name in ("attention", "linear")]
    for name, each in known.items():
        low, high = sorted(costs[name] for costs in ends)
        value = {name: ">=0", "context": 100}
        if each.needs_latency_table:
            with pytest.raises(ConfigError, match=f"^budget: {name}: needs a table that `python -m search profile` measured$"):
                Budget.of(value, rack)
        for most, n_admitted in ((high, 16), (low, 1 if low < high else 16)):
            budget = Budget.of({name: max(most, 1), "context": 100}, rack, latency=Measured())
            assert budget.text().startswith(f"{name} <= ")
            assert sum(map(budget.admits, everything(rack.slots()))) == n_admitted


def test_show_has_a_column_for_every_dimension(known, capsys):
    rack, console = mixed_space(), make_console()
    print_space(console, rack)
    unmeasured = capsys.readouterr().out
    print_budgets(console, rack, [Budget.of({}, rack, latency=Measured())])
    budgets = capsys.readouterr().out
    print_expected(console, CostTable.of(rack, latency=Measured()).base, "uniform")
    expected = capsys.readouterr().out
    for each in known.values():
        column = re.compile(rf"\b{each.label}\b")
        assert bool(column.search(unmeasured)) != each.needs_latency_table
        assert column.search(budgets)
        assert column.search(expected)


def test_a_pipeline_has_a_column_for_every_dimension_that_it_compares(known, capsys):
    scored = Scored(("linear",), -1.0, 0.1, {}, 0.0, 0.0, CostTable.of(space(1), latency=Measured()).base, is_admitted=True)
    row = PlacementRow("no limit", "search", scored, RetrainedRack(scored.placement, (1.0,), {"recall": (0.5,)}, 1.0))
    print_comparison([row], validate(PipelineSpec, raw(PIPELINE), "test"), Path("out"))
    told = capsys.readouterr().out
    assert {name for name, each in known.items() if re.search(rf"\b{each.label}\b", told)} == {
        name for name, each in known.items() if each.is_compared
    }


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    out = tmp_path_factory.mktemp("supernet")
    HERE.train_supernet(validate(SupernetSpec, raw(PIPELINE)["supernet"], "test"), out)
    return out


def test_a_search_limits_tells_and_keeps_every_dimension(known, supernet, tmp_path, capsys):
    names = [name for name, each in known.items() if not each.needs_latency_table]
    spec = validate(PlacementSpec, raw(SEARCH, supernet=str(supernet), budgets=[{name: ">=0"} for name in names]), "test")
    assert placement.run(spec, tmp_path, HERE) == 0
    told, results = capsys.readouterr().out, read_json(tmp_path / "results.json")
    for name, result in zip(names, results["budgets"], strict=True):
        assert result["text"] == f"{name} >= 0"
        assert known[name].label in told
        assert list(result["best"]["cost"]) == names
    assert set(names) <= set(read_table(tmp_path / "trials.parquet").column_names)

"""The job `placement`: search under each budget over one log of scores, and set the rivals beside what was found."""

from pathlib import Path

from configs import ConfigError
from configs.load import validate_saved
from configs.records import write_json
from models import Supernet
from search.budget import Budget
from search.budget.coding import slot_key
from search.jobs.backend import Backend
from search.jobs.placement.budget_search import BudgetSearch
from search.jobs.placement.checks import check_same_data, check_strategies
from search.jobs.placement.evaluation import open_evaluator
from search.jobs.placement.figure import save_pictures
from search.jobs.placement.report import print_results
from search.jobs.placement.results import PLACEMENTS, BudgetResult, PlacementResults, cost_axis
from search.jobs.placement.spec import PlacementSpec, SearchSpec
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.weights import load_supernet
from search.runs.console import make_console, measured
from search.runs.errors import NoFiniteScoreError
from search.runs.run_folder import RESULTS, SPEC, TRIALS, run_folder, saved_spec, write_parquet


def run(spec: PlacementSpec, out: Path, backend: Backend) -> int:
    """Search over a trained supernet and print what was found; 1 if under some budget nothing has a finite score.

    Raises:
        ConfigError: if the supernet's folder holds none, or one that diverged, or a budget cannot be met.
        NoFiniteScoreError: if under no budget anything has a finite score.
    """
    folder = Path(spec.supernet)
    supernet = load_supernet(folder, key="supernet")
    if not isinstance(supernet, Supernet):
        raise ConfigError(f"supernet: {folder}: holds a rack without choices: there is nothing to place")
    trained = validate_saved(SupernetSpec, saved_spec(folder), str(folder / SPEC))
    check_strategies(spec, supernet.space)
    check_same_data(trained, spec)
    with run_folder(out, spec):
        results = search_placements(spec, supernet, trained, out, backend)
        summary = {"job": spec.job, "fingerprint": spec.fingerprint(), "supernet": spec.supernet, **results.to_dict()}
        write_json(out / RESULTS, summary)
        print_results(results, out)
    return 1 if results.unmet else 0


def search_placements(
    spec: SearchSpec, supernet: Supernet, trained: SupernetSpec, out: Path, backend: Backend
) -> PlacementResults:
    """Run all budgets; `out` gets `scores.jsonl`, `placements.json` and the pictures. What is logged is not scored again.

    Raises:
        NoFiniteScoreError: if under no budget anything has a finite score.
    """
    latencies = spec.latencies()
    budgets = [Budget.of(value, supernet.space, latency=latencies, custom=spec.cost_tables) for value in spec.budgets]
    # One table for all that is reported: budgets may count at different contexts, which would not compare.
    costs = max((budget.costs for budget in budgets), key=lambda table: table.context)
    found: list[BudgetResult] = []
    unmet: list[str] = []
    with open_evaluator(spec, supernet, trained, out, backend) as evaluator:
        for value, budget in zip(spec.budgets, budgets, strict=True):
            try:
                found.append(BudgetSearch(spec, budget, costs, evaluator).run(value))
            except NoFiniteScoreError as error:
                unmet.append(f"{budget.text()}: {error}")
                continue
            told = f"{found[-1].text}: {found[-1].best.text}, {spec.metric} score {measured(found[-1].best.score)}"
            make_console().print(told, markup=False)
        n_saved = evaluator.counts.n_saved_by_race
    if not found:
        raise NoFiniteScoreError("\n".join(unmet))
    slots = supernet.slots
    results = PlacementResults(
        metric=spec.metric,
        context=costs.context,
        slots=tuple(map(slot_key, slots)),
        names=tuple(dict.fromkeys(name for slot in slots for name in slot.names)),
        cost_axis=cost_axis([cost for result in found for cost, _ in result.seen], costs.units),
        units=dict(costs.units),
        budgets=tuple(found),
        unmet=tuple(unmet),
        n_batch_evaluations_saved=n_saved,
    )
    write_json(out / PLACEMENTS, results.to_dict())
    write_parquet(results.rows(), out / TRIALS)
    save_pictures(results, out)
    return results

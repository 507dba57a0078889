"""The job `pipeline`: from a space to racks that are trained and compared."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from configs.records import write_json
from models import Supernet
from search.jobs.backend import Backend
from search.jobs.pipeline.figure import save_picture
from search.jobs.pipeline.report import PlacementRow, print_comparison
from search.jobs.pipeline.retrain import RetrainedRack, train_placements
from search.jobs.pipeline.spec import PipelineSpec
from search.jobs.placement.checks import check_same_data, check_strategies
from search.jobs.placement.job import search_placements
from search.jobs.placement.report import print_results
from search.jobs.placement.results import PlacementResults
from search.jobs.supernet.weights import load_supernet
from search.runs.console import make_console
from search.runs.run_folder import RESULTS, TRIALS, run_folder, write_parquet
from search.training.precision import settled


def run(spec: PipelineSpec, out: Path, backend: Backend) -> int:
    """Run what the folder does not hold yet, and print the comparison; 1 if a rack failed to train, or a budget has no winner.

    The parts lie in `supernet/`, `placement/` and `racks/`, each a run folder of its own; `results.json` sums up.
    """
    console, search, retrain = make_console(), spec.placement, spec.retrain
    check_strategies(search, spec.supernet.rack)
    check_same_data(spec.supernet, search, n_test=(retrain.n_test_batches, retrain.test_batch_size))
    spec = settled(spec, out, "supernet.train", spec.supernet.rack, partial(console.print, markup=False))
    session = nullcontext if (out / RESULTS).exists() else backend.session  # what is still missing opens its own
    with run_folder(out, spec, may_change=("placement", "retrain")), session():
        console.print("1 of 3: the supernet", style="bold")
        if backend.train_supernet(spec.supernet, out / "supernet")["status"] == "diverged":
            return 1
        supernet = load_supernet(out / "supernet")
        assert isinstance(supernet, Supernet)  # the spec has checked that there are choices
        console.print("2 of 3: the search", style="bold")
        found = search_placements(search, supernet, spec.supernet, out / "placement", backend)
        print_results(found, out / "placement")
        console.print("3 of 3: the racks, each from scratch", style="bold")
        chosen = [scored.placement for result in found.budgets for scored in (result.best, *result.rivals.values())]
        trained = train_placements(spec.supernet, retrain, chosen, out / "racks", backend)
        rows = comparison(found, trained)
        summary: dict[str, Any] = {
            "job": spec.job,
            "fingerprint": spec.fingerprint(),
            "metric": found.metric,
            "rows": [row.to_dict() for row in rows],
        }
        write_json(out / RESULTS, summary)
        write_parquet(summary["rows"], out / TRIALS)
        save_picture(rows, found, out / "pipeline.png")
        print_comparison(rows, spec, out)
    return 1 if found.unmet or any(row.trained.error for row in rows) else 0


def comparison(found: PlacementResults, trained: dict[tuple[str, ...], RetrainedRack]) -> list[PlacementRow]:
    """A row for each budget and contender; rivals outside of every budget stand once, at the end."""
    rows: list[PlacementRow] = []
    outside: dict[str, PlacementRow] = {}
    inside = {scored.placement for result in found.budgets for scored in result.rivals.values() if scored.is_admitted}
    for result in found.budgets:
        for name, scored in (("search", result.best), *result.rivals.items()):
            if scored.is_admitted:
                rows.append(PlacementRow(result.text, name, scored, trained[scored.placement]))
            elif scored.placement not in inside:
                outside[name] = PlacementRow("outside", name, scored, trained[scored.placement])
    return [*rows, *outside.values()]

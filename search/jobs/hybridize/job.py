"""The job `hybridize`: a trained model, its space, alignment, search under budgets, distillation of what was found and rivals."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from configs.records import Row, kept_json, write_json
from configs.trained_model import model_path
from models import RackSpec, Supernet
from search.jobs.backend import Backend
from search.jobs.hybridize.distil import Distillation, ranking, single_effects, training_spec
from search.jobs.hybridize.figure import save_picture
from search.jobs.hybridize.finals import Finals
from search.jobs.hybridize.measurement import Measurement
from search.jobs.hybridize.report import HybridRow, print_hybrids, print_ranking
from search.jobs.hybridize.space import described_space
from search.jobs.hybridize.spec import HybridizeSpec
from search.jobs.hybridize.start import PLACEMENT, START, SUPERNET, make_start
from search.jobs.hybridize.what_trains import check_globs, stand_ins
from search.jobs.placement.checks import check_same_data, check_strategies
from search.jobs.placement.evaluation import open_evaluator
from search.jobs.placement.job import search_placements
from search.jobs.placement.results import BudgetResult, PlacementResults, Scored
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.weights import load_supernet
from search.runs.console import make_console
from search.runs.report import Say
from search.runs.run_folder import BESIDE, RESULTS, TRIALS, run_folder, write_parquet
from search.training.memory import give_back
from search.training.precision import settled


def run(spec: HybridizeSpec, out: Path, backend: Backend) -> int:
    """Run what the folder does not hold yet, and print the table; 1 if a rack failed, or a budget has no winner.

    The parts lie in `start/` (the model as a supernet), `alignment/`, `supernet/`, `placement/` and `racks/`, each with what it
    goes on from; `results.json` sums up.
    """
    console = make_console()
    say = partial(console.print, markup=False)
    model = model_path(spec.model)
    console.print("1 of 4: the model and its space", style="bold")
    space = described_space(spec)
    check_strategies(spec.search, space)  # before a weight is read, and anything of the folder is touched
    check_globs(spec, space)
    spec = settled(spec, out, "distil.train", space, say)
    trained = training_spec(spec, space)
    check_same_data(trained, spec.search, n_test=(spec.distil.n_test_batches, spec.distil.test_batch_size))
    with run_folder(out, spec, may_change=("search", "distil")), _session(spec, out, backend, say):
        make_start(spec, space, out, backend, say)
        give_back()
        console.print("2 of 4: the supernet", style="bold")
        source = _supernet(spec, space, out, backend)
        console.print("3 of 4: the search", style="bold")
        supernet = load_supernet(source)
        assert isinstance(supernet, Supernet)  # the space has choices
        found = search_placements(spec.search, supernet, trained, out / PLACEMENT, backend)
        effects = _effects(spec, supernet, trained, out / PLACEMENT)
        del supernet
        give_back()
        print_ranking(effects, spec.search.metric)
        console.print("4 of 4: distillation", style="bold")
        measurement, distillation = Measurement(spec, out, say), Distillation(spec, space, out, source, say)
        budgets = _distilled_budgets(spec, found)
        finalists: dict[str, Scored] = {}
        if spec.distil.finals is not None:
            judge = Measurement(spec, out, say, "validation")
            for result in budgets:
                finals = Finals(result, spec.distil.finals.n, distillation, backend, judge)
                finalists[result.text] = finals.winner(spec.distil.finals.n_steps, say)
        chosen = [each for result in budgets for each in _contenders(result, finalists.get(result.text))]
        distilled = distillation.run([scored.placement for _, scored in chosen], backend, measurement)
        rows = [
            HybridRow(
                result.text,
                name,
                spec.search.metric,
                scored,
                measurement.of_placement(source, scored.placement)["kl"],
                distilled.get(scored.placement),
            )
            for result in found.budgets
            for name, scored in _contenders(result, finalists.get(result.text))
        ]
        whole = measurement.of_model()
        summary: dict[str, Any] = {
            "job": spec.job,
            "fingerprint": spec.fingerprint(),
            "model": str(model),
            "context": found.context,
            "n_layers": len(space.slots()),
            "model_loss": whole["loss"],
            "ranking": effects,
            "rows": [row.to_dict() for row in rows],
        }
        write_json(out / RESULTS, summary)
        write_parquet(summary["rows"], out / TRIALS)
        save_picture(rows, found, out / "hybridize.png")
        print_hybrids(rows, whole, spec, found.context, out)
    return 1 if found.unmet or any(row.distilled is not None and row.distilled.error for row in rows) else 0


def _session(spec: HybridizeSpec, out: Path, backend: Backend, say: Say) -> AbstractContextManager[object]:
    """What the parts run on; once all is done none is needed, and what is missing after all opens its own."""
    if kept_json(out / RESULTS, say, fingerprint=spec.fingerprint()) is not None:
        return nullcontext()
    (out / RESULTS).unlink(missing_ok=True)  # of another search or distillation
    return backend.session()


def _supernet(spec: HybridizeSpec, space: RackSpec, out: Path, backend: Backend) -> Path:
    """The folder of the supernet that is searched: the start itself, unless its space is to be trained first."""
    stage = spec.supernet
    if stage is None:
        make_console().print("none: the search goes over the start", markup=False)
        return out / START
    batch_size = spec.data.batch_size if stage.batch_size is None else stage.batch_size
    given: dict[str, Any] = {
        "data": {**spec.data.to_dict(), "batch_size": batch_size},
        "n_steps": stage.n_steps,
        "eval_every": stage.n_steps,
        "eval_batch_size": batch_size,
        "lr": stage.lr,
        "weight_decay": 0.0,
        "trains": list(stage.trains or stand_ins(spec, space)),
        "gradient_checkpointing": stage.gradient_checkpointing,
        "workers": stage.workers.to_dict(),
        "initialise_from": f"{BESIDE}../{START}",
        "teacher": {"source": f"{BESIDE}../{START}", "weight": 1.0},
    }
    backend.train_supernet(training_spec(spec, space, **given), out / SUPERNET)
    return out / SUPERNET


def _distilled_budgets(spec: HybridizeSpec, found: PlacementResults) -> list[BudgetResult]:
    wanted = spec.distil.budgets
    return [result for result in found.budgets if wanted is None or result.budget in wanted]


def _contenders(result: BudgetResult, finalist: Scored | None) -> list[tuple[str, Scored]]:
    """What the search found, what the finals picked where that is another one, and the rivals, as far as they are admitted."""
    own = {"search": result.best}
    if finalist is not None and finalist.placement != result.best.placement:
        own["finals"] = finalist
    return [(name, scored) for name, scored in {**own, **result.rivals}.items() if scored.is_admitted]


def _effects(spec: HybridizeSpec, supernet: Supernet, trained: SupernetSpec, out: Path) -> list[Row]:
    """What each part costs alone. After `exact` all of it is in the log, and nothing is measured."""
    single = single_effects(supernet.space, supernet.main)
    with open_evaluator(spec.search, supernet, trained, out) as evaluator:
        scores = [score.value for score in evaluator(list(single.values()))]
    return ranking(dict(zip(single, scores, strict=True)), supernet.space, spec.search.metric)

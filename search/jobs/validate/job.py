"""The job `validate`: does the supernet rank placements as training each of them does, and do the strategies find the best?"""

import math
from functools import partial
from pathlib import Path
from typing import Any

from configs.records import write_json
from models import Placement, Supernet
from search.budget import Budget
from search.jobs.backend import Backend
from search.jobs.pipeline.retrain import train_placements
from search.jobs.placement.checks import check_same_data
from search.jobs.placement.evaluation import open_evaluator
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.weights import load_supernet
from search.jobs.validate.figure import save_picture
from search.jobs.validate.report import print_truth
from search.jobs.validate.spec import ValidateSpec
from search.jobs.validate.truth import StrategyChoice, Truth
from search.runs.console import make_console
from search.runs.errors import RunError
from search.runs.report import diverged_message
from search.runs.run_folder import RESULTS, TRIALS, run_folder, write_parquet
from search.strategies import STRATEGIES
from search.strategies.shared.strategy import Strategy, best
from search.training.precision import settled


def run(spec: ValidateSpec, out: Path, backend: Backend) -> int:
    """Train what the folder does not hold yet, and print the table of truth; 1 if a rack or a supernet failed to train.

    `racks/` holds every placement, `supernet-<seed>/` the supernets; `results.json` sums up.

    Raises:
        RunError: if a supernet has diverged, or has a finite score for no placement.
    """
    console, retrain = make_console(), spec.retrain
    check_same_data(spec.supernet, spec, n_test=(retrain.n_test_batches, retrain.test_batch_size))
    spec = settled(spec, out, "supernet.train", spec.supernet.rack, partial(console.print, markup=False))
    with run_folder(out, spec):
        placements = spec.placements()
        n_racks = len(placements) * len(spec.retrain.seeds)
        console.print(f"{len(placements)} placements, {n_racks} racks to be trained from scratch", style="bold")
        trained = train_placements(spec.supernet, spec.retrain, placements, out / "racks", backend)
        failed = {placement: each.error for placement, each in trained.items() if each.error}
        for placement, error in failed.items():
            console.print(f"{', '.join(placement)} failed: {error}", markup=False)
        if failed:
            return 1
        judged = [_judge(spec, seed, list(trained), out, backend) for seed in spec.supernet_seeds]
        truth = Truth(trained, [scores for scores, _ in judged], [choices for _, choices in judged])
        summary: dict[str, Any] = {"job": spec.job, "fingerprint": spec.fingerprint(), "budget": spec.budget, **truth.to_dict()}
        write_json(out / RESULTS, summary)
        write_parquet(summary["placements"], out / TRIALS)
        save_picture(truth, out / "validate.png")
        print_truth(truth, spec, out)
    return 0


def _judge(
    spec: ValidateSpec, seed: int, placements: list[Placement], out: Path, backend: Backend
) -> tuple[dict[Placement, float], dict[str, StrategyChoice]]:
    """The scores of one supernet, and what each strategy chose by them."""
    folder = out / f"supernet-{seed}"
    trained_as = SupernetSpec.model_validate({**spec.supernet.to_dict(), "seed": seed})
    if text := diverged_message(backend.train_supernet(trained_as, folder)):
        raise RunError(f"supernet-{seed}: {text}")
    supernet = load_supernet(folder)
    assert isinstance(supernet, Supernet)  # the spec has checked that there are choices
    budget, choices = Budget.of(spec.budget, supernet.space), {}
    with open_evaluator(spec, supernet, trained_as, folder, backend) as evaluator:
        scores = {placement: score.value for placement, score in zip(placements, evaluator(placements), strict=True)}
        if not any(map(math.isfinite, scores.values())):
            raise RunError(f"supernet-{seed}: none of the {len(scores)} placements has a finite score")
        for name, part in spec.strategies.items():
            strategy: Strategy = STRATEGIES.build(part)
            rounds = strategy.search(supernet.space, budget, evaluator)
            choices[name] = StrategyChoice(best(rounds).placement, sum(map(len, rounds)))
    return scores, choices

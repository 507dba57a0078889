"""What a validation shows in the terminal: the table of truth, and what the strategies made of it."""

import statistics
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from models import placement_text
from search.jobs.validate.spec import ValidateSpec
from search.jobs.validate.truth import Truth
from search.runs.console import make_console


def print_truth(truth: Truth, spec: ValidateSpec, out: Path) -> None:
    """The placements by their stand-alone loss, the strategies by their regret, and how well the ranks agree."""
    console = make_console()
    table = Table(
        "placement",
        *(Column(name, justify="right") for name in ("test loss", "supernet score", "rank by supernet")),
        title="every placement, trained from scratch",
        title_justify="left",
        title_style="bold",
    )
    means = {placement: statistics.fmean(scores[placement] for scores in truth.scores) for placement in truth.losses}
    ranked = sorted(means, key=lambda placement: -means[placement])
    for placement, loss in truth.losses.items():
        error = truth.trained[placement].standard_error
        told = f"{loss:.4f}" + ("" if error is None else f" ±{error:.4f}")
        table.add_row(escape(placement_text(placement)), told, f"{means[placement]:.4f}", str(ranked.index(placement) + 1))
    console.print(table)
    console.print(_strategies(truth))
    taus = ", ".join(f"{tau:.2f}" for tau in truth.taus)
    console.print(f"Kendall tau, supernet against stand-alone: {taus} (by supernet); mean score {truth.tau_of_mean:.2f}")
    if truth.tau_between_seeds is not None:
        between, within = truth.spread
        console.print(f"between two seeds of the stand-alone racks themselves: {truth.tau_between_seeds:.2f}")
        console.print(f"standard deviation of the loss: {between:.4f} over placements, {within:.4f} over seeds of one placement")
    n_steps = spec.retrain.n_steps or spec.supernet.n_steps
    console.print(f"racks: {n_steps} steps, {len(spec.retrain.seeds)} seed(s); supernet: {spec.supernet.n_steps} steps")
    console.print(f"picture: {out / 'validate.png'}", markup=False)


def _strategies(truth: Truth) -> Table:
    table = Table(
        "strategy",
        *(Column(name, justify="right") for name in ("regret", "gain over interleave", "evaluations")),
        Column("choice", overflow="fold"),
        title="what each strategy chose",
        title_justify="left",
        title_style="bold",
    )
    for name, judgement in sorted(truth.judgements().items(), key=lambda item: item[1].regret):
        gain = "" if judgement.gain is None else f"{judgement.gain:+.4f}"
        choices = dict.fromkeys(placement_text(choices[name].placement) for choices in truth.choices)
        table.add_row(
            escape(name), f"{judgement.regret:.4f}", gain, f"{judgement.n_evaluations:.0f}", escape(" | ".join(choices))
        )
    return table

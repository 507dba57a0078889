"""What a validation shows in the terminal: the table of truth, and what the strategies made of it."""

import statistics
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from models import placement_text
from search.jobs.validate.spec import ValidateSpec
from search.jobs.validate.truth import Truth, tau_text
from search.runs.console import make_console, measured


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
        told = measured(loss, truth.trained[placement].standard_error)
        table.add_row(escape(placement_text(placement)), told, measured(means[placement]), str(ranked.index(placement) + 1))
    console.print(table)
    console.print(_strategies(truth))
    taus = ", ".join(map(tau_text, truth.taus))
    console.print(f"Kendall tau, supernet against stand-alone: {taus} (by supernet); mean score {tau_text(truth.tau_of_mean)}")
    between, within = truth.spread
    if within is not None:
        console.print(f"between two seeds of the stand-alone racks themselves: {tau_text(truth.tau_between_seeds)}")
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

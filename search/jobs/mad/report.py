"""What a MAD run shows: the table of scores in the terminal, and a picture of them."""

from collections.abc import Mapping
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from models import BackboneSpec
from models.assembly.cost import RackCost
from search.jobs.mad.scores import Scores
from search.jobs.mad.setting_tables import entry, setting_tables
from search.runs.console import duration, make_console


def print_scores(scores: Scores, costs: Mapping[str, RackCost], out: Path) -> None:
    """The table: a row an architecture, a column a task, sizes beside them; settings one by one; what qualifies the figures."""
    spec, console = scores.spec, make_console()
    table = Table(title=f"MAD scores, mode {spec.mode}", title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("architecture")
    for name in (*spec.tasks, "mean", "parameters", "state", "time"):
        table.add_column(escape(name.replace("-", " ")), justify="right", overflow="fold")
    for name in spec.architectures:
        entries = [_entry(scores, name, task) for task in (*spec.tasks, None)]
        seconds = sum(row.get("seconds") or 0 for cell in scores.cells if cell.architecture == name for row in cell.rows)
        sizes = [f"{costs[name].n_parameters:,}", f"{costs[name].state:,}"] if name in costs else ["", ""]
        table.add_row(escape(name), *entries, *sizes, duration(seconds))
    if any(scores.ceiling(task) < 0.9995 for task in spec.tasks):
        table.add_section()
        table.add_row("best possible", *(f"{scores.ceiling(task):.3f}" for task in spec.tasks), "", "", "", "")
    console.print(table)
    for by_setting in setting_tables(scores):
        console.print(by_setting)
    for line in _notes(scores, costs):
        console.print(line, markup=False)
    console.print(f"picture: {out / 'scores.png'}", markup=False)


def _entry(scores: Scores, architecture: str, task: str | None) -> str:
    found = scores.of(architecture, task)
    return entry(found) + ("*" if found.value is not None and scores.problems(architecture, task) else "")


def _notes(scores: Scores, costs: Mapping[str, RackCost]) -> list[str]:
    spec = scores.spec
    if spec.mode == "mad":
        lines = ["accuracy: macro a batch, on the test set that also picks weights and grid point, as the MAD reference has it"]
    else:
        lines = ["accuracy: share of asked positions that are right, on a test set that nothing was picked by"]
    n_settings = sum(1 for _ in spec.settings()) // len(spec.architectures)
    grid = f"{len(spec.lrs)} learning rate(s) x {len(spec.weight_decays)} weight decay(s)"
    lines.append(
        f"each score: best of {f'{spec.sweep.n_samples} draws' if spec.sweep.method == 'optuna' else grid}, "
        f"mean over difficulty settings ({n_settings} in all) and {len(spec.seeds)} seed(s)"
    )
    first, task = next(iter(spec.tasks.items()))
    lines.append(f"parameters, state: at the baseline of {first}, sequences of {task.instance().seq_len}")
    for name in spec.architectures:
        if problems := scores.problems(name):
            lines.append(f"* {name}: " + ", ".join(f"{count} trial(s) {what}" for what, count in problems.items()))
        if unscored := [task for task in spec.tasks if scores.of(name, task).value is None]:
            lines.append(f"{name} has no score on {', '.join(unscored)}: of some setting no trial came to a finite result")
    lines += [f"note, {name}: {warning}" for name, costed in costs.items() for warning in costed.warnings]
    ahead = ", ".join(name for name, task in spec.tasks.items() if task.instance().answers_stand_ahead)
    if ahead:
        said = f"looks ahead (causal = false), and on {ahead} the answers stand in the input: these scores mean nothing"
        lines += [f"note, {name}: {said}" for name, backbone in spec.architectures.items() if backbone and looks_ahead(backbone)]
    errors = {row["error"].strip().splitlines()[-1] for cell in scores.cells for row in cell.rows if row.get("error")}
    return lines + [f"error: {error}" for error in sorted(errors)]


def looks_ahead(backbone: BackboneSpec) -> bool:
    """Whether a mixer of the rack is told to: what it then sees of a position comes from after it."""
    mixers = [block.mixer.options() for stack in backbone.stacks for block in stack.expanded() if block.mixer is not None]
    mixers += [inner.options() for options in mixers for inner in options.get("mixers", {}).values() if inner is not None]
    return any(options.get("causal") is False for options in mixers)

"""Tables of MAD scores by difficulty setting, beside the mean over them."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from search.jobs.mad.scores import Scores, TaskScore
from search.jobs.mad.task import TaskSpec
from search.runs.console import measured

MOST_SHOWN = 8
"""Settings that are shown whatever they change; of more, those of a scan are."""

SCANS = ("test_seq_len", "depth")
"""Changes of the test alone, which ask how a score moves, not for its mean."""

BEYOND = "test_seq_len longer than the training: accuracy at the positions beyond the training's length alone"


def shown_settings(task: TaskSpec) -> list[str]:
    """The settings to show one by one: all, where there are a few; else the baseline and those of scans, if there are any."""
    settings = list(task.settings())
    if len(settings) > MOST_SHOWN:
        settings = ["baseline", *(change for change in settings if change.startswith(tuple(f"{name}=" for name in SCANS)))]
    return settings if len(settings) > 1 else []


def setting_tables(scores: Scores) -> Iterator[Table]:
    """A table for each task with settings to show: a row an architecture, a column a setting."""
    for name, task in scores.spec.tasks.items():
        if settings := shown_settings(task):
            title = f"{name.replace('-', ' ')}, setting by setting"
            table = Table(title=escape(title), title_justify="left", title_style="bold", caption_justify="left")
            table.add_column("architecture")
            for setting in settings:
                table.add_column(escape(setting), justify="right", overflow="fold")
            for architecture in scores.spec.architectures:
                table.add_row(escape(architecture), *(entry(scores.of(architecture, name, setting)) for setting in settings))
            ceilings = [scores.ceiling(name, setting) for setting in settings]
            if min(ceilings) < 0.9995:
                table.add_section()
                table.add_row("best possible", *(f"{ceiling:.3f}" for ceiling in ceilings))
            if any(setting.startswith("test_seq_len=") for setting in settings):
                table.caption = BEYOND
            yield table


def entry(found: TaskScore) -> str:
    """A score in words."""
    if found.value is None:
        return "incomplete"
    return measured(found.value, found.standard_error, form=".3f")

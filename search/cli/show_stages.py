"""What `show` says of a growth: what each stage trains, and what it may keep of the stacks that stand still."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from models import RackSpec
from models.assembly.assemble import without_memory
from models.spec.placement import main_placement
from search.jobs.progressive.plan import Stage, first_stage, next_stage
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.progressive.stage_settings import stage_time
from search.jobs.progressive.training.evaluation import n_trained
from search.jobs.progressive.training.growing_model import find_frontier

_COLUMNS = ("stage", "steps", "stacks", "new", "parameters", "trained", "cached below", "bytes a sample", "time step")


def print_stages(console: Console, spec: ProgressiveSpec) -> None:
    """A row for each stage; of candidates and choices, with the first and the main one."""
    table = Table(title="stages", title_justify="left", title_style="bold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    seq_len = spec.data.sizes()[1]
    for stage in planned(spec):
        rack = without_memory(stage.rack)
        frontier = find_frontier(rack) if spec.growth.cache_activations is not False else 0
        row_bytes = seq_len * stage.rack.d_model * (2 if stage.rack.residual_dtype else 4)
        time_step = stage_time(spec, stage).step if spec.growth.time_interpretation == "depth" else None
        table.add_row(
            str(stage.index + 1),
            f"{stage.n_steps:,}",
            str(len(stage.rack.stacks)),
            "" if stage.kind == "joint" else f"{stage.uid} at {stage.position}",
            f"{sum(parameter.numel() for parameter in rack.parameters()):,}",
            f"{n_trained(rack) if stage.n_steps else 0:,}",
            f"stack {frontier}" if frontier else "",
            f"{row_bytes:,}" if frontier else "",
            "" if time_step is None else str(time_step),
        )
    console.print(table)


def planned(spec: ProgressiveSpec) -> Iterator[Stage]:
    """The stages, as they are if each choice falls on the first candidate, or on the main placement."""
    stage = first_stage(spec)
    yield stage
    stack = next(iter(spec.candidates.values())) if spec.candidates else spec.added
    space: RackSpec = spec.space(stack)
    if slots := space.slots():
        stack = space.place(main_placement(slots)).stacks[0]
    while stage.index + 1 < spec.n_stages:
        stage = next_stage(spec, stage, stack)
        yield stage

"""The commands `check` and `show`: whether configuration files are right, and what they amount to."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs import ConfigError, Spec, read_yaml
from configs.errors import known_names
from configs.limits import shortened
from configs.load import apply_override, validate
from models import BackboneSpec, RackSpec, placement_text
from models.assembly.cost import RackCost, cost
from models.spec.short_forms import layer
from search.budget import Budget, CostTable
from search.cli.run import kind_of_file
from search.cli.show_parameters import print_parameters
from search.cli.show_space import print_budgets, print_expected, print_space
from search.cli.show_stages import print_stages
from search.jobs.hybridize.distil import distillation_spec, what_it_takes
from search.jobs.hybridize.space import described_space
from search.jobs.hybridize.spec import HybridizeSpec
from search.jobs.mad.job import n_expected
from search.jobs.mad.spec import MadSpec
from search.jobs.mad.task import TaskSpec
from search.jobs.pipeline.spec import PipelineSpec
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.table import JOBS, job_spec
from search.jobs.validate.spec import ValidateSpec
from search.runs.console import make_console
from search.samplers.shared.expected_cost import expected_cost
from search.training.optimizer import DECAY_RULE, DECAY_RULE_OF_MAD

_SPECS = {name: job_spec(name) for name in ("mad", *JOBS)}
LAYER_WIDTH = 128
"""The suite's width, at which single layers are checked and shown."""


def read_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """The spec in a file, whichever kind it is of: a job names itself by `job:`, a layer by `kind:`, a task by `task:`."""
    tree = read_yaml(path)
    for text in overrides:
        if not text.startswith("out="):  # where a run would lie is no part of what it is
            apply_override(tree, text)
    match kind_of_file(tree):
        case "job":
            if not isinstance(tree["job"], str) or tree["job"] not in _SPECS:
                raise ConfigError(
                    f"{path}: job: unknown job '{shortened(str(tree['job']))}'; {known_names(str(tree['job']), _SPECS)}"
                )
            return validate(_SPECS[tree["job"]], tree, str(path))
        case "task":
            return validate(TaskSpec, tree, str(path))
        case "layer":
            try:
                layer(tree)
            except ValueError as error:
                raise ConfigError(f"{path}: {error}") from None
            return validate(BackboneSpec, {"d_model": LAYER_WIDTH, "layers": [tree]}, str(path))
        case "rack":
            return validate(RackSpec, tree, str(path))
    known = known_names(next(iter(map(str, tree)), ""), ("job", "task", "kind", "stacks", "layers"))
    raise ConfigError(f"{path}: neither a job, a task, a layer nor a rack; {known} (one of them says which)")


def run_check(arguments: argparse.Namespace, overrides: Sequence[str], backend: object) -> int:
    """Say of each file whether it is right; status 2 if any is not."""
    del backend
    n_wrong = 0
    for path in arguments.configs:
        try:
            read_spec(path, overrides)
            print(f"{path}: ok")
        except ConfigError as error:
            n_wrong += 1
            print(error, file=sys.stderr)
    return 2 if n_wrong else 0


def run_show(arguments: argparse.Namespace, overrides: Sequence[str], backend: object) -> int:
    """Print the resolved tree and the cost of every part."""
    del backend
    spec, console = read_spec(arguments.config, overrides), make_console()
    print(yaml.safe_dump(spec.to_dict(), sort_keys=False, width=130), end="")
    print(f"# fingerprint {spec.fingerprint()}")
    if isinstance(spec, RackSpec):
        _show_rack(console, spec, arguments.seq_len)
    elif isinstance(spec, SupernetSpec):
        _show_supernet(console, spec, arguments.seq_len)
    elif isinstance(spec, BackboneSpec):
        seq_len = arguments.seq_len or LAYER_WIDTH
        costed = cost(RackSpec(**spec.to_dict(), vocab_size=1, max_length=seq_len), seq_len)
        title = f"layer at width {LAYER_WIDTH}, between an embedding and a head for one token"
        print_cost(console, title, replace(costed, warnings=()), seq_len)
    elif isinstance(spec, PipelineSpec | ValidateSpec):
        _show_supernet(console, spec.supernet, arguments.seq_len)
        print_budgets(console, spec.supernet.rack, _budgets(spec))
    elif isinstance(spec, HybridizeSpec):
        _show_conversion(console, spec, arguments.seq_len)
    elif isinstance(spec, ProgressiveSpec):
        print_stages(console, spec)
    elif isinstance(spec, MadSpec):
        _show_mad(console, spec, arguments.seq_len)
    racks, decays_all = _racks(spec), isinstance(spec, MadSpec) and spec.mode == "mad"
    if racks:
        console.print(DECAY_RULE_OF_MAD if decays_all else DECAY_RULE, markup=False)
    for rack in racks if arguments.parameters else ():
        print_parameters(console, rack, decays_all=decays_all)
    return 0


def _racks(spec: Spec) -> list[RackSpec]:
    """The racks that a file describes, one for each architecture."""
    if isinstance(spec, MadSpec):
        settings = {setting.architecture: setting.spec.rack for setting in spec.settings()}
        return [rack for rack in settings.values() if rack is not None]
    if isinstance(spec, BackboneSpec) and not isinstance(spec, RackSpec):
        return [RackSpec(**spec.to_dict(), vocab_size=1, max_length=LAYER_WIDTH)]
    found = spec.supernet if isinstance(spec, PipelineSpec | ValidateSpec) else spec
    return [rack for rack in (getattr(found, "rack", None), found) if isinstance(rack, RackSpec)]


def _show_rack(console: Console, spec: RackSpec, seq_len: int | None) -> None:
    if spec.slots():
        print_space(console, spec, seq_len)
    else:
        seq_len = seq_len or spec.max_length or 1024
        print_cost(console, "rack", cost(spec, seq_len), seq_len)


def _show_conversion(console: Console, spec: HybridizeSpec, seq_len: int | None) -> None:
    space, search = described_space(spec), spec.search
    _show_rack(console, space, seq_len)
    given: dict[str, Any] = {"latency": search.latencies(), "custom": search.cost_tables}
    print_budgets(console, space, [Budget.of(each, space, **given) for each in search.budgets])
    changed = tuple(next(name for name in slot.names if name != slot.main) for slot in space.slots())
    if (run := distillation_spec(spec, space, changed)) is not None:
        console.print(f"everywhere {placement_text(changed)}: {what_it_takes([run], space)}", markup=False)


def _show_supernet(console: Console, spec: SupernetSpec, seq_len: int | None) -> None:
    _show_rack(console, spec.rack, seq_len)
    sampler = spec.make_sampler()
    if sampler is not None:
        print_expected(console, expected_cost(sampler, CostTable.of(spec.rack, seq_len), spec.n_steps), spec.sampler.kind)


def _budgets(spec: PipelineSpec | ValidateSpec) -> list[Budget]:
    space = spec.supernet.rack
    if isinstance(spec, ValidateSpec):
        return [Budget.of(spec.budget, space)]
    latencies = spec.placement.latencies()
    return [Budget.of(value, space, latency=latencies, custom=spec.placement.cost_tables) for value in spec.placement.budgets]


def _show_mad(console: Console, spec: MadSpec, seq_len: int | None) -> None:
    settings, n_trials = list(spec.settings()), n_expected(spec)
    for setting in settings:
        if setting.change == "baseline" and setting.spec.rack is not None:
            title, positions = f"{setting.architecture} on {setting.task}", seq_len or setting.spec.setting.instance().seq_len
            print_cost(console, title, cost(setting.spec.rack, positions), positions)
    n_steps = sum(setting.spec.n_steps for setting in settings) * n_trials // len(settings)
    print(f"{n_trials:,} trials, at most {n_steps:,} optimizer steps")


def print_cost(console: Console, title: str, costed: RackCost, seq_len: int) -> None:
    """The table of a rack's parts."""
    table = Table(title=f"{escape(title)}, sequences of {seq_len}", title_justify="left", title_style="bold")
    table.add_column("part", no_wrap=True)
    table.add_column("kind")
    for name in ("parameters", "state", "FLOPs/token"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in costed.parts:
        options = ", ".join(f"{name}={value}" for name, value in part.options.items() if name in part.chosen)
        state = f"{part.state:,}" if part.state else ""
        table.add_row(
            part.path,
            f"{part.kind}({options})" if options else part.kind,
            f"{part.n_parameters:,}",
            state,
            f"{part.flops:,.0f}" if part.flops else "",
        )
    table.add_section()
    table.add_row("in all", "", f"{costed.n_parameters:,}", f"{costed.state:,}", f"{costed.flops:,.0f}")
    console.print(table)
    for warning in costed.warnings:
        console.print(f"warning: {warning}", markup=False)

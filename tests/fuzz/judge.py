"""Judges what becomes of an odd input: refused in one message, or right, and then it can be built and used."""

import re
import signal
import warnings
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch

from configs import ConfigError, Spec
from configs.errors import yaml_path
from models import BackboneSpec, RackSpec
from models.assembly.assemble import without_memory
from models.assembly.cost import cost
from search.budget import Budget
from search.jobs.mad.spec import MadSpec
from search.jobs.mad.task import TaskSpec
from search.jobs.pipeline.spec import PipelineSpec
from search.jobs.placement.spec import SearchSpec
from search.jobs.profile.spec import ProfileSpec
from search.jobs.progressive.plan import first_stage, next_stage
from search.jobs.progressive.spec import ProgressiveSpec
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.validate.spec import ValidateSpec
from search.strategies import STRATEGIES
from search.training.schedules import learning_rate

LONGEST_SECONDS = 5
TINY = 10**6
"""What is larger, in numbers, is built without memory, and not run."""


class Hang(BaseException):
    """It took longer than anybody waits."""


@contextmanager
def at_most(seconds):
    """Raise `Hang` after so long."""

    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judged(read, name="", path=()):
    """What is wrong with the answer to an input, or None; and whether it was accepted.

    `read` makes the spec, or raises. A refusal has to name the last key of `path`, or something around it.
    """
    spec, told = None, ""
    try:
        with at_most(LONGEST_SECONDS):
            spec = read()
    except ConfigError as error:
        told = str(error)
    except Hang:
        return f"{name}: no answer in {LONGEST_SECONDS} s", False
    except Exception as error:  # noqa: BLE001 - the very thing that is looked for
        return f"{name}: {type(error).__name__}: {error}"[:400], False
    if spec is None:
        return _judged_message(told, name, path), False
    try:
        with at_most(2 * LONGEST_SECONDS), warnings.catch_warnings(action="ignore"):
            use(spec)
    except Hang:
        return f"{name}: accepted, and not built in {2 * LONGEST_SECONDS} s", True
    except Exception as error:  # noqa: BLE001 - the very thing that is looked for
        return f"{name}: accepted, and then {type(error).__name__}: {error}"[:400], True
    return None, True


def _judged_message(told, name, path):
    lines = told.splitlines()
    if len(lines) > 60 or max(map(len, lines), default=9999) > 3000:
        return f"{name}: a message of {len(lines)} lines, the longest of {max(map(len, lines), default=0)} characters"
    around = [str(key) for key in path if not isinstance(key, int)] or [""]
    if path and not any(re.search(rf"\b{re.escape(key)}\b", told) for key in around[-3:]) and yaml_path(path) not in told:
        return f"{name}: the message does not say where: {told[:300]}"
    return None


def use(spec: Spec):
    """Build what a spec describes, and, where it is tiny, take one step of it."""
    for spec_class, used in USES.items():
        if isinstance(spec, spec_class):
            used(spec)
            break
    assert type(spec).model_validate(spec.to_dict()).fingerprint() == spec.fingerprint()


def _use_rack(spec: RackSpec):
    shapes = without_memory(spec)
    sizes = [tensor.numel() for tensor in (*shapes.parameters(), *shapes.buffers())]
    if sum(sizes) > TINY or (spec.max_length or 0) > TINY:
        return
    cost(spec, 8)
    rack = spec.build()
    length = min(spec.max_length or 8, 8) if spec.head.kind == "language_model" else spec.max_length
    tokens = torch.zeros(2, length, dtype=torch.long)
    given = () if rack.time_embedding is None else (torch.zeros(2, dtype=torch.long),)
    rack(tokens, *given)


def _use_task(task):
    if task.input_length * task.vocab_size < TINY and type(task).__name__ != "Text":
        task.sample(np.random.default_rng(0), 2)


def _use_supernet(spec: SupernetSpec):
    _use_rack(spec.rack)
    for share in spec.data.tasks.values():
        _use_task(share.instance())
    if sampler := spec.make_sampler():
        sampler.draw(spec.seed, 0)
    assert learning_rate(spec.train.schedule, spec.lr, 0, spec.n_steps) >= 0


def _use_search(spec: PipelineSpec | ValidateSpec):
    _use_supernet(spec.supernet)
    if isinstance(spec, ValidateSpec):
        spec.placements()
        return
    for value in spec.placement.budgets if spec.placement.latency_table is None else ():
        budget = Budget.of(value, spec.supernet.rack)
        for part in (spec.placement.strategy, *spec.placement.rivals.values()):
            _ = isinstance(part, str) or next(STRATEGIES.build(part).rounds(budget), None)


def _use_growth(spec: ProgressiveSpec):
    _use_task(spec.data.instance())
    spec.make_objective()
    stage = first_stage(spec)
    _use_rack(stage.rack.model_copy(update={"time": None}))
    for _ in range(min(spec.n_stages - 1, 3)):
        if spec.chooses:
            break
        stage = next_stage(spec, stage)
        without_memory(stage.rack)


def _use_suite(spec: MadSpec):
    for setting in islice(spec.settings(), 3):
        _use_task(setting.spec.setting.instance())
        if setting.spec.rack is not None:
            _use_rack(setting.spec.rack)


def _use_task_file(spec: TaskSpec):
    for setting in spec.settings().values():
        _use_task(setting.instance())


def _use_placement(spec: SearchSpec):
    for part in (spec.strategy, *spec.rivals.values()):
        _ = isinstance(part, str) or STRATEGIES.build(part)


USES = {
    RackSpec: _use_rack,
    BackboneSpec: lambda spec: _use_rack(RackSpec(**spec.to_dict(), vocab_size=8, max_length=16)),
    SupernetSpec: _use_supernet,
    PipelineSpec: _use_search,
    ValidateSpec: _use_search,
    ProgressiveSpec: _use_growth,
    MadSpec: _use_suite,
    TaskSpec: _use_task_file,
    SearchSpec: _use_placement,
    ProfileSpec: lambda spec: _use_rack(spec.rack),
}
"""How what each kind of specification describes is built and used; the first that fits."""

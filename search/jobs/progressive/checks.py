"""Checks of a growth's configuration: combinations of keys that do not fit together, and where they stand."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from configs.errors import message_of
from configs.growth import Problem
from configs.growth_checks import growth_problems
from configs.local_losses import NO_CHECKPOINTED_TAIL
from models import StackSpec
from search.jobs.progressive.fields import ProgressiveFields
from tasks.objectives import OBJECTIVES

FOLDER_NAME = re.compile(r"[\w-]+")
TAKEN_NAMES = ("tune",)  # where Ray Tune keeps its own


def problems_of(spec: ProgressiveFields) -> Iterator[Problem]:
    """Places in the spec, and what is wrong there."""
    yield from _size_problems(spec)
    yield from _growth_problems(spec)
    yield from _share_problems(spec)
    yield from _model_problems(spec)
    yield from _time_problems(spec)
    yield from _choice_problems(spec)


def _stacks(spec: ProgressiveFields) -> dict[tuple[int | str, ...], StackSpec]:
    """All stacks that are said, by their place."""
    return {**{("rack", "stacks", index): stack for index, stack in enumerate(spec.rack.stacks)}, **_added(spec)}


def _added(spec: ProgressiveFields) -> dict[tuple[int | str, ...], StackSpec]:
    """Those that may be added, if any are said."""
    said: dict[tuple[int | str, ...], StackSpec] = {} if spec.stack is None else {("stack",): spec.stack}
    return said | {("candidates", name): stack for name, stack in (spec.candidates or {}).items()}


def _size_problems(spec: ProgressiveFields) -> Iterator[Problem]:
    place: tuple[int | str, ...] = ("data", "task")
    try:
        _, seq_len = spec.data.sizes()
        place = ("objective",)
        objective = spec.make_objective()
    except ValueError as error:
        yield place, str(error)
        return
    for name in ("n_train", "n_validation"):
        if spec.data.task is not None and spec.data.task.kind != "text" and getattr(spec.data, name) is None:
            yield ("data", name), f"a number is needed: {spec.data.task.kind} draws instances without end, a text has all it has"
    if spec.rack.head.kind != "language_model":
        yield ("rack", "head"), f"growth has the head language_model, not {spec.rack.head.kind}"
    if objective.input_vocab_size > spec.rack.vocab_size:
        text = f"{spec.rack.vocab_size} is too small: with {spec.objective.kind} there are {objective.input_vocab_size} tokens"
        yield ("rack", "vocab_size"), text
    if spec.rack.max_length is not None and seq_len > spec.rack.max_length:
        yield ("rack", "max_length"), f"{spec.rack.max_length} is too short: samples have {seq_len} positions"
    for where, stack in _stacks(spec).items() if objective.on_bidirectional_stacks == "refused" else ():
        if not looks_back(stack):
            text = f"the objective {spec.objective.kind} needs causal stacks, and this one looks ahead and would copy what is"
            yield where, f"{text} asked; use mlm or custom"
    if spec.data.batch_size < spec.workers.n:
        yield ("workers", "n"), f"{spec.workers.n} workers for the {spec.data.batch_size} rows of data.batch_size"


def _growth_problems(spec: ProgressiveFields) -> Iterator[Problem]:
    growth, n_first = spec.growth, len(spec.rack.stacks)
    if spec.rack.slots():
        yield ("rack",), "stacks that are trained first have no choices: place them; a choice is for the stack that is added"
    if spec.n_target < n_first:
        yield ("growth", "target_stacks"), f"{spec.n_target} is below the {n_first} stacks that the rack starts with"
    n_listed = spec.n_stages - bool(growth.joint_tuning_steps) - (spec.model is not None)
    if isinstance(growth.stage_steps, tuple) and len(growth.stage_steps) > n_listed:
        yield ("growth", "stage_steps"), f"{len(growth.stage_steps)} numbers for {n_listed} stage(s)"
    if growth.enabled and spec.training_architecture != "rackwise":
        text = f"{spec.training_architecture} is how a whole rack trains: it needs growth.enabled: false"
        yield ("training_architecture",), text
    computes_half = "half" in (growth.new_stack_precision, *(stack.precision for stack in spec.rack.stacks))
    if spec.training_architecture != "rackwise" and computes_half:
        yield ("growth", "new_stack_precision"), "half needs its loss scaled, and local losses are not: choose bfloat16"
    if spec.training_architecture != "rackwise" and growth.gradient_checkpointing and not spec.local_loss.tail_learns:
        yield ("local_loss", "tail_learns"), NO_CHECKPOINTED_TAIL
    says_adapters = any(stack.lora or stack.progressive_lora for stack in _stacks(spec).values())
    for place, text in growth_problems(growth, has_adapters=says_adapters):
        yield ("growth", *place), text
    if growth.prepend_loss == "denoise_mse" and not OBJECTIVES[spec.objective.kind].corrupts:  # type: ignore[attr-defined]
        yield ("growth", "prepend_loss"), f"denoise_mse needs an objective that corrupts its input, not {spec.objective.kind}"


def _share_problems(spec: ProgressiveFields) -> Iterator[Problem]:
    """A stack that is added has weights of its own: none of its blocks can be one of another stack."""
    n_first = len(spec.rack.stacks)
    n_added = spec.n_target - n_first if spec.growth.enabled else 0
    if n_added < 1:
        return
    there = {name for stack in spec.rack.stacks for name in _shared(stack)}
    for where, stack in (_added(spec) or {("rack", "stacks", n_first - 1): spec.added}).items():
        names = _shared(stack)
        if taken := sorted(names if n_added > 1 else names & there):
            yield where, f"share: '{taken[0]}' would be in several stacks, but each that is added has weights of its own"


def _shared(stack: StackSpec) -> set[str]:
    return {block.share for block in stack.expanded() if block.share is not None}


def _model_problems(spec: ProgressiveFields) -> Iterator[Problem]:
    growth = spec.growth
    if spec.model is None:
        return
    if not growth.enabled:
        yield ("growth", "enabled"), "a model is the trunk of what grows on it; the job supernet trains one (initialise_from)"
    elif spec.n_stages == 1:
        text = f"the model has {len(spec.rack.stacks)} stack(s), so nothing would be added, and nothing trained: give more"
        yield ("growth", "target_stacks"), text
    if spec.n_target > len(spec.rack.stacks) and spec.stack is None and spec.candidates is None:
        yield ("stack",), "say what is added to the model, or give candidates: its last stack again may be all of its layers"
    if growth.trunk_strategy == "qlora" and not growth.has_second_adapters:
        yield ("growth", "progressive_qlora"), "a model has no adapters but these: leave it out"


def _time_problems(spec: ProgressiveFields) -> Iterator[Problem]:
    growth = spec.growth
    if spec.rack.time is not None:
        yield ("rack", "time"), "time comes from growth.time_interpretation: say it there"
    if growth.time_interpretation != "depth":
        return
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is told below
            table = spec.depth_time().table
    except ValueError as error:
        yield ("growth", "stack_time_mapping"), str(error)
        return
    if len(set(table)) < len(table):
        yield ("growth", "num_time_steps"), f"stacks share time steps: {list(table)}; give more of them, or null"


def _choice_problems(spec: ProgressiveFields) -> Iterator[Problem]:
    problems = list(_added_problems(spec))
    yield from problems
    if problems:  # whether there is a choice is not known then
        return
    if spec.choice != type(spec.choice)() and not spec.chooses:
        yield ("choice",), "there is nothing to choose from: give candidates, or a stack with a choice of mixers"
    elif spec.choice.budget is not None and (spec.stack is None or not spec.chooses):
        yield ("choice", "budget"), "only a stack with choices has placements to keep within a budget"
    if spec.chooses and not spec.growth.enabled:
        yield ("growth", "enabled"), "only a stack that a rack grows by is chosen: set enabled: true, or place the stack"
    if spec.chooses and spec.growth.building_mode == "prepend":
        yield ("growth", "building_mode"), "candidates are ranked on the output of what stands below them: they need append"


def _added_problems(spec: ProgressiveFields) -> Iterator[Problem]:
    if spec.candidates is not None and spec.stack is not None:
        yield ("candidates",), "give candidates, or one stack, not both"
    for name in spec.candidates or ():
        if not FOLDER_NAME.fullmatch(name) or name in TAKEN_NAMES:
            yield ("candidates", name), "a candidate's name is its folder's: letters, digits, _ and -, and not tune"
    for place, stack in _added(spec).items():
        try:
            is_space = bool(spec.space(stack).slots())
        except ValidationError as error:
            yield from (((*place, *line["loc"][2:]), message_of(line)) for line in error.errors())
        else:
            if is_space and place != ("stack",):
                yield place, "a candidate has no choices itself: place it, or give a space as stack"


def looks_back(stack: StackSpec) -> bool:
    """Whether no mixer of a stack, nor any that one may become, looks ahead."""
    return all(_is_causal(block.mixer) for block in stack.expanded())


def _is_causal(mixer: Any) -> bool:
    options = {} if mixer is None else mixer.options()
    return options.get("causal", True) and all(map(_is_causal, options.get("mixers", {}).values()))

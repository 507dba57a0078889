"""What `show` says that a model computes and holds, against operations counted as they run: the parts, and every shipped file."""

from functools import cache
from pathlib import Path

import pytest
import torch

from models import CHANNEL_MIXERS, MIXERS, BackboneSpec, RackSpec, Supernet
from models.assembly.cost import cost, space_cost
from models.ops.convolutions.causal_convolution import causal_convolution
from models.ops.recurrences.chunk_states import decayed_before_each
from models.ops.recurrences.corrected_chunks import corrected_chunks
from models.ops.recurrences.selective_scan import selective_scan
from search.cli.show import LAYER_WIDTH, read_spec
from search.jobs.mad.spec import MadSpec
from tests.models.cases import CHANNEL_MIXER_CASES, D_MODEL, IDLE, MIXER_CASES, build
from tests.models.flops import counted

CONFIGS = Path(__file__).parents[3] / "configs"
WITHOUT_RACK = {"placement.yaml", "smollm2.yaml", "smollm2_full.yaml"}  # the rack is that of a run, or of a trained model
SHIPPED = {
    str(path.relative_to(CONFIGS)): path
    for folder in (".", "racks", "layers")
    for path in sorted((CONFIGS / folder).glob("*.yaml"))
    if path.name not in WITHOUT_RACK
}


@pytest.mark.parametrize(
    ("operation", "shapes", "by_hand"),
    [
        (torch.matmul, [(5, 3, 4), (5, 4, 2)], 5 * 2 * 3 * 4 * 2),
        # Row i takes i of the unknowns before it, and its own: 1 + 2 + 3 = 6 multiply-adds, by the usual square half of 9.
        (lambda a, b: torch.linalg.solve_triangular(a, b, upper=False, unitriangular=True), [(2, 3, 3), (2, 3, 4)], 2 * 4 * 9),
        # log2 8 = 3 levels of 4 butterflies, each a complex product (6) and two complex sums (4); real input halves them.
        (lambda x: torch.fft.rfft(x, n=8), [(5, 6)], 5 * 3 * 4 * 10 / 2),
        (lambda x: torch.fft.irfft(x, n=8), [(5, 8)], 5 * 3 * 4 * 10 / 2),
        (lambda x: torch.view_as_complex(x) * torch.view_as_complex(x), [(5, 2)], 5 * 6),
        (lambda x, taps: causal_convolution(x, taps, None, silu=True), [(1, 7, 4), (4, 3)], 2 * 7 * 4 * 3),
        (lambda x, taps, bias: causal_convolution(x, taps, bias, silu=True), [(1, 7, 4), (4, 1), (4,)], 2 * 7 * 4),
        # Of five chunks four fade into the next.
        (decayed_before_each, [(5, 2, 3), (5, 2, 1)], 2 * 4 * 2 * 3),
        # In each of five: an inverse, it and the scores by 3 values, reading twice and writing 4 positions of 2 keys, and a state
        # that fades.
        (
            corrected_chunks,
            [(5, 8, 4), (5, 8, 2), (5, 4, 2), (5, 4, 3), (5, 2, 1)],
            5 * (4**3 + 2 * 2 * 4 * 4 * 3 + 3 * 2 * 4 * 2 * 3 + 2 * 2 * 3),
        ),
        # Eight positions are three chunks of three. Two passes, each fading (1) and adding (2), then reading (2); two carries.
        (selective_scan, [(1, 8, 4), (1, 8, 4), (1, 8, 2), (1, 8, 2), (2, 4)], (3 * 3 * (2 * 3 + 2) + 2 * 2) * 2 * 4),
        (lambda x, y: x.sin() * y + (x * y).sum(-1, keepdim=True).cumsum(0), [(3, 4), (3, 4)], 0),
    ],
)
def test_the_counter_counts_as_by_hand(operation, shapes, by_hand):
    assert counted(operation, *(torch.empty(shape, device="meta") for shape in shapes)) == by_hand


@pytest.mark.parametrize("time", [1, 33])
@pytest.mark.parametrize(
    ("registry", "options"),
    [
        *(pytest.param(MIXERS, options, id=f"mixer {name}") for name, options in MIXER_CASES.items()),
        *(pytest.param(CHANNEL_MIXERS, options, id=f"channel mixer {name}") for name, options in CHANNEL_MIXER_CASES.items()),
    ],
)
def test_flops_of_every_kind_are_what_runs(registry, options, time):
    with torch.device("meta"):
        module, x = build(registry, options), torch.empty(1, time, D_MODEL)
    assert module.flops(time) == pytest.approx(counted(module, x), rel=0.01)
    assert bool(module.flops(time)) != (options["kind"] in IDLE)


def racks_in(spec):
    """The racks that `show` prints of a file, and how many positions to count them at.

    Of the suite all architectures on the first task, and the first on all: a task adds its vocabulary, length and head.
    """
    if isinstance(spec, MadSpec):
        firsts = {next(iter(spec.architectures)), next(iter(spec.tasks))}
        for trial in spec.settings():
            if trial.change == "baseline" and firsts & {trial.architecture, trial.task}:
                yield trial.spec.rack, trial.spec.setting.instance().seq_len
    elif isinstance(spec, RackSpec):
        yield spec, LAYER_WIDTH
    elif isinstance(spec, BackboneSpec):
        yield each_once(spec), LAYER_WIDTH
    else:
        yield getattr(spec, "supernet", spec).rack, LAYER_WIDTH


def each_once(spec):
    """A block of every sort, between an embedding and a head for one token: layers that are alike say nothing new."""
    alike = [block.to_dict() for stack in spec.stacks for block in stack.expanded()]
    blocks = [block for index, block in enumerate(alike) if block not in alike[:index]]
    return RackSpec(d_model=spec.d_model, vocab_size=1, max_length=LAYER_WIDTH, stacks=[{"blocks": blocks}])


def covering(slots):
    """Placements in which every choice of every slot occurs; for a rack without any, the empty one."""
    rows = max((len(slot.names) for slot in slots), default=1)
    return [tuple(slot.names[row % len(slot.names)] for slot in slots) for row in range(rows)]


@cache  # many files have the same racks
def check_whole(spec, seq_len):
    with torch.device("meta"):
        rack, tokens = spec.build().eval(), torch.zeros(1, seq_len, dtype=torch.long)
    told, held = cost(spec, seq_len), sum(parameter.numel() for parameter in rack.parameters())
    assert told.n_parameters == sum(part.n_parameters for part in told.parts) == held
    assert told.flops == pytest.approx(counted(rack, tokens) / seq_len, rel=0.01)


@cache
def check_choices(spec, seq_len):
    with torch.device("meta"):
        supernet, tokens = Supernet(spec).eval(), torch.zeros(1, seq_len, dtype=torch.long)
    told = space_cost(spec, seq_len)
    for placement in covering(supernet.slots):
        supernet.activate(placement)
        chosen = (choice[name].flops for choice, name in zip(told.choices, placement, strict=True))
        assert told.base.flops + sum(chosen) == pytest.approx(counted(supernet, tokens) / seq_len, rel=0.01), placement


@pytest.mark.parametrize("name", SHIPPED)
def test_what_show_says_of_shipped_files_is_what_is_built_and_runs(name):
    racks = list(racks_in(read_spec(SHIPPED[name])))
    assert racks
    for spec, seq_len in racks:
        check_whole(spec, seq_len)
    check_choices(each_once(racks[0][0]), 97)  # where there are several racks, those of the suite, they are without choices

"""The job `profile`: what is timed, what is left behind, and that a decoding step is timed at the state of its context."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from configs import ConfigError
from configs.records import read_json, write_json
from models import MIXERS
from search.budget import Budget
from search.jobs.profile.job import measure, run
from search.jobs.profile.spec import ProfileSpec
from search.profiling.decoding import state_at
from search.profiling.latency import LatencyTable
from search.profiling.rack_parts import parts_of
from tests.search import spaces

CPU = torch.device("cpu")


def spec(rack=None, **keys):
    """A profile of a small space."""
    rack = rack or spaces.space(n_blocks=3, mlp="stochastic")
    return ProfileSpec(**{"rack": rack, "seq_len": 6, "repeats": 1, "device": "cpu", **keys})


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_the_job_leaves_a_table_that_budgets_are_made_of(tmp_path, capsys, mode):
    profile = spec(mode=mode)
    assert run(profile, tmp_path / "run") == 0
    table = LatencyTable.load(tmp_path / "run" / "latency.json")
    assert "mixer attention" in capsys.readouterr().out
    assert (table.mode, table.batch_size, table.seq_len, table.precision) == (mode, 1, 6, "fp32")
    assert table.hardware
    assert table.torch_version == torch.__version__
    budget = Budget.of({"latency_ms": 1e6, "context": 6}, profile.rack, latency=table)
    base, slots = table.of_space(profile.rack, 6)
    expected = base + sum(
        slot[name] for slot, name in zip(slots, spaces.supernet(n_blocks=3, mlp="stochastic").main, strict=True)
    )
    assert budget.costs.of_placement(spaces.supernet(n_blocks=3, mlp="stochastic").main)["latency_ms"] == pytest.approx(expected)


def test_a_table_is_of_a_precision_that_it_can_name():
    with pytest.raises(ValueError, match="'auto', 'fp32' or 'bf16'"):
        spec(precision="medium")


def test_equal_parts_are_timed_once_and_no_channel_mixer_takes_no_time(monkeypatch):
    timed = []
    monkeypatch.setattr("search.jobs.profile.job.median_milliseconds", lambda *_: timed.append(1) or float(len(timed)))
    table = measure(spec(), CPU)
    assert len(timed) == len(table.milliseconds) == 7  # embedding, three mixers, swiglu, the norm, the head
    times = {key.split()[1] if " " in key else key: value for key, value in table.milliseconds.items() if "channel" not in key}
    base, slots = table.of_space(spec().rack, 6)
    assert base == times["embedding"] + times["language_model"]
    assert slots[0] == {
        "attention": times["attention"] + times["rmsnorm"],
        "delta": times["gated_delta_net"] + times["rmsnorm"],
        "linear": times["linear_attention"] + times["rmsnorm"],
    }
    assert slots[1]["none"] == 0
    assert slots[::2] == [slots[0]] * 3


def test_a_choice_that_was_not_timed_is_an_error_that_names_it(tmp_path):
    table = measure(spec(), CPU)
    other = {**spaces.MIXERS, "window": {"kind": "attention", "n_heads": 2, "window": 3}}
    block = {"mixer": {"kind": "stochastic", "main": "attention", "mixers": other}}
    rack = spaces.space(stacks=[{"n_blocks": 2, "block": block}])
    with pytest.raises(ConfigError, match=r'no time for the mixer attention .*"window": 3.*; measure this space with python -m'):
        table.check(rack)
    with pytest.raises(ConfigError, match="measured at d_model 16, but the space has 32"):
        table.check(spaces.space(d_model=32))
    with pytest.raises(ConfigError, match=r"nothing\.json: is missing; python -m search profile measures a latency table"):
        LatencyTable.load(tmp_path / "nothing.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"list\.json: damaged: an object is expected, found list; python -m search profile"):
        LatencyTable.load(tmp_path / "list.json")
    table.save(tmp_path / "latency.json")
    write_json(tmp_path / "latency.json", {**read_json(tmp_path / "latency.json"), "hardwear": "x"})
    with pytest.raises(ConfigError, match="hardwear"):
        LatencyTable.load(tmp_path / "latency.json")


def test_a_learning_rate_does_not_change_what_a_part_takes():
    slow = {**spaces.MIXERS, "attention": {**spaces.MIXERS["attention"], "lr_scale": 0.5}}
    block = {"mixer": {"kind": "stochastic", "main": "attention", "mixers": slow}}
    ours = {part.key for part in parts_of(spaces.space(stacks=[{"n_blocks": 1, "block": block}]))}
    assert ours < {part.key for part in parts_of(spec().rack)}


def test_a_mixer_without_a_step_form_is_an_error_before_anything_is_written(tmp_path):
    block = {"mixer": {"kind": "stochastic", "main": "a", "mixers": {"a": {"kind": "attention"}, "h": {"kind": "hyena"}}}}
    rack = spaces.space(stacks=[{"n_blocks": 1, "block": block}], max_length=8)
    with pytest.raises(ConfigError, match=r"mode: decode: the mixer hyena .* has no step form"):
        run(spec(rack, mode="decode"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert measure(spec(rack), CPU).milliseconds


def has_step(kind):
    """Whether a mixer of this kind can decode."""
    return kind != "stochastic" and MIXERS.build(MIXERS.part(kind), d_model=16, max_length=16).has_step


OPTIONS = [
    *({"kind": kind} for kind in MIXERS if has_step(kind)),
    *({"kind": "attention", "window": window, "d_conv": 4} for window in (1, 3, 50)),
]


@pytest.mark.parametrize("part", OPTIONS, ids=str)
@torch.no_grad()
def test_the_state_at_a_context_is_of_the_shapes_that_stepping_there_gives(part):
    mixer = MIXERS.build(MIXERS.part(part), d_model=16, max_length=16)
    for context in (1, 2, 9):
        state = mixer.initial_state(2)
        for _ in range(context):
            state = mixer.step(torch.zeros(2, 16), state)[1]
        found = state_at(mixer, mixer.step, 2, 16, context)
        assert [leaf.shape for leaf in tree_leaves(found)] == [leaf.shape for leaf in tree_leaves(state)]


CHANGES = {
    "part": {"mixer": {"kind": "attention", "n_heads": 2, "bias": True, "lora": {"rank": 2}}},
    "block": {"mixer": "attention", "mlp": "swiglu", "lora": {"rank": 2}, "parameters": {"mixer": {"bias": True}}},
    "opted out": {
        "mixer": {"kind": "attention", "lora": {"rank": 3}, "parameters": {"value": {"lora": {"apply": False}}}},
        "mlp": {"kind": "swiglu", "parameters": {"down": {"bias": True}}},
    },
}
"""Blocks in which linears have what their constructors do not give them."""


def shapes(module):
    """Of the parameters by name."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("block", [*CHANGES.values(), {"mixer": "mamba", "mlp": {"kind": "mlp", "d_ff": 8}}], ids=str)
@pytest.mark.parametrize(
    "around", [{}, {"lora": {"rank": 5}}, {"parameters": {"*": {"bias": True}, "head": {"bias": False}}}], ids=str
)
def test_parts_are_built_as_their_rack_does(block, around):
    space = spaces.space(stacks=[{"n_blocks": 1, "block": block}], head={"kind": "language_model", "bias": True}, **around)
    rack = space.build()
    parts = [rack.head, *(part for block in rack.blocks() for part in (block.mixer, block.mlp) if part is not None)]
    built = [shapes(part.build(space)) for part in parts_of(space) if part.registry.noun != "norm"]
    assert built == [shapes(part) for part in parts]


def keys(block, **around):
    """Of the parts of a rack of one block."""
    return {part.key for part in parts_of(spaces.space(stacks=[{"n_blocks": 1, "block": block}], **around))}


def test_biases_and_adapters_are_timed_apart_and_plain_parts_are_called_as_ever():
    plain = keys({"mixer": {"kind": "linear_attention", "n_heads": 2}})
    assert 'mixer linear_attention {"d_conv": 0, ' in "".join(plain)
    found = [plain]
    for said in ({"bias": True}, {"lora": {"rank": 2}}, {"lora": {"rank": 4}}, {"parameters": {"key": {"bias": True}}}):
        ours = keys({"mixer": {"kind": "linear_attention", "n_heads": 2, **said}})
        assert len(ours - plain) == 1
        found.append(ours)
    assert len(set(map(frozenset, found))) == 5
    (outer,) = keys({"mixer": {"kind": "linear_attention", "n_heads": 2}, "lora": {"rank": 2}}) - plain
    assert {outer} == found[2] - plain
    quiet = {"lr_scale": 0.5, "weight_decay": 0.1, "init": {"kind": "normal"}, "parameters": {"key.weight": {"lr_scale": 2.0}}}
    assert keys({"mixer": {"kind": "linear_attention", "n_heads": 2, **quiet}}) == plain


def test_a_choice_with_adapters_has_a_time_of_its_own(monkeypatch):
    monkeypatch.setattr("search.jobs.profile.job.median_milliseconds", lambda work, *_: float(len(list(work.func.parameters()))))
    mixers = {**spaces.MIXERS, "adapted": {**spaces.MIXERS["attention"], "lora": {"rank": 2}}}
    block = {"mixer": {"kind": "stochastic", "main": "attention", "mixers": mixers}}
    table = measure(spec(spaces.space(stacks=[{"n_blocks": 1, "block": block}])), CPU)
    (slot,) = table.of_space(spaces.space(stacks=[{"n_blocks": 1, "block": block}]), 6)[1]
    assert slot["adapted"] == slot["attention"] + 8
    other = {**mixers, "adapted": {**mixers["adapted"], "lora": {"rank": 3}}}
    with pytest.raises(ConfigError, match=r'no time for the mixer attention .*"rank": 3'):
        table.check(spaces.space(stacks=[{"n_blocks": 1, "block": {"mixer": {**block["mixer"], "mixers": other}}}]))


def test_a_kernel_that_is_not_installed_is_one_message_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("models.ops.kernels.package.Package.missing", lambda _: "not a package of this machine")
    rack = spaces.space(stacks=[{"n_blocks": 1, "block": {"mixer": {"kind": "attention", "kernel": "flash-attn"}}}])
    with pytest.raises(ConfigError, match=r"^kernel = flash-attn: not a package of this machine"):
        run(spec(rack), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_precision_of_a_stack_is_timed_apart_and_parts_are_built_in_it():
    block = {"mixer": {"kind": "linear_attention", "n_heads": 2}}
    found = [keys(block)]
    for said in ({"precision": "nvfp4"}, {"precision": "nvfp4", "stored": True}, {"precision": "half"}, {"precision": "qlora"}):
        space = spaces.space(stacks=[{"n_blocks": 1, "block": block, **said}])
        found.append({part.key for part in parts_of(space)})
        (part,) = (part for part in parts_of(space) if part.registry is MIXERS)
        mixer = part.build(space)
        theirs = space.build().blocks()[0].mixer
        assert type(mixer.query) is type(theirs.query)
        assert shapes(mixer) == shapes(theirs)
        types = []
        mixer.query.register_forward_hook(lambda *said, types=types: types.append(said[-1].dtype))
        part.in_precision(mixer)(torch.ones(1, 3, space.d_model))
        assert types == [torch.float16 if said["precision"] == "half" else torch.float32]
    assert all(len(ours - theirs) == 1 for ours in found for theirs in found if ours is not theirs)

"""Costs: against the built model, against torch's counter, and against the iso-state rule."""

import itertools
import time

import pytest
import torch

from models import RackSpec, Supernet
from models.assembly.cost import Count, cost, space_cost
from models.spec.short_forms import layer_names
from tests.models.flops import counted

WIDE = {"d_model": 128, "vocab_size": 16, "max_length": 128}


def spec_of(*layers, **keys):
    return RackSpec(**{**WIDE, "layers": list(layers), **keys})


SHARED = {"blocks": [{"mixer": "attention", "mlp": "swiglu", "share": "one"}] * 3}
RACKS = {
    **{name: spec_of(name, "swiglu") for name in layer_names()},
    "tied": spec_of("attention", tie_embeddings=True),
    "shared": RackSpec(**WIDE, stacks=[SHARED]),
    "autoencoder": spec_of("mh-attention", "swiglu", head={"kind": "autoencoder", "bias": True}),
    "post norms": RackSpec(**WIDE, stacks=[{"n_blocks": 2, "block": {"mixer": "mamba", "mixer_post_norm": "layernorm"}}]),
}


@pytest.mark.parametrize("name", RACKS)
def test_parts_add_up_to_the_built_model(name):
    found = cost(RACKS[name], 128)
    n_parameters = sum(parameter.numel() for parameter in RACKS[name].build().parameters())
    assert found.n_parameters == n_parameters
    assert sum(part.n_parameters for part in found.parts) == n_parameters
    assert found.flops == pytest.approx(sum(part.flops for part in found.parts))
    assert found.state == sum(part.state for part in found.parts)
    assert found.flops > 0


def test_parts_are_named_by_place_in_the_order_of_the_data():
    found = cost(spec_of("mh-attention", "swiglu", "mamba"), 128)
    assert [(part.path, part.kind) for part in found.parts] == [
        ("embedding", "token"),
        ("stacks[0].blocks[0].mixer_norm", "rmsnorm"),
        ("stacks[0].blocks[0].mixer", "attention"),
        ("stacks[0].blocks[0].mlp_norm", "rmsnorm"),
        ("stacks[0].blocks[0].mlp", "swiglu"),
        ("stacks[0].blocks[1].mixer_norm", "rmsnorm"),
        ("stacks[0].blocks[1].mixer", "mamba"),
        ("head", "language_model"),
    ]
    assert found.parts[2].n_parameters == 66_048
    assert found.parts[2].options["n_heads"] == 16
    assert found.parts[2].options["n_kv_heads"] == 16  # resolved, not null
    assert found.parts[4].n_parameters == 135_168


def test_what_is_shared_or_tied_is_counted_once_but_computed_each_time():
    shared, single = cost(RACKS["shared"], 128), cost(spec_of("attention", "swiglu"), 128)
    mixers = [part for part in shared.parts if part.path.endswith(".mixer")]
    assert [part.n_parameters > 0 for part in mixers] == [True, False, False]
    assert len({(part.flops, part.state) for part in mixers}) == 1
    assert shared.state == 3 * single.state
    assert cost(RACKS["tied"], 128).parts[-1].n_parameters == 128  # the norm alone


def test_the_state_of_attention_grows_and_others_do_not():
    assert cost(spec_of("mh-attention"), 128).state == 2 * 128 * 128
    assert cost(spec_of("mh-attention"), 256).state == 2 * 128 * 256
    assert cost(spec_of("mamba"), 128).state == cost(spec_of("mamba"), 256).state == 1024
    assert cost(spec_of("sliding-attention"), 128).state == cost(spec_of("sliding-attention"), 512).state == 2 * 128 * 33


@pytest.mark.parametrize(
    "layers",
    [
        ["mamba"] * 4,
        ["mh-hyena", "swiglu"] * 2,
        ["hyena", "moe-mlp"] * 2,
        ["mh-gated-linear-attention", "swiglu"] * 2,
        ["mh-attention", "swiglu"] * 2,  # its state grows: the rule is not about it
        ["mh-hyena", "swiglu", "mh-attention", "swiglu"],
        ["swiglu"],
    ],
    ids=str,
)
def test_racks_that_keep_the_iso_state_rule(layers):
    assert cost(spec_of(*layers), 128).warnings == ()


@pytest.mark.parametrize(
    ("layers", "total", "expected"),
    [
        (["mamba"] * 2, "2,048", "4,096"),
        (["mamba", "swiglu"] * 3, "3,072", "4,096"),
        (["linear-attention", "swiglu"] * 2, "32,768", "4,096"),
        (["linear-attention", "mh-attention"], "16,384", "2,048"),
        (["mh-linear-attention", "swiglu"] * 2, "2,048", "4,096"),
    ],
    ids=str,
)
def test_racks_that_depart_from_it_are_told(layers, total, expected):
    (warning,) = cost(spec_of(*layers), 128).warnings
    assert f"hold {total} numbers of state" in warning
    assert f"asks for {expected}" in warning


def test_four_mambas_hold_4096():
    assert cost(spec_of(*["mamba"] * 4), 128).state == 4096


@pytest.mark.parametrize("seq_len", [1, 33, 128])
@pytest.mark.parametrize("name", ["tied", "shared", "autoencoder", "post norms"])
def test_operations_are_what_runs(name, seq_len):
    with torch.device("meta"):
        rack, tokens = RACKS[name].build(), torch.zeros(1, seq_len, dtype=torch.long)
    assert cost(RACKS[name], seq_len).flops * seq_len == pytest.approx(counted(rack, tokens))


def test_nothing_is_allocated():
    huge = RackSpec(d_model=8192, vocab_size=200_000, stacks=[{"n_blocks": 80, "block": {"mixer": "attention", "mlp": "swiglu"}}])
    assert cost(huge, 4096).n_parameters > 5e10


CHOICES = {
    "linear": {"kind": "linear_attention", "n_heads": 8},
    "attention": {"kind": "attention", "n_heads": 8, "n_kv_heads": 2},
    "window": {"kind": "attention", "n_heads": 8, "window": 32},
    "gdn": {"kind": "gated_delta_net", "n_heads": 8},
    "gla": {"kind": "gated_linear_attention", "n_heads": 8},
}
SEARCHED = {"kind": "stochastic", "main": "attention", "mixers": CHOICES}
MLPS = {"kind": "stochastic", "main": "wide", "mixers": {"none": None, "wide": {"kind": "swiglu"}}}


def space_of(*blocks, **keys):
    return RackSpec(**{**WIDE, "stacks": [{"blocks": list(blocks)}], **keys})


SPACE = space_of(
    {"mixer": SEARCHED, "mlp": MLPS, "mlp_post_norm": "layernorm"},
    {"mixer": "mamba", "mlp": "swiglu", "share": "one"},
    {"mixer": SEARCHED, "mlp": "moe"},
    {"mixer": "mamba", "mlp": "swiglu", "share": "one"},
    {"mixer": "attention", "mlp": MLPS},
    tie_embeddings=True,
)


def test_base_and_choices_add_up_to_the_rack_that_they_make():
    counted = space_cost(SPACE, 96)
    assert [tuple(choice) for choice in counted.choices] == [slot.names for slot in SPACE.slots()]
    for names in itertools.islice(itertools.product(*(slot.names for slot in SPACE.slots())), 0, None, 7):
        expected = cost(SPACE.place(names), 96)
        chosen = [counted.base, *(choice[name] for choice, name in zip(counted.choices, names, strict=True))]
        assert sum(count.n_parameters for count in chosen) == expected.n_parameters, names
        assert sum(count.cache + count.state for count in chosen) == expected.state, names
        assert sum(count.flops for count in chosen) == pytest.approx(expected.flops), names


def test_a_space_has_the_parameters_of_all_choices_and_norms_once():
    n_parameters = sum(parameter.numel() for parameter in Supernet(SPACE).parameters())
    assert space_cost(SPACE, 96).n_parameters == cost(SPACE, 96).n_parameters == n_parameters


def test_what_grows_is_a_cache_and_what_does_not_a_state():
    (choice, _) = space_cost(space_of({"mixer": SEARCHED, "mlp": MLPS}), 96).choices
    kept = {name: (count.cache, count.state) for name, count in choice.items()}
    assert kept == {
        "linear": (0, 8 * 16 * 16),
        "attention": (2 * 2 * 16 * 96, 0),
        "window": (2 * 128 * 32, 0),  # full by now, but it grew: a cache for keys and values as well
        "gdn": (0, 8 * 16 * 16),
        "gla": (0, 8 * 16 * 16),
    }
    base = space_cost(SPACE, 96).base
    assert (base.cache, base.state) == (2 * 128 * 96, 2 * 256 * 16)


def test_a_choice_counts_its_part_and_the_norms_of_its_half_and_null_nothing():
    mixers, mlps, *_ = space_cost(SPACE, 96).choices
    assert mlps["none"] == Count()
    assert mlps["wide"].n_parameters == 135_168 + 128 + 2 * 128
    assert mixers["attention"].n_parameters == 128 * (128 + 32 + 32 + 128) + 128
    assert min(count.flops for count in mixers.values()) > 0


def test_the_cost_of_a_space_is_that_of_its_main_placement_and_lists_every_choice():
    found, main = cost(SPACE, 96), cost(SPACE.place(Supernet(SPACE).main), 96)
    assert (found.state, found.flops) == (main.state, pytest.approx(main.flops))
    assert found.warnings == main.warnings
    assert sum(part.n_parameters for part in found.parts) == found.n_parameters
    lines = {part.path: part for part in found.parts if part.path.startswith("stacks[0].blocks[0].m")}
    assert list(lines) == [
        "stacks[0].blocks[0].mixer_norm",
        *(f"stacks[0].blocks[0].mixer.{name}" for name in CHOICES),
        "stacks[0].blocks[0].mlp_norm",
        "stacks[0].blocks[0].mlp.none",
        "stacks[0].blocks[0].mlp.wide",
        "stacks[0].blocks[0].mlp_post_norm",
    ]
    assert [path for path, part in lines.items() if not part.is_active] == [
        *(f"stacks[0].blocks[0].mixer.{name}" for name in CHOICES if name != "attention"),
        "stacks[0].blocks[0].mlp.none",
    ]
    gdn, none = lines["stacks[0].blocks[0].mixer.gdn"], lines["stacks[0].blocks[0].mlp.none"]
    assert (gdn.kind, gdn.options["n_heads"], gdn.state) == ("gated_delta_net", 8, 8 * 16 * 16)
    assert (none.kind, none.options, none.n_parameters) == ("null", {}, 0)


def test_a_rack_without_a_choice_is_all_base():
    counted, expected = space_cost(RACKS["tied"], 128), cost(RACKS["tied"], 128)
    assert counted.choices == ()
    assert (counted.base.n_parameters, counted.n_parameters) == (expected.n_parameters,) * 2
    assert (counted.base.cache, counted.base.state, counted.base.flops) == (expected.state, 0, expected.flops)


def test_a_deep_wide_space_is_counted_without_memory_in_no_time():
    stack = {"n_blocks": 48, "block": {"mixer": SEARCHED, "mlp": MLPS}}
    space = RackSpec(d_model=4096, vocab_size=100_000, stacks=[stack])
    start = time.process_time()
    assert space_cost(space, 65_536).n_parameters > 2e10
    assert time.process_time() - start < 10  # 0.5 s here: what would allocate takes minutes


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_a_time_embedding_is_counted(kind):
    plain, spec = spec_of("attention", "swiglu"), spec_of("attention", "swiglu", time={"kind": kind, "n_steps": 5, "d_time": 6})
    found, rack = cost(spec, 64), spec.build()
    (part,) = (part for part in found.parts if part.path == "time_embedding")
    n_parameters = sum(parameter.numel() for parameter in rack.time_embedding.parameters())
    assert part.n_parameters == n_parameters == found.n_parameters - cost(plain, 64).n_parameters
    assert (part.kind, part.options) == (kind, {"n_steps": 5, "d_time": 6})
    assert 64 * part.flops == pytest.approx(counted(rack.time_embedding, torch.tensor([3])))
    assert found.flops == pytest.approx(cost(plain, 64).flops + part.flops)
    assert space_cost(spec, 64).base.n_parameters == found.n_parameters

"""The guide's blocks, stacks and racks: the one model by other words, and what an imitation of it got wrong."""

import copy
import doctest
import json
import pickle

import pytest
import torch
from torch import nn

import models.architecture
from configs import ConfigError, StackWiseConfig
from models import MIXERS, RackSpec
from models.architecture import (
    Block,
    Rack,
    Stack,
    create_block_spec,
    create_rack_from_config,
    create_rack_from_specs,
    create_simple_rack,
    create_stack_from_config,
    create_stack_from_spec,
)
from models.architecture.modules import alone
from models.mixers.kernel_attention import KernelAttention
from models.mixers.mla import MLA
from models.rack import modules

SIZES = {"d_model": 32, "d_ff": 48, "n_heads": 4}
TYPES = {"mha": "attention", "gqa": "attention", "mla": "mla", "kernel": "kernel_attention"}
ENTRY = {"stack_id": 0, "n_blocks": 1, "block_spec": SIZES}
MODES = ("bidirectional", "causal")
TOKENS = torch.arange(20).view(2, 10) * 7 % 50

each_type = pytest.mark.parametrize("attention_type", TYPES)
each_mode = pytest.mark.parametrize("attention_mode", MODES)


def simple(n_stacks=2, blocks_per_stack=2, **options):
    return create_simple_rack(n_stacks, blocks_per_stack, vocab_size=50, **{**SIZES, **options})


def trained(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_the_examples():
    found = doctest.testmod(models.architecture, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 25
    assert not found.failed


@each_type
@each_mode
def test_every_type_of_attention_by_the_guides_keywords(attention_type, attention_mode):
    options = {**SIZES, "n_kv_heads": 2, "attention_type": attention_type, "attention_mode": attention_mode}
    block = Block(**options)
    assert isinstance(block, modules.Block)
    assert isinstance(block.mixer, MIXERS[TYPES[attention_type]])
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    y = block(x)
    assert y.shape == x.shape
    changed = x.clone()
    changed[:, 6, 0] += 1
    moved = (block(changed) - y).abs().amax(-1) > 1e-6
    assert moved[:, 6:].all()
    assert moved[:, :6].all() == (attention_mode == "bidirectional")
    built = alone(Stack([block]).spec, 32, "a stack").build(seed=3)
    assert built.stacks[0].state_dict().keys() == Stack([block]).state_dict().keys()


def test_a_block_adds_what_its_parts_make_of_its_normalised_input():
    block = Block(**SIZES)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    assert isinstance(block.mixer_norm, nn.LayerNorm)
    halfway = x + block.mixer(block.mixer_norm(x))
    mlp, normed = block.mlp, block.mlp_norm(halfway)
    gated = nn.functional.silu(mlp.gate(normed)) * mlp.up(normed)
    torch.testing.assert_close(block(x), halfway + mlp.down(gated))


@pytest.mark.parametrize("use_rope", [True, False])
def test_without_rope_the_order_of_positions_is_not_seen(use_rope):
    block = Block(**SIZES, use_rope=use_rope)
    x = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    assert torch.allclose(block(x[:, order]), block(x)[:, order], atol=1e-6) != use_rope


def test_a_rack_made_from_the_inside_out_is_the_rack_of_its_spec():
    pair = [Block(**SIZES, seed=0), Block(**SIZES, attention_mode="causal", seed=1)]
    stacks = [Stack(pair, stack_id=0), Stack([Block(**SIZES, seed=2)], stack_id=1)]
    made = Rack(stacks=stacks, vocab_size=50, d_model=32, tie_embeddings=True, seed=2)
    assert isinstance(made, modules.Rack)
    assert list(made.stacks) == stacks
    built = made.spec.build(seed=9)
    built.load_state_dict(made.state_dict())
    assert torch.equal(built(TOKENS), made(TOKENS))
    assert RackSpec(**json.loads(json.dumps(made.spec.to_dict()))) == made.spec
    assert 0.015 < made.embedding.weight.std() < 0.025


def test_a_rack_of_a_helper_is_the_rack_of_its_spec():
    made = simple(dropout=0.1)
    assert type(made) is Rack
    assert {type(stack) for stack in made.stacks} == {Stack}
    assert {type(block) for block in made.blocks()} == {Block}
    assert torch.equal(made.eval()(TOKENS), made.spec.build(seed=0).eval()(TOKENS))
    assert not torch.equal(made.train()(TOKENS), made(TOKENS))
    for other in (copy.deepcopy(made.eval()), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(TOKENS), made(TOKENS))
        assert other.spec == made.spec
        other.stacks[0].freeze()
        assert not trained(other.stacks[0])
        assert trained(made.stacks[0])
        assert other.head.output.weight is other.embedding.weight


def test_blocks_without_a_seed_are_drawn_as_modules_are():
    def drawn(seed=None):
        return Block(**SIZES, seed=seed).mlp.up.weight

    torch.manual_seed(5)
    first, second = drawn(), drawn()
    torch.manual_seed(5)
    assert torch.equal(drawn(), first)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    assert torch.equal(drawn(7), drawn(7))
    assert torch.equal(torch.get_rng_state(), before)


def test_blocks_of_a_stack_start_apart_and_stacks_too():
    spec = create_block_spec(**SIZES)
    first, second, again = (create_stack_from_spec(number, 2, spec) for number in (0, 1, 0))
    weights = [block.mlp.up.weight for stack in (first, second) for block in stack.blocks]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 4
    assert torch.equal(first.blocks[0].mlp.up.weight, again.blocks[0].mlp.up.weight)
    assert (first.stack_id, second.stack_id, second.uid) == (0, 1, 1)


def test_what_is_not_said_of_a_block_is_derived():
    spec = create_block_spec(d_model=256, attention_mode="causal")
    assert (spec["d_ff"], spec["n_heads"], spec["n_kv_heads"]) == (704, 4, 4)
    assert (spec["attention_type"], spec["attention_mode"]) == ("mha", "causal")
    assert json.loads(json.dumps(spec)) == spec == create_block_spec(**spec)
    assert create_block_spec(d_model=16)["n_heads"] == 1
    assert create_block_spec(d_model=200)["n_heads"] == 2  # 3 heads of about 64 channels do not come out even


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ("mha", 8)),
        ({"n_kv_heads": 8}, ("mha", 8)),
        ({"n_kv_heads": 2}, ("gqa", 2)),
        ({"n_kv_heads": 1}, ("gqa", 1)),
        ({"n_kv_heads": 4, "attention_type": "mha"}, ("gqa", 4)),
        ({"attention_type": "gqa"}, ("gqa", 2)),
        ({"attention_type": "gqa", "n_heads": 6}, ("gqa", 1)),
        ({"attention_type": "mla", "n_kv_heads": 2}, ("mla", None)),
        ({"attention_preset": "efficient_gqa"}, ("gqa", 2)),
    ],
)
def test_fewer_keys_than_queries(said, expected):
    spec = create_block_spec(**{"d_model": 96, "n_heads": 8, "attention_mode": None, **said})
    assert (spec["attention_type"], spec["n_kv_heads"]) == expected


@pytest.mark.parametrize(
    ("preset", "kind", "causal"),
    [
        ("bert_style", "attention", False),
        ("gpt_style", "attention", True),
        ("efficient_gqa", "attention", False),
        ("mla_attention", "mla", False),
        ("kernel_attention", "kernel_attention", False),
    ],
)
def test_presets(preset, kind, causal):
    block = Block(**SIZES, attention_preset=preset)
    assert isinstance(block.mixer, MIXERS[kind])
    assert block.mixer.causal == causal


def test_the_options_of_latent_and_kernel_attention():
    latent = Block(**SIZES, attention_type="mla", attention_mode="causal", mla_rq=12, mla_rkv=10, mla_rope_dim=6).mixer
    assert (latent.query_latent.out_features, latent.kv_rank, latent.d_rope) == (12, 10, 6)
    kernel = Block(**SIZES, attention_type="kernel", kernel_type="rff_gaussian", kernel_dim=14).mixer
    assert (kernel.kernel_type, kernel.kernel_dim) == ("rff_gaussian", 14)


def mixers_by_every_route(**options):
    config = StackWiseConfig.from_dict({"model": {"vocab_size": 50, **SIZES, **options}})
    spec = create_block_spec(**SIZES, **options)
    yield Block(**SIZES, **options)
    yield create_stack_from_spec(0, 1, spec).blocks[0]
    yield create_rack_from_specs(50, 32, [{"stack_id": 0, "n_blocks": 1, "block_spec": spec}]).blocks()[0]
    yield simple(**options).blocks()[-1]
    yield create_rack_from_config(config).blocks()[-1]
    yield create_rack_from_config(config.to_dict()).blocks()[-1]
    yield create_rack_from_config(config.to_dict()["model"]).blocks()[-1]
    yield create_stack_from_config(stack_id=3, n_blocks=1, config=config).blocks[0]


def test_latent_attention_has_its_latent_by_every_route():
    for block in mixers_by_every_route(attention_type="mla", attention_mode="causal", mla_rkv=10):
        assert isinstance(block.mixer, MLA)
        assert block.mixer.latent.out_features == 10


def test_kernel_attention_has_its_features_by_every_route():
    for block in mixers_by_every_route(attention_type="kernel", kernel_type="favor"):
        assert isinstance(block.mixer, KernelAttention)
        assert block.mixer.frequencies is not None


@each_type
def test_pads_are_not_seen_and_a_causal_block_does_not_look_ahead_past_them(attention_type):
    made = simple(attention_type=attention_type, attention_mode="causal")
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 7:] = 0
    logits = made(TOKENS, mask)
    ahead = TOKENS.clone()
    ahead[:, 5] = 1 + ahead[:, 5]
    torch.testing.assert_close(made(ahead, mask)[:, :5], logits[:, :5])
    pads = TOKENS.clone()
    pads[1, 7:] = 3
    torch.testing.assert_close(made(pads, mask)[1, :7], logits[1, :7])
    torch.testing.assert_close(logits[1, :7], made(TOKENS[1:, :7])[0])


@pytest.mark.parametrize("n_rows", [2, 10])
def test_a_mask_is_of_rows_and_positions_also_where_there_are_as_many(n_rows):
    made = simple(attention_mode="bidirectional")
    tokens = torch.arange(10 * n_rows).view(n_rows, 10) % 50
    mask = torch.ones(n_rows, 10, dtype=torch.bool)
    mask[0, 6:] = False
    logits = made(tokens, mask)
    torch.testing.assert_close(logits[0, :6], made(tokens[:1, :6])[0])
    torch.testing.assert_close(logits[1:], made(tokens[1:]))
    for module, x in ((made, tokens), (made.stacks[0], made.embedding(tokens)), (made.blocks()[0], made.embedding(tokens))):
        with pytest.raises(ValueError, match=rf"mask must be \[batch, time\] = \[{n_rows}, 10\].*got the shape \[10, 11\]"):
            module(x, torch.ones(10, 11))


def test_a_tied_table_is_counted_once_and_saved_once():
    tied, untied = simple(), simple(tie_embeddings=False)
    assert tied.head.output.weight is tied.embedding.weight
    assert untied.get_parameter_count() - tied.get_parameter_count() == 50 * 32
    seen = {parameter.data_ptr(): parameter.numel() for parameter in tied.parameters()}
    assert tied.get_parameter_count() == sum(seen.values())
    moved = copy.deepcopy(tied).to(torch.float64)
    assert moved.head.output.weight is moved.embedding.weight


def test_stored_weights_count_as_parameters_and_do_not_train():
    entry = {"stack_id": 0, "n_blocks": 1, "block_spec": create_block_spec(**SIZES)}
    dense, stored = (create_rack_from_specs(50, 32, [{**entry, "precision": precision}]) for precision in ("full", "qlora"))
    adapters = sum(parameter.numel() for name, parameter in stored.named_parameters() if "adapters" in name)
    assert adapters > 0
    assert stored.get_parameter_count() == dense.get_parameter_count() + adapters
    assert dense.get_parameter_count(trainable_only=True) == dense.get_parameter_count()
    ends = sum(parameter.numel() for name, parameter in stored.named_parameters() if not name.startswith("stacks."))
    assert stored.get_parameter_count(trainable_only=True) == adapters + ends


def test_up_projections_stay_frozen_through_freezing_and_thawing():
    entry = {"stack_id": 0, "n_blocks": 2, "block_spec": create_block_spec(**SIZES, freeze_up_proj=True)}
    for stack in (create_stack_from_spec(**entry), create_rack_from_specs(50, 32, [entry]).stacks[0]):
        names = {name for name, _ in stack.named_parameters()}
        meant = {name for name in names if "mlp.up" not in name}
        assert trained(stack) == meant != names
        for _ in range(2):
            stack.freeze()
            assert trained(stack) == set()
            assert stack.spec.lr_scale == 0
            stack.unfreeze()
            assert trained(stack) == meant


def test_a_frozen_stack_thaws_to_what_it_was_meant_to_be():
    spec = create_block_spec(**SIZES, freeze_up_proj=True)
    entries = [{"stack_id": index, "n_blocks": 1, "block_spec": spec, "freeze_blocks": index == 1} for index in range(3)]
    made = create_rack_from_specs(50, 32, entries)
    assert [bool(trained(stack)) for stack in made.stacks] == [True, False, True]
    made.stacks[1].unfreeze()
    assert trained(made.stacks[1]) == trained(made.stacks[0])
    made.stacks[0].freeze()
    assert [bool(trained(stack)) for stack in made.stacks] == [False, True, True]
    assert [bool(trained(stack)) for stack in made.spec.build().stacks] == [False, True, True]
    assert create_stack_from_spec(0, 1, spec, freeze_blocks=True).spec.lr_scale == 0


def test_a_thawed_stack_learns_as_it_did():
    entry = {"stack_id": 0, "n_blocks": 1, "block_spec": create_block_spec(**SIZES), "training": {"lr_scale": 0.5}}
    for freeze_blocks in (False, True):
        stack = create_rack_from_specs(50, 32, [{**entry, "freeze_blocks": freeze_blocks}]).stacks[0]
        stack.freeze()
        stack.unfreeze()
        assert {parameter.lr_scale for parameter in stack.parameters()} == {0.5}


def test_stacks_have_precisions_and_learning_of_their_own():
    spec = create_block_spec(**SIZES)
    training = {"lr_scale": 0.25, "weight_decay": 0.3}
    entries = [
        {"stack_id": 4, "n_blocks": 1, "block_spec": spec, "precision": "bfloat16", "training": training},
        {"stack_id": 2, "n_blocks": 3, "block_spec": spec},
    ]
    made = create_rack_from_specs(50, 32, entries)
    assert [stack.stack_id for stack in made.stacks] == [stack.uid for stack in made.stacks] == [4, 2]
    assert [len(stack.blocks) for stack in made.stacks] == [1, 3]
    assert made.stacks[0].compute_dtype == torch.bfloat16
    assert {(each.lr_scale, each.weight_decay) for each in made.stacks[0].parameters()} == {(0.25, 0.3)}


def test_a_configuration_is_honoured_in_all_it_says():
    said = {**SIZES, "dropout": 0.2, "freeze_up_proj": True, "tie_embeddings": False, "use_rope": False}
    said |= {"attention_mode": "causal"}
    said |= {"norm": "rmsnorm", "vocab_size": 40, "max_seq_len": 17, "architecture": {"n_stacks": 3, "blocks_per_stack": 1}}
    made = create_rack_from_config({"model": said, "training": {"seed": 3}})
    block = made.blocks()[0]
    assert (len(made.stacks), len(made.blocks()), made.spec.max_length, made.vocab_size) == (3, 3, 17, 40)
    assert (block.dropout.p, block.mixer.causal, block.mixer.rope_base) == (0.2, True, None)
    assert type(block.mixer_norm) is type(made.head.norm)
    assert not isinstance(block.mixer_norm, nn.LayerNorm)
    assert not block.mlp.up.weight.requires_grad
    assert made.head.output.weight is not made.embedding.weight
    assert torch.equal(made.embedding.weight, made.spec.build(seed=3).embedding.weight)
    assert create_rack_from_config({**said, "rope_theta": 500.0, "use_rope": True}).blocks()[0].mixer.rope_base == 500.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(d_model=32, attention_type="flash"), "Block: attention_type: input should be 'mha', "),
        (lambda: Block(d_model=32, n_head=4), "unknown key 'n_head'; did you mean 'n_heads'"),
        (lambda: create_block_spec(d_model=32, n_heads=5), "d_model = 32 must be divisible by n_heads = 5"),
        (lambda: create_block_spec(d_model=32, n_heads=4, n_kv_heads=3), "n_heads = 4 must be divisible by n_kv_heads = 3"),
        (lambda: create_block_spec(d_model=12, n_heads=4), "make it even"),
        (lambda: create_rack_from_specs(9, 64, [ENTRY]), r"stack 0: block_spec\.d_model = 32, but the rack has d_model = 64"),
        (lambda: create_rack_from_specs(9, 32, [{**ENTRY, "n_block": 1}]), r"stack_specs\[0\]: n_block: unknown key"),
        (lambda: create_rack_from_specs(9, 32, [ENTRY] * 2), "uid"),
        (lambda: create_rack_from_config({"model": {"d_modl": 3}}), r"model\.d_modl: unknown key"),
        (lambda: create_block_spec(65), "create_block_spec: d_model: 65 cannot be shared out among heads of pairs"),
        (lambda: create_block_spec(512, n_kv_heads=3), "create_block_spec: n_kv_heads: n_heads = 8 must be divisible by"),
        (lambda: Block(**SIZES, attention_type="mla", mla_rope_dim=3), "Block: mla_rope_dim: 3 must be even"),
        (lambda: Block(d_model=10**12, n_heads=1), r"Block: d_model: .*131072"),
        (lambda: Rack(stacks=[], vocab_size=9, d_model=32), "Rack: stacks: "),
        (lambda: Rack(stacks=[Stack([Block(**SIZES)])], vocab_size=-1, d_model=32), "Rack: vocab_size: .*greater than 0"),
        (lambda: Stack([Block(**SIZES)], stack_id=-1), "Stack: uid: .*greater than or equal to 0"),
        (
            lambda: Rack(stacks=[Stack([Block(**SIZES)]), Stack([Block(**SIZES)])], vocab_size=9, d_model=32),
            r"Rack: stacks\[1\]\.uid: stacks\[0\] has the uid 0 already",
        ),
    ],
)
def test_bad_input_is_told_in_one_message(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_stacks_of_other_things_and_other_sizes():
    with pytest.raises(ValueError, match=r"each a models\.architecture\.Block"):
        Stack([nn.Linear(3, 3)])
    stack = Stack([Block(**SIZES)], stack_id=4, freeze_blocks=True)
    assert not trained(stack)
    with pytest.raises(ValueError, match="stack 4 has d_model = 32, but the rack has d_model = 16"):
        Rack(stacks=[stack], vocab_size=9, d_model=16)


def marks(module):
    return {name: (each.requires_grad, getattr(each, "lr_scale", 1.0)) for name, each in module.named_parameters()}


def test_a_stack_thaws_to_what_its_rack_says_of_it():
    entries = [{"stack_id": uid, "n_blocks": 1, "block_spec": create_block_spec(**SIZES, freeze_up_proj=True)} for uid in (3, 1)]
    said = {"lr_scale": 0.5, "parameters": {"stacks.1.*.down.weight": {"lr_scale": 0.0}, "*.query": {"lr_scale": 0.25}}}
    spec = RackSpec.model_validate({**create_rack_from_specs(50, 32, entries).spec.to_dict(), **said})
    made = Rack.of(spec.build(), spec)
    meant = marks(made)
    assert {scale for _, scale in meant.values()} == {0.0, 0.125, 0.5}
    for stack in made.stacks:
        stack.freeze()
        assert not trained(stack)
        place = [stack.uid for stack in made.stacks].index(stack.uid)
        assert marks(made) == {**meant, **{f"stacks.{place}.{name}": (False, 0.0) for name in marks(stack)}}
        stack.unfreeze()
        assert marks(made) == meant
    assert marks(pickle.loads(pickle.dumps(made)).stacks[0]) == marks(made.stacks[0])


def test_stacks_whose_parts_need_a_length_freeze_too():
    stack = {"n_blocks": 1, "block": {"mixer": "hyena", "mlp": "swiglu"}}
    spec = RackSpec.model_validate({"vocab_size": 9, "d_model": 16, "max_length": 8, "stacks": [stack]})
    made = Rack.of(spec.build(), spec)
    meant = marks(made.stacks[0])
    made.stacks[0].freeze()
    assert not trained(made.stacks[0])
    made.stacks[0].unfreeze()
    assert marks(made.stacks[0]) == meant


def test_a_stack_that_shares_a_block_with_another_is_not_frozen_by_itself():
    block = {"mixer": "attention", "share": "one"}
    stacks = [{"block": block, "n_blocks": n_blocks} for n_blocks in (1, 2)]
    spec = RackSpec.model_validate({"vocab_size": 9, "d_model": 16, "stacks": stacks})
    made = Rack.of(spec.build(), spec)
    with pytest.raises(ValueError, match="the stack at place 1 shares 'one' with the stack at place 0"):
        made.stacks[1].freeze()
    assert len(trained(made)) == len(dict(made.named_parameters()))
    assert made.spec == spec


def test_sizes_in_the_guides_order():
    named = {"d_model": 32, "d_ff": 48, "n_heads": 4, "n_kv_heads": 2, "attention_type": "gqa", "attention_mode": "causal"}
    assert create_block_spec(*named.values()) == create_block_spec(**named)
    config = StackWiseConfig.from_dict({"model": SIZES})
    assert create_stack_from_config(1, 2, config).spec == create_stack_from_config(stack_id=1, n_blocks=2, config=config).spec


def test_blocks_of_other_widths_and_blocks_at_two_places_are_refused():
    block, other = Block(**SIZES), Block(**{**SIZES, "d_model": 16})
    with pytest.raises(ValueError, match="the blocks of a stack have one d_model; these have 16, 32"):
        Stack([block, other])
    with pytest.raises(ValueError, match="a block stands at two places"):
        Stack([block, block])
    with pytest.raises(ValueError, match="a block stands at two places"):
        Rack(stacks=[Stack([block]), Stack([block], stack_id=1)], vocab_size=9, d_model=32)


def test_no_more_positions_than_there_may_be():
    made = simple(max_seq_len=10)
    logits = made(TOKENS)
    assert torch.equal(made(None, hidden=made.embed(TOKENS)), logits)
    longer = torch.zeros(1, 11, dtype=torch.long)
    for call in (lambda: made(longer), lambda: made(None, hidden=made.embedding(longer), start=1)):
        with pytest.raises(ValueError, match="the input has 11 positions, but the rack has max_seq_len = 10"):
            call()
    assert simple()(longer).shape == (1, 11, 50)


def test_a_mask_goes_with_hidden_states_too():
    made = simple(attention_mode="bidirectional")
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, 6:] = 0
    assert torch.equal(made(None, mask, hidden=made.embed(TOKENS)), made(TOKENS, mask))
    assert not torch.equal(made(TOKENS, mask), made(TOKENS))
    with pytest.raises(ValueError, match=r"mask must be \[batch, time\] = \[2, 10\]"):
        made(None, mask[:, :9], hidden=made.embed(TOKENS))

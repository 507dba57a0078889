"""Local losses: each clever step against dumb ones, what moves and what does not, memory, and what is thrown away at the end."""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from configs import ConfigError
from configs.local_losses import LocalLossSpec
from models import RackSpec
from models.rack.reports import collecting
from search.training import checkpoint
from search.training.local_losses.evaluation import ExitEvaluation
from search.training.local_losses.model import LocalUnits
from search.training.local_losses.step import LocalLosses
from search.training.local_losses.units import units_of
from search.training.loop import batch_gradients, train
from search.training.packing import Pack
from search.training.ranks import Ranks
from search.training.spec import TrainSpec
from search.training.state import TrainState
from tests.search.cases import TASK, evaluate_on
from tests.search.cases import data as task_data
from tests.search.ranks import on_ranks

VOCAB, TIME = 11, 9
BLOCK = {"mixer": {"kind": "attention", "n_heads": 2}, "mlp": {"kind": "swiglu", "d_ff": 16}}
HEADS = ("shared_unembed", "tuned", "aux_block", "tail")


class PaddedBatch(NamedTuple):
    inputs: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    attention_mask: torch.Tensor


def rack_spec(n_stacks=2, n_blocks=2, block=BLOCK, **keys):
    stacks = [{"n_blocks": n_blocks, "block": block}] * n_stacks
    return RackSpec(**{"d_model": 16, "vocab_size": VOCAB, "stacks": stacks, "init_std": 0.1, **keys})


def local(unit="block", seed=0, rack=None, **options):
    """Units of a rack, its extras a little off their start."""
    model = LocalUnits((rack or rack_spec()).build(seed), LocalLossSpec(**options), unit=unit, seed=seed)
    with torch.no_grad():
        for parameter in model.extras.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return model


def plain_batch(step=0, n_rows=6):
    tokens = torch.randint(VOCAB, (n_rows, TIME + 1), generator=torch.Generator().manual_seed(step))
    targets = tokens[:, 1:].clone()
    targets[:, 0] = -100
    return tokens[:, :-1], targets


def padded_batch(n_rows=6):
    inputs, targets = plain_batch(n_rows=n_rows)
    attention_mask = torch.arange(TIME) < torch.arange(4, 4 + n_rows)[:, None]
    targets = targets.masked_fill(~attention_mask, -100)
    return PaddedBatch(inputs, targets, (targets != -100) * torch.arange(1, n_rows + 1)[:, None] / 50, attention_mask)


def step_gradients(model, batch, *, step=0, n_steps=100, **options):
    """Loss, and gradients by name."""
    for parameter in model.parameters():
        parameter.grad = None
    member = TrainState(model, {step: batch}, 1e-3, 0.0)
    loss = LocalLosses(model, n_steps=n_steps, **options)(Pack([model]), [member], step)
    return loss, {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def cross_entropy(logits, batch):
    if len(batch) == 2:
        return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), ignore_index=-100)
    losses = F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), ignore_index=-100, reduction="none")
    return (losses * batch.weights.flatten()).sum()


def dumb_gradients(model, batch, reach):
    """Each unit's loss by itself, through a graph of its own that begins `reach` units further down; their gradients, summed."""
    spec, rack, attention_mask, n_units = model.spec, model.rack, getattr(batch, "attention_mask", None), len(model.units)
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = dict.fromkeys(names)
    for index in range(n_units):
        first = max(index - reach + 1, 0)
        with torch.no_grad():
            x = rack.embed(batch[0])
            for unit in model.units[:first]:
                x = unit(x, attention_mask)
        x = rack.embed(batch[0]) if first == 0 else x
        for unit in model.units[first : index + 1]:
            below, x = x, unit(x, attention_mask)
        y = x
        if spec.head == "tail":
            for part in model.units[index].tail:
                y = part(y) if attention_mask is None else part(y, attention_mask)
        elif spec.head != "shared_unembed" and index < n_units - 1:
            y = model.extras[index](y, attention_mask)
        loss = total_loss = cross_entropy(rack.head(y), batch)
        if spec.transport:
            change = (x - below).square().sum(-1)
            rows = change.mean(1) if attention_mask is None else (change * attention_mask).sum(1) / attention_mask.sum(1)
            total_loss = total_loss + spec.transport * rows.mean()
        for name, gradient in zip(names, torch.autograd.grad(total_loss, parameters, allow_unused=True), strict=True):
            is_held = name.startswith("rack.head.") and spec.head_learns_from == "last" and index < n_units - 1
            in_tail = any(parameters[names.index(name)] is each for part in model.units[index].tail for each in part.parameters())
            is_held |= in_tail and not spec.tail_learns
            if gradient is not None and not is_held:
                total[name] = gradient if total[name] is None else total[name] + gradient
    return loss.detach(), {name: gradient for name, gradient in total.items() if gradient is not None}


def assert_same(found, expected):
    torch.testing.assert_close(found[0].squeeze(), expected[0], rtol=1e-5, atol=1e-6)
    assert found[1].keys() == expected[1].keys()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-6)


def test_units_have_names_and_tails():
    rack = rack_spec(3, 2).build()
    blocks = units_of(rack, "block")
    assert [unit.name for unit in blocks] == [f"stacks.{i}.blocks.{j}" for i in range(3) for j in range(2)]
    assert [unit.parts for unit in blocks] == [(block,) for block in rack.blocks()]
    last = rack.stacks[2]
    assert [unit.tail for unit in blocks] == [(last,)] * 4 + [(last.blocks[1],), ()]
    assert [(unit.name, unit.parts, unit.tail) for unit in units_of(rack, "stack")] == [
        (f"stacks.{i}", (stack,), (last,) if i < 2 else ()) for i, stack in enumerate(rack.stacks)
    ]
    assert [unit.parts for unit in units_of(rack, "rack")] == [tuple(rack.stacks)]


@pytest.mark.parametrize("make", [plain_batch, padded_batch])
@pytest.mark.parametrize("unit", ["block", "stack", "rack"])
@pytest.mark.parametrize(("schedule", "reach"), [("simultaneous", 1), ("overlap", 2)])
@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_those_of_separate_graphs(head, schedule, reach, unit, make):
    block = {**BLOCK, "mixer": {"kind": "attention", "n_heads": 2, "causal": make is plain_batch}}
    model, batch = local(unit, rack=rack_spec(block=block), head=head, schedule=schedule, transport=0.3), make()
    assert_same(step_gradients(model, batch), dumb_gradients(model, batch, reach))


@pytest.mark.parametrize("options", [{"head_learns_from": "last"}, {"head": "tail", "tail_learns": False}], ids=str)
@pytest.mark.parametrize("is_tied", [False, True])
def test_what_does_not_learn_passes_gradients_on(options, is_tied):
    model, batch = local(rack=rack_spec(tie_embeddings=is_tied), **options), plain_batch()
    found = step_gradients(model, batch)
    if is_tied:  # which of the two uses of the weight learns from what, the dumb form does not tell apart
        untied = local(**options)
        untied.load_state_dict(model.state_dict())
        expected = dumb_gradients(untied, batch, 1)
        expected[1]["rack.embedding.weight"] += expected[1].pop("rack.head.output.weight")
    else:
        expected = dumb_gradients(model, batch, 1)
    assert_same(found, expected)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_rack_as_one_unit_is_end_to_end():
    model, batch = local("rack", head="tuned"), plain_batch()
    assert not len(model.extras)
    loss, found = step_gradients(model, batch)
    rack = model.rack
    rack.zero_grad()
    expected = batch_gradients(Pack([rack]), [TrainState(rack, {0: batch}, 1e-3, 0.0)], 0, TrainSpec(device="cpu"))
    assert_same((loss, found), (expected[0], {f"rack.{name}": each.grad for name, each in rack.named_parameters()}))


def test_what_parts_report_is_learnt_from():
    block = {"mixer": BLOCK["mixer"], "mlp": {"kind": "moe", "n_experts": 3, "n_active": 2, "d_expert": 8}}
    spec = rack_spec(1, 2, block, head={"kind": "language_model", "z_loss": 0.5})
    model, batch = local(rack=spec), plain_batch()
    loss, found = step_gradients(model, batch)
    expected, x = {}, model.rack.embed(batch[0])
    for unit in model.units:
        with collecting() as reports:
            y = unit(x, None)
            own = cross_entropy(model.rack.head(y), batch)
        assert len(reports.losses) > 1
        names, parameters = zip(*model.named_parameters(), strict=True)
        for name, gradient in zip(names, torch.autograd.grad(reports.added_to(own), parameters, allow_unused=True), strict=True):
            if gradient is not None:
                expected[name] = expected.get(name, 0) + gradient
        x = y.detach()
    assert_same((loss, found), (own.detach(), expected))


def test_a_batch_that_asks_nothing_has_no_loss():
    inputs, targets = plain_batch()
    loss, found = step_gradients(local(), (inputs, torch.full_like(targets, -100)))
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in found.values())


# One unit after another


def trained(model, n_steps, *, weight_decay=0.1, on_step=None, checkpoint_path=None, batches=None, **keys):
    """Train on the task, with decay and momentum."""
    member = TrainState(model, task_data() if batches is None else batches, 1e-2, weight_decay)
    train(
        [member],
        TrainSpec(device="cpu", **keys),
        n_steps=n_steps,
        eval_every=max(n_steps // 4, 1),
        evaluate=ExitEvaluation(model, list(task_data(split="test").in_order())),
        gradients=LocalLosses(model, n_steps=n_steps),
        on_step=on_step,
        checkpoint_path=checkpoint_path,
    )
    return member


def task_units(unit="block", n_blocks=2, n_stacks=2, rack=None, **options):
    spec = rack_spec(n_stacks, n_blocks, vocab_size=TASK.vocab_size, init_std=None, **(rack or {}))
    return LocalUnits(spec.build(0), LocalLossSpec(**options), unit=unit)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("unit", ["block", "stack"])
@pytest.mark.parametrize("options", [{}, {"head": "tuned"}, {"head": "aux_block"}, {"head_learns_from": "last"}], ids=str)
def test_one_after_another_only_the_current_unit_moves(unit, options, is_tied):
    model = task_units(unit, schedule="sequential", rack={"tie_embeddings": is_tied}, **options)
    n_units, before, moved = len(model.units), [snapshot(model)], []

    def stepped(_):
        after = snapshot(model)
        moved.append({name for name, tensor in after.items() if not torch.equal(tensor, before[0][name])})
        before[0] = after
        return True

    trained(model, 3 * n_units, on_step=stepped)
    last = n_units - 1
    for step, names in enumerate(moved):
        current = step // 3
        expected = {name for name in before[0] if name.startswith(f"rack.{model.units[current].name}.")}
        expected |= {name for name in before[0] if name.startswith(f"extras.{current}.")}
        learns = current == last or options.get("head_learns_from") != "last"
        expected |= {name for name in before[0] if name.startswith("rack.head.") and learns}
        expected |= {"rack.embedding.weight"} if current == 0 else set()
        if is_tied:
            expected -= {"rack.head.output.weight", "rack.embedding.weight"}
            expected |= {"rack.head.output.weight", "rack.embedding.weight"} if current == 0 else set()
        assert names == expected, (step, names ^ expected)


def test_all_at_once_all_units_move():
    model = task_units(head="tuned")
    before = snapshot(model)
    trained(model, 2)
    assert not [name for name, tensor in snapshot(model).items() if torch.equal(tensor, before[name])]


def test_what_stands_still_drops_nothing_out():
    """A unit that learns does so on what the units before will give when the rack is used."""
    spec = rack_spec(1, 3, {**BLOCK, "dropout": 0.5}, embedding={"kind": "token", "dropout": 0.5})
    model = LocalUnits(spec.build(0), LocalLossSpec(schedule="sequential"), unit="block")
    seen = []
    for block in model.rack.blocks():
        block.register_forward_hook(lambda module, inputs, _: seen.append((module, inputs[0].detach().clone())))
    model.train()
    for _ in range(2):
        step_gradients(model, plain_batch(), step=1, n_steps=3)
    assert [block.training for block in model.rack.blocks()] == [False, True, True]
    (_, first), (_, second), (_, again), (_, twice) = seen
    assert torch.equal(first, again)
    assert torch.equal(second, twice)
    assert torch.equal(first, model.rack.embedding.eval()(plain_batch()[0]))


def test_as_many_steps_as_units_are_needed():
    model = task_units(schedule="sequential")
    with pytest.raises(ConfigError, match="sequential trains 4 units one after another: n_steps = 3 is too few"):
        LocalLosses(model, n_steps=3)
    steps = LocalLosses(model, n_steps=6)
    assert [steps.unit_of(step) for step in range(6)] == [0, 0, 1, 2, 2, 3]


# What it costs


def peak_bytes(model, batch, gradients):
    """The most bytes that are held for the backward pass at once, in one step; weights are held anyway."""
    weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    held, peak, names = {}, [0], itertools.count()

    class Held:
        def __init__(self, tensor):
            self.tensor, self.name = tensor.detach(), next(names)  # with its graph it would hold itself
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                held[self.name] = storage._cdata, storage.nbytes()
            peak[0] = max(peak[0], sum(dict(held.values()).values()))

        def __del__(self):
            held.pop(self.name, None)

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda each: each.tensor):
        gradients(Pack([model]), [TrainState(model, {0: batch}, 1e-3, 0.0)], 0)
    assert not held
    return peak[0]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("schedule", ["simultaneous", "sequential", "overlap"])
def test_the_peak_does_not_grow_with_depth(head, schedule):
    def peak(depth, unit="block"):
        model = local(unit, rack=rack_spec(depth, 1), head=head, schedule=schedule)
        return peak_bytes(model, plain_batch(), LocalLosses(model, n_steps=100))

    assert peak(3) == peak(6) == peak(12)
    ends = [peak(depth, "rack") for depth in (3, 6, 12)]
    assert ends[2] - ends[1] == 2 * (ends[1] - ends[0]) > 0
    if schedule == "simultaneous" and head == "shared_unembed":
        assert peak(12) < ends[0] / 2


def test_the_peak_is_one_units_graph():
    """By stacks it is a stack's; overlapping, that of two units but only one exit."""

    def peak(unit, **options):
        model = local(unit, rack=rack_spec(4, 3), **options)
        return peak_bytes(model, plain_batch(), LocalLosses(model, n_steps=100))

    def whole(n_blocks):
        model = LocalUnits(rack_spec(1, n_blocks).build(0), LocalLossSpec(), unit="rack")
        return peak_bytes(model, plain_batch(), LocalLosses(model, n_steps=100))

    assert peak("stack") == whole(3)
    assert peak("block") == whole(1) < whole(2) == peak("block", schedule="overlap")


# Training


@pytest.mark.parametrize(
    "options",
    [{}, {"head": "tuned"}, {"head": "aux_block"}, {"head": "tail"}, {"schedule": "overlap"}, {"schedule": "sequential"}],
    ids=str,
)
def test_the_loss_falls_in_every_unit(options):
    model = task_units("stack", n_blocks=1, **options)
    before = ExitEvaluation(model, list(task_data(split="test").in_order())).score()
    member = trained(model, 60)
    row = member.history[-1]
    for unit in model.units:
        name = f"loss.{unit.name}"
        assert row[name] < before[name].item() - 0.3
    assert row["loss"] == row[f"loss.{model.units[-1].name}"]


def test_exits_are_measured_one_by_one():
    model, batches = local("stack", head="tuned"), [plain_batch(step) for step in range(2)]
    found = ExitEvaluation(model, batches).score()
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits = model.rack(inputs)
    torch.testing.assert_close(found["loss"].float()[0], cross_entropy(logits, (inputs, targets)))
    n_supervised = (targets != -100).sum()
    assert found["accuracy"].item() == pytest.approx(((logits.argmax(-1) == targets).sum() / n_supervised).item())
    first = model.rack.head(model.extras[0](model.rack.run(model.rack.embed(inputs), stop=1)))
    torch.testing.assert_close(found["loss.stacks.0"].float()[0], cross_entropy(first, (inputs, targets)))
    whole = evaluate_on(task_data(split="test"))
    model = task_units("stack")
    expected = whole(Pack([model]), [])
    score = ExitEvaluation(model, list(task_data(split="test").in_order())).score()
    assert {name: score[name].item() for name in ("loss", "accuracy")} == pytest.approx(
        {name: expected[name].item() for name in ("loss", "accuracy")}
    )


@pytest.mark.parametrize("head", HEADS)
def test_extras_train_and_are_resumed_and_thrown_away(head, tmp_path):
    def make():
        return task_units("stack", n_blocks=1, head=head)

    straight, path = make(), tmp_path / "checkpoint.safetensors"
    start = snapshot(straight)
    trained(straight, 8)
    assert all(not torch.equal(tensor, start[name]) for name, tensor in snapshot(straight).items())
    assert bool(len(straight.extras)) == (head in {"tuned", "aux_block"})
    trained(make(), 8, checkpoint_path=path, on_step=lambda step: step < 3)
    tensors, _ = checkpoint.read(path, torch.device("cpu"))
    assert any("extras" in name for name in tensors) == bool(len(straight.extras))
    resumed = make()
    trained(resumed, 8, checkpoint_path=path)
    torch.testing.assert_close(snapshot(resumed), snapshot(straight), rtol=0, atol=0)
    kept = task_units("stack", n_blocks=1).rack
    checkpoint.load_weights(kept, checkpoint.weights(straight.rack))
    inputs, _ = task_data()[0]
    assert torch.equal(kept(inputs), straight.rack(inputs))
    assert torch.equal(kept(inputs), straight(inputs))


def test_exits_start_from_what_the_rack_reads():
    rack = rack_spec().build(0)
    tuned = LocalUnits(rack, LocalLossSpec(head="tuned", rank=100), unit="block", seed=1)
    x = tuned.rack.embed(plain_batch()[0])
    assert torch.equal(tuned.exit(0, x), rack.head(x))
    assert tuned.extras[0].change.down.shape == (16, 16)
    again, other = (LocalUnits(rack, LocalLossSpec(head="tuned"), unit="block", seed=seed) for seed in (1, 2))
    first = LocalUnits(rack, LocalLossSpec(head="tuned"), unit="block", seed=1)
    assert torch.equal(first.extras[1].change.down, again.extras[1].change.down)
    assert not torch.equal(first.extras[1].change.down, other.extras[1].change.down)
    copies = LocalUnits(rack, LocalLossSpec(head="aux_block"), unit="stack")
    assert torch.equal(copies.exit(0, x), rack.head(rack.stacks[0].blocks[-1](x)))


def test_transport_keeps_units_near_the_identity():
    def change(transport):
        model = task_units("block", transport=transport)
        trained(model, 40)
        x, lengths = model.rack.embed(task_data()[0][0]), []
        for unit in model.units:
            lengths.append((unit(x, None) - x).square().sum(-1).mean().item())
            x = unit(x, None)
        return max(lengths)

    assert change(1.0) < change(0.0) / 2


def test_options_of_other_heads_are_refused():
    for name, value, head in (("rank", 4, "tuned"), ("tail_learns", False, "tail")):
        with pytest.raises(ValueError, match=f"is of the head {head}, not of shared_unembed"):
            LocalLossSpec(**{name: value})
        assert getattr(LocalLossSpec(head=head, **{name: value}), name) == value


# Several processes


def on_a_rank(head, is_weighted):
    ranks, model = Ranks(), local("stack", head=head, transport=0.2)
    batch = padded_batch(5) if is_weighted else plain_batch(n_rows=5)
    batch[1][0] = -100  # the first rank is asked less
    mine = slice(ranks.rank, None, ranks.n_ranks)
    part = (tensor[mine] for tensor in batch)
    return step_gradients(model, PaddedBatch(*part) if is_weighted else tuple(part), ranks=ranks)


@pytest.mark.parametrize(("head", "is_weighted"), [("tuned", False), ("shared_unembed", True)])
def test_two_processes_are_one(head, is_weighted, tmp_path):
    expected = on_a_rank(head, is_weighted)
    for loss, found in on_ranks(on_a_rank, 2, tmp_path, head, is_weighted):
        assert_same((loss, found), (expected[0].squeeze(), expected[1]))

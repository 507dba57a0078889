"""Training on several processes: two are one, only what is active travels, shares of the weights are the whole weights."""

import hashlib
import shutil

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from configs.records import read_rows
from models import RackSpec, Supernet
from search.jobs.supernet.job import train_supernet, train_supernet_here
from search.jobs.supernet.spec import SupernetSpec
from search.training import checkpoint
from search.training.ranks import BUCKET_BYTES, Ranks
from search.training.sharding import gathered, shard, shared_out
from tests.search.ranks import on_ranks
from tests.search.supernets import BLOCK, supernet_spec

MIXERS = {"attention": {"kind": "attention", "n_heads": 2}, "gdn": {"kind": "gated_delta_net", "n_heads": 2}}
MIXER = {"kind": "stochastic", "main": "attention", "mixers": MIXERS}
SPACE = {
    "vocab_size": 11,
    "d_model": 16,
    "tie_embeddings": True,
    "stacks": [{"n_blocks": 2, "block": {"mixer": MIXER, "mlp": {"kind": "swiglu", "d_ff": 24}}}],
}
PLACEMENTS = [("attention", "gdn"), ("attention", "attention"), ("gdn", "gdn")]
"""In the first two, layer 0 has no gdn."""


def make() -> Supernet:
    return Supernet(RackSpec.model_validate(SPACE), seed=3)


def train(n_steps, placements=PLACEMENTS, way="data", saved=None):
    """Trains by hand, in float64: AdamW makes whole steps of what is rounding. Losses, placements' hash, weights, moments."""
    ranks, model = Ranks(), make().double()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.lr_scale = 0.5
    if way == "fsdp" and ranks.n_ranks > 1:
        shard(model)
    assert all(parameter.lr_scale == 0.5 for name, parameter in model.named_parameters() if "norm" in name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    first = 0
    if saved is not None:
        first = restore(model, optimizer, *saved)
    rows, losses, hashed = torch.arange(8)[ranks.rank :: ranks.n_ranks], [], hashlib.sha256()
    for step in range(first, n_steps):
        tokens = torch.randint(11, (8, 13), generator=torch.Generator().manual_seed(step))[rows]
        model.activate(placements[step % len(placements)])
        ranks.check_same(str(model.active))
        hashed.update(str(model.active).encode())
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum") / (8 * 12)
        loss.backward()
        ranks.exchange(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(ranks.total(loss)))
    weights = gathered({name: parameter.detach() for name, parameter in model.named_parameters()})
    names, states = [name for name, _ in model.named_parameters()], optimizer.state_dict()["state"]
    moments = {f"{names[index]} {kind}": value for index, state in states.items() for kind, value in state.items()}
    return losses, hashed.hexdigest(), weights, gathered(moments), first


def restore(model, optimizer, weights, moments, step):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(shared_out(weights[name], parameter))
    state = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        found = {kind: moments[f"{name} {kind}"] for kind in ("step", "exp_avg", "exp_avg_sq") if f"{name} {kind}" in moments}
        if found:
            state[index] = {kind: shared_out(value, parameter) if value.dim() else value.clone() for kind, value in found.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def holders(found, way):
    """What the ranks gave that hold whole weights: with fsdp the main one alone."""
    return found[:1] if way == "fsdp" else found


@pytest.mark.parametrize("way", ["data", "fsdp"])
def test_two_workers_are_one_process(tmp_path, way):
    alone = train(9)
    found = on_ranks(train, 2, tmp_path, 9, PLACEMENTS, way)
    for losses, hashed, *_ in found:
        assert losses == pytest.approx(alone[0], abs=1e-9)
        assert hashed == alone[1]
    for _, _, weights, moments, _ in holders(found, way):
        assert weights.keys() == alone[2].keys()
        assert moments.keys() == alone[3].keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, alone[2][name], atol=1e-7, rtol=0)


@pytest.mark.parametrize("way", ["data", "fsdp"])
def test_what_was_never_active_does_not_move_and_has_no_moments(tmp_path, way):
    before = dict(make().double().named_parameters())
    for _, _, weights, moments, _ in holders(on_ranks(train, 2, tmp_path, 4, PLACEMENTS[:2], way), way):
        unused = [name for name in weights if "blocks.0.mixer.mixers.gdn" in name]
        assert unused
        for name in unused:
            assert torch.equal(weights[name], before[name])
            assert f"{name} exp_avg" not in moments
        assert any("blocks.1.mixer.mixers.gdn" in name for name in moments)


@pytest.mark.slow
def test_a_run_goes_on_from_shares_as_one_process_and_back(tmp_path):
    whole = train(8)
    losses, _, *state, _ = on_ranks(train, 2, tmp_path / "first", 4, PLACEMENTS, "fsdp")[0]
    assert train(8, saved=(*state, 4))[0] == pytest.approx(whole[0][4:], abs=1e-9)
    losses, _, *state, _ = train(4)
    assert losses == pytest.approx(whole[0][:4], abs=1e-9)
    (losses, *_), _ = on_ranks(train, 2, tmp_path / "second", 8, PLACEMENTS, "fsdp", (*state, 4))
    assert losses == pytest.approx(whole[0][4:], abs=1e-9)


def train_as_rank(raw, out, stops_at=None):
    """The job as one rank; the last one asks for a stop after the evaluation at `stops_at`. What ended it."""
    ranks, spec = Ranks(), SupernetSpec.model_validate(raw)

    def evaluated(_, row):
        if row["step"] == stops_at and ranks.rank == ranks.n_ranks - 1:
            ranks.stop()

    prepare = shard if spec.parallel == "fsdp" and ranks.n_ranks > 1 else lambda _: None
    try:
        train_supernet_here(spec, out, lambda _: None, ranks=ranks, prepare=prepare, on_evaluation=evaluated)
    except KeyboardInterrupt:
        return "interrupted"
    return "finished"


def history(out):
    return read_rows(out / "history.jsonl")[0]


TRAIN = {"device": "cpu", "eps": 1e-3}
"""An eps far above what rounding leaves in gradients, of which AdamW makes whole steps otherwise."""
TEACHER = {"source": "main", "hidden_weight": 0.1}
WIDTHS = {"kind": "stochastic", "main": "wide", "mixers": {"wide": {"kind": "swiglu", "d_ff": 24}, "none": None}}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["data", "fsdp"])
@pytest.mark.parametrize(
    "keys",
    [
        {
            "teacher": TEACHER,
            "accumulate": 2,
            "train": TRAIN,
            "rack": {"parameters": {"*norm*": {"lr_scale": 0.5}, "*embedding*": {"lr_scale": 0}}},
        },
        {"placements_per_step": 2, "block": {**BLOCK, "mlp": WIDTHS}, "train": {**TRAIN, "grad_clip": 0.1}},
    ],
)
def test_the_job_on_two_ranks_is_the_job_on_one_also_after_a_stop_and_on_another_number_of_ranks(tmp_path, keys, way):
    spec = supernet_spec(lr=1e-3, n_steps=8, debug=True, parallel=way, **keys)
    train_supernet(spec, tmp_path / "alone", say=lambda _: None)
    assert on_ranks(train_as_rank, 2, tmp_path / "ranks", spec.to_dict(), tmp_path / "out", 4) == ["interrupted"] * 2
    tensors, state = checkpoint.read(tmp_path / "out/checkpoint.safetensors", torch.device("cpu"))
    assert state["step"] == 5
    shutil.copytree(tmp_path / "out", tmp_path / "then_alone")
    assert on_ranks(train_as_rank, 2, tmp_path / "again", spec.to_dict(), tmp_path / "out") == ["finished"] * 2
    train_as_rank({**spec.to_dict(), "parallel": "data"}, tmp_path / "then_alone")
    whole = checkpoint.read(tmp_path / "alone/weights.safetensors", torch.device("cpu"))[0]
    for folder in ("out", "then_alone"):
        for ours, theirs in zip(history(tmp_path / folder), history(tmp_path / "alone"), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        tensors, _ = checkpoint.read(tmp_path / folder / "weights.safetensors", torch.device("cpu"))
        assert tensors.keys() == whole.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-5, atol=1e-5)


def counted(way):
    """Bytes that one step's gradients put into collective calls, with the parameters' own."""
    sizes = []
    original = dist.all_reduce

    def spy(tensor, *args, **kwargs):
        sizes.append(tensor.nbytes)
        return original(tensor, *args, **kwargs)

    ranks, model = Ranks(), make()
    if way == "fsdp":
        shard(model)
    model.activate(("attention", "gdn"))
    model(torch.zeros(2, 5, dtype=torch.long)).square().sum().backward()
    dist.all_reduce = spy
    parameters = dict(model.named_parameters())
    ranks.exchange(parameters.values())
    dist.all_reduce = original
    return sizes, {name: (parameter.nbytes, parameter.grad is not None) for name, parameter in parameters.items()}


def test_only_the_gradients_of_active_parts_travel_in_one_call(tmp_path):
    for sizes, parameters in on_ranks(counted, 2, tmp_path, "data"):
        active = sum(nbytes for nbytes, has_gradient in parameters.values() if has_gradient)
        assert sizes == [1 + len(parameters), active]  # whether to stop and who has a gradient; the gradients
        assert active < sum(nbytes for nbytes, _ in parameters.values())
        for name, (_, has_gradient) in parameters.items():
            idle = "blocks.0.mixer.mixers.gdn" in name or "blocks.1.mixer.mixers.attention" in name
            assert has_gradient == (not idle)


def test_shares_of_parts_that_are_not_active_have_no_gradient_and_nothing_is_left_to_exchange(tmp_path):
    for sizes, parameters in on_ranks(counted, 2, tmp_path, "fsdp"):
        assert sizes == [1]  # whether to stop
        for name, (_, has_gradient) in parameters.items():
            idle = "blocks.0.mixer.mixers.gdn" in name or "blocks.1.mixer.mixers.attention" in name
            assert has_gradient == (not idle)


def uneven():
    ranks = Ranks()
    everywhere, here_only, nowhere = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    long = nn.Parameter(torch.zeros(BUCKET_BYTES // 4 + 1))
    half = nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    for parameter in (everywhere, long, half):
        parameter.grad = torch.full_like(parameter, ranks.rank + 1)
    if ranks.rank == 1:
        here_only.grad = torch.full_like(here_only, 5)
    ranks.exchange([everywhere, here_only, nowhere, long, half])
    gradients = [parameter.grad for parameter in (everywhere, here_only, nowhere, half)]
    return gradients, long.grad.unique().tolist(), ranks.is_main


def test_a_gradient_that_one_rank_lacks_counts_as_zero_and_one_that_all_lack_stays_none(tmp_path):
    for rank, (gradients, long, is_main) in enumerate(on_ranks(uneven, 2, tmp_path)):
        everywhere, here_only, nowhere, half = gradients
        assert everywhere.tolist() == [3, 3, 3]
        assert here_only.tolist() == [5, 5, 5]
        assert nowhere is None
        assert half.tolist() == [[3, 3], [3, 3]]
        assert long == [3]
        assert is_main == (rank == 0)


def disagree():
    with pytest.raises(RuntimeError) as raised:
        Ranks().check_same(f"placement {dist.get_rank()}")
    return str(raised.value)


def test_ranks_that_disagree_say_with_what(tmp_path):
    assert on_ranks(disagree, 2, tmp_path) == ["ranks disagree: rank 0 has placement 0, rank 1 has placement 1"] * 2


def test_alone_nothing_is_exchanged():
    ranks = Ranks()
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = gradient = torch.full((2,), 7.0)
    ranks.exchange([parameter])
    ranks.check_same("anything")
    assert parameter.grad is gradient
    assert (ranks.rank, ranks.n_ranks, ranks.is_main) == (0, 1, True)
    assert ranks.total(torch.tensor([2.0])).tolist() == [2]

"""Small supernets and evaluation batches that the tests of scoring run on."""

import torch

from models import RackSpec, Supernet
from search.training.metrics import token_losses

MIXERS = {
    "attention": {"kind": "attention", "n_heads": 2},
    "delta": {"kind": "gated_delta_net", "n_heads": 2},
    "linear": {"kind": "linear_attention", "n_heads": 2},
}
MLPS = {"wide": {"kind": "swiglu", "d_ff": 32}, "none": None}


def space(n_blocks=4, mlp=None, dropout=0.0, **keys):
    """Three mixers in every layer; `mlp="stochastic"` leaves the channel mixer open too."""
    mixer = {"kind": "stochastic", "main": "attention", "mixers": MIXERS}
    if mlp == "stochastic":
        mlp = {"kind": "stochastic", "main": "wide", "mixers": MLPS}
    block = {"mixer": mixer, "mlp": mlp or MLPS["wide"], "dropout": dropout}
    return RackSpec(**{"vocab_size": 11, "d_model": 16, "stacks": [{"n_blocks": n_blocks, "block": block}], **keys})


def supernet(seed=0, scale=8.0, **keys):
    """A random supernet; `scale` times its weights, so that placements differ visibly."""
    net = Supernet(space(**keys), seed=seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "embedding" in name:
                parameter.mul_(scale)
    return net


def batches(n_batches=3, *, batch_size=4, seq_len=10, vocab_size=11, seed=0, asked=0.7):
    """Batches of random tokens, of which a share is asked for."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(n_batches):
        inputs, targets = torch.randint(vocab_size, (2, batch_size, seq_len), generator=generator)
        silent = torch.rand(targets.shape, generator=generator) > asked
        silent[0, 0] = False
        drawn.append((inputs, targets.masked_fill(silent, -100)))
    return drawn


def placements(slots, n, seed=0):
    """Distinct random placements."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    while len(found) < n:
        placement = tuple(slot.names[int(torch.randint(len(slot.names), (), generator=generator))] for slot in slots)
        found[placement] = None
    return list(found)


@torch.no_grad()
def one_at_a_time(net, chosen, pairs, score=lambda logits, targets: -token_losses(logits[None], targets)[0]):
    """The dumb way: every placement through the whole supernet, a batch at a time."""
    net.eval()
    rows = []
    for placement in chosen:
        net.activate(placement)
        rows.append([float(score(net(inputs), targets)) for inputs, targets in pairs])
    return torch.tensor(rows, dtype=torch.float64).numpy()

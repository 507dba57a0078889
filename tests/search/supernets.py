"""Tiny supernets, and what their steps are compared with."""

from pathlib import Path

import torch

from models import Supernet
from search.jobs.supernet.job import train_supernet
from search.jobs.supernet.kept_teacher import open_teacher
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.step import SupernetStep
from search.training.mixture import Mixture
from search.training.optimizer import make_optimizer
from search.training.packing import Pack
from search.training.ranks import Ranks
from search.training.state import TrainState

CPU = torch.device("cpu")
MIXERS = {
    "attention": {"kind": "attention", "n_heads": 2},
    "gdn": {"kind": "gated_delta_net", "n_heads": 2},
    "linear": {"kind": "linear_attention", "n_heads": 2},
}
STOCHASTIC = {"kind": "stochastic", "main": "attention", "mixers": MIXERS}
RECALL = {"kind": "in_context_recall", "vocab_size": 8, "seq_len": 16}
COPYING = {"kind": "selective_copying", "vocab_size": 8, "seq_len": 24, "n_tokens_to_copy": 4}
BLOCK = {"mixer": STOCHASTIC, "mlp": {"kind": "swiglu", "d_ff": 24}}


def supernet_spec(**keys):
    """A supernet of two layers and three mixers on two tasks."""
    block = keys.pop("block", BLOCK)
    rack = {"d_model": 16, "stacks": [{"n_blocks": 2, "block": block}], **keys.pop("rack", {})}
    data = {"tasks": {"recall": {"task": RECALL}, "copying": {"task": COPYING, "weight": 2.0}}, "batch_size": 12}
    sizes = {"n_steps": 12, "eval_every": 4, "n_eval_batches": 1, "eval_batch_size": 4, "n_eval_placements": 2}
    return SupernetSpec(**{"rack": rack, "data": data, "train": {"device": "cpu"}, "lr": 1e-2, **sizes, **keys})


def supernet_member(spec, device=CPU):
    """The member that the job makes of a spec."""
    batches = Mixture(spec.data, seed=spec.seed, device=device)
    return TrainState(Supernet(spec.rack, spec.seed).to(device), batches, spec.lr, spec.weight_decay, keeps_best=False)


class Steps:
    """The loop of `train` by hand, step by step."""

    def __init__(self, spec, device=CPU):
        self.member = supernet_member(spec, device)
        self.model = self.member.model
        teacher = open_teacher(spec, self.model, device, ranks=Ranks())
        self.gradients = SupernetStep(spec, Ranks(), teacher)
        self.optimizer = make_optimizer([self.member], spec.train)

    def backward(self, step=0):
        """Leave the gradients of a step; its loss."""
        return float(self.gradients(Pack([self.model]), [self.member], step))

    def without_waiting(self, step):
        """Train one step, and ask for nothing."""
        self.gradients(Pack([self.model]), [self.member], step)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self, step):
        """Train one step."""
        loss = self.backward(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def gradients(model):
    """Copies of the gradients that there are, by name."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def parameters(model):
    """Copies of the parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train_into(out: Path, spec=None, lines=None):
    """Run the job quietly, or into a list of lines."""
    return train_supernet(spec or supernet_spec(), out, say=(lambda _: None) if lines is None else lines.append)

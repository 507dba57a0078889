"""Distillation from the main placement in place, or from a trained model: of logits, and of hidden states layer by layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs import ConfigError
from models import Rack, Supernet
from search.jobs.supernet.spec import TeacherSpec
from search.jobs.supernet.weights import load_supernet
from search.runs.run_folder import folder_named
from search.training.mixture import WeightedBatch


@dataclass
class Outputs:
    """Logits [rows, time, vocab_size] and, where they are wanted, what each layer gives [rows, time, d_model]."""

    logits: Tensor
    hidden: list[Tensor] = field(default_factory=list)


class Teacher:
    """Looks at a batch before the student does, and says how far the student is from it.

    The main placement of the student's own weights teaches without dropout. No gradient flows into a teacher. `out` is the folder
    of the run, beside which the source may lie.

    Raises:
        ConfigError: for a folder without a finished run, with one that diverged, or one whose model does not fit.
    """

    def __init__(self, spec: TeacherSpec, student: Supernet, device: torch.device, out: Path = Path()) -> None:
        self.spec, self.student = spec, student
        self.is_main = spec.source == "main"
        self.model = student if self.is_main else taught_by(spec, student, device, folder_named(spec.source, out))

    def look(self, batch: WeightedBatch, *, step: int, first: int) -> Outputs:
        """What the teacher makes of a batch; the student is in training mode afterwards, with its main placement active."""
        del step, first
        self.model.eval()
        with torch.no_grad():
            seen = self.run(self.model, batch.inputs)
        if self.is_main:
            self.model.train()
        return seen

    def run(self, model: nn.Module, inputs: Tensor) -> Outputs:
        """A model's outputs, with its hidden states where the teacher's are asked for."""
        if self.spec.hidden_weight == 0:
            return Outputs(model(inputs))
        with _hidden_states(rack_of(model)) as hidden:
            return Outputs(model(inputs), hidden)

    def mix(self, cross_entropy: Tensor, student: Outputs, teacher: Outputs, weights: Tensor) -> Tensor:
        """The loss of a batch: its cross entropy and what the teacher adds, each a sum by `weights` [rows, time]."""
        spec = self.spec
        loss = (1 - spec.weight) * cross_entropy
        if spec.weight:
            loss = loss + spec.weight * divergence(
                student.logits, teacher.logits, weights, kl=spec.kl, temperature=spec.temperature
            )
        if spec.hidden_weight:
            loss = loss + spec.hidden_weight * distance(student.hidden, teacher.hidden, weights)
        return loss


def divergence(student: Tensor, teacher: Tensor, weights: Tensor, *, kl: str, temperature: float) -> Tensor:
    """KL divergence in nats times temperature squared, which keeps its gradients at the size of the cross entropy's.

    Args:
        student: logits [rows, time, vocab_size].
        teacher: logits of the same shape.
        weights: [rows, time].
        kl: `forward` for KL(teacher || student), `reverse` for KL(student || teacher).
        temperature: what both logits are divided by.
    """
    ours, theirs = (F.log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher))
    true, other = (theirs, ours) if kl == "forward" else (ours, theirs)
    return temperature**2 * ((true.exp() * (true - other)).sum(-1) * weights).sum()


def distance(student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Mean squared error over layers and features, summed over positions by weight; layers are matched by relative depth."""
    pairs = zip(student, matched(teacher, len(student)), strict=True)
    errors = [((ours.float() - theirs.float()).square().mean(-1) * weights).sum() for ours, theirs in pairs]
    return torch.stack(errors).mean()


def matched(layers: Sequence[Tensor], n_layers: int) -> list[Tensor]:
    """For each of n layers the one at the same relative depth; the last stands for the last."""
    return [layers[-(-(index + 1) * len(layers) // n_layers) - 1] for index in range(n_layers)]


@contextmanager
def _hidden_states(rack: Rack) -> Iterator[list[Tensor]]:
    """Collects what the blocks give, in the order of the data flow, while the context is open."""
    states: list[Tensor] = []
    blocks = dict.fromkeys(rack.blocks())  # a shared block has one hook, which fires at each of its places
    hooks = [block.register_forward_hook(lambda _module, _inputs, output: states.append(output)) for block in blocks]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def rack_of(model: nn.Module) -> Rack:
    """That of a supernet, or the model itself."""
    rack = model.rack if isinstance(model, Supernet) else model
    assert isinstance(rack, Rack)  # whoever is taught or teaches is one of the two
    return rack


def taught_by(spec: TeacherSpec, student: Supernet, device: torch.device, folder: Path) -> nn.Module:
    """The model of a finished run, which no gradient flows into; ConfigError if there is none that fits the student."""
    model = load_supernet(folder, device, key="teacher.source").requires_grad_(requires_grad=False)
    ours, theirs = (rack_of(each).embedding for each in (student, model))
    wanted = {"vocab_size": (theirs.num_embeddings, ours.num_embeddings)}
    if spec.hidden_weight:
        wanted["d_model"] = (theirs.embedding_dim, ours.embedding_dim)
    for name, (found, needed) in wanted.items():
        if found != needed:
            raise ConfigError(f"teacher.source: {spec.source}: {name} is {found} there, but {needed} here")
    return model

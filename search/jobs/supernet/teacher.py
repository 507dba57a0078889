"""Distillation from the main placement in place, or from a trained model: of logits, and of hidden states layer by layer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs import ConfigError
from models import Supernet
from search.jobs.supernet.outputs import Outputs, outputs_of, pieces, rack_of
from search.jobs.supernet.spec import TeacherSpec
from search.jobs.supernet.weights import load_supernet
from search.runs.run_folder import folder_named
from search.training.mixture import WeightedBatch


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

    @property
    def compares_hidden(self) -> bool:
        """Whether it compares what layers give."""
        return self.spec.hidden_weight > 0

    def look(self, batch: WeightedBatch, *, step: int, first: int) -> Outputs:
        """What the teacher makes of a batch; the student is in training mode afterwards, with its main placement active."""
        del step, first
        # The student's own head is read in its training mode later on, and that of FSDP at the end of a whole pass alone.
        is_read_out = self.is_main or len(pieces(self.model, batch.inputs.numel(), batch.inputs.device)) == 1
        self.model.eval()
        with torch.no_grad():
            seen = outputs_of(self.model, batch.inputs, is_read_out=is_read_out, with_hidden=self.compares_hidden)
        if self.is_main:
            self.model.train()
        return seen

    def mix(self, cross_entropy: Tensor, logits: Tensor, seen: Outputs, positions: slice, weights: Tensor) -> Tensor:
        """The loss of some positions of a batch."""
        spec = self.spec
        loss = (1 - spec.weight) * cross_entropy
        if spec.weight:
            with torch.no_grad():
                theirs = seen.logits(positions)
            loss = loss + spec.weight * divergence(logits, theirs, weights, kl=spec.kl, temperature=spec.temperature)
        return loss

    def beside(self, student: Outputs, seen: Outputs, weights: Tensor) -> Tensor | None:
        """What hidden states add to the loss of a batch."""
        if not self.compares_hidden:
            return None
        return self.spec.hidden_weight * distance(student.hidden, seen.hidden, weights)


def divergence(student: Tensor, teacher: Tensor, weights: Tensor, *, kl: str, temperature: float) -> Tensor:
    """KL divergence in nats times temperature squared, which keeps its gradients at the size of the cross entropy's.

    Args:
        student: logits [..., vocab_size].
        teacher: logits of the same shape.
        weights: of the positions [...].
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

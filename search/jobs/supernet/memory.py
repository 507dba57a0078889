"""What a worker holds while it trains: one step on tensors that have shapes and no memory, counted tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import RackSpec, Supernet
from models.assembly.assemble import filled, without_memory, without_numbers
from search.evaluation.memory_count import peak_bytes
from search.jobs.supernet.job import train_only
from search.jobs.supernet.kept_teacher import KeptLook, kept_divergence
from search.jobs.supernet.outputs import Outputs
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.step import ONLY, SupernetStep, Teaching
from search.jobs.supernet.teacher import Teacher
from search.runs.console import gibibytes
from search.runs.interruption import interruptions_held
from search.samplers.shared.sampler import placements_of_step
from search.training.devices import computes_in, resolve_device
from search.training.mixture import WeightedBatch
from search.training.ranks import Ranks

N_MOMENTS = 2
"""What AdamW keeps of every number that trains."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of the tensors of one worker; what a process needs besides (Python, torch, a CUDA context) is not counted."""

    weights: int
    teacher: int
    moments: int
    step: int
    """Gradients, what backward needs, logits: the most that a step holds at once."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.teacher + self.moments + self.step

    def text(self) -> str:
        """In GiB, for people."""
        parts = ", ".join(f"{name} {gibibytes(getattr(self, name))}" for name in ("weights", "teacher", "moments", "step"))
        return f"{gibibytes(self.total)} ({parts})"


@interruptions_held()
def forecast(spec: SupernetSpec, teacher: RackSpec | None = None) -> TrainingMemory:
    """What the training of a spec will hold, weights in float32; nothing is allocated, whatever the size.

    Mixers run in plain torch here, so that a device with kernels needs less; what FSDP shares out is counted whole. `teacher` is
    the space that lies in the folder of the teacher, if it has one.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: PLC0415 - imports torch's compiler, half a second

    train, device = spec.train, resolve_device(spec.train.device)
    computed = {"precision": computes_in(device, train.precision), "scoring_precision": computes_in(device, train.scores_in)}
    spec = spec.model_copy(update={"train": train.model_copy(update=computed)})
    n_rows = -(-spec.data.batch_size // (spec.workers.n * spec.accumulate))
    rack = without_numbers(spec.rack)
    shapes = {name: tensor.shape for name, tensor in rack.state_dict().items()}
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # tables that are computed have their numbers

    def empty(name: str) -> Tensor:
        with fake:
            return torch.empty(shapes[name])

    model = Supernet(spec.rack, rack=filled(rack, empty)).train()
    with fake:
        train_only(model.rack, spec.trains)
        model.rack.set_checkpointing(enabled=spec.gradient_checkpointing)
        shape = n_rows, max(share.instance().input_length for share in spec.data.tasks.values())
        batch = WeightedBatch(torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long), torch.ones(shape))
        step = SupernetStep(spec, Ranks(), _teaching(spec, model))
        placements = ONLY if step.sampler is None else placements_of_step(step.sampler, spec.seed, 0, spec.placements_per_step)
        step_bytes = peak_bytes(lambda: step.backward(model, batch, placements, step=0, first=0))
        moments = N_MOMENTS * sum(each.nbytes for each in model.parameters() if each.requires_grad)
        teacher_bytes = 0 if teacher is None else _bytes(without_memory(teacher))
        return TrainingMemory(_bytes(model), teacher_bytes, moments, step_bytes)


def _bytes(model: nn.Module) -> int:
    """Of all weights and tables, tied ones once."""
    return sum(each.nbytes for each in (*model.parameters(), *model.buffers()))


def _teaching(spec: SupernetSpec, model: Supernet) -> Teaching | None:
    """A teacher of the student's own size: its weights are counted apart."""
    if spec.teacher is None:
        return None
    if spec.teacher.keep is not None:
        return _KeptLogits(min(spec.teacher.keep, spec.rack.vocab_size))
    return Teacher(spec.teacher.model_copy(update={"source": "main"}), model, torch.device("cpu"))


class _KeptLogits:
    """As a `KeptTeacher` whose files are there, at every position."""

    compares_hidden = False

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def look(self, batch: WeightedBatch, *, step: int, first: int) -> KeptLook:
        del step, first
        n_asked = batch.inputs.numel()
        values = torch.zeros(n_asked, self.keep)
        return KeptLook(batch.inputs.flatten() >= 0, values, values.long(), torch.zeros(n_asked))

    def mix(self, cross_entropy: Tensor, logits: Tensor, seen: KeptLook, positions: slice, weights: Tensor) -> Tensor:
        own = KeptLook(*(each[positions] for each in (seen.asked, seen.log_probabilities, seen.tokens, seen.rest)))
        return cross_entropy + kept_divergence(logits.clone(), own, weights)

    def beside(self, student: Outputs, seen: KeptLook, weights: Tensor) -> None:
        del student, seen, weights

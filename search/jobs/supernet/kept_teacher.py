"""A teacher that runs once for all who learn from it: its highest log probabilities at every asked position, kept in files."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs import ConfigError
from configs.records import DamagedError
from configs.storage import held_lock, refuse_links, remove_half_written
from models import Supernet
from search.jobs.supernet.data_fingerprints import data_fingerprints
from search.jobs.supernet.outputs import Outputs, rack_of
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.supernet.teacher import Teacher, taught_by
from search.runs.report import Say
from search.runs.run_folder import WEIGHTS, folder_named, make_folder
from search.training import checkpoint
from search.training.devices import autocast
from search.training.mixture import Mixture, WeightedBatch
from search.training.ranks import Ranks
from tasks import IGNORED

FILE_BYTES = 2**25
"""Of the steps that lie in a file together, at most, unless a single one has more."""
_LOWEST = -1e30  # 0 times it is 0


@dataclass(frozen=True)
class KeptLook:
    """What a teacher says of the positions that are `asked` [positions] bool, one after the other.

    Its `keep` highest log probabilities and their tokens [asked, keep], and the logarithm of what is left for all others [asked].
    """

    asked: Tensor
    log_probabilities: Tensor
    tokens: Tensor
    rest: Tensor

    def of(self, positions: slice) -> "KeptLook":
        """The same of some of the positions."""
        first, n = int(self.asked[: positions.start].sum()), int(self.asked[positions].sum())
        values = (each[first : first + n] for each in (self.log_probabilities, self.tokens, self.rest))
        return KeptLook(self.asked[positions], *values)


class KeptTeacher:
    """A `Teacher` of logits alone, as files have them that runs with the same teacher, data, seed and batch share.

    Files hold whole batches, step after step; whoever first needs one that is missing, damaged or too short makes it, and all
    others wait for it. The teacher is loaded when it has to run, and only then. `out` is the folder of the run, beside which the
    source and the files may lie.

    Raises:
        ConfigError: for a folder without a finished run, or one whose model does not fit.
    """

    def __init__(
        self, spec: SupernetSpec, student: Supernet, device: torch.device, out: Path, *, ranks: Ranks, say: Say = lambda _: None
    ) -> None:
        assert spec.teacher is not None and spec.teacher.keep is not None  # noqa: PT018 - else there is nothing to keep
        self.spec, self.teacher, self.device, self.ranks, self.say = spec, spec.teacher, device, ranks, say
        self.source = folder_named(self.teacher.source, out)
        self._student = student
        self._model: nn.Module | None = None
        self.whole = Mixture(spec.data, seed=spec.seed, device=device)
        self.n_rows = spec.data.batch_size
        vocab_size = rack_of(student).embedding.num_embeddings
        self.keep = min(spec.teacher.keep, vocab_size)
        step_bytes = self.n_rows * self.whole.max_length * (8 * self.keep + 4)
        self.steps_per_file = max(1, FILE_BYTES // step_bytes)
        self.fingerprint = self._fingerprint(vocab_size)
        self.folder = folder_named(self.teacher.kept_in, out) / self.fingerprint
        self._tensors: dict[str, Tensor] = {}
        self._first = self._stop = 0

    compares_hidden = False

    def look(self, batch: WeightedBatch, *, step: int, first: int) -> KeptLook:
        """What the teacher says of a part of a step's batch, which begins with the row `first` of this rank's."""
        if not self._first <= step < self._stop:
            self._open(step)
        ends = [0, *self._tensors["counts"].flatten().cumsum(0).tolist()]  # of the rows, step after step
        rows = range(self.ranks.rank, self.n_rows, self.ranks.n_ranks)[first : first + len(batch.inputs)]
        numbers = [(step - self._first) * self.n_rows + row for row in rows]
        places = torch.cat([torch.arange(ends[number], ends[number + 1]) for number in numbers])
        asked = (batch.targets != IGNORED).flatten()
        assert int(asked.sum()) == len(places)  # the key says that the data are the same
        values, tokens, rest = (self._tensors[name][places].to(self.device) for name in ("log_probabilities", "tokens", "rest"))
        return KeptLook(asked, values, tokens.long(), rest)

    def mix(self, cross_entropy: Tensor, logits: Tensor, seen: KeptLook, positions: slice, weights: Tensor) -> Tensor:
        """As that of a teacher that runs."""
        own = seen.of(positions)
        kl = kept_divergence(logits[own.asked], own, weights[own.asked])
        return (1 - self.teacher.weight) * cross_entropy + self.teacher.weight * kl

    def beside(self, student: Outputs, seen: KeptLook, weights: Tensor) -> None:
        """Nothing: of hidden states none are kept."""

    def _fingerprint(self, vocab_size: int) -> str:
        """Of all that the files depend on but the number of steps."""
        try:
            checksum, state = checkpoint.header_of(self.source / WEIGHTS)
        except DamagedError as error:
            raise ConfigError(f"teacher.source: {error}") from None
        if (found := state["spec"]["rack"]["vocab_size"]) != vocab_size:
            raise ConfigError(f"teacher.source: {self.teacher.source}: vocab_size is {found} there, but {vocab_size} here")
        asked: dict[str, Any] = {
            "teacher": checksum,
            "data": self.spec.data.content(),
            "files": data_fingerprints(self.whole),
            "seed": self.spec.seed,
            "keep": self.keep,
            "precision": [self.spec.train.scores_in, self.device.type],
            "steps_per_file": self.steps_per_file,
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]

    def _open(self, step: int) -> None:
        """Have the file at hand that a step lies in, made if need be."""
        first = step - step % self.steps_per_file
        stop = min(first + self.steps_per_file, self.spec.n_steps)
        path = self.folder / f"{first:08d}.safetensors"
        if self._read(path, first, lambda _: None) < stop:
            make_folder(self.folder)
            refuse_links(self.folder)
            with held_lock(self.folder / ".lock", waits=True):
                remove_half_written(self.folder)
                done = self._read(path, first, self.say)
                if done < stop:  # else another process has made it meanwhile
                    self.say(f"the teacher runs for steps {done + 1} to {stop}; what it says is kept in {self.folder}")
                    made = self._made(done, stop)
                    if done > first:  # of a run with fewer steps
                        made = {name: torch.cat([self._tensors[name], tensor]) for name, tensor in made.items()}
                    checkpoint.save(path, made, {"fingerprint": self.fingerprint, "first": first, "stop": stop})
                    self._read(path, first, self.say)
        assert self._first <= step < self._stop  # it has just been read

    def _read(self, path: Path, first: int, say: Say) -> int:
        """Take what a file holds; the step that it goes up to, `first` if it is of no use."""
        try:
            tensors, state = checkpoint.read(path, torch.device("cpu"), fingerprint=self.fingerprint)
        except DamagedError as error:
            if path.exists():
                say(f"{error}; it is made again")
            return first
        self._tensors, self._first, self._stop = tensors, first, int(state["stop"])
        return self._stop

    @torch.no_grad()
    def _made(self, first: int, stop: int) -> dict[str, Tensor]:
        if self._model is None:
            self._model = taught_by(self.teacher, self._student, self.device, self.source).eval()
        rack, n_parts = rack_of(self._model), self.ranks.n_ranks * self.spec.accumulate
        found: dict[str, list[Tensor]] = {"log_probabilities": [], "tokens": [], "rest": [], "counts": []}
        for step in range(first, stop):
            batch = self.whole[step]
            asked = batch.targets != IGNORED
            found["counts"].append(asked.sum(1)[None].int())
            # As many rows at once as in training: more may not fit.
            for inputs, own in zip(batch.inputs.tensor_split(n_parts), asked.tensor_split(n_parts), strict=True):
                with autocast(self.device, self.spec.train.scores_in):
                    logits = rack.read_out(rack.run(rack.embed(inputs))[own][None])[0]
                for name, tensor in zip(("log_probabilities", "tokens", "rest"), kept(logits, self.keep), strict=True):
                    found[name].append(tensor)
        return {name: torch.cat([each.cpu() for each in tensors]) for name, tensors in found.items()}


def kept(logits: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits [asked, vocab_size] the highest log probabilities and their tokens [asked, keep], and of the rest [asked]."""
    ours = F.log_softmax(logits.float(), dim=-1)
    values, tokens = ours.topk(keep, dim=-1)
    rest = ours.scatter(-1, tokens, -math.inf).logsumexp(-1)
    return values.clamp(min=_LOWEST), tokens.int(), rest.clamp(min=_LOWEST)


def kept_divergence(student: Tensor, teacher: KeptLook, weights: Tensor) -> Tensor:
    """KL(teacher || student) in nats over the tokens that were kept and all others as one; logits [asked, vocab_size]."""
    ours, theirs = F.log_softmax(student.float(), dim=-1), teacher.log_probabilities
    divergence = (theirs.exp() * (theirs - ours.gather(-1, teacher.tokens))).sum(-1)
    if theirs.shape[-1] < ours.shape[-1]:
        rest = ours.scatter(-1, teacher.tokens, -math.inf).logsumexp(-1)
        divergence = divergence + teacher.rest.exp() * (teacher.rest - rest)
    return (divergence * weights).sum()


def open_teacher(
    spec: SupernetSpec, student: Supernet, device: torch.device, out: Path = Path(), *, ranks: Ranks, say: Say = lambda _: None
) -> Teacher | KeptTeacher | None:
    """The teacher that a training names, if any."""
    if spec.teacher is None:
        return None
    if spec.teacher.keep is None:
        return Teacher(spec.teacher, student, device, out)
    return KeptTeacher(spec, student, device, out, ranks=ranks, say=say)

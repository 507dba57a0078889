"""Reads the data folder of MAD's public benchmark: one folder a task setting, in each of them NumPy arrays of two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from configs import ConfigError
from tasks.task import IGNORED, Examples, Split, Task

TASK_NAMES = {
    "in_context_recall": "CR",
    "noisy_in_context_recall": "NR",
    "fuzzy_in_context_recall": "FR",
    "memorization": "M",
    "compression": "C",
    "selective_copying": "SC",
}
"""What a folder's name calls our kinds of tasks."""

OPTIONS = {
    "vocab_size": "vs",
    "seq_len": "sl",
    "k_motif_size": "km",
    "v_motif_size": "vm",
    "multi_query": "mq",
    "frac_noise": "fn",
    "noise_vocab_size": "nvs",
    "n_tokens_to_copy": "ntc",
}
"""What it calls our options of tasks. Of a task that has not got one, it says `NOT_THERE`."""

NOT_THERE = {"km": 1.0, "vm": 1.0, "mq": 1.0, "fn": 0.0, "nvs": 0.0, "ntc": 0.0}
ORDER = ("vs", "sl", "ntr", "nte", "km", "vm", "mq", "fn", "nvs", "ntc", "s")
"""The keys of a name after the task's; `ntr` and `nte` are the numbers of instances, `s` is the seed."""

UNREADABLE = (OSError, OverflowError, SyntaxError, TokenError, TypeError, ValueError)
"""What NumPy raises for headers of arrays that are damaged here or there."""

_Values = Mapping[str, float]


@dataclass(frozen=True)
class MadFolder:
    """The settings in a folder: `t-CR_vs-16_sl-128_.._s-12345/{train,test}/{inputs,targets}.npy`, `#` for the point of a number.

    It is only read. Names are matched by what they say, task and options and numbers of instances, not letter by letter.
    """

    path: Path

    @classmethod
    def find(cls, path: Path) -> MadFolder | None:
        """The folder, if any setting lies in it; ConfigError if settings lie in a folder of it instead."""
        if not path.is_dir():
            return None
        if any(_settings(path)):
            return cls(path)
        if inner := sorted(each for each in path.iterdir() if each.is_dir() and any(_settings(each))):
            raise ConfigError(f"data_folder: {path} has no settings of MAD (t-*) itself: give {inner[0]}")
        return None

    def setting(self, task: Task, *, n_train: int, n_test: int, seed: int) -> Path:
        """The folder of a setting: of several that differ in their seeds alone, that of the seed; one is of any seed.

        Raises:
            ConfigError: if there is none, with those that there are.
        """
        kind, name = _wanted(task, n_train, n_test)
        found = {
            int(values["s"]): folder
            for folder in sorted(_settings(self.path))
            if (values := _values(folder.name, kind)) is not None and all(values[key] == value for key, value in name.items())
        }
        if seed not in found and len(found) != 1:
            there = [each.name for each in sorted(_settings(self.path))]
            text = ", ".join([each for each in there if each.startswith(f"t-{kind}_")] or there)
            raise ConfigError(f"data_folder: {self.path} has no {_text(kind, {**name, 's': seed})}; it has {text}")
        seed = seed if seed in found else next(iter(found))
        if getattr(task, "map_seed", seed) != seed:
            text = f"map_seed = {task.map_seed}, but the pairs of {found[seed].name} are of the seed {seed}"  # type: ignore[attr-defined]
            raise ConfigError(f"data_folder: {self.path}: {text}")
        return found[seed]


def read_split(setting: Path, task: Task, n_examples: int, split: Split) -> Examples:
    """The instances of a split, as they are in the folder of a setting.

    Raises:
        ConfigError: where a file is missing, or is not what the setting says: [n_examples, time] integers that are tokens, or in
            targets `IGNORED`.
    """
    shape = (n_examples, task.input_length)
    inputs, targets = (_read(setting / split / f"{name}.npy", shape) for name in ("inputs", "targets"))
    for name, array in (("inputs", inputs), ("targets", targets[targets != IGNORED])):
        if array.size and not 0 <= array.min() <= array.max() < task.vocab_size:
            text = f"has values from {array.min()} to {array.max()}, but the tokens of vs-{task.vocab_size} are below it"
            raise ConfigError(f"{setting / split / name}.npy: {text}{f', or {IGNORED}' if name == 'targets' else ''}")
    if (targets == IGNORED).all():
        raise ConfigError(f"{setting / split}/targets.npy: all are {IGNORED}, nothing is asked")
    return Examples(inputs=inputs, targets=targets)


def fingerprint_of(examples: Examples) -> str:
    """Of the very arrays: 12 hexadecimal digits."""
    digest = hashlib.sha256(repr(examples.inputs.shape).encode())
    for array in (examples.inputs, examples.targets):
        digest.update(array.data)
    return digest.hexdigest()[:12]


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        # Never a pickle, and no memory for what a header claims: a file that is too short for it is refused.
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read as an array of numbers: {error}") from None
    if array.dtype.kind not in "iu" or not np.can_cast(array.dtype, np.int64):
        raise ConfigError(f"{path}: has the type {array.dtype}, but tokens are integers, of int64 or what fits into it")
    if array.shape != shape:
        text = f"has the shape {list(array.shape)}, but the setting {path.parents[1].name} has {list(shape)}"
        raise ConfigError(f"{path}: {text}: instances, and their positions")
    read = np.array(array, dtype=np.int64, order="C")  # files may be in Fortran's order
    read.setflags(write=False)  # the trials of a grid share it
    return read


def _settings(path: Path) -> Iterator[Path]:
    """The folders whose names begin as those of settings do."""
    return (each for each in path.glob("t-*_*") if each.is_dir())


def _wanted(task: Task, n_train: int, n_test: int) -> tuple[str, _Values]:
    """How the benchmark calls a task, and what the name of a setting has to say but for its seed."""
    kind, options = type(task).__module__.rpartition(".")[2], asdict(task)
    if kind not in TASK_NAMES:
        raise ConfigError(f"data_folder: MAD's benchmark has no task {kind}; it has {', '.join(TASK_NAMES)}")
    if options.get("probe_is_shown"):
        raise ConfigError("data_folder: in the data of MAD's benchmark a probe may be hidden: leave probe_is_shown false")
    said = {OPTIONS[name]: float(value) for name, value in options.items() if name in OPTIONS}
    values = {**NOT_THERE, "ntr": float(n_train), "nte": float(n_test), **said}
    return TASK_NAMES[kind], {key: values[key] for key in ORDER if key != "s"}


def _values(name: str, kind: str) -> _Values | None:
    """What a folder's name says; None if it is of another task, or no name of the benchmark's."""
    parts = [part.partition("-")[::2] for part in name.split("_")]
    if parts[0] != ("t", kind) or sorted(key for key, _ in parts[1:]) != sorted(ORDER):
        return None
    try:
        values = {key: float(value.replace("#", ".")) for key, value in parts[1:]}
    except ValueError:
        return None
    return values if np.isfinite([*values.values()]).all() else None


def _text(kind: str, values: _Values) -> str:
    """A name as the benchmark spells it; shares have a point in any case."""
    numbers = {key: str(value).replace(".", "#") if key == "fn" else str(int(value)) for key, value in values.items()}
    return "_".join([f"t-{kind}", *(f"{key}-{numbers[key]}" for key in ORDER)])

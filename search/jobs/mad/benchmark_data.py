"""The data of MAD's public benchmark in a run: found, checked whole before it begins, and the same at every start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from configs import ConfigError
from search.jobs.mad.task import TaskSpec
from search.runs.run_folder import TrialLog
from tasks import Examples, Split
from tasks.mad_folder import MadFolder, fingerprint_of, read_split

if TYPE_CHECKING:
    from search.jobs.mad.spec import MadSpec

Place = tuple[str, str, int]
"""The task, change and seed of a trial."""


@dataclass(frozen=True)
class DataFolders:
    """Where data sets are kept between runs (`kept`), and MAD's own, which are read and never written (`benchmark`)."""

    kept: Path | None = None
    benchmark: MadFolder | None = None

    @classmethod
    def of(cls, folder: str | None) -> DataFolders:
        """What lies in `data_folder`; ConfigError as in `MadFolder.find`."""
        path = None if folder is None else Path(folder).resolve()  # workers may stand elsewhere
        benchmark = None if path is None else MadFolder.find(path)
        return cls(path if benchmark is None else None, benchmark)


def benchmark_splits(benchmark: MadFolder, setting: TaskSpec, seed: int) -> dict[Split, Examples]:
    """What MAD's folder has of a setting; ConfigError if that is nothing, or not what the setting says."""
    if setting.test_seq_len is not None:
        raise ConfigError(f"data_folder: the tests in {benchmark.path} are as long as the training: leave test_seq_len out")
    task = setting.instance()
    folder = benchmark.setting(task, n_train=setting.n_train, n_test=setting.n_test, seed=seed)
    sizes: dict[Split, int] = {"train": setting.n_train, "test": setting.n_test}
    return {split: _read_once(folder, task, n_examples, split) for split, n_examples in sizes.items()}


def fingerprint_of_splits(splits: dict[Split, Examples]) -> str:
    """Of all arrays of a setting."""
    return "-".join(map(fingerprint_of, splits.values()))


_read_once = lru_cache(maxsize=6)(read_split)
"""The trials of a grid follow each other on the same data."""


def benchmark_fingerprints(spec: MadSpec, benchmark: MadFolder | None) -> dict[Place, str]:
    """Of the data that MAD's folder has for each task, change and seed of a run, all read and checked once before it begins.

    Raises:
        ConfigError: with every setting that is not there, or not what it should be.
    """
    if benchmark is None:
        return {}
    _read_once.cache_clear()  # files may have changed since a run before in this process
    found, problems = {}, []
    for name, task in spec.tasks.items():
        for change, setting in task.settings().items():
            for seed in spec.seeds:
                try:
                    found[name, change, seed] = fingerprint_of_splits(benchmark_splits(benchmark, setting, seed))
                except ConfigError as error:
                    problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return found


def refuse_changed_data(log: TrialLog, fingerprints: Mapping[Place, str], out: Path) -> None:
    """ConfigError if trials that are done were trained and scored on other data than those that there are now."""
    for row in log.rows.values():
        now = fingerprints.get((row["task"], row["change"], row["seed"]))
        if "data" in row and row["data"] != now:  # without it, it was not measured
            had, has = ("drawn" if each is None else f"of MAD's folder ({each})" for each in (row["data"], now))
            text = f"the data of {row['task']} {row['change']} were {had}, and with this data_folder they are {has}"
            raise ConfigError(f"{out}: {text}; give another out=")

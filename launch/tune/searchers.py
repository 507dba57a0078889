"""Where Ray Tune gets the next trial from: a list, or the same again for as long as needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ray.tune import Stopper
from ray.tune.search import Searcher

Config = dict[str, Any]
"""What a trial is told."""


class StatelessSearcher(Searcher):
    """A searcher that saves nothing, for a resumed run is told what is left when it is made; and that learns nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002
        """Nothing to learn."""


class ListSearch(StatelessSearcher):
    """Hands out given configurations in order."""

    def __init__(self, configs: Sequence[Config], *, metric: str | None = None, mode: str | None = None) -> None:
        super().__init__(metric=metric, mode=mode)
        self._left = list(configs)

    def suggest(self, trial_id: str) -> Config | None:
        """The next configuration, or the word that there is none."""
        del trial_id
        return self._left.pop(0) if self._left else cast(None, Searcher.FINISHED)


class StandbySearch(StatelessSearcher):
    """The same configuration as often as Tune asks, until the search is over: trials that wait to be told what to do."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config
        self.is_over = False

    def suggest(self, trial_id: str) -> Config | None:
        """Another trial, at once."""
        del trial_id
        return cast(None, Searcher.FINISHED) if self.is_over else self._config


class UntilOver(Stopper):
    """Ends all trials with the search: those of workers that are still starting, or that fail to, would outlast it."""

    def __init__(self, search: StandbySearch) -> None:
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """All, once the search is over."""
        return self._search.is_over

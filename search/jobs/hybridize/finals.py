"""Picks among the best placements of a budget by short distillations: the better half goes on for twice the steps."""

import math
from collections.abc import Sequence

from models import Placement
from search.jobs.backend import Backend
from search.jobs.hybridize.distil import DISTILLED, Distillation
from search.jobs.hybridize.measurement import Measurement
from search.jobs.pipeline.retrain import run_name
from search.jobs.placement.results import BudgetResult, Scored
from search.runs.errors import RunError
from search.runs.report import Say
from search.runs.run_folder import BESIDE


class Finals:
    """The finals of one budget, of its `n` best; `measurement` is on the data of the search.

    The racks lie among those that are distilled.
    """

    def __init__(
        self, result: BudgetResult, n: int, distillation: Distillation, backend: Backend, measurement: Measurement
    ) -> None:
        self.distillation, self.backend, self.measurement = distillation, backend, measurement
        self.text = result.text
        self.contenders = {scored.placement: scored for scored in (result.best, *result.runners_up[: n - 1])}
        self._folders: dict[Placement, str] = {}

    def winner(self, n_steps: int, say: Say) -> Scored:
        """The one that distils best; the first round takes `n_steps`.

        Raises:
            RunError: if none of them could be distilled.
        """
        left = list(self.contenders)
        while len(left) > 1:
            kls = dict(zip(left, self._round(left, n_steps), strict=True))
            ranked = sorted(left, key=lambda placement: (not math.isfinite(kls[placement]), kls[placement]))
            done = [placement for placement in ranked if math.isfinite(kls[placement])]
            if not done:
                raise RunError(f"{self.text}: none of the finalists could be distilled")
            told = ", ".join(f"{self.contenders[placement].text} {kls[placement]:.4f}" for placement in ranked)
            say(f"{self.text}: finals, {n_steps} steps, KL to the model: {told}")
            left, n_steps = done[: -(-len(ranked) // 2)], 2 * n_steps
        return self.contenders[left[0]]

    def _round(self, left: Sequence[Placement], n_steps: int) -> list[float]:
        """KL of each after so many more steps, from where the round before has left it; not finite for one that failed."""
        runs = {}
        for placement in left:
            before = self._folders.get(placement)
            go_on = {} if before is None else {"initialise_from": f"{BESIDE}../{before}", "initial_placement": None}
            run = self.distillation.run_spec(placement, 0, n_steps=n_steps, eval_every=n_steps, **go_on)
            if run is not None:  # else nothing of it trains
                runs[placement] = run
        names = {placement: run_name(placement, run) for placement, run in runs.items()}
        out = self.distillation.out / DISTILLED
        racks = {names[placement]: run for placement, run in runs.items()}
        rows = self.backend.train_racks(racks, out, self.distillation.spec.distil)
        failed = {placement for placement, name in names.items() if "error" in rows[name]}
        self._folders |= {placement: name for placement, name in names.items() if placement not in failed}
        return [
            math.inf
            if placement in failed
            else self.measurement.of_folder(out / names[placement])["kl"]
            if placement in names
            else self.measurement.of_placement(self.distillation.source, placement)["kl"]
            for placement in left
        ]

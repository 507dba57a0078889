"""What a run can rely on: C4, that cached is recomputed; C14, that what was killed goes on the same."""

import pickle
import shutil
from pathlib import Path

import torch

from configs import ConfigError
from search.jobs.progressive.stages import is_finished, run_stages
from search.jobs.progressive.training.trunk_model import pack_rows
from search.jobs.progressive.weights import load_rack
from tests.benchmarks.claims.findings import Claim, Finding
from tests.benchmarks.claims.readers import read_side_by_side
from tests.benchmarks.claims.runs import Runs, batches_of

KEPT_MODES = ("memory", "arrow", "stream")


def measure_cached(runs: Runs):
    n_steps = runs.size.n_steps
    curves = {}
    for mode in (*KEPT_MODES, "none"):
        growth = {"target_stacks": 2, "stage_steps": (max(n_steps // 4, 1), n_steps), "cache_activations": mode != "none"}
        growth |= {"cache_mode": mode} if mode != "none" else {}
        curves[mode] = runs.run(f"cache-{mode}", growth=growth).stages[1]["losses"]
    return {"curves": curves, "equal_hidden": _equal_hidden(runs), "is_refused": _is_refused(runs)}


def _equal_hidden(runs: Runs):
    """Rows whose hidden states out of the cache are to the bit those that the trunk gives, in the order of training."""
    spec = runs.spec(growth={"target_stacks": 2})
    run = runs.grown(spec)
    n_equal = n_rows = 0
    for step in range(run.batches.steps_per_epoch):
        batch = run.batches[step]
        with torch.no_grad():
            again = torch.cat([run.cache.below(row[None]) for row in pack_rows(batch)])
        n_equal += int((run.cache.hidden(batch) == again).flatten(1).all(1).sum())
        n_rows += len(again)
    return [n_equal, n_rows]


def _is_refused(runs: Runs):
    run = runs.grown(runs.spec(growth={"target_stacks": 2}))
    with torch.no_grad():
        next(run.model.rack.stacks[0].parameters()).flatten()[0] += 1
    try:
        run.cache.hidden(run.batches[0])
    except ConfigError:
        return True
    return False


def judge_cached(numbers):
    curves, (n_equal, n_rows) = numbers["curves"], numbers["equal_hidden"]
    is_same = all(curves[mode] == curves["stream"] for mode in KEPT_MODES)
    apart = max(abs(one - other) for one, other in zip(curves["memory"], curves["none"], strict=True))
    is_refused = numbers["is_refused"]
    figure = (
        f"{n_equal} of {n_rows} rows; {len(curves['none'])} losses {'the same' if is_same else 'differ'} (whole batches without "
        f"a cache: up to {apart:.1e} off); change {'refused' if is_refused else 'not noticed'}"
    )
    measured = "hidden states and training losses cached (memory, Arrow) against recomputed; one weight of the trunk changed"
    holds = n_equal == n_rows and is_same and is_refused
    return [Finding("Cached is recomputed", measured, figure, "the same bits, the same losses; the change is refused", holds)]


class KilledError(Exception):
    """Stands for the end of a process."""


def measure_resumed(runs: Runs):
    growth = {"target_stacks": 3, "stage_steps": max(runs.size.n_steps // 5, 2)}
    options = {"growth": growth, "checkpoint_every": 1, "eval_every": max(runs.size.n_steps // 10, 1)}
    undisturbed = runs.run("undisturbed", **options)
    losses = {}
    for name, n_evaluations in (("in a stage", 3), ("after a stage", 2)):
        label = f"killed {name}"
        out = runs.place(label)
        if not is_finished(out):
            shutil.rmtree(out, ignore_errors=True)
            _kill(runs.spec(**options), out, n_evaluations)
        losses[name] = [row["losses"] for row in runs.run(label, **options).stages]
    return {
        "undisturbed": [row["losses"] for row in undisturbed.stages],
        "killed": losses,
        "is_pickled": _is_pickled(runs),
        "readers": read_side_by_side(runs),
    }


def _kill(spec, out: Path, n_evaluations: int):
    """Run up to an evaluation, and no further: what lies in the folder is what a kill there leaves."""
    seen = []

    def evaluated(*_):
        seen.append(1)
        if len(seen) == n_evaluations:
            raise KilledError

    try:
        run_stages(spec, out, lambda _: None, on_evaluation=evaluated)
    except KilledError:
        return
    raise AssertionError


def _is_pickled(runs: Runs):
    """Whether a rack of dense and NF4 stacks with adapters computes the same after a pickle, by which Ray ships it."""
    n_steps = max(runs.size.n_steps // 10, 1)
    run = runs.run("qlora-trunk", growth={"target_stacks": 3, "trunk_strategy": "qlora", "stage_steps": n_steps})
    rack, tokens = load_rack(run.out), batches_of(run.spec)[0].inputs
    with torch.no_grad():
        return torch.equal(rack(tokens), pickle.loads(pickle.dumps(rack))(tokens))


SHARED = 1.5


def judge_resumed(numbers):
    claim = "A run can be killed, moved, and share its cache"
    same = [name for name, losses in numbers["killed"].items() if losses == numbers["undisturbed"]]
    n_losses, n_killed = sum(map(len, numbers["undisturbed"])), len(numbers["killed"])
    told = f"killed {' and '.join(numbers['killed'])}: {len(same)} of {n_killed} with the same {n_losses} losses"
    rule, is_pickled = "the same to the bit", numbers["is_pickled"]
    found = [
        Finding(claim, "training losses of runs that were killed and went on, against an undisturbed one", told, rule,
                len(same) == n_killed),
        Finding(claim, "logits of a rack with NF4 weights and adapters after a pickle", "the same" if is_pickled else "others",
                rule, is_pickled),
    ]  # fmt: skip
    readers, measured = numbers["readers"], "memory of trials that read one cache at the same time, together / the cache"
    rule = f"at most {SHARED}, of any number of trials"
    if readers is None:
        return [*found, Finding(claim, measured, "", rule, None)]
    share = sum(each["mapped"] + each["own"] for each in readers["memory"]) / readers["cache_bytes"]
    figure = f"{len(readers['memory'])} trials: {share:.2f} of {readers['cache_bytes'] / 2**20:.1f} MiB"
    return [*found, Finding(claim, measured, figure, rule, share <= SHARED)]


C4 = Claim("Cache = recompute", measure_cached, judge_cached)
C14 = Claim("Resume and placement", measure_resumed, judge_resumed)

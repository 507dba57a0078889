"""`python -m tests.resilience.damage`: every kind of file that a job leaves, damaged in every way: done again, or refused?

Jobs and kinds of file are found by running the jobs (`tiny/`). After each damage the same command is given again. `same`: it ends
as if nothing had been; `refused`: exit status 2 and a message that names the file; all else is wrong, and shown.
"""

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.resilience.tiny_jobs import ALL_JOBS, command, copied, die_at, finished_run, kind_of, note_in, on_sync, run, told

DAMAGES = ("truncated", "empty", "one byte flipped", "not UTF-8", "deleted", "of another run")
STATES = ("finished", "interrupted")


def damage(path, how, other, chance):
    """Damage a file; False if it cannot be damaged so."""
    whole = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "of another run":
        if other is None or other.read_bytes() == whole:
            return False
        path.write_bytes(other.read_bytes())
    elif not whole:
        return False
    else:
        place = chance.randrange(len(whole))
        changed = {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "one byte flipped": whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :],
            "not UTF-8": whole[:place] + b"\xff\xfe" + whole[place + 2 :],
        }
        path.write_bytes(changed[how])
    return True


class Laboratory:
    """Runs of one job: finished, interrupted, and one of another seed; copies of them are damaged."""

    def __init__(self, job, work):
        self.job, self.work, self.folder = job, work, work / job
        self.folder.mkdir()
        self.folders = {"finished": self.folder / "finished", "interrupted": self.folder / "interrupted"}
        finished_run(job, self.folder / "run", work, before=on_sync(note_in(self.folder / "n_syncs")))
        self.expected = told(self.folder / "run")
        copied(self.folder / "run", self.folders["finished"])
        finished_run(job, self.folder / "other", work, *other_seed(job))
        self.interrupt(int((self.folder / "n_syncs").read_text()) * 6 // 10)

    def interrupt(self, n_syncs):
        """A run that was killed when it had written so many files and rows."""
        out = self.folders["interrupted"]
        status, text = run(command(self.job, out, self.work), before=on_sync(die_at(n_syncs)))
        assert status == -signal.SIGKILL, text

    def kinds(self, state):
        """The first file of each kind."""
        paths = sorted(path for path in self.folders[state].rglob("*") if path.is_file() and path.name != ".lock")
        first = {}
        for path in paths:
            first.setdefault(kind_of(path.relative_to(self.folders[state])), path.relative_to(self.folders[state]))
        return first

    def other(self, kind):
        """A file of that kind in the run of another seed."""
        root = self.folder / "other"
        return next(
            (path for path in sorted(root.rglob("*")) if path.is_file() and kind_of(path.relative_to(root)) == kind), None
        )

    def outcome(self, state, kind, how, chance):
        """What the same command makes of one damage, and what it printed; None if a file cannot be damaged so."""
        out, path = self.folder / "run", self.kinds(state)[kind]
        copied(self.folders[state], out)
        if not damage(out / path, how, self.other(kind), chance):
            return None
        status, text = run(command(self.job, out, self.work))
        is_told = path.name in text or "holds the results of another specification" in text
        if status == 2 and is_told and "Traceback" not in text:
            return "refused", text
        if status != 0:
            return "WRONG", f"exit status {status}\n{text}"
        differing = differences(told(out), self.expected)
        return ("same", text) if not differing else ("WRONG", f"{differing} differ\n{text}")


def differences(found, expected):
    """The files that do not hold what they should. A score log serves many runs: it may hold rows of others too."""

    def is_same(name):
        if name.endswith("scores.jsonl") and isinstance(found.get(name), list):
            return set(expected.get(name, ())) <= set(found[name])
        return found.get(name) == expected.get(name)

    return sorted(name for name in found | expected if not is_same(name))


def other_seed(job):
    """What makes another run of a job."""
    return {"mad": ("seeds=[1]",), "pipeline": ("supernet.seed=1",), "validate": ("supernet.seed=1", "retrain.seeds=[1]")}.get(
        job, {"placement": ("n_batches=2",), "profile": ("seq_len=8",)}.get(job, ("seed=1",))
    )


def shown(text):
    """The first lines, which say what is wrong, and the last."""
    lines = text.strip().splitlines()
    return lines if len(lines) <= 12 else [*lines[:6], "...", *lines[-5:]]


def cases(laboratories, n, seed):
    """All damages of all kinds of file, or `n` of them by chance."""
    every = [
        (job, state, kind, how)
        for job, lab in laboratories.items()
        for state in STATES
        for kind in lab.kinds(state)
        for how in DAMAGES
    ]
    return every if n is None else random.Random(seed).sample(every, min(n, len(every)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=ALL_JOBS, choices=ALL_JOBS)
    parser.add_argument("--n", type=int, help="so many cases by chance, instead of all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        laboratories = {job: Laboratory(job, Path(folder)) for job in arguments.jobs}
        outcomes = Counter()
        for job, state, kind, how in cases(laboratories, arguments.n, arguments.seed):
            chance = random.Random(f"{arguments.seed} {job} {state} {kind} {how}")
            found = laboratories[job].outcome(state, kind, how, chance)
            if found is None:
                continue
            outcomes[job, found[0]] += 1
            if found[0] != "same":
                print(
                    f"{found[0]}: {job}, {state}, {kind}, {how}\n    " + "\n    ".join(shown(found[1])),
                    flush=True,
                )
    total = Counter()
    for job in arguments.jobs:
        counts = {name: outcomes[job, name] for name in ("same", "refused", "WRONG")}
        total.update(counts)
        print(f"{job}: {counts}")
    print(f"all: {dict(total)}; refused {total['refused'] / max(1, sum(total.values())):.1%}")
    return 1 if total["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())

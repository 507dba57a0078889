"""`python -m tests.resilience.kills`: every job, interrupted and killed at random moments, comes to the same results.

A run is sent a signal at a moment of its life, and the same command is given again (interrupted once more in half of the cases)
until it ends by itself. Its folder must then say what that of an undisturbed run says, counts of work included.
"""

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.resilience.tiny_jobs import ALL_JOBS, command, finished_run, kill_after, run, told

SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "kill -9": signal.SIGKILL}
JOBS = tuple(job for job in ALL_JOBS if job != "profile")
"""What `profile` measures is different each time."""
MAY_END_BY = (0, 130, 143, -9)


def disturbed(job, out, work, number, *, moments, seconds):
    """Run with interruptions at these moments of its life; what was wrong on the way, if anything, and how often it was hit."""
    n_hits = 0
    for moment in (*moments, None):
        meanwhile = None if moment is None else kill_after(moment * seconds, number, out)
        status, text = run(command(job, out, work), meanwhile=meanwhile)
        if status not in MAY_END_BY or "Traceback" in text:
            return f"exit status {status}\n{text}", n_hits
        n_hits += status != 0
        if status in (130, 143) and "the same command goes on from here" not in text:
            return f"exit status {status} without a word\n{text}", n_hits
    return None, n_hits


def _telling(lines):
    """The first traceback and what it says, or the end."""
    first = next((number for number, line in enumerate(lines) if "Traceback" in line), len(lines))
    return [*lines[max(first - 2, 0) : first + 24], *lines[-3:]] if first < len(lines) else lines[-12:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=JOBS, choices=JOBS)
    parser.add_argument("--moments", type=int, default=6, help="of each job and signal")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes, n_hits = Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        for job in arguments.jobs:
            work = Path(folder) / job
            work.mkdir()
            _, seconds = finished_run(job, work / "whole", work)
            expected = told(work / "whole")
            for name, number in SIGNALS.items():
                chance = random.Random(f"{arguments.seed} {job} {name}")
                for index in range(arguments.moments):
                    moments = [chance.random() for _ in range(1 + index % 2)]
                    out = work / f"{name} {index}"
                    problem, hits = disturbed(job, out, work, number, moments=moments, seconds=seconds)
                    n_hits += hits > 0
                    if problem is None:
                        found = told(out)
                        differing = sorted(each for each in found | expected if found.get(each) != expected.get(each))
                        problem = f"{differing} differ" if differing else None
                    outcomes[job, "same" if problem is None else "WRONG"] += 1
                    if problem is not None:
                        lines = "\n    ".join(_telling(problem.strip().splitlines()))
                        print(f"WRONG: {job}, {name}, moments {moments} of {seconds:.2f} s\n    {lines}", flush=True)
            print(f"{job}: {outcomes[job, 'same']} the same, {outcomes[job, 'WRONG']} WRONG", flush=True)
    n_wrong = sum(count for (_, outcome), count in outcomes.items() if outcome == "WRONG")
    print(f"all: {sum(outcomes.values())} runs, {n_hits} of them hit before their end, {n_wrong} WRONG")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())

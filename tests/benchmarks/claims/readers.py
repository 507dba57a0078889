"""Several processes that read one activation cache at the same time, and what memory that takes."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.claims.runs import Runs

LARGER = 4
SMAPS = Path("/proc/self/smaps")
PROGRAM = """
import sys
from pathlib import Path
from tests.benchmarks.claims.readers import read
read(Path(sys.argv[1]), sys.argv[2])
"""


def opened(runs: Runs):
    """A stage whose trunk is cached in files, large against what any process takes for itself (some 2 MiB)."""
    n_train = LARGER * runs.size.n_train
    growth = {"target_stacks": 2, "cache_mode": "arrow", "stage_steps": n_train // runs.size.batch_size}
    return runs.grown(runs.spec(growth=growth, data={"n_train": n_train}))


def read_side_by_side(runs: Runs):
    """Bytes of each process: `mapped`, its share of the pages of the cache's files, and `own`, what it made while it read.

    None where the kernel does not tell, or there are to be none.
    """
    if not (SMAPS.exists() and runs.size.n_readers):
        return None
    cache_bytes = opened(runs).cache.told()["cache_bytes"]
    command = [sys.executable, "-c", PROGRAM, str(runs.folder), runs.size_name]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for _ in range(runs.size.n_readers)]  # fmt: skip
    for each in started:
        if each.stdout.readline() != "ready\n":
            raise RuntimeError("a reader ended before it had read")
    for each in started:  # all have all pages now, and hold them until everybody has been counted
        each.stdin.write("count\n")
        each.stdin.flush()
    counted = [json.loads(each.stdout.readline()) for each in started]
    for each in started:
        each.communicate("end\n")
    return {"cache_bytes": cache_bytes, "memory": counted}


def read(folder: Path, size: str):
    """One of these processes."""
    run = opened(Runs(folder, size))
    run.cache.hidden(run.batches[0])
    before = _kilobytes("Anonymous", "")
    for step in range(run.batches.steps_per_epoch):
        run.cache.hidden(run.batches[step])
    own = _kilobytes("Anonymous", "") - before
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps({"mapped": 1024 * _kilobytes("Pss", str(run.cache.folder)), "own": 1024 * own}), flush=True)
    sys.stdin.readline()


def _kilobytes(field: str, path: str) -> int:
    """The sum of a field over the mappings of files below a path; of all mappings, for an empty one."""
    total, counts = 0, False
    for line in SMAPS.read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = path in line
        elif counts and line.startswith(f"{field}:"):
            total += int(line.split()[1])
    return total

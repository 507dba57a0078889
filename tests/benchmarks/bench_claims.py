"""What is claimed of growth, as far as a CPU can tell: `python -m tests.benchmarks.bench_claims [C1 C6 ...] [out=FOLDER]`.

Without names all claims are measured; `size=tiny` only shows that all of it runs. Runs are kept in the folder (`runs/claims`), so
that the same command goes on where it was killed. The table is printed, and written to `claims.md` beside `claims.json`, which
has all numbers; claims that the folder has from before stay in both.
"""

import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from configs import ConfigError
from configs.records import to_json
from configs.storage import write_text
from search.training.devices import hardware, use_one_thread
from tests.benchmarks.claims import caches, costs, gaps, growth, objectives, precision, prediction, quality, trunks
from tests.benchmarks.claims.findings import table
from tests.benchmarks.claims.runs import SIZES, Runs, tell

CLAIMS = {
    "C1": growth.C1,
    "C2": costs.C2,
    "C3": costs.C3,
    "C4": caches.C4,
    "C5": trunks.C5,
    "C6": quality.C6,
    "C7": gaps.C7,
    "C8": gaps.C8,
    "C9": precision.C9,
    "C10": prediction.C10,
    "C11": growth.C11,
    "C12": objectives.C12,
    "C13": growth.C13,
    "C14": caches.C14,
}


def measure(name: str, runs: Runs):
    """The numbers of a claim, and where and how they came about."""
    tell(f"{name}: {CLAIMS[name].title}")
    started = time.monotonic()
    numbers = CLAIMS[name].measure(runs)
    return {
        "title": CLAIMS[name].title,
        "numbers": json.loads(to_json(numbers)),
        "seconds": round(time.monotonic() - started, 1),
        "seeds": list(runs.size.seeds),
        "hardware": hardware(torch.device("cpu")),
        "n_cpus": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def markdown(saved) -> str:
    """The table, and those of what stands behind it."""
    rows, more = [], []
    for name, entry in saved["claims"].items():
        claim = CLAIMS[name]
        found = claim.judge(entry["numbers"])
        rows += [[name, each.claim, each.measured, each.figure, each.rule, each.verdict] for each in found]
        if text := claim.tables(entry["numbers"]):
            more.append(f"{name}: {claim.title}\n\n{text}")
    return "\n".join([table(["", "claim", "measured", "figure", "rule", "verdict"], rows), *more, conditions(saved)])


def conditions(saved) -> str:
    """What all of it was measured with."""
    size, entries = saved["size"], saved["claims"].values()
    machines = {f"{each['hardware']}, torch {each['torch']}, Python {each['python']}" for each in entries}
    return (
        f"Where nothing else is said: bytes of Python's library, {size['n_stacks']} stacks of one block, d_model "
        f"{size['d_model']}, {size['n_train']} windows of {size['seq_len']}, batches of {size['batch_size']}, {size['n_steps']} "
        f"steps a stage, a rate that falls in the last 30 % of a run's last stage, {len(size['seeds'])} seed(s); ± is one "
        f"standard error over seeds. {'; '.join(sorted(machines))}; one thread.\n"
    )


def run(names: list[str], folder: Path, size: str) -> str:
    """Measure claims into a folder; its table."""
    path, runs = folder / "claims.json", Runs(folder, size)
    sizes = json.loads(to_json(asdict(runs.size)))
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"size": sizes, "claims": {}}
    if saved["size"] != sizes:
        raise ConfigError(f"{folder}: holds claims of another size; give another out=")
    for name in names:
        claims = saved["claims"] | {name: measure(name, runs)}
        saved["claims"] = {each: claims[each] for each in CLAIMS if each in claims}
        write_text(path, to_json(saved, indent=1) + "\n")
        text = markdown(saved)
        write_text(folder / "claims.md", text)
    return text


def main(arguments: list[str]) -> None:
    """Parse, measure, print."""
    options = {"out": "runs/claims", "size": "small"}
    options |= dict(each.split("=", 1) for each in arguments if "=" in each)
    names = [each for each in arguments if "=" not in each] or list(CLAIMS)
    if unknown := [*(set(names) - set(CLAIMS)), *(set(options) - {"out", "size"}), *({options["size"]} - set(SIZES))]:
        known = f"{' '.join(CLAIMS)} out=FOLDER size={'|'.join(SIZES)}"
        sys.exit(f"unknown: {', '.join(unknown)}; known: {known}")
    use_one_thread()
    print(run(names, Path(options["out"]), options["size"]))


if __name__ == "__main__":
    main(sys.argv[1:])

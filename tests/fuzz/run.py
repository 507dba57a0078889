"""Feeds thousands of odd configurations to what reads them: `python -m tests.fuzz.run --cases 3000 --seed 0`."""

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch
import yaml

from configs.load import validate
from search.cli.show import read_spec
from tests.fuzz.bases import bases
from tests.fuzz.judge import judged
from tests.fuzz.odd import at, mutated_override, mutated_text, mutated_tree, odd_for, places, with_value

CONFIGS = Path(__file__).parents[2] / "configs"


def odd_values(n_cases, seed):
    """Every option of every kind gets its turn at odd values: all pairs in an order drawn by the seed, the first so many."""
    draw, every = random.Random(seed), bases()
    options = {}
    for name, (_, tree) in every.items():
        for path in places(tree):
            options.setdefault((name.split()[0], name, path[-1]), (name, path))
    turns = list(options.values())
    draw.shuffle(turns)
    for number in range(n_cases):
        name, path = turns[number % len(turns)]
        spec_class, tree = every[name]
        value = odd_for(at(tree, path), draw)
        shown = "10**400" if value == 10**400 else repr(value)[:60]  # 401 digits say no more
        told = f"{name}: {'.'.join(map(str, path))} = {shown}"
        yield judged(partial(validate, spec_class, with_value(tree, path, value), "fuzz"), told, path)


def mutations(n_cases, seed):
    """Files whose text or tree has changed, and right ones with an override that is odd."""
    draw = random.Random(seed)
    texts = [path.read_text("utf-8") for path in sorted(CONFIGS.rglob("*.yaml")) if path.name not in SLOW]
    texts += [yaml.safe_dump(tree, sort_keys=False) for _, tree in bases().values()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "odd.yaml"
        for number in range(n_cases):
            text, overrides = draw.choice(texts), []
            if number % 3 == 0:
                text = mutated_text(text, draw)
            elif number % 3 == 1:
                text = yaml.safe_dump(mutated_tree(yaml.safe_load(text), draw), sort_keys=False)
            else:
                overrides = [mutated_override(yaml.safe_load(text), draw) for _ in range(draw.choice((1, 1, 3)))]
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            found = judged(partial(read_spec, path, overrides), f"mutation {number} {[each[:80] for each in overrides]}")
            if found[0] and KEEP:
                (KEEP / f"{seed}-{number}.yaml").write_bytes(path.read_bytes())
            yield found


SLOW = ("mad_mixers.yaml", "pipeline_48_layers.yaml", "mad_length.yaml", "mad_full.yaml", "mad_improvement.yaml")
KEEP = None


def main():
    """Run, and tell what was found; status 1 if that is anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("odd_values", "mutations"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    problems = []
    for kind in (odd_values, mutations):
        if arguments.only in (None, kind.__name__):
            started, counts = time.monotonic(), Counter()
            for problem, is_accepted in kind(arguments.cases, arguments.seed):
                counts["accepted" if is_accepted else "refused"] += 1
                if problem:
                    problems.append(problem)
                    print(problem, flush=True)
            seconds = time.monotonic() - started
            print(f"{kind.__name__}: {dict(counts)} in {seconds:.0f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{len(problems)} problems; at most {peak} MiB")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

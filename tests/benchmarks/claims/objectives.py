"""What objectives ask: C12, that no answer leaks into what is read."""

import math
import string

import numpy as np
import torch

from search.jobs.progressive.weights import load_rack
from tasks import IGNORED
from tests.benchmarks.claims.findings import Claim, Finding
from tests.benchmarks.claims.runs import Runs, batches_of, stack

LETTERS = string.ascii_lowercase
N_FILES = 40
ALLOWED = 0.02


def random_text(runs: Runs):
    """A task of letters drawn independently: nothing can be known of one that is hidden but that it is a letter."""
    folder = runs.folder / "random"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(N_FILES):
        text = "".join(rng.choice(list(LETTERS), 64 * runs.size.seq_len))
        path = folder / f"{number:02d}.txt"
        if not path.exists():
            path.write_text(text, encoding="utf-8")
    return {"files": str(folder), "validation_fraction": 0.3, "folder": str(runs.folder / "tokens")}


def measure_leaks(runs: Runs):
    growth = {"enabled": False, "target_stacks": 2, "stage_steps": 2 * runs.size.n_steps}
    losses = {}
    for name, kept in (("masked", 0.0), ("shown", 1.0)):
        options = {"rack": {"stacks": [stack(runs.size.d_model, causal=False)]}, "data": {"task": random_text(runs)}}
        run = runs.run(f"random-{name}", growth=growth, objective={"kind": "mlm", "keep_fraction": kept}, **options)
        losses[name] = run.loss
    asked = batches_of(runs.spec())[0]
    full = asked.targets if asked.attention_mask is None else asked.targets[asked.attention_mask.all(1)]
    return {
        "losses": losses,
        "n_asked": sorted(set((full != IGNORED).sum(1).tolist())),
        "n_positions": runs.size.seq_len,
        "later_changes": _later_changes(runs),
    }


def _later_changes(runs: Runs):
    """How much logits of a causal rack change with the tokens after them, where a mask of pads is given."""
    run = runs.run("undisturbed-causal", growth={"target_stacks": 1, "stage_steps": 1})
    rack, tokens = load_rack(run.out), batches_of(run.spec)[0].inputs.clone()
    attention_mask, at = torch.ones_like(tokens, dtype=torch.bool), tokens.shape[1] // 2
    attention_mask[:, -2:] = False
    with torch.no_grad():
        before = rack(tokens, attention_mask=attention_mask)
        tokens[:, at:] = (tokens[:, at:] + 1) % 256
        after = rack(tokens, attention_mask=attention_mask)
    return [float((after - before)[:, part].abs().max()) for part in (slice(at), slice(at, None))]


def judge_leaks(numbers):
    losses, floor = numbers["losses"], math.log(len(LETTERS))
    earlier, later = numbers["later_changes"]
    n_supervised, n_positions = numbers["n_asked"], numbers["n_positions"]
    return [
        Finding("MLM does not leak",
                f"held-out loss on random letters, of which ln V = {floor:.4f}; with all answers shown",
                f"{losses['masked']:.4f}; shown {losses['shown']:.4f}", f"at least ln V - {ALLOWED}; shown: below it",
                losses["masked"] >= floor - ALLOWED > losses["shown"]),
        Finding("CLM asks all that it can", f"asked positions of windows of {n_positions} tokens",
                ", ".join(map(str, n_supervised)), f"{n_positions - 1}", n_supervised == [n_positions - 1]),
        Finding("Causal racks do not look ahead, pads or not",
                "largest change of logits before, and from, the tokens that changed",
                f"{earlier:.1e}; {later:.1e}", "0 before, more from there", earlier == 0 < later),
    ]  # fmt: skip


C12 = Claim("Objective correctness", measure_leaks, judge_leaks)

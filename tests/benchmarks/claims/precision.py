"""What few bits cost: C9, the same growth in each precision."""

from torch import nn

from models.linears.quantised import QuantisedLinear
from search.jobs.progressive.weights import load_rack
from tests.benchmarks.claims.findings import Claim, Finding, excess, table, text_of
from tests.benchmarks.claims.runs import Run, Runs

STACKS = {
    "full": {},
    "bfloat16": {"new_stack_precision": "bfloat16"},
    "half": {"new_stack_precision": "half"},
    "nvfp4": {"new_stack_precision": "nvfp4"},
    "qlora": {"new_stack_precision": "qlora"},
}
TRUNKS = {f"trunk {name}": {"trunk_strategy": "qlora", "quantization_type": name} for name in ("bfloat16", "nf4")}
WITHIN = {"bfloat16": 0.005, "half": 0.005, "nvfp4": 0.03, "trunk nf4": 0.03}
BITS = {"full": 32, "bfloat16": 16, "half": 16, "nvfp4": 4.5, "trunk nf4": 4.15}
BITS_WITHIN = 0.02


def measure_precision(runs: Runs):
    found = {}
    for name, growth in (STACKS | TRUNKS).items():
        options = {"target_stacks": 2, "stage_steps": max(runs.size.n_steps // 2, 1)}
        done = runs.seeds(f"precision {name}", growth=options | growth)
        found[name] = {"loss": [run.loss for run in done], "bits": bits_of(done[0])}
    return found


def bits_of(run: Run) -> float:
    """Of each weight of the trunk's linears, scales included; adapters are not."""
    linears = [part for part in load_rack(run.out).stacks[0].modules() if isinstance(part, nn.Linear)]
    stored = [list(part.stored().values()) if isinstance(part, QuantisedLinear) else [part.weight] for part in linears]
    n_numbers = sum(part.in_features * part.out_features for part in linears)
    return 8 * sum(tensor.nbytes for tensors in stored for tensor in tensors) / n_numbers


def judge_precision(numbers):
    loss = {name: found["loss"] for name, found in numbers.items()}
    above = {name: excess(loss[name], loss["trunk bfloat16" if name == "trunk nf4" else "full"]) for name in WITHIN}
    bits = {name: numbers[name]["bits"] for name in BITS}
    claim = "Fewer bits cost little"
    measured = (
        "final held-out loss over that in full precision (frozen trunk); trunk nf4: over trunk bfloat16, both with adapters"
    )
    return [
        Finding(claim, measured,
                "; ".join(f"{name} {share:+.2%}" for name, share in above.items()), "at most +0.5 % in 16 bits, +3 % in 4",
                all(above[name] <= limit for name, limit in WITHIN.items())),
        Finding("Stored bits are what the formats say", "bits of a weight of the trunk's linears, scales included",
                "; ".join(f"{name} {found:.2f}" for name, found in bits.items()),
                f"{', '.join(f'{each:g}' for each in BITS.values())}, within 2 %",
                all(abs(bits[name] / expected - 1) <= BITS_WITHIN for name, expected in BITS.items())),
    ]  # fmt: skip


def tables_precision(numbers):
    rows = [[name, text_of(found["loss"]), f"{found['bits']:.2f}"] for name, found in numbers.items()]
    return table(["precision of new stacks, or of the trunk", "held-out loss", "bits of the trunk's weights"], rows)


C9 = Claim("Precision", measure_precision, judge_precision, tables_precision)

"""What growth does to what has been learnt: C1, that it keeps it; C11, times; C13, stacks before the trunk."""

from tests.benchmarks.claims.findings import Claim, Finding, differences, excess, mean, table, text_of
from tests.benchmarks.claims.runs import Runs, held_out, stack

KEPT = 1e-5
GROWTHS = {
    "append": {},
    "prepend": {"building_mode": "prepend"},
    "append with adapters everywhere": {"qlora_enabled": True, "progressive_qlora": True},
    "trunk to NF4": {"trunk_strategy": "qlora"},
    "trunk to NVFP4": {"trunk_strategy": "qlora", "quantization_type": "nvfp4"},
}


def measure_kept(runs: Runs):
    n_steps, changes = max(runs.size.n_steps // 4, 1), {}
    for name, growth in GROWTHS.items():
        options = {"target_stacks": 2, "stage_steps": (n_steps, 1), "cache_activations": False} | growth
        _, row = runs.run(f"growth {name}", growth=options).stages
        changes[name] = row["loss_grown"] - row["loss_before"]
    return {"changes": changes}


def judge_kept(numbers):
    figure = "; ".join(f"{name} {change:+.1e}" for name, change in numbers["changes"].items())
    largest = max(abs(change) for name, change in numbers["changes"].items() if not name.startswith("trunk to"))
    measured = "held-out loss right after growth by identity less that right before (nats)"
    rule = f"below {KEPT} but where weights are stored in few bits: that is reported"
    return [Finding("Growth is function-preserving", measured, figure, rule, largest < KEPT)]


LOW, HIGH = 0.15, 0.6
MASKED = {"kind": "mlm", "schedule": "linear", "mask_ratio": LOW, "final_mask_ratio": HIGH}
AS_GOOD = 0.01
BINS, N_TIME_STEPS = (0, 67, 133, 200), 201
TIMES = {
    "none": {},
    "depth": {"time_interpretation": "depth"},
    "input, sinusoidal": {"time_interpretation": "input"},
    "input, learned": {"time_interpretation": "input", "time_encoding_type": "learned"},
}


def measure_times(runs: Runs):
    rack = {"stacks": [stack(runs.size.d_model, causal=False)]}
    losses = {}
    for name, options in TIMES.items():
        growth = {"target_stacks": 3, "trunk_strategy": "full", "num_time_steps": N_TIME_STEPS, "time_embedding_dim": 32,
                  "time_sampling": "sample", **options}  # fmt: skip
        objective = MASKED if options else {"kind": "mlm", "mask_ratio": (LOW + HIGH) / 2}
        found = runs.seeds(f"time {name}", rack=rack, objective=objective, growth=growth)
        asked = [runs.spec(seed=run.spec.seed, rack=rack, objective=MASKED, growth=growth) for run in found]
        losses[name] = [[run.loss_on(held_out(spec, step)) for run, spec in zip(found, asked, strict=True)] for step in BINS]
    return {"bins": [LOW + (HIGH - LOW) * step / (N_TIME_STEPS - 1) for step in BINS], "losses": losses}


def judge_times(numbers):
    over_bins = {name: [mean(seeds) for seeds in zip(*bins, strict=True)] for name, bins in numbers["losses"].items()}
    measured = "mean masked NLL over four mask ratios at equal steps (trunk `full`, 3 stacks), {} / {}"
    found = []
    for claim, name, other, rule in (
        ("Time as input is optional", "input, sinusoidal", "none", "within 1 %"),
        ("Sinusoidal or learned is all the same", "input, learned", "input, sinusoidal", "within 1 %"),
        ("Time as depth does no harm", "depth", "none", "at most +1 %"),
    ):
        share, gaps = excess(over_bins[name], over_bins[other]), differences(over_bins[name], over_bins[other])
        texts = ["none (one mask ratio for all)" if each == "none" else each for each in (name, other)]
        figure = f"{share:+.2%} ({text_of(gaps, '+.4f')} nats)"
        found.append(Finding(claim, measured.format(*texts), figure, rule, (share if name == "depth" else abs(share)) <= AS_GOOD))
    return found


def tables_times(numbers):
    rows = [[name, *(text_of(seeds) for seeds in bins)] for name, bins in numbers["losses"].items()]
    return table(["masked NLL at mask ratio", *(f"{ratio:.2f}" for ratio in numbers["bins"])], rows)


LOSSES = ("cross_entropy", "denoise_mse")


def measure_prepend(runs: Runs):
    found = {}
    for loss in LOSSES:
        growth = {"target_stacks": 2, "building_mode": "prepend", "time_interpretation": "depth", "prepend_loss": loss}
        rack = {"stacks": [stack(runs.size.d_model, 2, causal=False)]}
        done = runs.seeds(f"prepend-{loss}", rack=rack, objective=MASKED, growth=growth)
        found[loss] = {"change": [run.stages[1]["loss_grown"] - run.stages[1]["loss_before"] for run in done]}
        for name, step in (("low", 0), ("high", done[0].spec.n_time_steps - 1)):
            for moment, n_stages in (("before", 1), ("after", 2)):
                found[loss][f"{name} {moment}"] = [run.loss_on(held_out(run.spec, step), n_stages=n_stages) for run in done]
    return found


def judge_prepend(numbers):
    findings = []
    for loss, found in numbers.items():
        high, low = (excess(found[f"{name} after"], found[f"{name} before"]) for name in ("high", "low"))
        change = max(map(abs, found["change"]))
        figure = f"at growth {change:.1e} nats; then high {high:+.2%}, low {low:+.2%}"
        findings.append(
            Finding(
                f"Prepending a stack for noisy samples helps there (`{loss}`)",
                f"masked NLL at mask ratio {HIGH} and {LOW}, after / before the stage; frozen trunk",
                figure,
                f"at growth below {KEPT}; then high falls, low at most +1 %",
                change < KEPT and high < 0 and low <= AS_GOOD,
            )
        )
    return findings


C1 = Claim("Growth is function-preserving", measure_kept, judge_kept)
C11 = Claim("Time interpretation matters or not", measure_times, judge_times, tables_times)
C13 = Claim("Prepend", measure_prepend, judge_prepend)

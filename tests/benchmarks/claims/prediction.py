"""Whether the search for the next stack predicts: C10, the ranking on the cached trunk against whole racks trained end to end."""

from itertools import combinations

from scipy.stats import kendalltau

from configs.records import read_json
from search.jobs.progressive.candidates import choose_stack, run_candidate
from search.jobs.progressive.stages import CHOICE, next_index, pending_choice, run_stages
from search.jobs.progressive.weights import stage_folder
from search.runs.run_folder import run_folder
from tests.benchmarks.claims.findings import Claim, Finding, mean, table, text_of
from tests.benchmarks.claims.runs import Runs, stack, tell

AT_LEAST = 0.5


def candidates_of(runs: Runs):
    """Other widths, mixers and precisions of the stack that growth adds."""
    d_model = runs.size.d_model
    usual = stack(d_model)
    heads = {"n_heads": usual["block"]["mixer"]["n_heads"]}

    def changed(**parts):
        return usual | {"block": usual["block"] | parts}

    found = {
        "attention": usual,
        "narrow-mlp": changed(mlp={"kind": "swiglu", "d_ff": d_model // 2}),
        "wide-mlp": changed(mlp={"kind": "swiglu", "d_ff": 6 * d_model}),
        "no-mlp": changed(mlp=None),
        "mlp-alone": changed(mixer={"kind": "identity"}),
        "linear-attention": changed(mixer={"kind": "linear_attention", **heads}),
        "retention": changed(mixer={"kind": "retention", **heads}),
        "lru": changed(mixer={"kind": "lru"}),
        "two-blocks": usual | {"n_blocks": 2},
        "nvfp4": usual | {"precision": "nvfp4"},
    }
    return dict(list(found.items())[: runs.size.n_candidates])


def measure_ranking(runs: Runs):
    stacks, n_steps = candidates_of(runs), runs.size.n_steps
    local = [_ranked(runs, seed, stacks) for seed in runs.size.seeds]
    whole = {}
    for name, each in stacks.items():
        rack = {"stacks": [stack(runs.size.d_model), each]}
        growth = {"enabled": False, "target_stacks": 2, "stage_steps": 2 * n_steps}
        whole[name] = [run.loss for run in runs.seeds(f"whole-{name}", rack=rack, growth=growth)]
    return {"local": {name: [losses[name] for losses in local] for name in stacks}, "whole": whole}


def _ranked(runs: Runs, seed: int, stacks):
    """The held-out loss of each candidate on the cached trunk of a run."""
    choice = {"n_steps": max(runs.size.n_steps // 2, 1)}
    spec = runs.spec(seed=seed, growth={"target_stacks": 2, "cache_mode": "arrow"}, candidates=stacks, choice=choice)
    out = runs.place("candidates", seed)

    def rank(specs, folder):
        return {name: run_candidate(each, folder / name) for name, each in specs.items()}

    with run_folder(out, spec):
        if next_index(out) == 0:
            run_stages(spec, out, lambda _: None)
        if pending_choice(spec, out, 1) is not None:
            choose_stack(spec, out, rank, lambda _: None)
            tell(f"candidates, seed {seed}: ranked")
    found = read_json(stage_folder(out, 1) / CHOICE)["candidates"]
    return {each["name"]: each["loss"] for each in found}


def tau(first, second) -> float:
    return float(kendalltau(first, second).statistic)


def judge_ranking(numbers):
    local, whole = (list(numbers[name].values()) for name in ("local", "whole"))
    found = tau([mean(each) for each in local], [mean(each) for each in whole])
    by_seed = [tau(first, second) for first, second in zip(zip(*local, strict=True), zip(*whole, strict=True), strict=True)]
    between = [tau(first, second) for first, second in combinations(zip(*whole, strict=True), 2)]
    figure = f"{found:.2f} of the means over seeds; by seed {', '.join(f'{each:.2f}' for each in by_seed)}"
    figure += f"; end to end between seeds {mean(between):.2f}" if between else ""
    measured = f"Kendall tau of {len(local)} stacks: losses on the frozen cached trunk against whole racks trained end to end"
    return [Finding("The search for the next stack predicts", measured, figure, f">= {AT_LEAST}", found >= AT_LEAST)]


def tables_ranking(numbers):
    rows = [
        [name, text_of(found), text_of(numbers["whole"][name])]
        for name, found in sorted(numbers["local"].items(), key=lambda pair: mean(pair[1]))
    ]
    return table(["next stack", "loss on the cached trunk", "loss of the whole rack, end to end"], rows)


C10 = Claim("Progressive search is predictive", measure_ranking, judge_ranking, tables_ranking)

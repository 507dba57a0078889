"""Tiny right configurations which, together, have every option of every kind: what is made odd in the fuzzer."""

from configs.load import validate
from models import CHANNEL_MIXERS, MIXERS, RackSpec
from models.spec.parameters import INITS
from models.spec.registries import EMBEDDINGS, HEADS, NORMS
from search.budget.dimensions import dimensions
from search.cli.show import _SPECS
from search.jobs.mad.task import TaskSpec
from search.samplers import SAMPLERS
from search.strategies import STRATEGIES
from tasks import TASKS
from tasks.objectives import OBJECTIVES
from tests.models.cases import CHANNEL_MIXER_CASES, MIXER_CASES

SPACE = {
    "kind": "stochastic",
    "main": "attention",
    "mixers": {"attention": {"kind": "attention", "n_heads": 2}, "linear": {"kind": "linear_attention", "n_heads": 2}},
}
RECALL = {"kind": "in_context_recall", "vocab_size": 8, "seq_len": 16}
TRAIN = {"device": "cpu", "precision": "fp32"}
FIXED = {
    "fixed": {"placements": {"all:linear": 0.5}, "remainder": "uniform"},
    "schedule": {"first": "uniform", "then": "balanced", "start": 1, "end": 2},
    "weighted": {"weights": {"attention": 2, "linear": 1, "0": {"attention": 1, "linear": 1}}},
    "within_budget": {"budget": {"attention": 1}},
}
"""Options that samplers need."""


INIT_OPTIONS = {"fill": {"value": 0.1}, "uniform": {"low": -1.0, "high": 1.0}, "normal": {"std": 0.1}}


def rack(mixer="attention", mlp=None, **keys):
    """A rack of one block."""
    block = {"mixer": mixer, "mlp": mlp or {"kind": "mlp", "d_ff": 8}}
    return {"vocab_size": 8, "max_length": 16, "d_model": 16, "stacks": [{"n_blocks": 1, "block": block}], **keys}


def racks():
    """By name, a rack for every kind of part."""
    found = {f"mixer {name}": rack(part) for name, part in MIXER_CASES.items() if "head" not in name}
    found |= {f"channel mixer {name}": rack(mlp=part) for name, part in CHANNEL_MIXER_CASES.items()}
    found |= {f"norm {kind}": rack(norm=kind) for kind in NORMS}
    found |= {f"embedding {kind}": rack(embedding={"kind": kind, "positions": "learned"}) for kind in EMBEDDINGS}
    found |= {f"head {kind}": rack(head=kind) for kind in HEADS}
    inits = {kind: {"kind": kind, **INIT_OPTIONS.get(kind, {})} for kind in INITS}
    found |= {f"init {kind}": rack(parameters={"stacks.0.blocks.0.mlp.up": {"init": part}}) for kind, part in inits.items()}
    lora = {"rank": 2, "targets": ["*.query", "*.value"]}
    fields = {"lora": lora, "weight_decay": 0.0, "lr_scale": 0.5, "init": "ones"}
    stack = {"pattern": [["a", "b"], "a"], "n_blocks": 3, "layers": {"-1": {"dropout": 0.1, "share": "x"}}, "precision": "qlora"}
    blocks = {"a": {"mixer": "attention", **fields}, "b": {"mlp": {"kind": "mlp", "parameters": {"*": {"bias": True}}}}}
    return found | {"stack": {**rack(), "stacks": [{**stack, "blocks": blocks, "progressive_lora": lora}]}, "space": rack(SPACE)}


def supernet(**keys):
    """A supernet of two layers."""
    tree = rack(SPACE)
    tree["stacks"][0]["n_blocks"] = 2
    data = {"tasks": {"recall": {"task": RECALL}}, "batch_size": 4}
    return {"job": "supernet", "rack": tree, "data": data, "n_steps": 4, "train": TRAIN, "teacher": "main", **keys}


def growth(**keys):
    """A rack that grows to two stacks."""
    data = {"task": RECALL, "batch_size": 4, "n_train": 8, "n_validation": 8}
    grown = {"target_stacks": 2, "stage_steps": [2, 3], "qlora_strategy": "variable", "qlora_configs": {0: {"rank": 2}}}
    return {"job": "progressive", "rack": rack(), "data": data, "growth": grown, "n_steps": 2, "train": TRAIN, **keys}


def jobs():
    """By name, a configuration of every job, and one for every kind that they name."""
    search = {"budgets": [1, {"attention": "<=1", "context": 16, "pin": {0: "linear"}}], "strategy": "beam"}
    search |= {"rivals": {"cheap": "all:linear", "ends": {"kind": "bookend", "rest": "linear"}}, "race": True, "n_batches": 16}
    found = {"supernet": supernet(), "placement": {"job": "placement", "supernet": "nowhere", **search}}
    found |= {f"sampler {kind}": supernet(sampler={"kind": kind, **FIXED.get(kind, {})}) for kind in SAMPLERS}
    pipeline = {"job": "pipeline", "supernet": supernet(), "placement": search, "retrain": {"n_steps": 2, "seeds": [0, 1]}}
    found |= {"pipeline": pipeline}
    limits = {name: "1..1e9" for name in dimensions() if name != "latency_ms"}
    found |= {f"budget {name}": {**pipeline, "placement": {"budgets": [{name: text}]}} for name, text in limits.items()}
    found |= {f"strategy {kind}": {**pipeline, "placement": {"budgets": [1], "strategy": kind}} for kind in STRATEGIES}
    truth = {"supernet": supernet(), "budget": {"attention": "<=1"}, "strategies": ["beam", "exact"], "supernet_seeds": [0]}
    found |= {"validate": {"job": "validate", **truth}, "profile": {"job": "profile", "rack": rack(SPACE), "seq_len": 16}}
    asked = {kind: {"kind": kind, **({"mask_token_id": 7} if kind == "mlm" else {})} for kind in OBJECTIVES if kind != "custom"}
    found |= {f"objective {kind}": growth(objective=objective) for kind, objective in asked.items()}
    chosen = {"stack": {"n_blocks": 1, "block": {"mixer": SPACE}}, "choice": {"n_steps": 2, "budget": 1}}
    timed = {"target_stacks": 2, "time_interpretation": "depth", "stack_time_mapping": "custom", "custom_time_mapping": "cosine"}
    found |= {"growth": growth(), "growth that chooses": growth(**chosen), "growth in time": growth(growth=timed)}
    whole = {"growth": {"enabled": False}, "training_architecture": "blockwise", "local_loss": {"head": "tuned"}}
    tasks = {"in-context-recall": {"task": {"vocab_size": 8, "seq_len": 16}, "changes": {"seq_len": [32]}}}
    mad = {"architectures": {"a": ["mh-attention", "swiglu"]}, "d_model": 128, "tasks": tasks, "train": TRAIN, "seeds": [0]}
    return found | {"growth at once": growth(**whole), "mad": {"job": "mad", "mode": "clean", **mad}}


def task_files():
    """By name, a file of every task."""
    sizes = {"n_train": 4, "n_validation": 4, "n_test": 4}
    return {f"task {kind}": {"task": {"kind": kind}, **sizes} for kind in TASKS}


def bases():
    """By name: the class of the spec, and it in plain values with every option."""
    found = {name: (RackSpec, tree) for name, tree in racks().items()}
    found |= {name: (_SPECS[tree["job"]], tree) for name, tree in jobs().items()}
    found |= {name: (TaskSpec, tree) for name, tree in task_files().items()}
    return {name: (spec_class, validate(spec_class, tree, name).to_dict()) for name, (spec_class, tree) in found.items()}


def kinds():
    """The kinds of every registry, which `bases` has an example of."""
    registries = (MIXERS, CHANNEL_MIXERS, NORMS, EMBEDDINGS, HEADS, INITS, TASKS, OBJECTIVES, SAMPLERS, STRATEGIES)
    return {(registry.noun, kind) for registry in registries for kind in registry}

"""Pieces of the JSON Schema: specs as a file may write them, and the kinds of each registry."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from configs import Registry, Spec
from configs.registry import PART_OF
from models import BackboneSpec, BlockSpec, RackSpec
from models.spec.parameters import INITS
from models.spec.registries import CHANNEL_MIXERS, EMBEDDINGS, HEADS, MIXERS, NORMS
from models.spec.short_forms import layer_names
from search.jobs.mad.spec import MadSpec
from search.jobs.mad.task import TaskSpec
from search.jobs.mad.task_files import task_file, task_names
from search.jobs.placement.spec import SearchSpec
from search.jobs.supernet.spec import SupernetSpec
from search.jobs.table import JOBS, job_spec
from search.jobs.validate.spec import ValidateSpec
from search.samplers import SAMPLERS
from search.strategies import STRATEGIES
from tasks import TASKS
from tasks.objectives import OBJECTIVES

Json = dict[str, Any]

REGISTRIES = (MIXERS, CHANNEL_MIXERS, NORMS, EMBEDDINGS, HEADS, INITS, STRATEGIES, SAMPLERS, TASKS, OBJECTIVES)
SPECS: dict[str, type[Spec]] = {**{name: job_spec(name) for name in ("mad", *JOBS)}, "task": TaskSpec}
REFERENCE = "reference to"
NULL: Json = {"type": "null"}
NUMBER: Json = {"type": "number"}


def reference(name: str) -> Json:
    """Stands for a reference until the end, since pydantic refuses those to what it has not made."""
    return {REFERENCE: name}


def either(*schemas: Json) -> Json:
    """What is valid by any of the schemas."""
    return {"anyOf": list(schemas)}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _mapping(values: Json, **known: Any) -> Json:
    return {"type": "object", "additionalProperties": values, **known}


def _spellings(names: Sequence[str]) -> list[str]:
    return sorted({spelt for name in names for spelt in (name.replace("-", "_"), name.replace("_", "-"))})


def _widened() -> dict[type[Spec], Json]:
    """What the fields of specs accept beside their own type, and the keys of short forms: what `expand_short_forms` takes."""
    partial_tasks = {spelt: either(reference(f"changed {name}"), NULL) for name in task_names() for spelt in _spellings([name])}
    names = {"enum": [*_spellings(task_names())]}
    layers = {**_list(reference("layer")), "minItems": 1}
    path: Json = {"type": "string"}
    rack = _mapping({"not": {}}, properties={"rack": path, "place": {}}, required=["rack"])
    architecture = either(layers, path, rack, reference("BackboneSpec"), NULL)
    strategies = _list({"enum": _spellings(list(STRATEGIES))})
    return {
        BlockSpec: {"norm": either(reference("norm"), NULL)},
        BackboneSpec: {"layers": layers, "init_std": either(NUMBER, NULL)},
        MadSpec: {
            "architectures": _mapping(architecture),
            "tasks": either(_list(names), _mapping(reference("TaskSpec"), properties=partial_tasks)),
            "changes": either({"enum": ["all", "none"]}, _list(path)),
            "only": _list(names),
            "d_model": {"type": "integer"},
        },
        SupernetSpec: {"teacher": path},
        SearchSpec: {
            "beam_width": {"type": "integer"},
            "cost_tables": _list(either(path, reference("CustomCost"))),
            "rivals": either(strategies, _mapping(either(path, reference("strategy")))),
        },
        ValidateSpec: {"strategies": strategies},
    }


FILLED_IN: dict[type[Spec], set[str]] = {
    BackboneSpec: {"d_model", "stacks"},
    RackSpec: {"vocab_size"},
    MadSpec: {"seeds", "train"},
}
"""Required fields that a short form, the mode or the tasks may give: a schema cannot ask for them wherever the spec stands."""


class _Generator(GenerateJsonSchema):
    """Specs as they may be written: with short forms, and without what is filled in."""

    def model_schema(self, schema: core_schema.ModelSchema) -> Json:
        """What pydantic makes of a model, widened."""
        found = super().model_schema(schema)
        cls = schema["cls"]
        properties = found.setdefault("properties", {})
        for name, wider in (item for base, fields in _widened().items() if issubclass(cls, base) for item in fields.items()):
            properties[name] = either(wider, properties[name]) if name in properties else wider
        properties |= {name: {} for name in getattr(cls, "short_forms", ()) if name not in properties}
        filled_in = {name for base, names in FILLED_IN.items() if issubclass(cls, base) for name in names}
        found["required"] = [name for name in found.get("required", ()) if name not in filled_in]
        return found


def definitions() -> dict[str, Json]:
    """Every spec by the name of its class, every part as `mixer attention`, every registry as `mixer`, and `layer`."""
    found: dict[str, Json] = {}
    specs: list[type[Spec]] = [*SPECS.values(), RackSpec, BackboneSpec]
    for spec in specs:
        _define(found, spec.__name__, spec)
    for spec in specs[:-1]:  # the version is said at the top alone
        whole = found[spec.__name__]
        found[f"{spec.__name__} file"] = {**whole, "properties": {**whole["properties"], "spec_version": {"type": "integer"}}}
    for registry in REGISTRIES:
        _define_parts(found, registry)
    for name in task_names():
        found[f"changed {name}"] = _partial_task(found, task_file(name)["task"]["kind"])
    named = "|".join(_spellings([*layer_names(), *MIXERS, *CHANNEL_MIXERS]))
    texts = either({"enum": named.split("|")}, {"type": "string", "pattern": rf"^\s*({named})\s*\(.*\)\s*$"})
    return {**found, "layer": either(texts, reference("mixer"), reference("channel mixer"))}


def _define(definitions: dict[str, Json], name: str, spec: type[Spec]) -> None:
    schema = spec.model_json_schema(schema_generator=_Generator)
    inner = schema.pop("$defs", {})
    definitions |= inner
    definitions.setdefault(name, schema)


def _define_parts(definitions: dict[str, Json], registry: Registry) -> None:
    for kind in registry:
        name = f"{registry.noun} {kind}"
        _define(definitions, name, registry.spec_of(kind))
        part = definitions[name]
        part["properties"]["kind"] = {"enum": _spellings([kind])}
        part["required"] = ["kind", *(key for key in part["required"] if key != "kind")]
    kinds = (reference(f"{registry.noun} {kind}") for kind in registry)
    definitions[registry.noun] = either({"enum": _spellings(list(registry))}, *kinds)


def _partial_task(definitions: Mapping[str, Json], kind: str) -> Json:
    """What may be laid over the file of a task: all is optional, the kind too."""
    option = {name: value for name, value in definitions[f"task {kind}"].items() if name != "required"}
    spec = definitions["TaskSpec"]
    return {**spec, "properties": {**spec["properties"], "task": option}, "required": []}


def resolved(schema: Any) -> Any:
    """The schema with references where parts and what else is defined here are named."""
    if isinstance(schema, list):
        return [resolved(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: resolved(value) for key, value in schema.items() if key not in (PART_OF, REFERENCE)}
    if REFERENCE in schema:
        found["$ref"] = f"#/$defs/{schema[REFERENCE]}"
    return found | resolved(either(reference(schema[PART_OF]), NULL)) if PART_OF in schema else found


def reachable(schema: Json, definitions: Mapping[str, Json]) -> dict[str, Json]:
    """The definitions that a schema refers to, at once or by way of others."""
    found: dict[str, Json] = {}
    waiting = [schema]
    while waiting:
        for name in _references(waiting.pop()):
            if name not in found:
                found[name] = definitions[name]
                waiting.append(found[name])
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].removeprefix("#/$defs/")
        schema = list(schema.values())
    for inner in schema if isinstance(schema, list) else ():
        yield from _references(inner)

"""The command `schema`: the JSON Schema of configuration files, by which editors complete and check them."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from configs import ConfigError
from configs.errors import raise_unknown
from configs.storage import write_text
from search.cli.main import FILES
from search.cli.run import out_folder
from search.cli.schema_parts import SPECS, Json, definitions, either, reachable, reference, resolved


def schema_of(file: str | None = None) -> Json:
    """The schema of one of the `FILES` of the command line; of all of them, told apart by their keys, if None."""
    whole = resolved(_all_files() if file is None else _file(file))
    found = reachable(whole, resolved(definitions()))
    in_order = {name: found[name] for name in sorted(found)}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "$defs": in_order}


def _file(file: str) -> Json:
    if file == "layer":
        return either(reference("mixer"), reference("channel mixer"))
    if file == "rack":
        return {
            **reference("RackSpec file"),
            "required": ["vocab_size", "d_model"],
            **either({"required": ["stacks"]}, {"required": ["layers"]}),
        }
    return reference(f"{SPECS[file].__name__} file")


def _all_files() -> Json:
    """A job names itself by `job`, a task by `task`, a layer by `kind`; what has none of these is a rack."""
    jobs = [name for name in SPECS if name != "task"]
    cases: list[tuple[Json, Json]] = [
        ({"properties": {"job": {"const": name}}, "required": ["job"]}, _file(name)) for name in jobs
    ]
    cases.append(({"required": ["job"]}, {"properties": {"job": {"enum": jobs}}}))
    cases += [({"required": [key]}, _file(file)) for key, file in (("task", "task"), ("kind", "layer"))]
    cases.append(({"not": either(*({"required": [key]} for key in ("job", "task", "kind")))}, _file("rack")))
    return {"type": "object", "allOf": [{"if": condition, "then": then} for condition, then in cases]}


def run_schema(arguments: argparse.Namespace, overrides: Sequence[str], backend: object) -> int:
    """Print the schema, or write it to the file that `out=` names."""
    del backend
    if arguments.file not in (None, *FILES):
        raise_unknown("kind of file", arguments.file, FILES)
    for text in overrides:
        if not text.startswith("out="):
            raise ConfigError(f"schema: only out=FILE can be set, not '{text}'")
    out, text = out_folder(overrides), json.dumps(schema_of(arguments.file), indent=1)
    if out is None:
        sys.stdout.write(f"{text}\n")
    else:
        write_text(Path(out), f"{text}\n")
    return 0

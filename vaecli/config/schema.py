"""The configuration as a JSON Schema, by which editors complete and check YAML files."""

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from vaecli import registry
from vaecli.config import TrainConfig
from vaecli.settings.optim import OptimConfig
from vaecli.settings.section import Count

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def schema() -> Schema:
    """Of a file for `--config`, and of a preset: what may stand in it, with types, bounds and defaults.

    A section may be left out, or be the name alone of what it is (`net: mlp`). What depends on the data, or on other
    sections, is only told by `vae config validate`.
    """
    definitions: dict[str, Schema] = {}
    sections = {
        "model": _chosen("model", definitions),
        "data": _chosen("dataset", definitions),
        "density": _chosen("density", definitions),
        "optim": _taken_in("optim", TypeAdapter(OptimConfig).json_schema(), definitions),
        "train": _taken_in("train", TrainConfig.model_json_schema(), definitions),
        "seed": TypeAdapter(Count).json_schema(),
    }
    sections["density"]["anyOf"].append({"type": "null"})
    return {
        "$schema": DIALECT,
        "title": "vae configuration",
        "type": "object",
        "properties": {"extends": {"type": "string", "description": "A preset that lies below."}, **sections},
        "additionalProperties": False,
        "$defs": definitions,
    }


def _chosen(kind: str, definitions: dict[str, Schema]) -> Schema:
    """A section whose `name` decides what else may stand in it; without one, whatever the one below allows."""
    names = registry.names(kind)
    cases = []
    for name in names:
        cls = registry.load(kind, name).Config
        config = cls.model_json_schema()
        config["properties"] |= {key: {} for key in getattr(cls, "also", ())}  # other names, which it looks at itself
        config.setdefault("description", registry.summary(kind, name))
        own = _taken_in(f"{kind}.{name}", config, definitions)
        cases.append({"if": {"properties": {"name": {"const": name}}, "required": ["name"]}, "then": own})
    known = {"enum": [*names, *registry.ALIASES.get(kind, ())]}  # the settings of an alias are not looked at
    if kind == "dataset":
        known = {"anyOf": [known, {"type": "string", "pattern": "^(folder|array|shards):"}]}
    return {"anyOf": [known, {"type": "object", "properties": {"name": known}, "allOf": cases}]}


def _taken_in(place: str, found: Schema, definitions: dict[str, Schema]) -> Schema:
    """A schema with its definitions moved to those that all share, under names of their own where there are others of
    the same name; a reference to it."""
    own = found.pop("$defs", {})

    def moved(one: Schema) -> Schema:
        if "$ref" not in one:
            return one
        name = str(one["$ref"]).rpartition("/")[2]
        there = {**one, "$ref": f"#/$defs/{names[name]}"}
        named = own[name].get("properties", {}).get("name", {})
        words = {key: named[key] for key in ("const", "enum") if key in named}
        return {"anyOf": [there, words]} if words else there  # the name alone

    names = {name: name for name in own}
    while True:  # one that refers to another of a new name is another itself
        converted = {names[name]: _everywhere(one, moved) for name, one in own.items()}
        taken = [n for n in own if names[n] == n and definitions.get(n, converted[n]) != converted[n]]
        if not taken:
            break
        names |= {name: f"{place}.{name}" for name in taken}
    definitions.update(converted)
    definitions[place] = _everywhere(found, moved)
    return {"$ref": f"#/$defs/{place}"}


def _lenient(one: Schema) -> Schema:
    """Nothing is required: what a file leaves out may stand in the preset below it, or be a flag; and so a section may
    be one of several."""
    kept = {key: value for key, value in one.items() if key not in ("required", "discriminator")}
    return {("anyOf" if key == "oneOf" else key): value for key, value in kept.items()}


def _everywhere(value: Any, change: Callable[[Schema], Schema]) -> Any:
    """A schema with a change to every schema within, the innermost first; defaults and names of properties are none."""
    if isinstance(value, list):
        return [_everywhere(item, change) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        if key == "properties":
            found[key] = {name: _everywhere(one, change) for name, one in item.items()}
        else:
            found[key] = item if key in ("default", "enum", "const") else _everywhere(item, change)
    return change(_lenient(found))

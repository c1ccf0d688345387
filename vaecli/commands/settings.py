"""`vae models NAME`, `vae datasets NAME --options` and `vae presets --copy`: what can be set, from the schema alone."""

import json as json_format
from collections.abc import Mapping
from typing import Any, NamedTuple

from vaecli import output, presets, registry
from vaecli.commands import _artifact

LARGEST = 2**53  # a bound that only keeps hostile numbers out is not told


class Option(NamedTuple):
    """One setting: its dotted key, its type in words, its default (None where it is required, or has none)."""

    key: str
    type: str
    default: Any
    required: bool


def options(kind: str, name: str) -> list[Option]:
    """All settings of a model or data set but its name. ConfigError with the nearest name where there is none."""
    section = "model" if kind == "model" else "data"
    config = registry.load(kind, name).Config
    schema = config.model_json_schema()
    required = schema.get("required", ())
    found = []
    for key, about in schema["properties"].items():
        if key == "name":
            continue
        kind = " | ".join(_types(about, schema.get("$defs", {})))
        found.append(Option(f"{section}.{key}", kind, about.get("default"), key in required))
    return found


def show_model(name: str, json: bool) -> None:
    """Summary, source and settings of a model."""
    found = options("model", name)
    if json:
        about = {"schema": 1, "name": name, "summary": registry.summary("model", name)}
        output.result_json({**about, "options": [option._asdict() for option in found]})
        return
    output.notice(*registry.about("model", name).splitlines())
    table(found)
    known = [preset for preset in presets.paths() if preset.startswith(f"{name}-")]
    more = f"; presets: {', '.join(known)}" if known else ""
    output.notice(f"vae train --model {name} --data NAME --set {found[0].key}=...{more}")


def show_dataset(name: str, json: bool) -> None:
    """Settings of a data set."""
    kind = name.partition(":")[0]
    found = options("dataset", kind)
    if json:
        about = {"schema": 1, "name": kind, "summary": registry.summary("dataset", kind)}
        output.result_json({**about, "options": [option._asdict() for option in found]})
        return
    output.notice(registry.summary("dataset", kind))
    table(found)


def table(found: list[Option]) -> None:
    """Key, type and default of each, in words."""
    rows = [[one.key, one.type, "required" if one.required else _default(one.default)] for one in found]
    output.table(["option", "type", "default"], rows, left=3)


def _default(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):  # a section: its kind, and what it sets
        rest = {key: item for key, item in value.items() if key not in ("name", "schedule") and item is not None}
        kind = str(value.get("name") or value.get("schedule") or "")
        settings = ", ".join(f"{key} {_default(item)}" for key, item in rest.items())
        return f"{kind}, {settings}" if kind and settings else kind or settings or "-"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json_format.dumps(value)


def _types(about: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str]:
    """What a value may be, in words: kinds of sections by their names, numbers with their bounds."""
    for several in ("anyOf", "oneOf"):
        if several in about:
            found = [word for one in about[several] for word in _types(one, definitions)]
            found = [word for word in dict.fromkeys(found) if word != "null"]
            return found or ["null"]
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        properties = definitions[name].get("properties", {})
        if "schedule" in properties:
            return ["schedule"]
        constant = properties.get("name", {}).get("const")
        return [constant] if constant else _types(definitions[name], definitions)
    if "const" in about:
        return [str(about["const"])]
    if "enum" in about:
        return [str(value) for value in about["enum"]]
    kind = {"integer": "int", "number": "float", "string": "text", "boolean": "true | false", "array": "list",
            "object": "mapping", "null": "null"}.get(str(about.get("type")), "any")  # fmt: skip
    if kind == "list":
        return [f"list of {' | '.join(_types(about.get('items', {}), definitions))}"]
    return [kind + _bounds(about)]


def _bounds(about: Mapping[str, Any]) -> str:
    found = []
    for key, sign in (("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<=")):
        if key in about and abs(about[key]) < LARGEST:
            found.append(f"{sign} {about[key]:g}")
    return " " + ", ".join(found) if found else ""


def copy_preset(name: str, target: str, force: bool) -> None:
    """Write a preset as a file of its own, what it extends merged in. ConfigError for a name that there is not."""
    source = presets.find(name)
    _artifact.check(target, target, force, text=True, endings=(".yaml", ".yml"))
    text = source.read_text(encoding="utf-8")
    tree = presets.load(name)
    if any(line.startswith("extends:") for line in text.splitlines()):
        import yaml

        header = [line for line in text.splitlines() if line.startswith("#")]
        text = "\n".join([*header, yaml.safe_dump(tree.values, sort_keys=False)])
    path = _artifact.write(target, target, text.encode(), force)
    output.notice(f"vae train --config {path}")
    if path != "-":
        output.result_path(path)

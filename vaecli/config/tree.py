"""Strict YAML, and `Tree`: nested plain values of which each remembers where it was written.

YAML here is data alone: no tags, no aliases, no octals, true/false only, `1e-3` a number. What is refused is refused
with file and line.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vaecli.errors import ConfigError

MAX_YAML_BYTES = 1_000_000
MAX_YAML_DEPTH = 64
MAX_YAML_KEYS = 500
MAX_YAML_VALUES = 20_000

Key = tuple[str, ...]


@dataclass
class Tree:
    """Nested plain values, and for each of them (by path) the place it came from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)

    def merge(self, other: "Tree") -> None:
        """Lay `other` on top. A section whose `name` or `schedule` changes starts afresh, except `model`,
        whose shared options (latents, network) carry over to another objective."""
        self.values = self._merged(self.values, other.values, ())
        self.origins.update(other.origins)

    def _merged(self, below: Any, above: Any, path: Key) -> Any:
        if isinstance(above, dict) and isinstance(below, str) and "name" not in above:
            below = {"name": below}  # `net: mlp` under `net: {hidden: [..]}`
        if not (isinstance(below, dict) and isinstance(above, dict)):
            return above
        renamed = any(k in above and k in below and above[k] != below[k] for k in ("name", "schedule"))
        if renamed and path != ("model",):
            return above
        merged = dict(below)
        for key, value in above.items():
            merged[key] = self._merged(below[key], value, (*path, key)) if key in below else value
        return merged

    def set(self, dotted: str, value: Any, origin: str) -> None:
        """Lay one value at a dotted path on top."""
        path = tuple(dotted.split("."))
        if not all(path):
            raise ConfigError(f"{origin}: {dotted!r} is not a key", "write --set section.key=value")
        nested: Any = value
        for key in reversed(path):
            nested = {key: nested}
        for i in range(1, len(path)):
            below = self._at(path[:i])
            if below is not None and not isinstance(below, (dict, str)):
                raise ConfigError(f"{origin}: {'.'.join(path[:i])} is a value, not a section")
        origins = {path: origin}
        origins.update({path + sub: origin for sub in _paths(value)})
        self.merge(Tree(nested, origins))

    def _at(self, path: Key) -> Any:
        here: Any = self.values
        for key in path:
            if not isinstance(here, dict) or key not in here:
                return None
            here = here[key]
        return here

    def origin(self, path: Key, exact: bool = False) -> str | None:
        """Where the value at `path`, or (unless `exact`) the nearest section around it, was written."""
        if exact:
            # `likelihood: bernoulli` stands for `likelihood.name`
            shorthand = path[-1] == "name" and isinstance(self._at(path[:-1]), str)
            return self.origins.get(path[:-1] if shorthand else path)
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return None


def _paths(value: Any, prefix: Key = ()) -> list[Key]:
    if not isinstance(value, dict):
        return []
    return [p for k, v in value.items() for p in [(*prefix, str(k)), *_paths(v, (*prefix, str(k)))]]


# -------------------------------------------------------------------------------------------------------- strict YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2's view of scalars: true/false only, 1e-3 is a number, no dates, no octals, no aliases."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+|[0-9]+\.[0-9]*|\.[0-9]+|\.inf|\.nan)$"),
    list("-+.0123456789"),
)
_LEADING_ZERO = re.compile(r"^[-+]?0[0-9]+$")


def parse_yaml(text: str, where: str) -> Tree:
    """A YAML mapping as a Tree whose origins are `where:line`. ConfigError on anything but plain data."""
    try:
        for depth_marker in (text.count("["), text.count("{")):
            if depth_marker > 10_000:
                raise ConfigError(f"{where}: too deeply nested")
        loader = _Loader(text)
        try:
            node = loader.get_single_node() if _check_events(text, where) else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from None
    tree = Tree()
    if node is None:
        raise ConfigError(f"{where}: empty; a configuration is a mapping of sections (model, data, optim, train, seed)")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{where}:{node.start_mark.line + 1}: a mapping of sections is expected at the top")
    tree.values = _construct(node, (), tree.origins, where)
    return tree


def _check_events(text: str, where: str) -> bool:
    """Refuse aliases, tags, deep nesting and very many values from the event stream, before anything is composed."""
    around: list[tuple[int, bool, int]] = []  # collections open here: its line, whether it has keys, nodes so far
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if count > MAX_YAML_VALUES:
            raise ConfigError(f"{where}:{line}: more than {MAX_YAML_VALUES:,} values; not a configuration")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{where}:{line}: anchors and aliases are not allowed")
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise ConfigError(f"{where}:{line}: tags such as {str(tag)[:60]!r} are not allowed")
        if isinstance(event, yaml.NodeEvent) and around:
            first, keyed, held = around[-1]
            around[-1] = first, keyed, held + 1
            if keyed and held >= 2 * MAX_YAML_KEYS:
                raise ConfigError(f"{where}:{first}: more than {MAX_YAML_KEYS} keys")
        if isinstance(event, yaml.CollectionStartEvent):
            around.append((line, isinstance(event, yaml.MappingStartEvent), 0))
            if len(around) > MAX_YAML_DEPTH:
                raise ConfigError(f"{where}:{line}: nested deeper than {MAX_YAML_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            around.pop()
    return True


def _construct(node: yaml.Node, path: Key, origins: dict[Key, str], where: str) -> Any:
    line = node.start_mark.line + 1
    if path:
        origins[path] = f"{where}:{line}"
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                raise ConfigError(f"{where}:{line}: a key must be a plain word")
            if key in values:
                raise ConfigError(f"{where}:{key_node.start_mark.line + 1}: {'.'.join((*path, key))} is given twice")
            values[key] = _construct(value_node, (*path, key), origins, where)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, str(i)), origins, where) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node, f"{where}:{line}: {'.'.join(path)}")


def _scalar(node: yaml.ScalarNode, place: str) -> Any:
    text, tag = node.value, node.tag.rpartition(":")[2]
    if tag == "null":
        return None
    if tag == "bool":
        return text == "true"
    if tag == "int":
        if len(text) > 20:
            raise ConfigError(f"{place}: {text[:20]}... is too large")
        return int(text.replace("_", ""))
    if tag == "float":
        if text.lstrip("+-") in (".inf", ".nan"):
            raise ConfigError(f"{place}: {text} is not a usable number")
        return float(text)
    if node.style is None and _LEADING_ZERO.match(text):
        raise ConfigError(f"{place}: {text} would be octal to some readers; write it without the leading zero")
    return text


def read_file(path: Path) -> Tree:
    """A YAML file as a Tree; ConfigError naming the file on anything else."""
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such configuration file")
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_YAML_BYTES // 10**6} MB; not a configuration")
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text", "save the file as UTF-8") from None
    return parse_yaml(text, str(path))


def parse_value(text: str, origin: str) -> Any:
    """The value of `--set key=value`, read as YAML."""
    values = parse_yaml(f"value: {text}" if text else 'value: ""', origin).values
    if list(values) != ["value"]:
        raise ConfigError(f"{origin}: one value is expected")
    return values["value"]

"""What to call runs: by what differs between them."""

import json as json_format
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """`beta 4, seed 1` for each: the values in which they differ, keys without their section where that is clear."""
    keys = list(dict.fromkeys(key for one in settings for key in one))
    names = short(keys)
    return [
        ", ".join(f"{names[key]} {value_text(one[key])}" for key in keys if key in one and one[key] is not None)
        for one in settings
    ]


def short(keys: Sequence[str]) -> dict[str, str]:
    """`beta` for `model.beta`; as much of the key as tells it from the others, and `model` for `model.name`."""
    found = {}
    for key in keys:
        parts = key.split(".")
        if len(parts) > 1 and parts[-1] == "name":
            parts = parts[:-1]
        found[key] = parts
    for length in range(1, 8):
        names = {key: ".".join(parts[-length:]) for key, parts in found.items()}
        clashes = {name for name, count in Counter(names.values()).items() if count > 1}
        if not clashes:
            return names
    return {key: key for key in keys}


def value_text(value: Any) -> str:
    """A setting as it is written on the command line."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json_format.dumps(value)

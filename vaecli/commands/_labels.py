"""What to call runs: by what differs between them."""

import json as json_format
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# How often a run tells and saves what, and how much of it.
RECORDING = tuple(
    f"train.{k}" for k in ("log_every", "eval_every", "eval_images", "samples", "save_every", "save_minutes", "keep")
)
IDLE = (*RECORDING, "train.fast")  # what changes nothing of what a run computes, and so is no difference


def labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """`beta-vae, beta 4` for each: the values in which they differ, the model first, keys without their section where
    that is clear. What is the same for all that have it (`free_bits 0` of some models) is left out while that is clear.
    """
    keys = sorted(dict.fromkeys(key for one in settings for key in one), key=lambda key: key != "model.name")
    names = short(keys)

    def told(some: Sequence[str]) -> list[str]:
        return [
            ", ".join(
                value_text(one[key]) if key == "model.name" else f"{names[key]} {value_text(one[key])}"
                for key in some
                if one.get(key) is not None
            )
            for one in settings
        ]

    differing = [key for key in keys if len({str(one[key]) for one in settings if one.get(key) is not None}) > 1]
    brief = told(differing)
    return brief if len(set(brief)) == len(settings) else told(keys)


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

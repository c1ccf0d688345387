"""From the values of image files and arrays to [0, 1]: one rule for folders, arrays and single files.

Of each type of values (bool, uint8, uint16, ..., float) two become black and white:

    auto         floats: 0 and 1; integers: 0 and the greatest number of 1 (a mask), 8, 10, 12, 14, 16, 24 or 32 bits,
                 whichever holds all values, or else that of the type
    dtype        the ends of the type itself; of floats 0 and 1
    [low, high]  these

Integers become bytes (the nearest of 256 levels). What lies outside is clipped, which is said. What was found is stored
with a run, as a mapping from types to pairs, and every later use of the run reads by it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vaecli import output
from vaecli.data.base import DataConfig
from vaecli.errors import ConfigError

Array = np.ndarray[Any, Any]
Extent = tuple[float, float]  # the smallest and the greatest value
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Wanted = Literal["auto", "dtype"] | Pair | dict[str, Pair]

BITS = (1, 8, 10, 12, 14, 16, 24, 32)
ROUNDING = 1e-3  # what arithmetic on images leaves outside of [0, 1]
OVERSHOOT = 0.25  # what resampling, or a model without bounds, leaves there


class RangeConfig(DataConfig):
    """`range`: the values that become black and white: `auto`, `dtype`, or [low, high]."""

    range: Wanted = "auto"


def kind(dtype: np.dtype[Any]) -> str:
    """The name of a type, that of all floats being `float`."""
    return "float" if dtype.kind == "f" else str(dtype.name)


def whole(kind: str) -> list[float]:
    """The ends of a type."""
    if kind in ("bool", "float"):
        return [0.0, 1.0]
    limits = np.iinfo(kind)
    return [float(limits.min), float(limits.max)]


def pair(wanted: Wanted, kind: str) -> list[float] | None:
    """What is asked for a type; None where it is to be found."""
    if kind == "bool":
        return whole(kind)
    if isinstance(wanted, dict):
        return wanted.get(kind, whole(kind))
    if isinstance(wanted, list):
        return wanted
    return None if wanted == "auto" else whole(kind)


def at_first(wanted: Wanted, kind: str) -> list[float]:
    """By which a type is read before its values are known, or where one image is all there is: the type's own, but of
    32 bits the lower 16."""
    return pair(wanted, kind) or ([0.0, 65535.0] if kind == "int32" else whole(kind))


def check(wanted: Wanted) -> None:
    """ConfigError where the two values are not in order."""
    for low, high in wanted.values() if isinstance(wanted, dict) else [wanted] if isinstance(wanted, list) else []:
        if not low < high:
            raise ConfigError(f"data.range is [{low:g}, {high:g}]", "write [low, high], the value for black first")


def problem(kind: str, low: float, high: float) -> tuple[str, str] | None:
    """Why `auto` takes no image with these values, and what to do."""
    if np.isnan([low, high]).any():
        return "has values that are no numbers (NaN)", "replace the missing values"
    if np.isinf([low, high]).any():
        return f"has values from {low:g} to {high:g}", "replace what is infinite"
    if kind == "float" and not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
        text = f"has values from {low:g} to {high:g}, not in [0, 1]"
    elif kind != "float" and low < 0:
        text = f"has values from {low:g} to {high:g}, below 0"
    else:
        return None
    likely = [-1, 1] if low < 0 and low >= -1 and high <= 1 else [0, 255] if low >= 0 and high <= 255 else [low, high]
    asked = f"[{likely[0]:g}, {likely[1]:g}]"
    return text, f"set data.range={asked} if {likely[0]:g} is to be black and {likely[1]:g} white"


def find(wanted: Wanted, extents: Mapping[str, Extent]) -> dict[str, list[float]]:
    """The range of each type, from its smallest and greatest value."""
    found = {}
    for kind, (_, high) in extents.items():
        asked = pair(wanted, kind)
        if asked is None and kind != "float":
            asked = [0.0, next((2.0**bits - 1 for bits in BITS if high < 2**bits), whole(kind)[1])]
        found[kind] = asked or whole(kind)
    return found


def say(where: object, wanted: Wanted, found: Mapping[str, list[float]], extents: Mapping[str, Extent]) -> None:
    """Which values become what, wherever that does not go without saying; of a range that a run has kept, only what
    does not fit it."""
    for kind, (low, high) in extents.items():
        black, white = found[kind]
        text = f"{where}: {kind} values from {low:,g} to {high:,g}: {black:,g} becomes black and {white:,g} white"
        beyond = max(black - low, high - white) / (white - black)
        if beyond > ROUNDING:
            output.warning(f"{text}, what is beyond is clipped; data.range=[low, high] sets other ends")
        elif beyond > 0:
            output.notice(f"{text}, what is beyond is clipped")
        elif isinstance(wanted, dict):
            continue
        elif 0 < high - low < (white - black) / 4:
            output.warning(f"{text}, so the images are pale; data.range=[{low:g}, {high:g}] would use all levels")
        elif [black, white] != whole(kind):
            output.notice(text)


def to_bytes(values: Array, ends: list[float]) -> Array:
    """uint8: black is 0 and white 255."""
    low, high = ends
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    return np.rint(255.0 * to_unit(values.astype(np.float64), ends)).astype(np.uint8)


def to_unit(values: Array, ends: list[float]) -> Array:
    """Floats in [0, 1], of the same type; those already there stay what they are to the bit."""
    low, high = ends
    if (low, high) != (0, 1):
        values = (values - low) / (high - low)
    return np.clip(values, 0.0, 1.0)

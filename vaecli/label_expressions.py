"""Labels in words: `digit=3|7`, `shape=heart,scale=0:2`, `posX=*` name values of a data set's factors.

`*` stands for all values, `a|b` for these, `lo:hi` for all from one to the other, both among them, where values have an
order: numbers do, names of kinds do not. Values without names are counted from 0.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from vaecli.errors import ConfigError
from vaecli.registry import nearest

if TYPE_CHECKING:
    from vaecli.batch import DataInfo


def wanted(
    texts: Sequence[str], info: "DataInfo", factors: Sequence[str], option: str = "--label"
) -> dict[str, list[int]]:
    """Of each factor named in `FACTOR=VALUES` with commas, the positions of its values, in the order given.

    `factors` are those that may be named. ConfigError, naming the `option`, with the names that there are.
    """
    found: dict[str, list[int]] = {}
    for part in (part for text in texts for part in text.split(",")):
        factor, equals, values = (word.strip() for word in part.partition("="))
        if not equals or not factor or not values:
            raise ConfigError(
                f"{option} {part[:80]}: write FACTOR=VALUE", "a|b for several values, lo:hi for a range, * for all"
            )
        if factor not in factors and factor in info.factor_names:
            known = ", ".join(factors)
            raise ConfigError(
                f"{option}: {factor} is a factor of {info.name}, but the model has labels of {known} alone"
            )
        if factor not in factors:
            raise ConfigError(f"{option}: no factor is called {factor[:80]!r}{nearest(factor, factors)}")
        if factor in found:
            raise ConfigError(f"{option}: {factor} is given twice", f"write {factor}=a|b for several values")
        found[factor] = positions(values, info, factor, option)
    return found


def positions(text: str, info: "DataInfo", factor: str, option: str) -> list[int]:
    """The values of a factor that `*`, `a|b` or `lo:hi` (of numbers also `lo-hi`) stands for; ConfigError."""
    names = names_of(info, factor)
    chosen: list[int] = []
    for word in (word.strip() for word in text.split("|")):
        if word == "*":
            chosen += range(len(names))
        elif word in names:
            chosen.append(names.index(word))
        elif ends := _ends(word):
            chosen += _range(*ends, names, factor, word, option)
        else:
            raise ConfigError(f"{option}: {factor} has no value {word[:80]!r}{_choices(word, names)}")
    return list(dict.fromkeys(chosen))


def names_of(info: "DataInfo", factor: str) -> list[str]:
    """What the values of a factor are called: their names, else their numbers."""
    k = info.factor_names.index(factor)
    # A checkpoint of an earlier version has no names.
    named = info.value_names[k] if k < len(info.value_names) else ()
    return list(named) or [str(value) for value in range(info.factor_sizes[k])]


def combinations(values: Mapping[str, Sequence[int]], factors: Sequence[str]) -> list[list[int]]:
    """Every combination of the values, the last factor named changing fastest; -1 for factors that are left out."""
    rows = []
    for chosen in product(*values.values()):
        row = dict(zip(values, chosen, strict=True))
        rows.append([row.get(factor, -1) for factor in factors])
    return rows


def text_of(labels_K: Sequence[int], info: "DataInfo", factors: Sequence[str]) -> dict[str, str | None]:
    """By factor the name of the value; None where it is -1."""
    return {
        factor: None if value < 0 else names_of(info, factor)[value]
        for factor, value in zip(factors, labels_K, strict=True)
    }


def _ends(word: str) -> tuple[str, str] | None:
    """The two ends of a range; `-` too may stand between numbers."""
    low, colon, high = word.partition(":")
    if not colon:
        low, _, high = word.partition("-")
        if not (low.strip().isdigit() and high.strip().isdigit()):
            return None
    return (low.strip(), high.strip())


def _range(low: str, high: str, names: Sequence[str], factor: str, word: str, option: str) -> list[int]:
    if not all(name.lstrip("-").isdigit() for name in names):
        raise ConfigError(f"{option}: the values of {factor} have no order", f"name them: {'|'.join(names)[:200]}")
    for end in (low, high):
        if end not in names:
            raise ConfigError(f"{option}: {factor} has no value {end[:80]!r}{_choices(end, names)}")
    first, last = names.index(low), names.index(high)
    if first > last:
        raise ConfigError(f"{option}: {factor}={word[:80]} goes downwards", f"write {high}:{low}")
    return list(range(first, last + 1))


def _choices(word: str, names: Sequence[str]) -> str:
    """`; did you mean 'heart'?`, or the values there are: of many numbers the first and the last."""
    if len(names) > 12 and all(name.isdigit() for name in names):
        return f"; there are: {names[0]} to {names[-1]}"
    return nearest(word, names)

"""Presets: named YAML files, found on `VAE_PRESET_PATH`, in the package, or beside a source checkout.

The comment block at the top of each file is its documentation; its first line is the summary that `vae presets` prints.
A preset may name another one in `extends`; what it says itself wins.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vaecli import registry
from vaecli.errors import ConfigError

if TYPE_CHECKING:
    from vaecli.config.tree import Tree


def folders() -> list[Path]:
    """Where presets are looked for, first match wins."""
    here = Path(__file__).parent.parent
    listed = [Path(p) for p in os.environ.get("VAE_PRESET_PATH", "").split(os.pathsep) if p]
    return [f for f in (*listed, here / "_presets", here.parent / "presets") if f.is_dir()]


def paths() -> dict[str, Path]:
    """Name -> file of every preset; a leading underscore marks a base that is only extended."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.yaml")):
            if not path.stem.startswith("_"):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def summary(path: Path) -> str:
    """The first comment line."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").rstrip()


def find(name: str) -> Path:
    """The file of a preset; ConfigError with the nearest name."""
    known = paths()
    if name not in known:
        raise ConfigError(f"no preset is called {name[:80]!r}{registry.nearest(name, known)}", "vae presets lists them")
    return known[name]


def load(name: str) -> "Tree":
    """The merged tree of a preset and what it extends."""
    return load_file(find(name), f"preset {name}")


def load_file(path: Path, origin: str | None = None) -> "Tree":
    """The merged tree of a YAML file and of the presets it extends; `origin` stands for its path in messages."""
    from vaecli.config import tree as trees  # here, so that listing presets needs no YAML

    chain: list[Path] = []
    found: list[Tree] = []
    while True:
        if path in chain:
            names = " -> ".join(p.stem for p in [*chain, path])
            raise ConfigError(f"{origin or path}: `extends` goes round in a circle: {names}")
        chain.append(path)
        tree = trees.read_file(path)
        if origin is not None:
            tree.origins = {k: v.replace(str(path), origin) for k, v in tree.origins.items()}
        found.append(tree)
        parent = tree.values.pop("extends", None)
        if parent is None:
            break
        if not isinstance(parent, str):
            raise ConfigError(f"{path}: `extends` takes one preset's name")
        path, origin = _base(parent, path), f"preset {parent}"
    merged = trees.Tree()
    for tree in reversed(found):
        merged.merge(tree)
    return merged


def _base(name: str, child: Path) -> Path:
    # Only a plain name: what a file extends can never be a path out of the preset folders.
    if Path(name).name == name and (child.parent / f"{name}.yaml").is_file():
        return child.parent / f"{name}.yaml"
    return find(name)

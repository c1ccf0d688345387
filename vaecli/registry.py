"""Names to modules by listing folders: the file `beta_vae.py` is the model `beta-vae`, and its first docstring line
is the summary that listings print. Nothing is imported until a name is looked up, so listings need no torch.
"""

import ast
import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from vaecli.errors import ConfigError

_HERE = Path(__file__).parent
# kind -> packages whose files are entries (a leading underscore marks a helper that is not one)
PACKAGES: dict[str, list[tuple[str, Path]]] = {
    "model": [("vaecli.models", _HERE / "models")],
    "dataset": [("vaecli.data", _HERE / "data")],
    "density": [("vaecli.densities", _HERE / "densities")],
    "metric": [("vaecli.analysis.metrics", _HERE / "analysis" / "metrics")],
}
# Other names under which the field knows one of ours: accepted, not listed.
ALIASES = {"model": dict.fromkeys(("beta-vae-b", "cci-vae", "disentangled-beta-vae"), "annealed-vae")}
HELPERS = ("base", "orders")  # files of these folders that are no entries either


def _modules(kind: str) -> dict[str, tuple[str, Path]]:
    found = {}
    for package, folder in PACKAGES[kind]:
        for path in sorted(folder.glob("*.py")):
            if not path.stem.startswith("_") and path.stem not in HELPERS:
                found[path.stem.replace("_", "-")] = (f"{package}.{path.stem}", path)
    return found


def standard(kind: str, name: str) -> str:
    """The name under which it is listed."""
    return ALIASES.get(kind, {}).get(name, name)


def names(kind: str) -> list[str]:
    """All names of a kind ("model" or "dataset"), sorted."""
    return sorted(_modules(kind))


def summary(kind: str, name: str) -> str:
    """First line of the module's docstring, read without importing it."""
    tree = ast.parse(_modules(kind)[name][1].read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def about(kind: str, name: str) -> str:
    """The docstring of a module, read without importing it; ConfigError with the nearest name where there is none."""
    modules, name = _modules(kind), standard(kind, name)
    if name not in modules:
        raise ConfigError(f"no {kind} is called {name[:80]!r}{nearest(name, modules)}")
    return ast.get_docstring(ast.parse(modules[name][1].read_text(encoding="utf-8"))) or ""


def load(kind: str, name: str) -> ModuleType:
    """Import the module behind a name; ConfigError with the nearest name where there is none.

    Only names found in the listed folders are imported, so a name from a stranger's file cannot reach other code.
    """
    modules, name = _modules(kind), standard(kind, name)
    if name not in modules:
        raise ConfigError(f"no {kind} is called {name[:80]!r}{nearest(name, modules)}")
    return importlib.import_module(modules[name][0])


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` or, with nothing near, the list of choices."""
    options = sorted(choices)
    close = difflib.get_close_matches(word[:80], options, n=1, cutoff=0.55)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(options)}"

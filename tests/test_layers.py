"""The house: which room may import which. Imports go down only, without a circle."""

import ast
from pathlib import Path

import vaecli

PACKAGE = Path(vaecli.__file__).parent
# From the ground up. A file at the package's root is a room of its own.
ROOMS = [
    {
        "errors",
        "registry",
        "paths",
        "extras",
        "hub",
        "output",
        "batch",
        "device",
        "noise",
        "safe_files",
        "label_expressions",
    },
    {"settings"},
    {"objectives", "nets", "data"},
    {"models", "densities"},
    {"config"},
    {"presets"},
    {"speed"},
    {"training"},
    {"sweeps"},
    {"analysis"},
    {"report"},
    {"commands"},
    {"cli", "trained"},
]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}


def imports(path: Path) -> list[str]:
    """Our modules, dotted and without the package's name, in every import of a file: those inside functions and those
    for the type checker alone too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vaecli":
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                full = f"{base}.{alias.name}" if base else alias.name
                there = PACKAGE / full.replace(".", "/")
                found.append(full if there.is_dir() or there.with_suffix(".py").is_file() else base)
        elif isinstance(node, ast.Import):
            found += [a.name.partition(".")[2] for a in node.names if a.name.partition(".")[0] == "vaecli"]
    return [name for name in found if name]


def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("__init__", "__main__", "_presets"):
            continue
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def test_imports_go_down_only() -> None:
    problems = []
    for name, path in modules().items():
        room = name.partition(".")[0]
        assert room in RANK, f"{room} is in no room"
        for other in imports(path):
            below = other.partition(".")[0]
            if RANK[below] > RANK[room] or (RANK[below] == RANK[room] and below != room and RANK[room] > 0):
                problems.append(f"{name} imports {other}")
    assert not problems, problems


def test_no_circle() -> None:
    graph = {name: set(imports(path)) & modules().keys() - {name} for name, path in modules().items()}
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"these import each other in a circle, or stand above one: {graph}"


def test_the_rule_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("from vaecli import training\nimport vaecli.models\ndef f():\n    from vaecli.data.base import A\n")
    assert imports(file) == ["training", "models", "data.base"]


def test_the_training_room_names_no_model() -> None:
    from vaecli import registry

    for path in (PACKAGE / "training").glob("*.py"):
        text = path.read_text()
        for name in registry.names("model"):
            assert f"models.{name.replace('-', '_')}" not in text and f'"{name}"' not in text

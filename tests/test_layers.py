"""Who may import whom: each layer only what stands above it."""

import ast
from pathlib import Path

import vaecli

PACKAGE = Path(vaecli.__file__).parent
LAYERS = [
    {"errors", "section", "schedules", "registry", "paths"},
    {"tree", "config", "presets", "output"},
    {"batch", "device", "native", "fast", "objective", "likelihoods", "nets"},
    {"data", "models", "diagnosis", "figures"},
    {"checkpoint", "rundir", "graph"},
    {"codes"},
    {"metrics"},
    {"aggregate", "probes"},
    {"analysis"},
    {"html"},
    {"trainer"},
    {"commands"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Only inside a function, where a name the user wrote is looked up: the sections of a model or data set are its own.
LAZY = {("config", "data"), ("config", "models"), ("cli", "commands")}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module of ours, at the top of the file) for every import that runs."""
    tree = ast.parse(path.read_text())
    checking = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.dump(guard.test)
        for node in ast.walk(guard)
    }
    found = []
    for node in ast.walk(tree):
        if node in checking:
            continue
        top = node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vaecli":
            rest = (node.module or "").split(".")[1:]
            found += [(rest[0], top)] if rest else [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(a.name.split(".")[1], top) for a in node.names if a.name.startswith("vaecli.")]
    return [(name, top) for name, top in found if name != "__version__"]


def test_import_direction() -> None:
    problems = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", "__main__", "_presets"):
            continue
        assert part in RANK, f"{part} has no layer"
        for name, top in imports(path):
            allowed = RANK[name] <= RANK[part] or ((part, name) in LAZY and not top)
            if not allowed:
                problems.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not problems, problems


def test_the_rule_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("from vaecli import trainer\nimport vaecli.models\ndef f():\n    from vaecli.data import base\n")
    assert imports(file) == [("trainer", True), ("models", True), ("data", False)]


def test_the_trainer_names_no_model() -> None:
    text = (PACKAGE / "trainer.py").read_text()
    from vaecli import registry

    for name in registry.names("model"):
        assert f"models.{name.replace('-', '_')}" not in text and f'"{name}"' not in text

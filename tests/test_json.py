"""Every command's `--json` against docs/json.md: one object, schema 1, the keys and types that the page names."""

import json
import re
import socketserver
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Result

from vaecli import extras, hub, registry

Vae = Callable[..., Result]
PAGE = Path(__file__).parents[1] / "docs" / "json.md"
TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict, "any": object}


def fields(text: str) -> dict[str, tuple[str, bool, bool, dict[str, Any]]]:
    """`a int, b? dict[c str?]` -> by key: type, may be missing, may be null, what is inside."""
    found: dict[str, tuple[str, bool, bool, dict[str, Any]]] = {}
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text + ","):
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    for part in parts:
        match = re.fullmatch(r"(\w+)(\??) (\w+)(?:\[(.*)\])?(\??)", part)
        assert match is not None and match[3] in TYPES, part
        found[match[1]] = (match[3], bool(match[2]), bool(match[5]), fields(match[4]) if match[4] else {})
    return found


def documented() -> dict[str, dict[str, Any]]:
    block = PAGE.read_text().split("```text\n")[1].split("```")[0]
    return {name: fields(text) for name, _, text in (line.partition(": ") for line in block.splitlines())}


def check(value: dict[str, Any], wanted: dict[str, Any], where: str, strict: bool = True) -> None:
    for key, (kind, may_miss, may_be_null, inside) in wanted.items():
        if key not in value:
            assert may_miss, f"{where}.{key} is missing"
            continue
        found = value[key]
        if found is None:
            assert may_be_null or kind == "any", f"{where}.{key} is null"
            continue
        assert isinstance(found, TYPES[kind]), f"{where}.{key} is {type(found).__name__}, not {kind}"
        assert kind in ("bool", "any") or not isinstance(found, bool), f"{where}.{key}"
        for one in found if kind == "list" and inside else [found] if inside else []:
            check(one, inside, f"{where}.{key}", strict=False)
    if strict:
        assert value.keys() <= {*wanted, "schema"}, f"{where}: not on the page: {sorted(value.keys() - wanted.keys())}"


OUT = ("-o", "out.png", "--force")
SWEEP = ("sweep", "--model", "vae", *TINY[:4], "--steps", 3, "--jobs", 1)
COMMANDS: dict[str, list[object]] = {
    "train": ["train", "--model", "vae", *TINY, "--steps", 3, "--name", "new"],
    "train --dry-run": ["train", "--model", "vae", *TINY, "--steps", 3, "--dry-run"],
    "train --seeds": ["train", "--model", "pca", "--data", "squares", "--seeds", "0-1"],
    "sample": ["sample", "RUN", *OUT],
    "traverse": ["traverse", "RUN", *OUT],
    "reconstruct": ["reconstruct", "RUN", *OUT],
    "analyze": ["analyze", "RUN", "--diagnosis", "--metrics", "mig"],
    "analyze CODES": ["analyze", "codes.npz"],
    "report": ["report", "RUN", "-o", "out.html"],
    "compare": ["compare", "RUN", "--metrics", "mig"],
    "density": ["density", "RUN"],
    "encode": ["encode", "RUN", "-o", "codes.npz", "--force"],
    "decode": ["decode", "RUN", "codes.npz", *OUT],
    "interpolate": ["interpolate", "RUN", 0, 1, *OUT],
    "info": ["info", "RUN"],
    "presets": ["presets"],
    "models": ["models"],
    "models NAME": ["models", "vae"],
    "datasets": ["datasets"],
    "datasets NAME": ["datasets", "squares"],
    "metrics": ["metrics"],
    "runs": ["runs", "runs"],
    "doctor": ["doctor"],
    "config show": ["config", "show", "--preset", "vae-mnist"],
    "reproduce --list": ["reproduce", "--list"],
    "intervene": ["intervene", "RUN", "--set", "z0=-1:1:3", *OUT],
    "suggest": ["suggest", "squares"],
    "sweep": [*SWEEP, "--grid", "optim.lr=1e-3,1e39"],  # of which the second diverges
    "sweep --dry-run": [*SWEEP, "--grid", "optim.lr=1e-3,1e-2", "--dry-run"],
    "explore": ["explore", "RUN"],
    "explore -o": ["explore", "RUN", "-o", "out.html"],
    "export": ["export", "RUN", "--format", "torch", "-o", "out"],
    "mix": ["mix", "RUN", "--row", 0, "--column", 1, "--take", "z1", *OUT],
}


def held(done: Result, name: str, code: int = 0) -> None:
    """What a command printed is one object, as the page has it under this name."""
    assert done.code == code, done.err
    record = json.loads(done.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert isinstance(record, dict) and record["schema"] == 1
    check(record, documented()[name], name)


@pytest.mark.parametrize("name", COMMANDS)
def test_output_is_as_documented(name: str, vae: Vae, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez("codes.npz", codes=np.random.default_rng(0).normal(size=(64, 3)))
    run = tiny_run
    if name == "mix":  # which takes levels apart
        config = registry.load("model", "ladder-vae").Config.tiny
        settings = [part for key, value in config.items() for part in ("-S", f"model.{key}={json.dumps(value)}")]
        made = vae("train", "--model", "ladder-vae", "--data", "squares", *settings, "--steps", 3, "--name", "l", "-q")
        run = Path(made.out.strip())
    monkeypatch.setattr(socketserver.BaseServer, "serve_forever", lambda *_, **__: None)  # of `explore`
    words = [run if word == "RUN" else word for word in COMMANDS[name]]
    held(vae(*words, "--json"), name, code=4 if name == "sweep" else 0)


def test_push_is_as_documented(tiny_run: Path, vae: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a hub, and without its library; test_export.py has both."""
    monkeypatch.setattr(extras, "require", lambda *_: None)
    monkeypatch.setattr(hub, "push", lambda folder, name, *_: f"https://huggingface.co/{name}")
    held(vae("push", tiny_run, "me/squares", "--json"), "push")


@pytest.mark.slow
def test_a_search_is_as_documented(vae: Vae) -> None:
    pytest.importorskip("optuna")
    done = vae(*SWEEP, "--grid", "optim.lr=1e-3..1e-2:log", "--search", "optuna", "--trials", 1, "--json")
    held(done, "sweep")
    assert json.loads(done.out)["best"]["values"].keys() == {"optim.lr"}


def test_every_command_is_on_the_page() -> None:
    import typer

    from vaecli import cli

    def names(command: Any, path: str) -> list[str]:
        if hasattr(command, "commands"):
            return [
                n
                for key, one in command.commands.items()
                if not one.hidden
                for n in names(one, f"{path} {key}".strip())
            ]
        return [path] if any("--json" in parameter.opts for parameter in command.params) else []

    pages = {
        key.split(" --")[0].removesuffix(" NAME").removesuffix(" CODES").removesuffix(" -o") for key in documented()
    }
    assert {*names(typer.main.get_command(cli.app), "")} == pages
    assert documented().keys() == {*COMMANDS, "push"}


def test_what_is_not_on_the_page_or_of_another_type_fails() -> None:
    wanted = fields("a int, b? dict[c float?], d list[e str]")
    check({"schema": 1, "a": 1, "b": {"c": None, "x": 1}, "d": [{"e": ""}]}, wanted, "")
    for bad in ({"a": 1.5, "d": []}, {"d": []}, {"a": 1, "d": [{}]}, {"a": 1, "d": [], "z": 0}, {"a": True, "d": []}):
        with pytest.raises(AssertionError):
            check(bad, wanted, "")


def test_defaults_are_values(vae: Callable[..., Result]) -> None:
    """What `--set` would take, and not their words in a table."""
    of_model = {o["key"]: o for o in json.loads(vae("models", "beta-vae", "--json").out)["options"]}
    assert of_model["model.latent_dim"]["default"] == 10 and of_model["model.latent_dim"]["required"] is False
    assert of_model["model.likelihood"]["default"] == {"name": "auto"}
    of_data = {o["key"]: o for o in json.loads(vae("datasets", "folder", "--options", "--json").out)["options"]}
    assert of_data["data.path"]["required"] is True and of_data["data.path"]["default"] is None

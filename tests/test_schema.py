"""`vae config schema`: what it lets pass is what `vae config validate` lets pass, as far as one file can tell."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from conftest import Result

from vaecli import presets

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator() -> Any:
    from vaecli.config.schema import schema

    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_it_is_what_is_printed(validator: Any, vae: Callable[..., Result]) -> None:
    done = vae("config", "schema")
    assert done.code == 0 and json.loads(done.out) == validator.schema


def test_every_preset_fits(validator: Any) -> None:
    for path in presets.paths().values():
        assert [e.message for e in validator.iter_errors(yaml.safe_load(path.read_text()))] == [], path


@pytest.mark.parametrize("name", ["beta-vae-dsprites", "vq-vae-mnist", "two-stage-vae-mnist", "infogan-dsprites"])
def test_what_config_show_prints_fits(name: str, validator: Any, vae: Callable[..., Result]) -> None:
    shown = yaml.safe_load(vae("config", "show", "-p", name).out)
    assert [e.message for e in validator.iter_errors(shown)] == []


TEXTS = {
    "model: {name: beta-vae, beta: 4}": True,
    "model: beta-vae": True,
    "model: cci-vae": True,
    "model: {name: vae, net: mlp}": True,
    "model: {name: vae, net: {name: mlp, hidden: [16]}}": True,
    "model: {name: beta-vae, beta: {schedule: linear, start: 0, end: 1, steps: 100}}": True,
    "data: folder:photos": True,
    "data: {name: folder, path: photos, holdout: 0.2}": True,
    "seed: 3\ntrain: {steps: 100}\noptim: {lr: 1.0e-3}": True,
    "optim: {name: sgd, lr: 0.1}": True,
    "density: {name: mixture, components: 5}": True,
    "density: null": True,
    "models: vae": False,
    "model: beta-vaee": False,
    "model: {name: beta-vae, betta: 4}": False,
    "model: {name: vae, beta: 4}": False,
    "model: {name: beta-vae, beta: high}": False,
    "model: {name: vae, net: {name: mlp, hiden: [16]}}": False,
    "model: {name: vae, latent_dim: 0}": False,
    "data: mnistt": False,
    "data: {name: squares, holdout: -1}": False,
    "train: {steps: -5}": False,
    "train: {step: 5}": False,
    "optim: {name: sgd, betas: 3}": False,
    "seed: many": False,
}


@pytest.mark.parametrize("text", TEXTS)
def test_it_tells_right_from_wrong(text: str, validator: Any) -> None:
    from vaecli import config as configs
    from vaecli.config import tree as trees
    from vaecli.errors import ConfigError

    values = yaml.safe_load(text)
    assert validator.is_valid(values) == TEXTS[text]
    try:  # and so does the tool
        configs.build(trees.Tree({"data": "squares", **values}))
        right = True
    except ConfigError:
        right = False
    assert right == TEXTS[text]

"""Configuration: strict YAML, layers, overrides, and errors that say everything at once."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from vaecli import config as configs
from vaecli import presets, registry
from vaecli.commands.train import Layers, resolve
from vaecli.config import tree as trees
from vaecli.errors import ConfigError

MOVING = {"schedule": "linear", "start": 1.0, "end": 0.1, "steps": 9}
MINIMAL = "model: {name: vae}\ndata: {name: squares}\n"


def built(text: str, *sets: str) -> configs.RunConfig:
    Path("c.yaml").write_text(text)
    return configs.build(resolve(Layers(None, "c.yaml", {}, list(sets))))


def refused(text: str | bytes, *sets: str) -> str:
    Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        configs.build(resolve(Layers(None, "c.yaml", {}, list(sets))))
    return str(caught.value)


def test_numbers_are_what_a_reader_expects() -> None:
    config = built(MINIMAL + "optim: {lr: 1e-3}\ntrain: {steps: 100, batch_size: 8}\nseed: 7\n")
    assert config.optim.lr == 0.001
    assert (config.train.steps, config.train.batch_size, config.seed) == (100, 8, 7)
    assert built(MINIMAL + "optim: {lr: {schedule: linear, start: 1, end: 0, steps: 10}}").optim.lr.at(5) == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "model: {name: vae, latent_dmi: 3}\ndata: squares",
            "c.yaml:1: model.latent_dmi: no such option; did you mean 'latent_dim'?",
        ),
        ("model: {name: vae}\ndata: {name: squares}\ntrain:\n  steps: many", "c.yaml:4: train.steps:"),
        ("model: {name: vae, latent_dim: -3}\ndata: squares", "model.latent_dim: input should be greater than 0"),
        ("model: {name: vae}\nmodel: {name: vae}", "c.yaml:2: model is given twice"),
        ("model: {name: vae, latent_dim: .nan}", ".nan is not a usable number"),
        ("model: {name: vae, latent_dim: 017}\ndata: squares", "octal"),
        ("model: {name: vae, latent_dim: true}\ndata: squares", "model.latent_dim: input should be a valid integer"),
        ("model: {name: vae}\ndata: squares\ntrain: {fast: yes}", "train.fast:"),
        ("modle: {name: vae}\ndata: squares", "modle: no such section; did you mean 'model'?"),
        ("model: {name: beta-vea}\ndata: squares", "did you mean 'beta-vae'?"),
        ("model: {name: os.system}\ndata: squares", "no model is called 'os.system'"),
        ("model: {name: ../../evil}\ndata: squares", "no model is called"),
        ("model: vae\ndata: squares\noptim: {name: adam, momentum: 1}", "optim.momentum: no such option"),
        ("model: vae\ndata: squares\noptim: {lr: -1}", "optim.lr: must never be negative"),
        ("model: vae", "data.name: which dataset? There are:"),
        ("", "empty"),
        ("- a\n- b", "a mapping of sections is expected"),
        ("model:\n\tname: vae", "not valid YAML"),
        ("a: &x [1]\nb: *x", "anchors and aliases"),
        ("a: !!python/object/apply:os.system [echo]", "tags such as"),
        ("[" * 3000, "nested deeper"),
        (b"\xff\xfem\x00o\x00", "not UTF-8"),
        ("x: " + "9" * 400, "too large"),
    ],
)
def test_mistakes_are_named(text: str | bytes, expected: str) -> None:
    start = time.monotonic()
    assert expected in refused(text)
    assert time.monotonic() - start < 3  # the first may import torch


def test_all_mistakes_at_once() -> None:
    message = refused("model: {name: vae, a: 1}\ndata: {name: squares, b: 2}\ntrain: {steps: x}\nseed: -1", "optim.z=3")
    for part in ("model.a", "data.b", "train.steps", "seed", "--set: optim.z"):
        assert part in message
    assert len(message.splitlines()) == 6


def test_byte_order_mark_and_size() -> None:
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert configs.build(resolve(Layers(None, "bom.yaml", {}, []))).model.name == "vae"
    Path("big.yaml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(ConfigError, match="larger than"):
        trees.read_file(Path("big.yaml"))


def test_overrides() -> None:
    assert built(MINIMAL, "train.steps=5", "train.steps=6").train.steps == 6
    assert built(MINIMAL, "optim.lr={schedule: decay, start: 1, factor: 0.5, every: 10}").optim.lr.at(25) == 0.25
    nested = built(MINIMAL, "model.net=mlp", "model.net.hidden=[7, 8]")
    assert nested.model.net.hidden == [7, 8]
    assert "is a value, not a section" in refused(MINIMAL, "train.steps=5", "train.steps.a=1")
    assert "write --set key=value" in refused(MINIMAL, "train.steps")
    assert "is not a key" in refused(MINIMAL, "=1")
    assert "train.steps" in refused(MINIMAL, "train.steps=")  # an empty text, not null
    assert "a=b c:d" in str(trees.parse_value('"a=b c:d"', "--set"))


def test_a_section_of_another_name_starts_afresh_but_a_model_keeps_what_it_shares() -> None:
    base = "model: {name: beta-vae, latent_dim: 4, net: {name: mlp, hidden: [9]}, beta: 2}\ndata: squares\n"
    base += "optim: {name: adagrad, lr: 0.5}"
    other = built(base, "optim.name=adam", "model.net=burgess")
    assert other.optim.lr == 1e-3 and other.model.net.name == "burgess"
    assert "set model.name to beta-vae" in refused(base, "model.name=vae")
    kept = built(base.replace(", beta: 2", ""), "model.name=vae")
    assert kept.model.latent_dim == 4 and kept.model.net.hidden == [9]


def test_round_trip_and_diff() -> None:
    config = built(MINIMAL + "optim: {lr: {schedule: cosine, start: 1, end: 0, steps: 10}}")
    Path("again.yaml").write_text(configs.dump(config))
    again = configs.build(resolve(Layers(None, "again.yaml", {}, [])))
    assert again == config
    assert configs.build(trees.Tree(json.loads(json.dumps(config.to_tree())), {})) == config
    assert configs.diff(config, built(MINIMAL + "optim: {lr: {schedule: cosine, start: 2, end: 0, steps: 10}}")) == {
        "optim.lr.start": (1.0, 2.0)
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_precedence(in_file: int, in_set: int) -> None:
    """`--set` is above the flag, the flag above the file, the file above the default; whatever the numbers."""
    tree = trees.Tree({"model": {"name": "vae"}, "data": {"name": "squares"}}, {})
    path = Path("p.yaml")
    path.write_text(f"train: {{batch_size: {in_file}}}\nmodel: vae\ndata: squares")
    assert configs.build(resolve(Layers(None, str(path), {}, []))).train.batch_size == in_file
    flags = {"train.batch_size": ("--batch-size", 100)}
    assert configs.build(resolve(Layers(None, str(path), flags, []))).train.batch_size == 100
    assert (
        configs.build(resolve(Layers(None, str(path), flags, [f"train.batch_size={in_set}"]))).train.batch_size
        == in_set
    )
    assert configs.build(tree).train.batch_size == 64


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes the reader fail with anything but ConfigError."""
    try:
        trees.parse_yaml(text, "t")
    except ConfigError:
        pass


def test_show_and_validate(vae: Callable[..., Result]) -> None:
    flags = json.loads(vae("config", "show", "-d", "digits", "-m", "beta-vae", "--beta", 7, "--origin", "--json").out)
    assert flags["config"]["model"]["beta"] == 7 and flags["config"]["data"]["name"] == "digits"
    given = {key: origin for key, origin in flags["origins"].items() if origin != "default"}
    assert given == {"model.name": "--model", "model.beta": "--beta", "data.name": "--data"}
    assert "has no beta" in vae("config", "show", "-d", "digits", "-m", "vae", "--beta", 7).err
    shown = vae("config", "show", "-p", "beta-vae-dsprites", "-S", "model.beta=7", "--origin")
    assert shown.code == 0
    assert "model.beta = 7" in shown.out.replace("7.0", "7") and "# --set" in shown.out
    assert "model.latent_dim = 10  # preset _dsprites:" in shown.out
    assert "train.keep = 2  # default" in shown.out
    Path("good.yaml").write_text(MINIMAL)
    Path("bad.yaml").write_text("model: {name: vae, q: 1}\ndata: squares\n")
    assert vae("config", "validate", "good.yaml").code == 0
    both = vae("config", "validate", "good.yaml", "bad.yaml")
    assert both.code == 2 and "bad.yaml:1: model.q" in both.err and both.out == ""


# ---- presets


@pytest.mark.parametrize("name", list(presets.paths()))
def test_every_preset_resolves_and_explains_itself(name: str) -> None:
    config = configs.build(resolve(Layers(name, None, {}, [])))
    assert config.model.name.removesuffix("-vae") in name or name.startswith("vae-")
    header = [line for line in presets.find(name).read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for part in ("Source:", "The paper's:", "Ours:", "Expect:", "Time:"):
        assert part in text, f"{name}: the header lacks {part!r}"


def test_a_preset_cannot_reach_out_of_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p").mkdir()
    Path("outside.yaml").write_text(MINIMAL)
    Path("p/a.yaml").write_text("extends: b")
    Path("p/b.yaml").write_text("extends: a")
    Path("p/c.yaml").write_text("extends: ../outside")
    monkeypatch.setenv("VAE_PRESET_PATH", "p")
    with pytest.raises(ConfigError, match="circle"):
        presets.load("a")
    with pytest.raises(ConfigError, match="no preset"):
        presets.load("c")
    with pytest.raises(ConfigError, match="no preset"):
        presets.load("../outside")


def test_names_are_looked_up_only_in_the_package() -> None:
    for name in ("os", "base", "__init__", "_paths", "torch.nn.Linear", ""):
        with pytest.raises(ConfigError):
            registry.load("model", name)


def test_files_may_extend_presets_and_values_stay_single() -> None:
    Path("mine.yaml").write_text("extends: vae-dsprites\nmodel: {latent_dim: 7}\n")
    config = configs.build(resolve(Layers(config_file="mine.yaml")))
    assert config.model.latent_dim == 7 and config.model.net.name == "locatello" and config.data.name == "dsprites"
    assert "one value is expected" in refused(MINIMAL, "train.steps=5\nfoo: 3")
    assert "there is no 'adm'; did you mean 'adam'?" in refused(MINIMAL, "optim.name=adm")
    assert "nesterov needs a momentum" in refused(MINIMAL, "optim={name: sgd, nesterov: true}")
    assert "optim.betas" in refused(MINIMAL, "optim.betas=[0.9, 1.0]")


def test_very_many_mistakes_are_told_quickly() -> None:
    start = time.process_time()
    assert "more than 500 keys" in refused("model:\n" + "".join(f"  k{i}: 1\n" for i in range(60_000)))
    assert "and 380 more mistakes" in refused("data: squares\nmodel:\n" + "".join(f"  k{i}: 1\n" for i in range(400)))
    assert time.process_time() - start < 8


def test_a_section_without_its_name_is_of_the_defaults_kind_or_says_which_there_are() -> None:
    assert built(MINIMAL, "model.net.hidden=[16]").model.net.hidden == [16]
    assert built(MINIMAL, "model.name=wae-mmd", "model.likelihood.sigma=0.5").model.likelihood.sigma == 0.5
    critic = built(MINIMAL, "model.name=factor-vae", "model.critic_optim.lr=1e-5").model.critic_optim
    assert (critic.lr, critic.betas) == (1e-5, (0.5, 0.9))
    for setting, said in {
        "model.likelihood.sigma=0.5": "model.likelihood: which one? Give name: gaussian, which has sigma",
        "model.likelihood.scale=1": "Give name: discretized-logistic or laplace, which have scale",
        "model.net.width=4": "model.net: which one? Give name: conv or resnet or semafo, which have width",
        "model.likelihood.foo=3": "which one? Give name: auto, bernoulli, continuous-bernoulli, ",
        "optim.lr={start: 1, end: 0, steps: 5}": "optim.lr: which one? Give schedule: cosine or linear, which have end",
        "model.free_bits={points: [[0, 1]]}": "model.free_bits: which one? Give schedule: piecewise, which has points",
    }.items():
        message = refused(MINIMAL, setting)
        assert said in message and "tag" not in message and len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"name": "cci-vae", "c_max": 5.0}, {"name": "annealed-vae", "c_max": 5.0}),
        ({"name": "beta-vae-b"}, {"name": "annealed-vae"}),
        ({"name": "disentangled-beta-vae"}, {"name": "annealed-vae"}),
        (
            {"name": "dip-vae-ii", "lambda_od": 5, "lambda_d_factor": 3},
            {"name": "dip-vae-ii", "lambda_od": 5, "lambda_d": 15.0},
        ),
        ({"name": "dip-vae-i", "lambda_d_factor": 3}, {"name": "dip-vae-i", "lambda_d": 30.0}),
        ({"name": "vae", "net": "higgins"}, {"name": "vae", "net": "higgins-fc"}),
    ],
)
def test_names_that_the_field_uses_for_the_same(said: dict[str, Any], meant: dict[str, Any]) -> None:
    def of(model: dict[str, Any]) -> Any:
        return configs.build(trees.Tree({"model": model, "data": "squares"}, {})).to_tree()

    assert of(said) == of(meant)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "annealed-vae", "cmax": 5}, "did you mean 'c_max'?"),
        ({"name": "dip-vae-i", "lambda_d_factor": 3, "lambda_d": 1}, "give one of them"),
        (
            {"name": "dip-vae-i", "lambda_d_factor": 3, "lambda_od": MOVING},
            "a number; give `lambda_d`",
        ),
    ],
)
def test_settings_that_would_do_nothing_or_something_else_are_refused(model: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configs.build(trees.Tree({"model": model, "data": "squares"}, {}))
    assert said in str(caught.value)

"""What is left to the data, net and likelihood: chosen with a reason, kept with the run, and the same ever after."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Result
from torch import nn

from vaecli import data, models, registry
from vaecli.batch import DataInfo
from vaecli.data import array
from vaecli.models import vae as vae_model
from vaecli.nets import coders
from vaecli.objectives import likelihoods
from vaecli.speed import fast
from vaecli.training import checkpoint

Vae = Callable[..., Result]
TRAIN = ("train", "--data", "array:x.npy", "--steps", 3, "--batch-size", 8, "--name", "r")


def images(side: int, channels: int = 3, n: int = 30) -> None:
    x = np.random.default_rng(0).integers(0, 256, (n, channels, side, side), dtype=np.uint8)
    np.save("x.npy", x)


@pytest.mark.parametrize(
    ("binary", "contrast", "name"),
    [(True, 1.0, "bernoulli"), (False, 0.84, "bernoulli"), (False, 0.79, "gaussian"), (False, 0.0, "gaussian")],
)
def test_likelihood_follows_from_the_pixels(binary: bool, contrast: float, name: str) -> None:
    config, reason = likelihoods.chosen(binary, contrast)
    assert config.name == name and reason.startswith(f"likelihood {name}")
    built = likelihoods.build(likelihoods.AutoConfig(), binary, contrast)
    assert isinstance(built, likelihoods.Bernoulli if name == "bernoulli" else likelihoods.LearnedGaussian)
    if isinstance(built, likelihoods.LearnedGaussian):
        assert built.log_sigma.exp().item() == pytest.approx(0.3)


def test_contrast_is_the_share_of_the_greatest_variance() -> None:
    images(16, channels=1, n=40)
    dataset = data.load(array.Config(name="array", path="x.npy", holdout=10))
    x = dataset.split("train").take(30).x_BCHW.double()
    expected = x.var(unbiased=False) / (x.mean() * (1 - x.mean()))
    assert dataset.info.contrast == pytest.approx(expected.item(), abs=1e-6)
    assert dataset.info.contrast == pytest.approx(1 / 3, abs=0.01)  # of even numbers in [0, 1]: (1/12) / (1/4)
    squares = data.load(registry.load("dataset", "squares").Config(name="squares"))
    assert squares.info.binary and squares.info.contrast == 1.0


def test_what_is_chosen_is_said_and_kept_with_the_run(vae: Vae) -> None:
    images(32)
    done = vae(*TRAIN)
    assert done.code == 0, done.err
    assert "chosen     net conv: images of 32x32" in done.err and "net conv\n" in done.err
    assert "chosen     likelihood gaussian of learned variance" in done.err and "sigma learned" in done.err
    section = yaml.safe_load(Path("runs/r/config.yaml").read_text())["model"]
    assert section["net"] == {"name": "conv", "width": 64, "dense": 256}
    assert section["likelihood"] == {"name": "gaussian", "variance": "learned", "sigma": 0.3}
    # The whole command line again, as a scheduler repeats it, is no other configuration; nothing is chosen anew.
    again = vae(*TRAIN[:3], "--steps", 5, "--batch-size", 8, "--name", "r", "--resume", "auto")
    assert again.code == 0 and "chosen" not in again.err, again.err
    assert json.loads(Path("runs/r/run.json").read_text())["step"] == 5
    other = vae(*TRAIN[:3], "--steps", 9, "-S", "model.net=mlp", "--batch-size", 8, "--name", "r", "--resume", "auto")
    assert other.code == 2 and "model.net" in other.err
    assert vae("encode", "runs/r", "-o", "codes.npz").code == 0


def test_a_dry_run_says_what_would_be_chosen(vae: Vae) -> None:
    images(28, channels=1)
    done = vae(*TRAIN, "--dry-run", "--json")
    assert done.code == 0 and "chosen     net mlp: images of 28x28" in done.err
    assert json.loads(done.out)["config"]["model"]["net"]["name"] == "mlp"


def test_runs_of_before_the_choice_go_on_with_what_they_had(vae: Vae) -> None:
    """A run whose configuration names the net, likelihood and start of that time is continued by the command line that
    had none of them."""
    images(32)
    then = ("model.net=mlp", "model.likelihood=bernoulli", "model.output_bias=data")
    started = vae(*TRAIN, *(part for setting in then for part in ("-S", setting)), "-q")
    assert started.code == 0, started.err
    done = vae(*TRAIN[:3], "--steps", 5, "--batch-size", 8, "--name", "r", "--resume", "auto")
    assert done.code == 0, done.err
    loaded = checkpoint.load("runs/r", torch.device("cpu"))
    assert loaded.step == 5 and isinstance(loaded.model.likelihood, likelihoods.Bernoulli)


def test_resnets_of_before_it_lowered_its_resolution_still_load() -> None:
    stored = {"model": {"name": "vae", "net": {"name": "resnet", "width": 4, "blocks": 1}}}
    net = checkpoint._as_written_now(stored)["model"]["net"]
    assert net["blocks_up_to"] == 8192
    encoder, _ = coders.build(coders.ResnetConfig(**{k: v for k, v in net.items() if k != "name"}), (3, 64, 64), 4, 2)
    assert isinstance(encoder[0], nn.Conv2d) and encoder[0].stride == (1, 1)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 45, 102), (16, 32, 48), (3, 128, 80)])
def test_conv_is_run_by_the_kernels_in_one_call_each_way(shape: tuple[int, int, int]) -> None:
    """Encoder and decoder are one chain each, and give what torch's layers give."""
    torch.manual_seed(0)
    encoder, decoder = coders.build(coders.conv.ConvConfig(), shape, 20, 10)
    x, z = torch.rand(2, *shape), torch.randn(2, 10)
    with torch.no_grad():
        plain = encoder(x), decoder(z)
        quick = nn.ModuleList([encoder, decoder])
        if fast.accelerate(quick) != ["compiled kernels"]:
            pytest.skip("no kernels here")
        for found, expected in zip((encoder(x), decoder(z)), plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for net, given in ((encoder, x), (decoder, z)):
        chains = [piece for piece in net.pieces if isinstance(piece, fast.Chain)]
        assert len(chains) == 1 and len(chains[0].layers) == sum(hasattr(layer, "weight") for layer in net)
        first = net.pieces[0](given) if not isinstance(net.pieces[0], fast.Chain) else given
        assert chains[0](first) is not None


def test_models_built_by_hand_have_the_same_choices() -> None:
    info = DataInfo("some", (3, 32, 32), 100, contrast=0.3)
    by_hand, by_name = vae_model.Model(vae_model.Config(), info), models.build(vae_model.Config(), info)
    for model in (by_hand, by_name):
        assert isinstance(model.likelihood, likelihoods.LearnedGaussian)
        assert any(isinstance(layer, nn.Conv2d) for layer in model.encoder)
    assert by_name.config.net.name == "conv"

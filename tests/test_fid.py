"""FID: Inception's features by the weights that a user has, and the distance beside that of torch-fidelity."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from safetensors.torch import save_file

from vaecli import data
from vaecli.analysis import samples
from vaecli.analysis.inception import inception
from vaecli.analysis.quality import Request
from vaecli.errors import ConfigError, InputError
from vaecli.training import checkpoint

ASKED = ("--samples", 12, "--split", "train", "--json")


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Any]:
    """A file of random weights of Inception, and the library's own network with them."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    kind = module.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        net = kind("theirs", ["2048"], feature_extractor_weights_path="none")
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors", net


@pytest.fixture
def run(vae: Callable[..., Result]) -> str:
    tiny = ("-S", "model.net={name: mlp, hidden: [16]}", "--latent-dim", 2, "--steps", 5, "--name", "r")
    assert vae("train", "--data", "digits", *tiny).code == 0
    return "runs/r"


def test_fid_is_that_of_the_librarys_network(run: str, weights: tuple[Path, Any], vae: Callable[..., Result]) -> None:
    path, net = weights
    done = vae("analyze", run, *ASKED, "--fid", path)
    assert done.code == 0, done.err
    found = json.loads(done.out)["samples"]
    assert "fcd" not in found and "oracle" not in found and found["features"] == 2048
    assert "FID is mostly bias" in done.err
    assert vae("sample", run, "-n", 12, "-o", "s.npz").code == 0
    loaded = checkpoint.load(Path(run), torch.device("cpu"))
    dataset = data.load(loaded.config.data, loaded.info)
    reference, _ = samples.sets(dataset, dataset.split("train"), 12)
    made, real = torch.from_numpy(np.load("s.npz")["images"]), dataset.images.gather(reference)
    theirs = [net((x * 255).round().byte().expand(-1, 3, -1, -1))[0] for x in (made, real)]
    assert found["fid"] == pytest.approx(samples.fcd(*theirs), rel=1e-4)
    ours = [inception(str(path), 1).features(x) for x in (made, real)]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_the_distance_is_torch_fidelitys() -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_fid")
    chance = torch.Generator().manual_seed(1)
    a, b = (torch.randn(200, 24, generator=chance, dtype=torch.float64) * scale for scale in (1.0, 1.7))
    stats = [theirs.fid_features_to_statistics(x) for x in (a, b)]
    value = theirs.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert samples.fcd(a, b) == pytest.approx(value, rel=1e-9)


def test_what_is_not_the_weights_is_refused(weights: tuple[Path, Any], tmp_path: Path) -> None:
    path, net = weights
    (tmp_path / "w.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(InputError, match="a pickle is never loaded"):
        inception(str(tmp_path / "w.pth"), 1)
    (tmp_path / "text.safetensors").write_text("none")
    with pytest.raises(InputError, match="not readable as safetensors"):
        inception(str(tmp_path / "text.safetensors"), 1)
    save_file({"fc.bias": net.fc.bias.data}, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match="not the weights of this network"):
        inception(str(tmp_path / "part.safetensors"), 1)
    with pytest.raises(InputError, match="No such file"):
        inception(str(tmp_path / "none.safetensors"), 1)
    with pytest.raises(ConfigError, match="4 channels"):
        inception(str(path), 4)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ConfigError, match="torch-fidelity") as caught:
        inception("w.safetensors", 1)
    assert caught.value.hint is not None and "vaecli[fid]" in caught.value.hint


def test_fid_needs_samples() -> None:
    with pytest.raises(ConfigError, match="--fid"):
        Request(fid="w.safetensors")

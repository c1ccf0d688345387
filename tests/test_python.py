"""`vaecli.load`: what the commands compute, in Python, number for number."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result

import vaecli
from vaecli.data.squares import Config as SquaresConfig
from vaecli.data.squares import load as load_squares
from vaecli.errors import ConfigError, InputError, MachineError
from vaecli.trained import Trained

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def images() -> np.ndarray:
    """float32 (600, 1, 16, 16): more than a batch."""
    stored = load_squares(SquaresConfig(name="squares")).images
    return stored.gather(torch.arange(600) % len(stored)).numpy()


@pytest.fixture
def model(tiny_run: Path) -> Trained:
    return vaecli.load(tiny_run)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import vaecli, sys; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (Path(vaecli.__file__).parent / "py.typed").is_file()


def test_codes_are_those_of_the_command(
    model: Trained, tiny_run: Path, images: np.ndarray, vae: Callable[..., Result]
) -> None:
    np.save("images.npy", images)
    assert vae("encode", tiny_run, "images.npy", "-o", "codes.npz", "-q").code == 0
    with np.load("codes.npz") as written:
        mean, logvar = model.posterior(images)
        assert np.array_equal(mean, written["codes"]) and np.array_equal(logvar, written["logvar"])
        assert np.array_equal(model.encode(images), written["codes"])
        assert model.latent_names == list(written["latent_names"])
    assert vae("decode", tiny_run, "codes.npz", "-o", "decoded.npz", "-q").code == 0
    with np.load("decoded.npz") as written:
        assert np.array_equal(model.decode(mean), written["images"])


def test_samples_are_those_of_the_command(model: Trained, tiny_run: Path, vae: Callable[..., Result]) -> None:
    assert vae("sample", tiny_run, "-n", 70, "--seed", 3, "--temperature", 0.5, "-o", "s.npz", "-q").code == 0
    with np.load("s.npz") as written:
        found, z = model.sample_with_codes(70, seed=3, temperature=0.5)
        assert np.array_equal(found, written["images"]) and np.array_equal(z, written["z"])
    assert not np.array_equal(model.sample(70, seed=4, temperature=0.5), found)


def test_reconstructions_are_those_of_the_command(
    model: Trained, tiny_run: Path, images: np.ndarray, vae: Callable[..., Result]
) -> None:
    np.save("images.npy", images[:20])
    done = vae("reconstruct", tiny_run, "images.npy", "-n", 20, "-o", "r.png", "--json", "-q")
    told = [row["mse"] for row in json.loads(done.out)["images"]]
    made = model.reconstruct(images[:20])
    mse = np.square(images[:20].astype(np.float64) - made.astype(np.float64)).mean(axis=(1, 2, 3))
    assert np.allclose(mse, told, rtol=1e-9, atol=0)


def test_nll_is_that_of_the_command(
    model: Trained, tiny_run: Path, images: np.ndarray, vae: Callable[..., Result]
) -> None:
    np.save("images.npy", images[:30])
    asked = ("--nll", 20, "--nll-images", 30, "--split", "all", "--data", "array:images.npy", "--json", "-q")
    done = vae("analyze", tiny_run, *asked)
    assert done.code == 0, done.err
    each = model.nll(images[:30], k=20)
    assert each.shape == (30,) and each.dtype == np.float64
    assert float(each.mean()) == pytest.approx(_find(json.loads(done.out), "nll"), rel=1e-12)
    assert not np.array_equal(model.nll(images[:30], k=20, seed=1), each)


def _find(record: object, key: str) -> float:
    """The first number of that name, however deep."""
    if isinstance(record, dict):
        if isinstance(record.get(key), float):
            return float(record[key])
        record = list(record.values())
    if isinstance(record, list):
        for part in record:
            if (found := _find(part, key)) == found:
                return found
    return float("nan")


def test_kinds_of_numbers(model: Trained, images: np.ndarray) -> None:
    x = images[:5]
    as_tensor = model.encode(torch.from_numpy(x))
    assert isinstance(as_tensor, torch.Tensor) and np.array_equal(as_tensor.numpy(), model.encode(x))
    assert isinstance(model.decode(as_tensor), torch.Tensor)
    assert np.array_equal(model.encode(x[:, 0]), model.encode(x))
    assert np.array_equal(model.encode((x * 255).astype(np.uint8)), model.encode(x))
    assert np.array_equal(model.encode(x.astype(np.float64)), model.encode(x))


def test_the_callers_randomness_stays(model: Trained, images: np.ndarray) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.sample(3)
    model.reconstruct(images[:3])
    model.nll(images[:3], k=2)
    assert torch.equal(torch.rand(3), expected)


def test_what_it_knows_of_itself(model: Trained) -> None:
    assert model.config.model.name == "beta-vae" and model.config.train.batch_size == 32
    assert model.info.shape == (1, 16, 16) and model.step == 30 and len(model.latent_names) == 3
    assert repr(model) == "<beta-vae of squares, 3 latents, step 30>"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.zeros((2, 1, 8, 8), np.float32), r"shape \(N, 1, 16, 16\), not \(2, 1, 8, 8\)"),
        (np.zeros((0, 1, 16, 16), np.float32), "shape"),
        (np.full((2, 1, 16, 16), 3.0), "from 3 to 3"),
        (np.full((2, 1, 16, 16), np.nan), r"lie in \[0, 1\]"),
        (np.zeros((2, 1, 16, 16), np.int64), "not int64"),
    ],
)
def test_images_that_are_none(model: Trained, bad: np.ndarray, says: str) -> None:
    for call in (model.encode, model.reconstruct, model.nll):
        with pytest.raises(InputError, match=says):
            call(bad)


def test_other_bad_input(model: Trained, images: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"\(N, 3\), not \(2, 4\)"):
        model.decode(np.zeros((2, 4)))
    with pytest.raises(InputError, match="not finite"):
        model.decode(np.full((2, 3), np.inf))
    wrong: list[Callable[[], object]] = [
        lambda: model.sample(0), lambda: model.sample(1, temperature=-1), lambda: model.sample(1, seed=-1),
        lambda: model.nll(images, k=0),
    ]  # fmt: skip
    for call in wrong:
        with pytest.raises(ConfigError):
            call()
    for none in ("x", [[1, 2], [3]], None):
        for name in ("encode", "reconstruct", "nll"):
            with pytest.raises(InputError, match="images must be an array or a tensor of numbers"):
                getattr(model, name)(none)
        with pytest.raises(InputError, match="codes must be an array or a tensor of numbers"):
            model.decode(none)  # type: ignore[type-var]
    with pytest.raises(InputError, match=r"\(N, 1, 16, 16\), not \(1, 2\)"):
        model.encode([[1, 2]])  # type: ignore[type-var]
    with pytest.raises(InputError, match="no such checkpoint"):
        vaecli.load("nowhere")
    with pytest.raises(MachineError):
        vaecli.load("nowhere", device="mps")


def test_a_model_that_cannot(vae: Callable[..., Result], images: np.ndarray) -> None:
    settings = ("--data", "squares", "-S", "model.net={name: mlp, hidden: [16]}", "--latent-dim", 3, "--steps", 3)
    assert vae("train", "--model", "autoencoder", *settings, "--runs-dir", "runs", "--name", "a", "-q").code == 0
    model = vaecli.load("runs/a")
    assert model.posterior(images[:2]).logvar is None
    with pytest.raises(ConfigError, match="no -log p"):
        model.nll(images[:2])
    with pytest.raises(ConfigError):
        model.sample(2)


def test_the_page_of_the_docs_runs(tiny_run: Path, vae: Callable[..., Result]) -> None:
    """Every block of docs/python.md, one after the other, on a run called runs/x."""
    tiny_run.rename(tiny_run.parent / "x")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), flags=re.S)
    assert len(blocks) >= 3
    known: dict[str, object] = {}
    for block in blocks:
        exec(block, known)
    assert known["row"].shape == (7, 1, 16, 16)  # type: ignore[attr-defined]

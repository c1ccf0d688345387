"""Models without training: fitted in closed form or not at all, on images whose answer is known."""

import builtins
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from torch import Tensor

from vaecli import data, models, registry
from vaecli.batch import Batch
from vaecli.data.base import Bits, DataConfig, Dataset, Floats, assemble, grid_labels
from vaecli.data.squares import Config as Squares
from vaecli.errors import ConfigError, InputError
from vaecli.models import _linear
from vaecli.models._fingerprint import fingerprint
from vaecli.models._linear import LinearModel, Moments, leading, sign
from vaecli.models.base import Model, NoPrior
from vaecli.models.random import normals

LINEAR = ["pca", "pca-white", "random-rotation", "ica", "ppca"]
SIDE = 6


def images_of(x_NP: np.ndarray[Any, Any], labels_NK: Tensor | None = None, side: int = SIDE, **more: Any) -> Dataset:
    x_NCHW = torch.from_numpy(x_NP.astype(np.float32)).reshape(len(x_NP), 1, side, -1)
    store = Floats(x_NCHW, (1, side, x_NCHW.shape[3]))
    config = DataConfig(name="made", holdout=0)
    return assemble(config, store, labels_NK=labels_NK, binary=False, source={}, **more)


def made(n: int = 500, seed: int = 0) -> Dataset:
    """Images of 36 correlated pixels around a mean, with eigenvalues that fall by a fifth each."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(SIDE**2, SIDE**2)))
    return images_of(0.5 + 0.05 * (rng.normal(size=(n, SIDE**2)) * 0.8 ** np.arange(SIDE**2)) @ axes.T)


def fitted(name: str, dataset: Dataset, seed: int = 0, stop: Callable[[], bool] = lambda: False, **model: Any) -> Any:
    torch.manual_seed(seed)
    config = registry.load("model", name).Config(**{"name": name, **model})
    found = models.build(config, dataset.info)
    found.fit(dataset.training(0), stop, lambda images: None)
    return found.eval()


def codes_of(model: Model, dataset: Dataset) -> Tensor:
    return model.posterior(dataset.split("all").take(10**6).x_BCHW).mean_BD


def pixels_of(dataset: Dataset) -> np.ndarray[Any, Any]:
    return dataset.split("all").take(10**6).x_BCHW.flatten(1).double().numpy()


class Unread:
    """A split that must not be read."""

    def __len__(self) -> int:
        return 10

    indices = torch.arange(10)
    labels_NK = None

    def batches(self, batch_size: int) -> Iterator[Batch]:
        raise AssertionError("images were read")


# ---- covariance


@pytest.mark.parametrize("binary", [False, True])
def test_moments_of_blocks_are_those_of_all_rows(binary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear, "STRIP", 7)  # so that there are several, the last one narrower
    rng = np.random.default_rng(0)
    x = rng.random((301, 30)).astype(np.float32) + 100.0  # far from 0, where sums of squares lose their digits
    if binary:
        x = (x % 1 < 0.3).astype(np.float32)
    moments = Moments(30)
    for part in np.split(x, [1, 2, 150, 299]):
        moments.add(torch.from_numpy(part), binary)
    assert moments.count == 301
    np.testing.assert_allclose(moments.mean_P, x.astype(float).mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(moments.covariance_PP, np.cov(x.astype(float).T, ddof=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("pixels", "decay"), [(40, 0.9), (1100, 0.9), (1100, 1.0)])
def test_leading_axes(pixels: int, decay: float) -> None:
    """Small, large, and a spectrum too flat to iterate on: all as the decomposition says."""
    g = torch.Generator().manual_seed(0)
    if decay < 1:
        values_P = 5 * decay ** torch.arange(pixels, dtype=torch.float64)
        q_PP = torch.linalg.qr(torch.randn(pixels, pixels, generator=g, dtype=torch.float64)).Q
        matrix_PP = (q_PP * values_P) @ q_PP.T
    else:
        x = torch.randn(pixels, 4 * pixels, generator=g, dtype=torch.float64)
        matrix_PP = x @ x.T / (4 * pixels)
        values_P, q_PP = (a.flip(-1) for a in torch.linalg.eigh(matrix_PP))
    value_D, axes_PD = leading(matrix_PP, 4)
    np.testing.assert_allclose(value_D, values_P[:4], rtol=1e-12)
    np.testing.assert_allclose((q_PP[:, :4].T @ axes_PD).abs(), np.eye(4), atol=1e-6)


def test_sign_makes_the_largest_entry_positive() -> None:
    assert sign(torch.tensor([[1.0, -3.0, 2.0], [0.0, 0.0, 0.5], [-1.0, 0.5, 0.2]])).tolist() == [-1.0, 1.0, -1.0]


# ---- linear codes


def test_pca_is_the_singular_value_decomposition() -> None:
    dataset = made()
    model, x = fitted("pca", dataset, latent_dim=4), pixels_of(made())
    centred = x - x.mean(axis=0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    eigenvalues = s**2 / len(x)
    np.testing.assert_allclose(model.eigenvalue_D, eigenvalues[:4], rtol=1e-6)
    np.testing.assert_allclose(model.variance_D, eigenvalues[:4], rtol=1e-5)
    assert model.explained == pytest.approx(eigenvalues[:4].sum() / eigenvalues.sum(), rel=1e-6)
    np.testing.assert_allclose(model.importance(), eigenvalues[:4], rtol=1e-5)
    flips = np.sign(vt[np.arange(4), np.abs(vt[:4]).argmax(axis=1)])
    z = codes_of(model, dataset).double().numpy()
    np.testing.assert_allclose(z, centred @ (vt[:4].T * flips), atol=1e-5)
    # No four numbers leave less: what is lost is what the other components hold.
    back = model.decode(torch.from_numpy(z).float()).flatten(1).double().numpy()
    assert np.square(x - back).sum(axis=1).mean() == pytest.approx(eigenvalues[4:].sum(), rel=1e-5)


def test_pca_draws_from_the_gaussian_of_its_codes() -> None:
    model = fitted("pca", made(), latent_dim=3)
    torch.manual_seed(1)
    drawn_ND = model.draw(40_000)["z"]
    np.testing.assert_allclose(drawn_ND.var(dim=0), model.variance_D, rtol=0.04)
    assert float((drawn_ND.mean(dim=0) / model.variance_D.sqrt()).abs().max()) < 0.03
    assert not model.standard_prior and not model.has_likelihood
    assert model.posterior(torch.rand(2, 1, SIDE, SIDE)).logvar_BD is None


@pytest.mark.parametrize("name", ["pca-white", "random-rotation", "ica"])
def test_white_codes(name: str) -> None:
    """Mean 0, variance 1, uncorrelated, and the same images back as with PCA."""
    if name == "ica":
        pytest.importorskip("sklearn")
    dataset = made()
    model, plain = fitted(name, dataset, latent_dim=4), fitted("pca", dataset, latent_dim=4)
    z = codes_of(model, dataset)
    np.testing.assert_allclose(np.cov(z.double().numpy().T, ddof=0), np.eye(4), atol=2e-5)
    np.testing.assert_allclose(z.mean(dim=0), np.zeros(4), atol=1e-5)
    np.testing.assert_allclose(model.variance_D, np.ones(4), rtol=1e-5)
    np.testing.assert_allclose(model.decode(z), plain.decode(codes_of(plain, dataset)), atol=1e-5)
    assert sign(model.decode_DP).tolist() == [1.0] * 4
    # Together they carry the same variance of the images, white components each that of its own axis.
    assert float(model.importance().sum()) == pytest.approx(float(plain.eigenvalue_D.sum()), rel=1e-5)
    if name == "pca-white":
        np.testing.assert_allclose(model.importance(), plain.eigenvalue_D, rtol=1e-5)
    # A turn of the whitened principal components.
    turn = fitted("pca-white", dataset, latent_dim=4).decode_DP.double() @ model.encode_PD.double()
    np.testing.assert_allclose(turn @ turn.T, np.eye(4), atol=1e-5)
    assert bool((turn.abs() > 0.999).any(dim=1).all()) == (name == "pca-white")


def test_random_rotations_are_of_the_seed() -> None:
    a, again, b = (fitted("random-rotation", made(), seed, latent_dim=4).encode_PD for seed in (0, 0, 1))
    assert torch.equal(a, again) and not torch.allclose(a, b, atol=0.1)
    torch.manual_seed(0)
    turns = torch.stack([_linear.random_rotation(3) for _ in range(4000)])
    np.testing.assert_allclose(turns @ turns.transpose(1, 2), np.eye(3)[None].repeat(4000, 0), atol=1e-12)
    np.testing.assert_allclose(turns.mean(dim=0), np.zeros((3, 3)), atol=0.04)  # 4.4 deviations of 1 / sqrt(3 x 4000)
    assert 0.45 < float((torch.linalg.det(turns) > 0).double().mean()) < 0.55


def test_linear_codes_of_too_few_directions_are_refused() -> None:
    flat = images_of(np.outer(np.linspace(0, 1, 20), np.ones(SIDE**2)))
    with pytest.raises(InputError, match="fewer than 2 directions"):
        fitted("pca", flat, latent_dim=2)
    with pytest.raises(InputError, match="1 images are too few"):
        fitted("pca", made(1), latent_dim=2)
    with pytest.raises(ConfigError, match="only 36 values"):
        fitted("pca", made(), latent_dim=37)
    with pytest.raises(InputError, match="no variance for the noise"):
        fitted("ppca", made(), latent_dim=36)


def test_a_fit_that_is_stopped_is_of_the_images_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear, "BLOCK", 64)
    dataset, asked = made(), iter([False, False, True])
    model = fitted("pca", dataset, stop=lambda: next(asked), latent_dim=3)
    first = dataset.split("train").take(192).x_BCHW.flatten(1)
    np.testing.assert_allclose(model.mean_P, first.mean(dim=0), atol=1e-6)
    assert float(model.total_variance) == pytest.approx(float(first.double().var(dim=0, correction=0).sum()), rel=1e-5)


def test_progress_counts_every_image_once() -> None:
    seen: list[float] = []
    torch.manual_seed(0)
    model = models.build(registry.load("model", "pca").Config(latent_dim=2), made().info)
    model.fit(made().training(0), lambda: False, seen.append)
    assert sum(seen) == 500


def test_what_is_explained_is_said(vae: Callable[..., Result]) -> None:
    done = vae("train", "--data", "squares", "--model", "pca", "-S", "model.latent_dim=5", "--runs-dir", "runs")
    assert done.code == 0, done.err
    x = data.load(Squares(name="squares")).split("train").take(10**4).x_BCHW.flatten(1).double().numpy()
    value = np.linalg.eigvalsh(np.cov(x.T, ddof=0))[::-1]
    assert f"explained  {value[:5].sum() / value.sum():.2%} of the variance {value.sum():.6g}" in done.err
    assert "by 5 components of 456 images" in done.err


# ---- ppca


def test_ppca_elbo_is_the_exact_likelihood() -> None:
    """Against the density of N(mean, W W^T + s^2 I) in float64, and scikit-learn's estimate where it is installed."""
    dataset = made()
    model, x = fitted("ppca", dataset, latent_dim=4), pixels_of(made())
    value = np.linalg.eigvalsh(np.cov(x.T, ddof=0))[::-1]
    assert float(model.noise) == pytest.approx(value[4:].mean(), rel=1e-6)
    w = model.decode_DP.double().numpy()
    covariance = w.T @ w + float(model.noise) * np.eye(SIDE**2)
    centred = x - x.mean(axis=0)
    square = np.einsum("np,np->n", centred, np.linalg.solve(covariance, centred.T).T)
    exact = -0.5 * (square + np.linalg.slogdet(covariance)[1] + SIDE**2 * math.log(2 * math.pi))
    # -log p(x|z) under q, in closed form: that at the mean and what the variances add.
    images = dataset.split("all").take(10**6).x_BCHW
    q = model.posterior(images)
    assert q.logvar_BD is not None and q.kl_BD is not None
    spread = 0.5 * (q.logvar_BD.exp().double().numpy() * np.square(w).sum(axis=1)).sum(axis=1) / float(model.noise)
    expected = -model.nll(images, q.mean_BD, {}).double().numpy() - spread
    np.testing.assert_allclose(expected - q.kl_BD.sum(dim=1).numpy(), exact, rtol=2e-4)
    decomposition = pytest.importorskip("sklearn.decomposition")
    assert exact.mean() == pytest.approx(decomposition.PCA(4, svd_solver="full").fit(x).score(x), abs=5e-3)  # 1/(n - 1)


def test_ppca_obeys_the_variance_law() -> None:
    model = fitted("ppca", made(), latent_dim=4)
    q = model.posterior(made().split("all").take(500).x_BCHW)
    assert q.logvar_BD is not None
    np.testing.assert_allclose(
        q.mean_BD.var(dim=0, correction=0) + q.logvar_BD.exp().mean(dim=0), np.ones(4), rtol=1e-4
    )
    assert model.standard_prior


# ---- ica


def mixture(n: int = 4000) -> tuple[Dataset, np.ndarray[Any, Any]]:
    """Images mixed of two uniform sources, at equal strength and at no right angle."""
    sources = np.random.default_rng(0).uniform(-math.sqrt(3), math.sqrt(3), (n, 2))
    pictures = np.random.default_rng(1).normal(size=(2, SIDE**2))
    return images_of(0.5 + 0.1 * sources @ pictures), sources


def test_ica_finds_independent_sources() -> None:
    pytest.importorskip("sklearn")
    dataset, sources = mixture()
    model, white = (fitted(name, dataset, latent_dim=2) for name in ("ica", "pca-white"))
    order = dataset.splits["train"]  # rows of `all` are those of the sources; the fit saw them in this order
    assert len(order) == len(sources)

    def r(m: Model) -> np.ndarray[Any, Any]:
        return np.abs(np.corrcoef(codes_of(m, dataset).double().numpy().T, sources.T)[:2, 2:])

    found = r(model)
    assert (found.max(axis=1) > 0.999).all() and sorted(found.argmax(axis=1)) == [0, 1]
    assert r(white).max() < 0.99
    assert bool(model.converged)


def test_ica_rotation_is_orthogonal() -> None:
    pytest.importorskip("sklearn")
    dataset, _ = mixture()
    white_MD = codes_of(fitted("pca-white", dataset, latent_dim=2), dataset).double()
    torch.manual_seed(0)
    turn_DD = models.build(registry.load("model", "ica").Config(latent_dim=2), dataset.info).rotation(white_MD)
    np.testing.assert_allclose(turn_DD @ turn_DD.T, np.eye(2), atol=1e-8)


def test_ica_warns_where_it_does_not_converge(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(registry.load("model", "ica"), "ITERATIONS", 1)
    assert not bool(fitted("ica", mixture()[0], latent_dim=2).converged)
    assert capfd.readouterr().err.count("did not converge in 1 iterations") == 1


@pytest.mark.parametrize("name", ["ica", "ica-pairs"])
def test_ica_without_its_library_reads_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.startswith("sklearn"):
            raise ImportError(module)
        return real(module, *args, **kwargs)

    module = registry.load("model", name)
    model = models.build(module.Config.model_validate(module.Config.tiny), data.load(Squares(name="squares")).info)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="scikit-learn") as raised:
        model.fit(Unread(), lambda: False, lambda images: None)
    assert raised.value.hint == 'pip install "vaecli[analyze]"'


def test_ica_of_pairs_is_fitted_to_the_other_values() -> None:
    pytest.importorskip("sklearn")
    dataset = data.load(Squares(name="squares", holdout=0))
    x_NP, labels_NK = pixels_of(dataset), dataset.labels
    assert labels_NK is not None
    for left_out in range(3):
        model = fitted("ica-pairs", dataset, latent_dim=3, factor="size", left_out=left_out)
        kept = labels_NK[:, 0].numpy() != left_out
        np.testing.assert_allclose(model.mean_P, x_NP[kept].mean(axis=0), atol=1e-6)
        z = codes_of(model, dataset).double().numpy()
        np.testing.assert_allclose(np.cov(z[kept].T, ddof=0), np.eye(3), atol=1e-4)
        assert not np.allclose(np.cov(z[~kept].T, ddof=0), np.eye(3), atol=0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"factor": "sise"}, "did you mean 'size'"), ({"factor": "size", "left_out": 3}, "size has values 0 to 2")],
)
def test_ica_of_pairs_refuses_what_is_not_there(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fitted("ica-pairs", data.load(Squares(name="squares")), **settings)


# ---- pixels, random, factors


def test_pixels_are_their_own_code() -> None:
    dataset = made(20)
    model = fitted("pixels", dataset)
    images = dataset.split("all").take(20).x_BCHW
    assert torch.equal(codes_of(model, dataset), images.flatten(1))
    assert torch.equal(model.decode(images.flatten(1)), images)
    with pytest.raises(NoPrior):
        model.draw(2)
    packed = Bits.pack((images > 0.5).numpy())  # the same code, however the images are stored
    code = model.posterior(packed.gather(torch.arange(20))).mean_BD
    assert torch.equal(code, (images > 0.5).float().flatten(1))


def test_fingerprints_tell_images_apart() -> None:
    """No collision among images of which each differs from another in one pixel, by as little as 1/255; the same alone
    as in a batch."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (1, 1, 16, 16)).repeat(3000, axis=0)
    base.reshape(3000, -1)[np.arange(1, 3000), rng.integers(0, 256, 2999)] = np.arange(1, 3000) % 256
    unique = np.unique(base.reshape(3000, -1), axis=0).reshape(-1, 1, 16, 16)
    images = torch.from_numpy(unique).float() / 255
    prints = fingerprint(images)
    assert len(prints.unique()) == len(unique) > 2000
    assert torch.equal(fingerprint(images[5:6]), prints[5:6])
    binary = torch.eye(256).reshape(256, 1, 16, 16)
    assert len(torch.cat([fingerprint(binary), fingerprint(1 - binary)]).unique()) == 512


def test_random_codes_are_normal_and_know_nothing() -> None:
    z = normals(torch.arange(100_000), 6, 1).numpy()
    error = 1 / math.sqrt(len(z))
    assert np.abs(z.mean(axis=0)).max() < 4 * error
    assert np.abs(z.var(axis=0) - 1).max() < 4 * math.sqrt(2) * error
    assert np.abs((z**4).mean(axis=0) - 3).max() < 4 * math.sqrt(96) * error
    assert np.abs(np.corrcoef(z.T) - np.eye(6)).max() < 4.5 * error
    for lag in (1, 2):  # neighbouring images have nothing in common
        assert abs(np.mean(z[lag:] * z[:-lag])) < 4 * error / math.sqrt(6)
    assert np.abs(np.corrcoef(z[:, 0], normals(torch.arange(100_000), 6, 2)[:, 0])[0, 1]) < 4 * error


def test_random_codes_belong_to_their_images() -> None:
    dataset = made()
    model, again, other = (fitted("random", dataset, seed, latent_dim=5) for seed in (0, 0, 1))
    z = codes_of(model, dataset)
    assert torch.equal(z, codes_of(again, dataset))
    assert abs(np.corrcoef(z.flatten(), codes_of(other, dataset).flatten())[0, 1]) < 0.1
    images = dataset.split("all").take(500).x_BCHW
    assert torch.equal(model.posterior(images[7:9]).mean_BD, z[7:9])
    # The best guess of the image is the mean image, whatever the code.
    np.testing.assert_allclose(
        model.decode(z[:3]).flatten(1), pixels_of(dataset).mean(axis=0)[None].repeat(3, 0), atol=1e-6
    )


def test_factors_are_known_of_held_out_images_too() -> None:
    dataset = data.load(Squares(name="squares", holdout=0.3))
    model = fitted("factors", dataset)
    assert dataset.labels is not None
    np.testing.assert_allclose(codes_of(model, dataset), dataset.labels / torch.tensor([2.0, 12.0, 12.0]), atol=1e-7)
    with pytest.raises(InputError, match="2 images are not of squares"):
        model.posterior(torch.rand(2, 1, 16, 16))


def test_factors_decode_to_the_sum_of_their_effects() -> None:
    """Images that are such a sum come back exactly; drawn ones have each value of a factor equally often."""
    labels_NK = grid_labels((3, 4))
    rng = np.random.default_rng(0)
    a, b = 0.3 * rng.random((3, SIDE**2)), 0.3 * rng.random((4, SIDE**2))
    x = a[labels_NK[:, 0]] + b[labels_NK[:, 1]]
    dataset = images_of(x, labels_NK, factor_names=["a", "b"], factor_sizes=[3, 4])
    model = fitted("factors", dataset)
    images = dataset.split("all").take(12).x_BCHW
    np.testing.assert_allclose(model.decode(model.posterior(images).mean_BD), images, atol=1e-6)
    torch.manual_seed(0)
    value = (model.draw(30_000)["z"] * torch.tensor([2.0, 3.0])).round().clamp(min=0)
    np.testing.assert_allclose(value[:, 0].long().bincount() / 30_000, np.full(3, 1 / 3), atol=0.012)
    np.testing.assert_allclose(value[:, 1].long().bincount() / 30_000, np.full(4, 1 / 4), atol=0.012)


def test_factors_need_labels(vae: Callable[..., Result]) -> None:
    with pytest.raises(ConfigError, match="has none"):
        fitted("factors", made())
    refused = vae("train", "--data", "squares", "--model", "factors", "-S", "data.labelled=0.5", "--runs-dir", "runs")
    assert refused.code == 2 and "all labels" in refused.err


def test_half_a_table_of_factors_is_none() -> None:
    dataset = data.load(Squares(name="squares"))
    big = Dataset(dataset.info, dataset.images, dataset.labels, {"train": torch.arange(507).repeat(5)})
    model = models.build(registry.load("model", "factors").Config(), big.info)
    with pytest.raises(InputError, match="2,048 of 2,535"):
        model.fit(Repeated(big), lambda: True, lambda images: None)


class Repeated:
    """Five times the images, so that they take two batches."""

    def __init__(self, dataset: Dataset) -> None:
        self.indices = dataset.splits["train"]
        assert dataset.labels is not None
        self.dataset, self.labels_NK = dataset, dataset.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for part in self.indices.split(batch_size):
            yield self.dataset.batch(part)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_models_are_what_was_saved(name: str, vae: Callable[..., Result]) -> None:
    """The codes of a run read back are those of the model that was fitted with its seed."""
    if name == "ica":
        pytest.importorskip("sklearn")
    from vaecli import device
    from vaecli.training import checkpoint

    done = vae(
        "train",
        "--data",
        "squares",
        "--model",
        name,
        "-S",
        "model.latent_dim=3",
        "--seed",
        5,
        "--runs-dir",
        "runs",
        "-q",
    )
    assert done.code == 0, done.err
    loaded = checkpoint.load(done.out.strip(), torch.device("cpu")).model
    dataset = data.load(Squares(name="squares"))
    model = models.build(registry.load("model", name).Config(latent_dim=3), dataset.info)
    device.seed(5, "fit")
    model.fit(dataset.training(5), lambda: False, lambda images: None)
    assert isinstance(model, LinearModel)
    assert torch.equal(codes_of(loaded, dataset), codes_of(model, dataset))

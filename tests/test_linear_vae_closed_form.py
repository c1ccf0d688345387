"""The linear VAE in closed form, against its objective in float64 and against what a search finds no better."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result

from vaecli import models, registry
from vaecli.batch import DataInfo
from vaecli.data.base import Dataset, Floats
from vaecli.errors import InputError
from vaecli.training import checkpoint

PIXELS, N = 6, 500
EIGENVALUES = np.array([4.0, 2.0, 1.0, 0.15, 0.1, 0.1])


def rows() -> np.ndarray[Any, Any]:
    """N points whose covariance (1/N) has exactly the eigenvalues above."""
    rng = np.random.default_rng(0)
    white = np.linalg.qr((raw := rng.standard_normal((N, PIXELS))) - raw.mean(axis=0))[0] * math.sqrt(N)
    basis = np.linalg.qr(rng.standard_normal((PIXELS, PIXELS)))[0]
    return 0.3 + white * np.sqrt(EIGENVALUES) @ basis


def fitted(name: str = "linear-vae", **options: Any) -> Any:
    info = DataInfo("rows", (1, 2, 3), N)
    images = torch.from_numpy(rows()).float().reshape(N, 1, 2, 3)
    dataset = Dataset(info, Floats(images), None, {"train": torch.arange(N)})
    model = models.build(registry.load("model", name).Config(**{"latent_dim": 5, **options}), info)
    model.fit(dataset.training(0), lambda: False, lambda _: None)
    return model.double(), torch.from_numpy(rows()).reshape(N, 1, 2, 3)


def objective(w_PD: Any, v_PD: Any, width_D: Any, noise: float, beta: float) -> tuple[float, float]:
    """(ELBO, recon + beta KL) of decoder W, encoder means V'(x - mean) and widths, by matrices alone."""
    x = rows() - rows().mean(axis=0)
    mean_ND = x @ v_PD
    error = np.square(x - mean_ND @ w_PD.T).sum(axis=1).mean() + (np.square(w_PD).sum(axis=0) * width_D).sum()
    recon = 0.5 * (PIXELS * math.log(2 * math.pi * noise) + error / noise)
    kl = 0.5 * (np.square(mean_ND).mean(axis=0) + width_D - 1 - np.log(width_D)).sum()
    return -recon - kl, recon + beta * kl


@pytest.mark.parametrize("variance", [0.05, 0.25, 1.0, "learned"])
@pytest.mark.parametrize("beta", [1.0, 0.5, 3.0])
def test_it_is_the_optimum_of_its_objective(variance: float | str, beta: float) -> None:
    model, images = fitted(variance=variance, beta=beta)
    q, noise = model.posterior(images), float(model.noise)
    w, v = model.decode_DP.T.numpy(), model.encode_PD.numpy()
    width = q.logvar_BD.exp().mean(dim=0).numpy()
    elbo, loss = objective(w, v, width, noise, beta)
    facts = model.facts()
    assert facts["elbo"] == pytest.approx(elbo, abs=1e-5)
    assert facts["kl"] == pytest.approx(float(q.kl_BD.sum(dim=1).mean()), abs=1e-5)
    assert facts["noise_variance"] == pytest.approx(noise if variance == "learned" else variance, rel=1e-6)
    rng = np.random.default_rng(1)
    for size in (1e-2, 1e-3):  # whatever is moved a little is worse, but for turns of latents that are not in use
        for _ in range(50):
            dw, dv, dl = (rng.standard_normal(a.shape) * size for a in (w, v, width))
            assert objective(w + dw, v, width, noise, beta)[1] > loss - 1e-7
            assert objective(w, v + dv, width, noise, beta)[1] > loss - 1e-7
            assert objective(w + dw, v + dv, width * np.exp(dl), noise, beta)[1] > loss - 1e-7
        if variance == "learned":
            assert min(objective(w, v, width, noise * math.exp(d), beta)[1] for d in (-size, size)) > loss


@pytest.mark.parametrize(
    ("variance", "beta", "active"), [(0.05, 1, 5), (0.12, 1, 4), (0.25, 1, 3), (0.25, 6, 2), (5, 1, 0)]
)
def test_active_latents_are_the_eigenvalues_above_beta_times_the_variance(
    variance: float, beta: float, active: int
) -> None:
    model, images = fitted(variance=variance, beta=beta)
    q = model.posterior(images)
    assert model.facts()["active_latents"] == active == int((EIGENVALUES[:5] > beta * variance).sum())
    assert int((q.mean_BD.var(dim=0) > 1e-6).sum()) == active
    threshold = np.minimum(beta * variance / EIGENVALUES[:5], 1)
    np.testing.assert_allclose(q.logvar_BD.exp().mean(dim=0), threshold, rtol=1e-5)
    law = q.mean_BD.var(dim=0, correction=0) + q.logvar_BD.exp().mean(dim=0)
    np.testing.assert_allclose(law, np.ones(5), rtol=1e-5)
    assert model.kl_weight(model.hyper(0)) == beta


def test_with_learned_variance_it_is_ppca() -> None:
    linear, ppca = fitted(latent_dim=3)[0], fitted("ppca", latent_dim=3)[0]
    for key, value in ppca.state_dict().items():
        np.testing.assert_array_equal(linear.state_dict()[key], value, err_msg=key)
    assert linear.facts() == ppca.facts()
    value = EIGENVALUES[:3].tolist() + [EIGENVALUES[3:].mean()] * 3
    exact = -0.5 * (np.log(2 * math.pi * np.array(value)) + 1).sum()
    assert linear.facts()["elbo"] == pytest.approx(exact, abs=1e-5)
    assert linear.facts()["explained"] == pytest.approx(7 / EIGENVALUES.sum(), rel=1e-5)


def test_more_beta_than_the_data_carry_leaves_the_mean() -> None:
    model, images = fitted(beta=50.0)
    assert model.facts()["active_latents"] == 0
    assert float(model.noise) == pytest.approx(EIGENVALUES.sum() / PIXELS, rel=1e-5)
    assert torch.allclose(model.float().image(model.draw(2)), images.mean(dim=0).float(), atol=1e-5)
    with pytest.raises(InputError, match="no variance for the noise"):
        fitted("ppca", latent_dim=6)


def test_its_facts_are_shown(vae: Any) -> None:
    made = vae("train", "--data", "squares", "--model", "linear-vae", "--latent-dim", 3, "--runs-dir", "runs", "-q")
    done: Result = vae("analyze", made.out.strip(), "--split", "train")
    assert "model: explained 0." in done.err and "active latents 3" in done.err


def test_a_learned_variance_is_a_fact(vae: Any) -> None:
    net = ("-S", "model.net={name: mlp, hidden: [8]}", "--steps", 20, "--runs-dir", "runs", "-q")
    for variance, buffer in (("learned", "log_sigma"), ("running", "variance"), ("optimal", "variance")):
        likelihood = f"model.likelihood={{name: gaussian, variance: {variance}}}"
        made = vae("train", "--data", "squares", "--model", "vae", "-S", likelihood, *net)
        found = json.loads(vae("analyze", made.out.strip(), "--json", "-q").out)["facts"]
        stored = checkpoint.load(made.out.strip(), torch.device("cpu")).model.state_dict()[f"likelihood.{buffer}"]
        expected = float((2 * stored).exp() if buffer == "log_sigma" else stored)
        assert found == {"noise_variance": pytest.approx(expected, rel=1e-6)} and 0 < expected < 1
    made = vae("train", "--data", "squares", "--model", "vae", "-S", "model.likelihood={name: gaussian}", *net)
    assert json.loads(vae("analyze", made.out.strip(), "--json", "-q").out)["facts"] == {}

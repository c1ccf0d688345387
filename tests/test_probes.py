"""Probes of a linear-Gaussian model, in which gains, derivatives, variances and log p(x) have closed forms."""

import math

import numpy as np
import pytest
import test_linear_vae
import torch
from torch import Tensor

from vaecli.analysis import aggregate, probes
from vaecli.analysis.draws import Source
from vaecli.batch import DataInfo
from vaecli.data.base import Dataset, Floats, SplitView
from vaecli.models import vae
from vaecli.models.base import Hyper, Level, Model, ModelConfig, NoPrior, Values
from vaecli.objectives import terms as objective
from vaecli.objectives.distributions import Gaussian, Point

PIXELS, LATENTS, NOISE = 6, 3, 0.25  # the last latent has no weights: collapsed
EIGENVALUES = np.array([4.0, 1.0, 0.25, 0.25, 0.25, 0.25])


class Linear(Model):
    """Probabilistic PCA at its optimum: x = W z + noise; q(z|x) is exact but for the factor `widen` in variance."""

    def __init__(self, widen: float = 1.0, deterministic: bool = False) -> None:
        super().__init__(ModelConfig(name="linear"), DataInfo("normal", (1, 2, 3), 4000))
        kind = "point" if deterministic else "gaussian"
        self.levels = (Level("z", (LATENTS,), kind, standard=not deterministic),)
        self.widen, self.deterministic = widen, deterministic
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(PIXELS, PIXELS)))[0]
        w = basis[:, :LATENTS] * np.sqrt(EIGENVALUES[:LATENTS] - NOISE)
        self.register_buffer("basis", torch.from_numpy(basis))
        self.register_buffer("w_PD", torch.from_numpy(w))

    def q(self, level: str, features: Tensor, given: Values) -> Gaussian | Point:
        if self.deterministic:  # principal components, as they are
            return Point(features.flatten(1) @ self.basis[:, :LATENTS])
        m_DD = self.w_PD.T @ self.w_PD + NOISE * torch.eye(LATENTS, dtype=torch.float64)
        mean_BD = features.flatten(1) @ self.w_PD @ torch.linalg.inv(m_DD)
        return Gaussian(mean_BD, (self.widen * NOISE / m_DD.diagonal()).log().expand_as(mean_BD))

    def p(self, level: str, given: Values, n: int) -> Gaussian:
        if self.deterministic:
            raise NoPrior("none")
        zeros = torch.zeros(n, LATENTS, dtype=torch.float64)
        return Gaussian(zeros, zeros)

    def image(self, values: Values) -> Tensor:
        axes_PD = self.basis[:, :LATENTS] if self.deterministic else self.w_PD
        return (values["z"] @ axes_PD.T).unflatten(1, (1, 2, 3))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return objective.gaussian_log_prob(x_BCHW, self.image(values), math.sqrt(NOISE))


def view(n: int = 4000) -> SplitView:
    """Images whose covariance (1/N) has exactly the eigenvalues, mean 0, in the model's basis."""
    raw = np.random.default_rng(1).normal(size=(n, PIXELS))
    raw -= raw.mean(axis=0)
    white = np.linalg.qr(raw)[0] * math.sqrt(n)
    x = white * np.sqrt(EIGENVALUES) @ Linear().basis.numpy().T
    dataset = Dataset(Linear().info, Floats(torch.from_numpy(x.reshape(n, 1, 2, 3))), None, {"all": torch.arange(n)})
    return SplitView(dataset, "all", torch.arange(n))


ONE = torch.ones(LATENTS, dtype=torch.float64)


def test_random_batches_draw_without_repetition() -> None:
    chosen = [torch.cat([b.index_B for b in probes.random_batches(view(100), 60, 7, seed)]) for seed in (0, 0, 1)]
    assert len(chosen[0]) == len(set(chosen[0].tolist())) == 60
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2])
    everything = torch.cat([b.index_B for b in probes.random_batches(view(100), 999, 30, 0)])
    assert sorted(everything.tolist()) == list(range(100))


def test_gains_and_sensitivity_of_each_latent() -> None:
    model, seen = Linear(), []
    found = probes.latents(Source(model), view(), {}, ONE, images=4000, advance=seen.append)
    assert found.images == 4000 and sum(seen) == 4000 * LATENTS and found.instead == "zero"
    x = view().take(4000).x_BCHW.flatten(1)
    mean, w = model.posterior(x.view(-1, 1, 2, 3)).mean_BD.numpy(), model.w_PD.numpy()
    residual = x.numpy() - mean @ w.T
    along, size2 = (residual @ w) * mean, (w**2).sum(axis=0)
    gain = (2 * along + size2 * mean**2) / (2 * NOISE)
    np.testing.assert_allclose(found.gain_D, gain.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.gain_error_D, gain.std(axis=0, ddof=1) / math.sqrt(4000), atol=1e-9)
    # With z_i ~ N(0, 1) in place of the mean, |w_i|^2 is added to the squares on average.
    assert found.prior_gain_D is not None and found.prior_gain_error_D is not None
    expected = gain.mean(axis=0) + size2 / (2 * NOISE)
    assert (np.abs(found.prior_gain_D - expected) <= 4 * found.prior_gain_error_D + 1e-12).all()
    assert (found.prior_gain_error_D[:2] < 0.1 * expected[:2]).all()
    np.testing.assert_allclose(found.sensitivity_D, np.sqrt(size2), atol=1e-9)
    # In nats: the eigenvalue of a latent over the noise. The collapsed one is worth nothing.
    lam = EIGENVALUES[:LATENTS]
    np.testing.assert_allclose(found.gain_D, (lam - NOISE) * (lam + NOISE) / (2 * lam * NOISE), atol=1e-9)
    assert found.gain_D[2] == pytest.approx(0, abs=1e-12) and found.sensitivity_D[2] == pytest.approx(0, abs=1e-6)


def test_a_deterministic_code_is_put_to_its_mean() -> None:
    model, offset = Linear(deterministic=True), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    found = probes.latents(Source(model), view(), {}, ONE, offset, images=4000)
    assert found.instead == "mean" and found.prior_gain_D is None and found.prior_gain_error_D is None
    np.testing.assert_allclose(found.gain_D, (EIGENVALUES[:3] + np.array([1, 0, 0])) / (2 * NOISE), atol=1e-9)
    np.testing.assert_allclose(found.sensitivity_D, 1.0, atol=1e-9)


def test_images_of_the_probe() -> None:
    assert [probes.latent_images(d) for d in (1, 10, 50, 1000)] == [500, 500, 100, 32]


def test_variance_loss_of_pca_is_the_mse() -> None:
    found = probes.variance_loss(Source(Linear(deterministic=True)), view(), images=4000)
    assert found.var_x == pytest.approx(EIGENVALUES.mean()) and found.var_xhat == pytest.approx(5.25 / 6)
    assert found.gap == pytest.approx(found.mse, rel=1e-12) and found.mse == pytest.approx(0.75 / 6)
    assert found.bias == pytest.approx(0, abs=1e-15) and found.covariance == pytest.approx(0, abs=1e-12)
    assert found.var_generated is None and found.sampled_mse == found.mse and found.images == 4000


def test_variance_loss_of_a_vae() -> None:
    found = probes.variance_loss(Source(Linear()), view(), images=4000)
    # E[x|z = E[z|x]] keeps 1 - noise / lambda of each principal component.
    keep = np.clip(1 - NOISE / EIGENVALUES, 0, None)
    assert found.var_xhat == pytest.approx((keep**2 * EIGENVALUES).mean(), rel=1e-9)
    assert found.mse == pytest.approx(((1 - keep) ** 2 * EIGENVALUES).mean(), rel=1e-9)
    assert found.covariance == pytest.approx(2 * (keep * (1 - keep) * EIGENVALUES).mean(), rel=1e-9)
    assert found.identity == pytest.approx(0, abs=1e-14) and found.gap > found.mse
    assert found.var_generated == pytest.approx((EIGENVALUES - NOISE).mean(), abs=0.06)
    assert found.gamma == pytest.approx(math.sqrt(NOISE), rel=0.01)  # the optimum is where sigma already is


def test_a_density_is_not_called_the_prior_and_moves_no_other_number() -> None:
    """Gains by the prior are of p(z), and the best sigma is of q(z|x), whatever is stored for samples."""

    class Wide:
        def sample(self, n: int) -> Tensor:
            return 5.0 * torch.randn(n, LATENTS, dtype=torch.float64)

        def text(self) -> str:
            return "wide"

    plain, wide = Source(Linear()), Source(Linear(), Wide())  # type: ignore[arg-type]
    gains = [probes.latents(source, view(), {}, ONE, images=1000).prior_gain_D for source in (plain, wide)]
    np.testing.assert_array_equal(*gains)
    losses = [probes.variance_loss(source, view(), images=1000) for source in (plain, wide)]
    assert losses[0].gamma == losses[1].gamma and losses[0].var_generated is not None
    assert losses[1].var_generated == pytest.approx(25 * losses[0].var_generated, rel=0.2)


def exact_nll(x_ND: np.ndarray) -> float:
    cov = Linear().w_PD.numpy() @ Linear().w_PD.numpy().T + NOISE * np.eye(PIXELS)
    quadratic = np.einsum("np,pq,nq->n", x_ND, np.linalg.inv(cov), x_ND)
    return float(0.5 * (quadratic.mean() + np.linalg.slogdet(cov)[1] + PIXELS * math.log(2 * math.pi)))


def test_draws_of_the_prior() -> None:
    drawn = Source(Linear()).table(5)
    assert drawn is not None and drawn.shape == (5, LATENTS)
    assert Source(Linear(deterministic=True)).table(5) is None


def test_a_trained_linear_vae_by_probabilistic_pca() -> None:
    model, s2 = test_linear_vae.trained(vae), test_linear_vae.SIGMA**2
    x, n = test_linear_vae.data(), test_linear_vae.N
    images = SplitView(Dataset(model.info, Floats(x), None, {"all": torch.arange(n)}), "all", torch.arange(n))
    with torch.no_grad():
        q = model.posterior(x)
    m = aggregate.marginals(q.mean_BD.numpy(), q.logvar_BD.numpy())
    np.testing.assert_allclose(m.variance_D, 1.0, atol=0.01)
    found = probes.latents(Source(model), images, {"likelihood.sigma": 0.5}, torch.ones(5).double(), images=n)
    lam = test_linear_vae.EIGENVALUES[:3].numpy()
    gains = np.sort((lam - s2) * (lam + s2) / (2 * lam * s2))
    np.testing.assert_allclose(np.sort(found.gain_D)[2:], gains, rtol=0.02)
    rules = aggregate.inactive(m, found.gain_D)
    unused = [d for d in range(5) if m.var_mu_D[d] < 0.01]
    assert len(unused) == 2
    for flags in rules.values():
        assert flags is not None and np.flatnonzero(flags).tolist() == unused

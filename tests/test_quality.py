"""Frechet distance, precision and recall, and log p(x) by importance sampling, against closed forms."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_probes
import torch
from conftest import TINY, Result
from torch import Tensor
from torch.distributions import Distribution

from vaecli import data, device
from vaecli.analysis import likelihood, oracle, samples
from vaecli.analysis.draws import Source
from vaecli.batch import DataInfo
from vaecli.data.base import Dataset, Floats, SplitView
from vaecli.models.base import Level, Values
from vaecli.models.base import Model as Base
from vaecli.objectives import distributions, likelihoods
from vaecli.training import checkpoint

# -------------------------------------------------------------------------------------------------------------- frechet


def gaussian(seed: int, d: int = 12, rank: int | None = None) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, rank or 2 * d, generator=g, dtype=torch.float64)
    return torch.randn(d, generator=g, dtype=torch.float64), root @ root.T / (rank or 2 * d)


def test_frechet_of_gaussians_in_closed_form() -> None:
    # Covariances that commute: the roots of the eigenvalues are subtracted.
    a, b = torch.tensor([4.0, 1.0, 0.0, 9.0]).double(), torch.tensor([1.0, 1.0, 2.25, 0.25]).double()
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    off = torch.tensor([1.0, -2.0, 0.0, 0.5]).double()
    expected = 1 + 4 + 0.25 + (1 + 0 + 2.25 + 6.25)
    found = samples.frechet(off, turn @ a.diag() @ turn.T, torch.zeros(4).double(), turn @ b.diag() @ turn.T)
    assert found == pytest.approx(expected, abs=1e-9)
    # Two latents in general: tr (AB)^1/2 = sqrt(tr AB + 2 sqrt(det AB)).
    (m, cov_a), (n, cov_b) = gaussian(1, 2), gaussian(2, 2)
    cross = math.sqrt(float((cov_a @ cov_b).trace()) + 2 * math.sqrt(float(cov_a.det() * cov_b.det())))
    expected = float((m - n).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * cross
    assert samples.frechet(m, cov_a, n, cov_b) == pytest.approx(expected, abs=1e-9)


def test_frechet_is_a_metric_squared_and_the_optimal_cost() -> None:
    (m, cov_a), (n, cov_b) = gaussian(3), gaussian(4)
    there, back = samples.frechet(m, cov_a, n, cov_b), samples.frechet(n, cov_b, m, cov_a)
    assert there == pytest.approx(back, abs=1e-9) and there > 0
    # The optimal map between the two is T = A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2; its cost is E|x - T x|^2.
    value, vectors = torch.linalg.eigh(cov_a)
    root, inverse = ((vectors * value**power) @ vectors.T for power in (0.5, -0.5))
    inner_value, inner = torch.linalg.eigh(root @ cov_b @ root)
    t = inverse @ ((inner * inner_value.sqrt()) @ inner.T) @ inverse
    move = torch.eye(12).double() - t
    expected = float((m - n).square().sum() + (move @ cov_a @ move.T).trace())
    assert there == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rank", [None, 5])
def test_frechet_of_the_same_is_nothing(rank: int | None) -> None:
    mean, cov = gaussian(5, 40, rank)
    assert samples.frechet(mean, 100 * cov, mean, 100 * cov) == pytest.approx(0, abs=1e-9)


def test_moments_are_those_of_numpy() -> None:
    features = torch.randn(30, 7, generator=torch.Generator().manual_seed(0)) + 3
    mean, cov = samples.moments(features)
    np.testing.assert_allclose(mean, features.double().numpy().mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(cov, np.cov(features.double().numpy().T), atol=1e-12)


# ------------------------------------------------------------------------------------------------- precision and recall


def line(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)[:, None]


def test_precision_and_recall_of_points_on_a_line() -> None:
    real, made = line(0, 1, 2, 3), line(0.5, 3.9, 4.1, 10, 11)
    # k = 1: balls of radius 1 around the real points reach from -1 to 4; around the made ones of 3.4, 0.2, 0.2, 1, 1.
    assert samples.radii(real, 1).tolist() == pytest.approx([1, 1, 1, 1], abs=1e-12)
    assert samples.radii(made, 1).tolist() == pytest.approx([3.4**2, 0.04, 0.04, 1, 1], abs=1e-12)
    assert samples.precision_recall(real, made, 1) == (2 / 5, 4 / 4)
    # k = 3: 0.5 - 3 = -2.5 to 6; the made ones reach 9.5, 6.1, 5.9, 6.1, 7.1: all of the real ones are in.
    assert samples.precision_recall(real, made, 3) == (3 / 5, 1.0)
    # The converse.
    assert samples.precision_recall(made, real, 1) == (1.0, 2 / 5)


def test_precision_and_recall_at_the_extremes() -> None:
    g = torch.Generator().manual_seed(0)
    real = torch.randn(200, 5, generator=g)
    assert samples.precision_recall(real, real) == (1.0, 1.0)
    assert samples.precision_recall(real, real + 100) == (0.0, 0.0)
    # All samples at one real image: precise, and next to nothing is recalled.
    one = real[:1] + 1e-6 * torch.randn(200, 5, generator=g)
    assert samples.precision_recall(real, one) == (1.0, 1 / 200)
    # A point on the rim is in, however the rounding falls.
    for shift in (0.0, 1e3, 1 / 3):
        assert samples.precision_recall(line(0, 1, 2) + shift, line(3, 30, 31) + shift, 1)[0] == 1 / 3


def test_precision_and_recall_by_hand_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(1)
    real, made = torch.randn(60, 4, generator=g).double(), 1.5 * torch.randn(50, 4, generator=g).double() + 0.5

    def share(points: Tensor, centres: Tensor, k: int) -> float:
        radius = torch.cdist(centres, centres).sort(dim=1).values[:, k]  # the first is the point itself
        return float((torch.cdist(points, centres) <= radius).any(dim=1).double().mean())

    expected = share(made, real, 3), share(real, made, 3)
    assert samples.precision_recall(real, made) == expected and 0.2 < expected[0] < 0.9
    for held in (1, 130, 1000):
        monkeypatch.setattr(samples, "DISTANCES", held)
        assert samples.precision_recall(real, made) == expected


# ----------------------------------------------------------------------------------------------------------- likelihood


def exact(images: int) -> float:
    return test_probes.exact_nll(test_probes.view(images).take(images).x_BCHW.flatten(1).numpy())


def test_log_p_is_exact_where_the_posterior_is() -> None:
    for k in (1, 7, 130):
        found = likelihood.estimate(test_probes.Linear(), test_probes.view(150), {}, k, images=150)
        assert found.nll == pytest.approx(exact(150), abs=1e-9)
        assert found.negative_elbo == pytest.approx(exact(150), abs=1e-9)
        assert (found.k, found.images) == (k, 150) and found.effective == pytest.approx(k, abs=1e-6)
        assert not found.hangs_on_few


def test_log_p_of_fitted_models_is_the_closed_form() -> None:
    """ppca and linear-vae, fitted: x ~ N(mean, W W' + s^2)."""
    from vaecli.models import linear_vae, ppca

    x = torch.randn(80, 20, generator=torch.Generator().manual_seed(0)).double()
    x = (x * torch.linspace(2, 0.3, 20)).float().reshape(80, 1, 4, 5)
    info = DataInfo("normal", (1, 4, 5), 80)
    view = SplitView(Dataset(info, Floats(x), None, {"all": torch.arange(80)}), "all", torch.arange(80))
    narrow = linear_vae.Config(latent_dim=3, variance=0.4, beta=0.5)
    for model in (ppca.Model(ppca.Config(latent_dim=3), info), linear_vae.Model(narrow, info)):
        model.fit(view, lambda: False, lambda amount: None)
        model = model.double().eval()
        w_DP, noise = model.decode_DP, float(model.noise)
        p = torch.distributions.MultivariateNormal(model.mean_P, w_DP.T @ w_DP + noise * torch.eye(20).double())
        expected = -float(p.log_prob(x.double().flatten(1)).mean())
        found = likelihood.estimate(model, double(view), {}, 2000 if model.beta != 1 else 3)
        if model.beta == 1:  # q is the posterior
            assert found.nll == pytest.approx(expected, abs=1e-5)
        else:
            assert found.nll == pytest.approx(expected, abs=0.02) and found.negative_elbo > expected + 0.2
        assert found.kind == "density" and found.bits_per_dim is None


def double(view: SplitView) -> SplitView:
    images = Floats(view.dataset.images.gather(view.indices).double())
    dataset = Dataset(view.dataset.info, images, None, {"all": torch.arange(len(view))})
    return SplitView(dataset, "all", torch.arange(len(view)))


def test_the_bound_rises_to_log_p() -> None:
    model, view = test_probes.Linear(widen=2.0), test_probes.view(300)
    bounds = [likelihood.estimate(model, view, {}, k) for k in (1, 5, 60, 1000)]
    assert bounds[0].nll == pytest.approx(bounds[0].negative_elbo, abs=1e-12)
    # KL(q || posterior) of three latents at twice the variance.
    assert bounds[3].negative_elbo - exact(300) == pytest.approx(1.5 * (1 - math.log(2)), abs=0.02)
    nlls = [found.nll for found in bounds]
    assert nlls == sorted(nlls, reverse=True) and nlls[3] == pytest.approx(exact(300), abs=0.005)
    assert 1 < bounds[1].effective < 5 and bounds[3].effective > 0.5 * 1000


def test_one_number_whatever_is_decoded_at_a_time_or_asked_beside() -> None:
    model, view = test_probes.Linear(widen=3.0), test_probes.view(300)
    found = [likelihood.estimate(model, view, {}, 170, images=60, rows=rows) for rows in (None, 1, 137, 5000)]
    for other in found[1:]:
        assert other.nll == pytest.approx(found[0].nll, abs=1e-10)
        assert other.error == pytest.approx(found[0].error, abs=1e-10)
        assert other.effective == pytest.approx(found[0].effective, abs=1e-6)
    # Each image's number is its own: that of a part is the mean over the part.
    one = [
        likelihood.estimate(model, SplitView(view.dataset, "val", view.indices[i : i + 1]), {}, 170).nll
        for i in range(20)
    ]
    part = likelihood.estimate(model, SplitView(view.dataset, "val", view.indices[:20]), {}, 170)
    assert part.nll == pytest.approx(np.mean(one), abs=1e-10)
    assert part.error == pytest.approx(np.std(one, ddof=1) / math.sqrt(20), abs=1e-10)
    assert likelihood.estimate(model, view, {}, 170, images=60, seed=1).nll != found[0].nll


def test_by_hand_from_the_same_draws() -> None:
    model, view = test_probes.Linear(widen=3.0), test_probes.view(10)
    k, places = 130, view.indices.tolist()
    bounds, elbos, effective = [], [], []
    for place in places:
        x = view.dataset.batch(torch.tensor([place])).x_BCHW.expand(likelihood.UNIT, 1, 2, 3)
        weights = []
        for unit in range(2):
            device.seed(0, "nll", place, unit)
            drawn = model.infer(x, sample=True)
            q, z = drawn.posteriors["z"], drawn.values["z"]
            log_p = model.p("z", {}, likelihood.UNIT).log_prob(z).sum(dim=1)
            weights.append(model.log_prob(x, drawn.values, {}) + log_p - q.log_prob(z).sum(dim=1))
        w = torch.cat(weights)[:k]
        bounds.append(float(w.logsumexp(dim=0)) - math.log(k))
        elbos.append(float(w.mean()))
        share = w.softmax(dim=0)
        effective.append(1 / float(share.square().sum()))
    found = likelihood.estimate(model, view, {}, k)
    assert found.nll == pytest.approx(-np.mean(bounds), abs=1e-9)
    assert found.negative_elbo == pytest.approx(-np.mean(elbos), abs=1e-9)
    assert found.effective == pytest.approx(float(torch.tensor(effective).median()), rel=1e-6)


def test_weights_far_apart_neither_overflow_nor_vanish() -> None:
    weights = likelihood.Weights(2)
    log_w = torch.tensor([-2000.0, 900.0, -math.inf, 899.0, 5.0]).double()
    for part in torch.split(log_w, 2):
        weights.add(0, part)
    assert float(weights.bound_B[0]) == pytest.approx(float(log_w.logsumexp(0)) - math.log(5), abs=1e-12)
    share = log_w.softmax(0)
    assert float(weights.effective_B[0]) == pytest.approx(1 / float(share.square().sum()), abs=1e-12)
    weights.add(1, torch.full((3,), -math.inf))
    assert float(weights.bound_B[1]) == -math.inf


class Levels(Base):
    """z2 -> z1 -> x, all Gaussian and linear, inferred upwards by a posterior that is not the true one."""

    def __init__(self) -> None:
        super().__init__(test_probes.ModelConfig(name="levels"), DataInfo("normal", (1, 1, 3), 10))
        self.levels = (Level("z2", (1,), standard=True), Level("z1", (2,)))
        self.register_buffer("down", torch.tensor([[0.8, -0.5]]).double())
        self.register_buffer("out", torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, -0.7]]).double())

    def inference_order(self) -> list[str]:
        return ["z1", "z2"]

    def q(self, level: str, features: Tensor, given: Values) -> Distribution:
        if level == "z1":
            mean = 0.8 * features.flatten(1)[:, :2]
            return distributions.Gaussian(mean, torch.full_like(mean, math.log(0.3)))
        mean = 0.4 * given["z1"][:, :1] - 0.3 * given["z1"][:, 1:]
        return distributions.Gaussian(mean, torch.full_like(mean, math.log(0.7)))

    def p(self, level: str, given: Values, n: int) -> Distribution:
        if level == "z2":
            zeros = torch.zeros(n, 1).double()
            return distributions.Gaussian(zeros, zeros)
        mean = given["z2"] @ self.down
        return distributions.Gaussian(mean, torch.full_like(mean, math.log(0.5)))

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: object) -> Tensor:
        mean = values["z1"] @ self.out
        return distributions.log_prob(
            distributions.Gaussian(mean, torch.full_like(mean, math.log(0.2))), x_BCHW[:, 0, 0]
        )


def test_log_p_of_several_levels() -> None:
    model = Levels()
    cov_1 = model.down.T @ model.down + 0.5 * torch.eye(2).double()
    cov = model.out.T @ cov_1 @ model.out + 0.2 * torch.eye(3).double()
    p = torch.distributions.MultivariateNormal(torch.zeros(3).double(), cov)
    torch.manual_seed(0)
    x = p.sample((60,)).reshape(60, 1, 1, 3)
    view = SplitView(Dataset(model.info, Floats(x), None, {}), "all", torch.arange(60))
    assert likelihood.refusal(model, x[:2], {}) is None
    found = likelihood.estimate(model, view, {}, 3000, images=60)
    assert found.nll == pytest.approx(-float(p.log_prob(x.flatten(1)).mean()), abs=0.01)
    assert found.negative_elbo > found.nll + 0.1


def test_what_log_p_is_the_logarithm_of() -> None:
    class Coins(test_probes.Linear):
        def __init__(self, likelihood: object) -> None:
            super().__init__()
            self.likelihood = likelihood

    def kind(of: object, x: Tensor) -> tuple[str, float | None, float]:
        dataset = Dataset(test_probes.Linear().info, Floats(x.double()), None, {})
        found = likelihood.estimate(Coins(of), SplitView(dataset, "all", torch.arange(len(x))), {}, 3)
        return found.kind, found.bits_per_dim, found.nll

    binary = torch.tensor([0.0, 1.0]).repeat(12).reshape(4, 1, 2, 3)
    grey = torch.arange(24).reshape(4, 1, 2, 3) / 255
    name, bits, nll = kind(likelihoods.Bernoulli(), binary)
    assert name == "probability" and bits == pytest.approx(nll / math.log(2) / 6, rel=1e-12)
    assert kind(likelihoods.Bernoulli(), grey)[:2] == ("cross-entropy", None)
    assert kind(likelihoods.DiscretizedLogistic(256, 0.1), grey)[0] == "probability"
    assert kind(likelihoods.DiscretizedLogistic(256, 0.1), grey + 0.001)[:2] == ("bin", None)
    for of in (likelihoods.Gaussian(), likelihoods.Laplace(1.0, True), likelihoods.ContinuousBernoulli()):
        assert kind(of, grey)[:2] == ("density", None)


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def quick_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "LEAST_STEPS", 30)
    monkeypatch.setattr(oracle, "SEEN", 30 * oracle.BATCH)


def train(vae: Callable[..., Result], model: str, *more: object, name: str = "r") -> Path:
    done = vae(
        "train", "--model", model, *TINY, "--steps", 30, "--runs-dir", "runs", "--name", name, *more, "-q", "--force"
    )
    assert done.code == 0, done.err
    return Path(done.out.strip())


def test_analyze_says_both(tiny_run: Path, vae: Callable[..., Result], quick_oracle: None) -> None:
    args = ("--split", "train", "--samples", 60, "--nll", 70, "--nll-images", 20)
    done = vae("analyze", tiny_run, *args, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    made, nll = record["samples"], record["nll"]
    assert made["n"] == 60 and made["k"] == 3 and made["drawn_from"] == "the prior" and made["split"] == "train"
    assert 0 < made["fcd_floor"] < made["fcd"] and 0 <= made["precision"] <= 1 and made["fcd_reconstructions"] > 0
    assert set(made["oracle"]["accuracy"]) == {"size", "posX", "posY"}
    assert nll["k"] == 70 and nll["images"] == 20 and nll["kind"] == "probability"
    assert nll["nll"] < nll["negative_elbo"] and 1 <= nll["effective_draws"] <= 70
    assert nll["bits_per_dim"] == pytest.approx(nll["nll"] / 256 / math.log(2))
    assert "FCD is mostly bias" in done.err  # 60 images, 128 features
    again = json.loads(vae("analyze", tiny_run, *args, "--json", "--batch-size", 7).out)
    assert again["samples"] == made and again["nll"] == nll
    text = vae("analyze", tiny_run, *args)
    assert text.out.startswith("latent\t") and text.out.count("\n") == 4  # stdout is the latents' alone
    assert "FCD of samples\t" in text.err and "-log p(x), K = 70\t" in text.err and "bits/dim" in text.err
    plain = json.loads(vae("analyze", tiny_run, "--split", "train", "--json").out)
    assert plain["samples"] is None and plain["nll"] is None
    assert {k: v for k, v in plain.items() if k not in ("samples", "nll")}.items() <= record.items()


def test_samples_are_those_of_vae_sample(tiny_run: Path, vae: Callable[..., Result], quick_oracle: None) -> None:
    found = json.loads(vae("analyze", tiny_run, "--split", "train", "--samples", 70, "--seed", 4, "--json").out)
    assert vae("sample", tiny_run, "-n", 70, "--seed", 4, "-o", "s.npz").code == 0
    made = torch.from_numpy(np.load("s.npz")["images"])
    loaded = checkpoint.load(tiny_run, torch.device("cpu"))
    dataset = data.load(loaded.config.data, loaded.info)
    judge = oracle.oracle(dataset)
    reference, _ = samples.sets(dataset, dataset.split("train"), 70)
    real = judge.features(dataset.images.gather(reference))
    assert found["samples"]["fcd"] == pytest.approx(samples.fcd(judge.features(made), real), rel=1e-4)
    assert samples.fcd(real, real) == pytest.approx(0, abs=1e-9)


def test_samples_of_a_stored_density(tiny_run: Path, vae: Callable[..., Result], quick_oracle: None) -> None:
    assert vae("density", tiny_run, "--fit", "normal", "-q").code == 0
    args = ("analyze", tiny_run, "--split", "train", "--samples", 60, "--json")
    fitted, plain = (json.loads(vae(*args, *more).out)["samples"] for more in ((), ("--density", "none")))
    assert plain["drawn_from"] == "the prior" != fitted["drawn_from"] and plain["fcd"] != fitted["fcd"]
    assert plain["fcd_floor"] == fitted["fcd_floor"]


def test_sets_of_images_have_nothing_in_common() -> None:
    from vaecli.data import squares

    dataset = squares.load(squares.Config(name="squares"))
    for name, n, expected in (("val", 500, 51), ("train", 200, 200), ("train", 500, 228), ("all", 400, 253)):
        view = dataset.split(name)
        reference, other = samples.sets(dataset, view, n)
        assert len(reference) == expected and other is not None and len(other) == expected
        assert not set(reference.tolist()) & set(other.tolist())
        assert set(reference.tolist()) <= set(view.indices.tolist())
        if name == "val":
            assert not set(other.tolist()) & set(view.indices.tolist())


@pytest.mark.parametrize(
    ("model", "args", "says"),
    [
        ("autoencoder", ["--nll", 5], "--nll: the posterior of autoencoder puts all on one value of z"),
        ("autoencoder", ["--samples", 20], "--samples: a deterministic autoencoder has no prior to sample from"),
        ("vq-vae", ["--nll", 5], "--nll: the posterior of vq-vae puts all on one value"),
        ("pca", ["--nll", 5], "--nll: pca has no likelihood"),
        ("infogan", ["--nll", 5], "--nll: infogan has no likelihood"),
    ],
)
def test_refused_with_the_reason(model: str, args: list[object], says: str, vae: Callable[..., Result]) -> None:
    from vaecli import registry

    tiny = registry.load("model", model).Config.tiny
    settings = [part for key, value in tiny.items() for part in ("-S", f"model.{key}={json.dumps(value)}")]
    more = ["--steps", 3] if model not in ("pca",) else []
    done = vae("train", "--data", "squares", "--model", model, *settings, *more, "--runs-dir", "runs", "-q")
    assert done.code == 0, done.err
    refused = vae("analyze", done.out.strip(), *args)
    assert refused.code == 2 and says in refused.err and refused.out == ""


def test_numbers_that_mean_nothing(tiny_run: Path, vae: Callable[..., Result]) -> None:
    for args, says in (
        (["--nll", 0], "--nll is 0; it must be at least 1"),
        (["--samples", 3], "--samples is 3; it must be at least 10"),
        (["--nll", 3, "--nll-images", 0], "--nll-images is 0"),
        (["--density", "x", "--samples", 20], "--density is 'x'"),
    ):
        refused = vae("analyze", tiny_run, *args)
        assert refused.code == 2 and says in refused.err, refused.err
    np.savez("c.npz", codes=np.random.default_rng(0).normal(size=(30, 2)))
    assert "has no model" in vae("analyze", "c.npz", "--nll", 3).err


def test_data_without_labels(vae: Callable[..., Result]) -> None:
    np.save("x.npy", np.random.default_rng(0).integers(0, 255, (60, 16, 16)).astype(np.uint8))
    net = ["-S", "model.net={name: mlp, hidden: [16]}", "--latent-dim", 3]
    done = vae("train", "--data", "array:x.npy", "--model", "vae", *net, "--steps", 3, "--runs-dir", "runs", "-q")
    assert done.code == 0, done.err
    refused = vae("analyze", done.out.strip(), "--split", "train", "--samples", 20)
    assert refused.code == 2 and "the images have no labels" in refused.err


def test_a_flow_is_weighed_by_its_density() -> None:
    from vaecli.models import iaf_vae

    info = DataInfo("x", (1, 2, 3), 10, binary=True)
    torch.manual_seed(0)
    model = iaf_vae.Model(iaf_vae.Config(**iaf_vae.Config.tiny), info).double().eval()
    with torch.no_grad():
        model.encoder[-1].bias[3:6] += 1.5  # wider than the posterior, so that the weights vary little
    x = (torch.rand(4, 1, 2, 3) > 0.5).double()
    view = SplitView(Dataset(info, Floats(x), None, {}), "all", torch.arange(4))
    found = likelihood.estimate(model, view, {}, 20000, images=4)
    # log p(x) over the three latents on a grid.
    axis = torch.linspace(-6, 6, 61).double()
    z = torch.cartesian_prod(axis, axis, axis)
    log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)
    with torch.no_grad():
        exact = [
            (model.log_prob(x[i : i + 1].expand(len(z), 1, 2, 3), {"z": z}, {}) + log_prior).logsumexp(0)
            + 3 * math.log(12 / 60)
            for i in range(4)
        ]
    assert found.nll == pytest.approx(-float(torch.stack(exact).mean()), abs=0.01)
    assert Source(model).text == "the prior"

"""`beta-tcvae` and its estimators of log q(z): exact on mixtures whose terms are known by integration, in float64."""

import itertools
import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from conftest import Result
from torch import Tensor
from torch import distributions as dist

from vaecli import models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.errors import ConfigError
from vaecli.models.base import Model, total
from vaecli.objectives.total_correlation import Estimator, Parts, decompose, log_mixture, log_weights

F64 = torch.float64
ESTIMATORS: list[Estimator] = ["mss", "mws", "minibatch"]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def means(parts: Parts) -> tuple[float, float, float]:
    mi, tc, dwkl = (float(part_B.detach().mean()) for part_B in (parts.mi_B, parts.tc_B, parts.dwkl_B))
    return mi, tc, dwkl


# --------------------------------------------------------------------------------------------------- weights and sums


@pytest.mark.parametrize(("b", "n"), [(2, 2), (2, 9), (5, 5), (5, 6), (16, 1000)])
def test_weights_sum_to_what_they_should(b: int, n: int) -> None:
    like = torch.zeros((), dtype=F64)
    for estimator, expected in (("mss", 1.0), ("minibatch", 1.0), ("mws", 1 / n)):
        weight_BB = log_weights(b, n, estimator, like).exp()  # type: ignore[arg-type]
        torch.testing.assert_close(weight_BB.sum(1), torch.full((b,), expected, dtype=F64), rtol=1e-12, atol=0)
    own_B = log_weights(b, n, "mss", like).exp().diagonal()
    torch.testing.assert_close(own_B, torch.full((b,), 1 / n, dtype=F64), rtol=1e-12, atol=0)


def test_mss_is_unbiased_for_the_density() -> None:
    """The mean of q^(z), and of every q^(z_d), over all ordered batches of 3 out of 6 that hold z's own image is q(z)
    of all 6; with the uniform weights it is not."""
    n, b = 6, 3
    mean_ND, logvar_ND, z_D = rand(n, 2), rand(n, 2, seed=1), rand(2, seed=2)
    each_ND = dist.Normal(mean_ND, (0.5 * logvar_ND).exp()).log_prob(z_D).exp()
    exact = torch.cat([each_ND.prod(1).mean()[None], each_ND.mean(0)])
    found: dict[str, list[Tensor]] = {"mss": [], "minibatch": []}
    for own in range(n):
        for others in itertools.permutations([i for i in range(n) if i != own], b - 1):
            batch = [own, *others]
            for estimator, values in found.items():
                weight_BB = log_weights(b, n, estimator, z_D)  # type: ignore[arg-type]
                joint_B, marginal_BD = log_mixture(z_D.expand(b, 2), mean_ND[batch], logvar_ND[batch], weight_BB)
                values.append(torch.cat([joint_B[:1], marginal_BD[0]]).exp())
    # The row of z's own image, the first, for every image that may be its own.
    by_own = torch.stack(found["mss"]).reshape(n, -1, 3).mean(1)
    torch.testing.assert_close(by_own, exact.expand(n, 3), rtol=1e-12, atol=0)
    by_own = torch.stack(found["minibatch"]).reshape(n, -1, 3).mean(1)
    assert float((by_own / exact - 1).abs().max()) > 0.1


@every_estimator
def test_mixture_equals_sums_over_the_batch(estimator: Estimator) -> None:
    b, n = 5, 40
    z_BD, mean_BD, logvar_BD = rand(b, 3), rand(b, 3, seed=1), rand(b, 3, seed=2)
    parts = decompose(z_BD, mean_BD, logvar_BD, n, estimator)
    for i in range(b):
        joint, marginal_D = 0.0, [0.0] * 3
        for j in range(b):
            stratified = 1 / n if i == j else 1 / (b - 1) - 1 / n if j == (i + 1) % b else 1 / (b - 1)
            weight = {"mss": stratified, "mws": 1 / (b * n), "minibatch": 1 / b}[estimator]
            densities = [
                math.exp(-0.5 * (float(z - mean) ** 2 / math.exp(logvar) + float(logvar))) / math.sqrt(2 * math.pi)
                for z, mean, logvar in zip(z_BD[i], mean_BD[j], logvar_BD[j], strict=True)
            ]
            joint += weight * math.prod(densities)
            marginal_D = [m + weight * q for m, q in zip(marginal_D, densities, strict=True)]
        own = float(dist.Normal(mean_BD[i], (0.5 * logvar_BD[i]).exp()).log_prob(z_BD[i]).sum())
        prior = float(dist.Normal(0.0, 1.0).log_prob(z_BD[i]).sum())
        product = sum(math.log(m) for m in marginal_D)
        assert float(parts.mi_B[i]) == pytest.approx(own - math.log(joint), abs=1e-9)
        assert float(parts.tc_B[i]) == pytest.approx(math.log(joint) - product, abs=1e-9)
        assert float(parts.dwkl_B[i]) == pytest.approx(product - prior, abs=1e-9)


@every_estimator
def test_the_parts_telescope_to_the_kl_of_the_draw(estimator: Estimator) -> None:
    z_BD, mean_BD, logvar_BD = rand(30, 10, scale=2.0), rand(30, 10, seed=1), rand(30, 10, seed=2, scale=2.0)
    parts = decompose(z_BD, mean_BD, logvar_BD, 737_280, estimator)
    q, p = dist.Normal(mean_BD, (0.5 * logvar_BD).exp()), dist.Normal(torch.zeros((), dtype=F64), 1.0)
    expected_B = (q.log_prob(z_BD) - p.log_prob(z_BD)).sum(1)
    torch.testing.assert_close(parts.mi_B + parts.tc_B + parts.dwkl_B, expected_B, rtol=1e-12, atol=1e-9)


def test_weighted_and_uniform_differ_by_constants() -> None:
    z_BD, mean_BD, logvar_BD = rand(20, 10), rand(20, 10, seed=1).requires_grad_(), rand(20, 10, seed=2)
    found, log_n = {}, math.log(5000)
    for estimator in ("mws", "minibatch"):
        parts = decompose(z_BD, mean_BD, logvar_BD, 5000, estimator)  # type: ignore[arg-type]
        (slope,) = torch.autograd.grad(parts.tc_B.mean(), mean_BD, retain_graph=True)
        found[estimator] = (means(parts), slope)
    (weighted, slope), (uniform, same_slope) = found["mws"], found["minibatch"]
    assert weighted[0] - uniform[0] == pytest.approx(log_n, abs=1e-9)
    assert weighted[1] - uniform[1] == pytest.approx(9 * log_n, abs=1e-9)
    assert weighted[2] - uniform[2] == pytest.approx(-10 * log_n, abs=1e-9)
    torch.testing.assert_close(slope, same_slope, rtol=1e-9, atol=1e-12)
    assert float(slope.abs().max()) > 1e-3


def test_far_apart_and_narrow_codes_stay_finite_in_float32() -> None:
    mean_BD = (1000 * rand(8, 4)).float().requires_grad_()
    logvar_BD = torch.full((8, 4), -30.0, requires_grad=True)
    for estimator in ESTIMATORS:
        parts = decompose(mean_BD + 1e-7, mean_BD, logvar_BD, 100, estimator)
        (parts.mi_B + parts.tc_B + parts.dwkl_B).sum().backward()
        for tensor in (parts.mi_B, parts.tc_B, parts.dwkl_B, mean_BD.grad, logvar_BD.grad):
            assert tensor is not None and bool(torch.isfinite(tensor).all())


# ---------------------------------------------------------------------------------------------- what the numbers mean


@cache
def pair() -> tuple[Tensor, Tensor, tuple[float, float, float]]:
    """24 codes of two dependent latents, (24, 2) means and log-variances, and (MI, TC, DWKL) of their mixture by
    integration over a fine grid."""
    a_N = torch.linspace(-1.6, 1.6, 24, dtype=F64)
    mean_ND = torch.stack([a_N, 0.7 * a_N + 0.5 * torch.sin(9 * a_N)], dim=1)
    logvar_ND = torch.stack([-1.5 + 0.3 * torch.cos(3 * a_N), -2.0 + 0.4 * torch.sin(2 * a_N)], dim=1)
    grid = torch.linspace(-6, 6, 1201, dtype=F64)
    cell = float(grid[1] - grid[0])
    density = [dist.Normal(mean_ND[:, d], (0.5 * logvar_ND[:, d]).exp()).log_prob(grid[:, None]).exp() for d in (0, 1)]
    joint = density[0] @ density[1].T / 24
    first, second = (q.mean(1) for q in density)
    assert float(joint.sum()) * cell**2 == pytest.approx(1, abs=1e-10)
    prior = dist.Normal(torch.zeros((), dtype=F64), 1.0).log_prob(grid)

    def integral(p: Tensor, value: Tensor) -> float:
        return float(torch.where(p > 0, p * value, 0.0).nan_to_num(0.0).sum())

    entropy = -integral(joint, joint.log()) * cell**2
    within = float((0.5 * (logvar_ND + math.log(2 * math.pi * math.e))).sum(1).mean())
    alone = -sum(integral(q, q.log()) * cell for q in (first, second))
    dwkl = sum(integral(q, q.log() - prior) * cell for q in (first, second))
    return mean_ND, logvar_ND, (entropy - within, alone - entropy, dwkl)


def test_the_known_terms_add_up_to_the_mean_kl() -> None:
    mean_ND, logvar_ND, known = pair()
    q = dist.Normal(mean_ND, (0.5 * logvar_ND).exp())
    kl = dist.kl_divergence(q, dist.Normal(torch.zeros((), dtype=F64), 1.0)).sum(1).mean()
    assert sum(known) == pytest.approx(float(kl), abs=1e-9)
    assert known[1] > 0.35  # the latents do depend on each other


@cache
def measured(b: int) -> tuple[tuple[float, float, float], dict[Estimator, list[tuple[float, float]]]]:
    """Four latents, two independent pairs as above over the 576 combinations of their codes, so that every term is
    twice the pair's: the truth, and each estimator's (mean, standard error) of MI, TC, DWKL over many batches of b."""
    mean_ND, logvar_ND, (mi, tc, dwkl) = pair()
    first, second = (index.flatten() for index in torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij"))
    mean_ND, logvar_ND = (torch.cat([t[first], t[second]], dim=1) for t in (mean_ND, logvar_ND))
    g = torch.Generator().manual_seed(0)
    rows: dict[Estimator, list[tuple[float, float, float]]] = {estimator: [] for estimator in ESTIMATORS}
    for _ in range(max(40, 6000 // b)):
        index = torch.randperm(576, generator=g)[:b]
        mean_BD, logvar_BD = mean_ND[index], logvar_ND[index]
        z_BD = mean_BD + (0.5 * logvar_BD).exp() * torch.randn(b, 4, dtype=F64, generator=g)
        for estimator in ESTIMATORS:
            rows[estimator].append(means(decompose(z_BD, mean_BD, logvar_BD, 576, estimator)))
    summary = {}
    for estimator, values in rows.items():
        table = torch.tensor(values, dtype=F64)
        errors = table.std(0) / math.sqrt(len(table))
        summary[estimator] = list(zip(table.mean(0).tolist(), errors.tolist(), strict=True))
    return (2 * mi, 2 * tc, 2 * dwkl), summary


def test_the_whole_data_set_as_one_batch_gives_the_truth() -> None:
    """`minibatch` with B = N is the mixture itself; `mws` is then off by its constants alone."""
    truth, found = measured(576)
    for (value, error), exact in zip(found["minibatch"], truth, strict=True):
        assert value == pytest.approx(exact, abs=4 * error) and error < 0.02
    for (value, error), exact, latents in zip(found["mws"], truth, (1, 3, -4), strict=True):
        assert value == pytest.approx(exact + latents * math.log(576), abs=4 * error)


@pytest.mark.parametrize("b", [8, 64])
def test_biases_have_their_known_directions(b: int) -> None:
    """Of MI 2.59, TC 0.77 and DWKL 0.13, a batch of 8 makes 3.79, 0.41 and -0.72 by `mss`, 1.64, 1.20 and 0.64 by
    `minibatch`, 8.00, 20.27 and -24.79 by `mws`; at 64 the first two are within 0.2."""
    truth, found = measured(b)
    bias = {
        name: [value - exact for (value, _), exact in zip(values, truth, strict=True)] for name, values in found.items()
    }
    report = f"truth {truth}; bias at B = {b}: {bias}"
    few = {name: [3 * error for _, error in values] for name, values in found.items()}
    assert bias["mss"][0] > few["mss"][0] and bias["mss"][1] < -few["mss"][1], report
    assert bias["minibatch"][0] < -few["minibatch"][0] and bias["minibatch"][1] > few["minibatch"][1], report
    assert found["minibatch"][0][0] < math.log(b), report
    assert bias["mws"][1] > 3 * math.log(576), report
    if b == 64:  # more images, less bias
        smaller = measured(8)
        for name in ("mss", "minibatch"):
            for part in (0, 1):
                assert abs(bias[name][part]) < 0.4 * abs(smaller[1][name][part][0] - truth[part]), report  # type: ignore[index]


# ----------------------------------------------------------------------------------------------------------- the model


INFO = DataInfo("toy", (1, 4, 4), 50, binary=True)  # for a Bernoulli likelihood


def made(**settings: object) -> Model:
    torch.manual_seed(0)
    values = {"name": "beta-tcvae", "latent_dim": 3, "net": {"name": "mlp", "hidden": [8], "activation": "tanh"}}
    config = registry.load("model", "beta-tcvae").Config.model_validate({**values, **settings})
    return models.build(config, INFO).double()


def batch(n: int = 6) -> Batch:
    x_BCHW = torch.rand(n, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    return Batch(x_BCHW, torch.arange(n))


@every_estimator
def test_the_loss_is_the_weighted_sum(estimator: Estimator) -> None:
    model, b = made(estimator=estimator, alpha=0.5, beta=7.0, gamma=2.0), batch()
    torch.manual_seed(4)
    parts = model.loss(b, model.hyper(0))
    torch.manual_seed(4)
    mean_BD, logvar_BD = model.encoder(b.x_BCHW).chunk(2, dim=1)
    z_BD = mean_BD + (0.5 * logvar_BD).exp() * torch.randn(6, 3, dtype=F64)
    logits = model.decoder(z_BD)
    recon = -(b.x_BCHW * logits.sigmoid().log() + (1 - b.x_BCHW) * (-logits).sigmoid().log()).flatten(1).sum(1).mean()
    mi, tc, dwkl = means(decompose(z_BD, mean_BD, logvar_BD, 50, estimator))
    assert float(parts["recon"].value) == pytest.approx(float(recon), abs=1e-9)
    for name, value, weight in (("mi", mi, 0.5), ("tc", tc, 7.0), ("dwkl", dwkl, 2.0)):
        assert float(parts[name].value) == pytest.approx(value, abs=1e-9)
        assert parts[name].weight == weight
    assert parts["kl"].weight is None  # its closed form is logged beside them, and not minimised
    loss, _ = total(parts)
    assert float(loss) == pytest.approx(float(recon) + 0.5 * mi + 7 * tc + 2 * dwkl, abs=1e-9)


def test_at_equal_weights_it_is_the_vae_along_the_draw() -> None:
    model, b = made(beta=1.0), batch()
    parts = model.loss(b, model.hyper(0))
    torch.manual_seed(9)
    drawn = torch.stack([total(model.loss(b, model.hyper(0)))[0] for _ in range(3000)]).detach()
    torch.manual_seed(9)
    elbo = torch.stack([model.loss(b, model.hyper(0))["elbo"].value for _ in range(3000)]).detach()
    assert float(drawn.mean()) == pytest.approx(-float(elbo.mean()), abs=4 * float((drawn + elbo).std()) / 3000**0.5)
    assert model.kl_weight(model.hyper(0)) == 1.0 and set(parts) == {"recon", "kl", "mi", "tc", "dwkl", "elbo"}


def test_the_weight_of_the_kl_is_told_only_where_there_is_one() -> None:
    assert made(beta=6.0).kl_weight(made(beta=6.0).hyper(0)) is None
    warm = made(alpha=4.0, gamma=4.0, beta={"schedule": "linear", "start": 0.0, "end": 4.0, "steps": 100})
    assert warm.kl_weight(warm.hyper(50)) is None and warm.hyper(50)["beta"] == 2.0
    assert warm.kl_weight(warm.hyper(100)) == 4.0


def test_the_banner_tells_the_estimators_offset() -> None:
    text = {name: made(estimator=name).objective_text(made().hyper(0)) for name in ESTIMATORS}
    assert f"{2 * math.log(50):+.1f}" in text["mws"] and "same gradients" in text["mws"]
    assert "unbiased for q(z), not for its logarithm" in text["mss"]
    assert "at most log B" in text["minibatch"]
    assert all("alpha = 1, beta = 6, gamma = 1" in line for line in text.values())


def test_batches_that_cannot_be_are_refused_before_training(vae: Callable[..., Result]) -> None:
    train = ["train", "--data", "squares", "--model", "beta-tcvae", "--steps", 2, "-q", "--batch-size"]
    assert vae(*train, 100_000).code == 2 and "without replacement" in vae(*train, 100_000).err
    assert vae(*train, 1).code == 2 and "compares the images of a batch" in vae(*train, 1).err
    with pytest.raises(ConfigError, match="without replacement"):
        log_weights(51, 50, "mss", torch.zeros(()))
    assert float(log_weights(51, 50, "minibatch", torch.zeros(()))[0, 0]) == pytest.approx(-math.log(51))

"""iaf-vae: the flow's Jacobian by automatic differentiation, its inverse and densities, the objective recomputed from
distributions in float64, and a posterior with correlated latents, which a flow fits and a diagonal Gaussian cannot."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch import distributions as td

from vaecli import models
from vaecli.batch import Batch, DataInfo
from vaecli.models import iaf_vae, vae
from vaecli.models.base import total
from vaecli.nets.flows import GATE_BIAS, MADE, InverseAutoregressive
from vaecli.objectives import distributions

F64 = torch.float64
INFO = DataInfo("toy", (1, 4, 4), 64, binary=True)
TINY = {"latent_dim": 5, "net": {"name": "mlp", "hidden": [16]}, "hidden": [12], "steps": 3}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def net(latents: int = 6, context: int = 4, hidden: tuple[int, ...] = (13, 9), reverse: bool = False) -> MADE:
    torch.manual_seed(latents)
    made = MADE(latents, context, hidden, reverse).double()
    with torch.no_grad():  # larger than at the start, so that the Jacobian is far from the identity
        for parameter in made.parameters():
            parameter.mul_(2.0)
    return made


def build(**options: Any) -> iaf_vae.Model:
    torch.manual_seed(0)
    return models.build(iaf_vae.Config.model_validate({**TINY, **options}), INFO).double()  # type: ignore[return-value]


def toy(n: int = 32) -> Batch:
    g = torch.Generator().manual_seed(7)
    return Batch((torch.rand(n, 1, 4, 4, generator=g) > 0.5).double(), torch.arange(n))


# ---- the masked net and one step


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("latents", [1, 2, 5, 6])
def test_the_nets_numbers_read_exactly_the_latents_before(latents: int, reverse: bool) -> None:
    """Every one of them, none other; and all read the context."""
    made, z, context = net(latents, hidden=(24, 24), reverse=reverse), rand(latents), rand(4, seed=1)
    for which in (0, 1):
        by_z, by_context = torch.autograd.functional.jacobian(lambda a, b, w=which: made(a, b)[w], (z, context))
        wanted = torch.ones(latents, latents).tril(-1)
        assert torch.equal((by_z != 0).float(), wanted.T if reverse else wanted)
        assert bool((by_context != 0).all())


def test_hidden_layers_narrower_than_the_latents_keep_the_order() -> None:
    by_z = torch.autograd.functional.jacobian(lambda a: net(6, hidden=(2, 3))(a, rand(4))[0], rand(6))
    assert bool((by_z.triu() == 0).all()) and bool((by_z != 0).any())


@pytest.mark.parametrize("reverse", [False, True])
def test_the_jacobian_of_a_step_is_triangular_and_its_logarithm_the_sum(reverse: bool) -> None:
    made, z, context = net(reverse=reverse), rand(6), rand(4, seed=1)
    step = InverseAutoregressive(made, context)
    jacobian = torch.autograd.functional.jacobian(step, z)
    other_side = jacobian.tril(-1) if reverse else jacobian.triu(1)
    assert bool((other_side == 0).all()) and (jacobian - jacobian.diag().diag()).abs().max() > 0.05
    y = step(z)
    same(step.log_abs_det_jacobian(z, y), torch.linalg.slogdet(jacobian).logabsdet)
    same(step.log_scale(z), jacobian.diag().log())
    m, s = made(z, context)
    gate = 1 / (1 + torch.exp(-(s + 1.5)))
    same(y, gate * z + (1 - gate) * m)


def test_the_jacobian_of_all_steps_and_their_inverse() -> None:
    steps = [InverseAutoregressive(net(reverse=bool(t % 2)), rand(7, 4, seed=t)) for t in range(4)]
    flow = td.ComposeTransform(steps)
    z = rand(7, 6, seed=9)
    jacobians = torch.autograd.functional.jacobian(lambda a: flow(a).sum(dim=0), z).permute(1, 0, 2)
    y = flow(z)
    same(flow.log_abs_det_jacobian(z, y), torch.linalg.slogdet(jacobians).logabsdet)
    assert flow.inv(y) is z  # remembered
    same(flow.inv(y.clone()), z)  # solved for
    assert flow.inv(y.clone()) is not z
    same(flow(flow.inv(z.clone())), z)


def test_an_untrained_step_keeps_four_fifths() -> None:
    made, z = net(), rand(3, 6)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    step = InverseAutoregressive(made, rand(3, 4))
    same(step(z), z / (1 + math.exp(-1.5)))
    assert GATE_BIAS == 1.5 and 1 / (1 + math.exp(-GATE_BIAS)) == pytest.approx(0.8, abs=0.02)


def test_what_is_remembered_never_stands_for_another_value() -> None:
    made, context = net(), rand(3, 4)
    step, first, second = InverseAutoregressive(made, context), rand(3, 6), rand(3, 6, seed=5)
    y = step(first)
    step(second)
    fresh = InverseAutoregressive(made, context)
    same(step.log_abs_det_jacobian(first, y), fresh.log_abs_det_jacobian(first, y))
    assert not torch.allclose(step.log_scale(first), step.log_scale(second))


# ---- the posterior


def test_the_density_of_a_draw_is_that_of_the_value_whoever_gives_it() -> None:
    """From the cache, from the inverse, and by the change of variables with a Jacobian of our own."""
    model, x = build(), toy(4).x_BCHW
    features = model.features(x)
    q = model.q("z", features, {})
    torch.manual_seed(1)
    z = distributions.sample(q)
    remembered = distributions.log_prob(q, z)
    same(distributions.log_prob(q, z.detach().clone()), remembered)
    same(distributions.log_prob(model.q("z", features, {}), z), remembered)
    mean, logvar, context = features
    torch.manual_seed(1)
    start = mean + (logvar / 2).exp() * torch.randn_like(mean)
    for i in range(4):

        def move(value: Tensor, row: int = i) -> Tensor:
            for made in model.made:
                value = InverseAutoregressive(made, context[row])(value)
            return value

        same(move(start[i]), z[i])
        determinant = torch.linalg.slogdet(torch.autograd.functional.jacobian(move, start[i])).logabsdet
        base = td.Normal(mean[i], (logvar[i] / 2).exp()).log_prob(start[i]).sum()
        same(remembered[i], base - determinant)


def test_every_second_step_counts_from_the_last() -> None:
    degrees = [made.degree_D.tolist() for made in build().made]
    assert degrees == [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [1, 2, 3, 4, 5]]


def test_moments_are_the_same_at_every_call_and_those_of_the_draws() -> None:
    model, x = build(), toy(3).x_BCHW
    torch.manual_seed(1)
    first = model.posterior(x)
    torch.manual_seed(2)
    second = model.posterior(x)
    assert torch.equal(first.mean_BD, second.mean_BD) and first.kl_BD is None
    assert first.logvar_BD is not None and second.logvar_BD is not None
    assert torch.equal(first.logvar_BD, second.logvar_BD)
    n = 20_000
    with torch.no_grad():
        z = model.infer(x.repeat_interleave(n, dim=0), sample=True).values["z"].view(3, n, 5)
        sd = z.std(dim=1)
        # 64 antithetic draws of the tool's own: what is linear in the noise is exact, the rest small here.
        assert ((z.mean(dim=1) - first.mean_BD).abs() < 0.1 * sd).all()
        assert ((first.logvar_BD.exp() / sd.square()).log().abs() < 0.8).all()


# ---- the objective


def test_the_objective_recomputed_from_the_distributions() -> None:
    model, batch = build(), toy()
    torch.manual_seed(3)
    terms = total(model.loss(batch, model.hyper(0)))[1]
    torch.manual_seed(3)
    found = model.infer(batch.x_BCHW, sample=True)
    z = found.values["z"].detach().clone()
    log_q = found.posteriors["z"].log_prob(z)
    kl = (log_q - td.Normal(0.0, 1.0).log_prob(z).sum(dim=1)).mean()
    recon = -td.Bernoulli(logits=model.decoder(z)).log_prob(batch.x_BCHW).sum(dim=(1, 2, 3)).mean()
    expected = {"loss": recon + kl, "recon": recon, "kl": kl, "elbo": -(recon + kl)}
    assert terms.keys() == {*expected, "recon.weight", "kl.weight"}
    for name, value in expected.items():
        same(torch.as_tensor(terms[name]), value)
    (rate,) = model.rates(found).values()
    same(rate.mean(), kl)
    assert model.kl_weight(model.hyper(0)) == 1.0


def test_free_bits_cost_the_same_used_or_not_and_the_true_kl_is_logged() -> None:
    model, free, batch = build(), 0.3, toy()
    torch.manual_seed(3)
    plain = total(model.loss(batch, model.hyper(0)))[1]
    torch.manual_seed(3)
    _, rate_BD = model.sample(batch.x_BCHW)
    kl_D = rate_BD.detach().mean(dim=0)
    assert bool((kl_D < free).any()) and bool((kl_D > free).any())
    freed = build(free_bits=free)
    torch.manual_seed(3)
    loss, terms = total(freed.loss(batch, freed.hyper(0)))
    wanted = sum(max(free, float(kl)) for kl in kl_D)
    assert float(torch.as_tensor(terms["kl_free"]).detach()) == pytest.approx(wanted, abs=1e-9)
    same(loss, torch.as_tensor(plain["recon"]) + wanted)
    for name in ("recon", "kl", "elbo"):
        same(torch.as_tensor(terms[name]), torch.as_tensor(plain[name]))
    assert "kl.weight" not in terms and terms["kl_free.weight"] == 1.0 and freed.kl_weight(freed.hyper(0)) is None
    assert "0.3" in freed.objective_text(freed.hyper(0))
    with pytest.raises(ValidationError):
        iaf_vae.Config(free_bits=-0.1)


def test_without_steps_it_is_the_vae() -> None:
    model, batch = build(steps=0), toy()
    config = vae.Config.model_validate({"latent_dim": 5, "net": TINY["net"]})
    plain = models.build(config, INFO).double()
    weights = {key: t[:10] if key.startswith("encoder.3.") else t for key, t in model.state_dict().items()}
    plain.load_state_dict(weights)
    values = []
    for one in (model, plain):
        torch.manual_seed(3)
        values.append(total(one.loss(batch, one.hyper(0)))[1])
    assert values[0].keys() == values[1].keys()
    for name, value in values[1].items():
        same(torch.as_tensor(values[0][name], dtype=F64), torch.as_tensor(value, dtype=F64))
    found, wanted = model.posterior(batch.x_BCHW), plain.posterior(batch.x_BCHW)
    same(found.mean_BD, wanted.mean_BD)
    assert found.kl_BD is not None and wanted.kl_BD is not None
    same(found.kl_BD, wanted.kl_BD)


def test_correlated_latents_the_flow_closes_the_gap_that_a_diagonal_posterior_leaves() -> None:
    """x = W z + noise, so that log p(x) is known, and the best diagonal posterior: at the true mean, with the diagonal
    of the true precision, 1/2 (sum log of that diagonal, less the log-determinant) below. A flow gets to log p(x)."""
    sigma, info = 0.5, DataInfo("linear", (1, 1, 4), 2048)
    W = torch.tensor([[1.0, 0.9], [0.8, 1.0], [1.0, 0.7], [0.6, 0.9]], dtype=F64)
    precision = torch.eye(2, dtype=F64) + W.T @ W / sigma**2
    gap = float(0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)))
    assert gap > 0.5
    marginal = td.MultivariateNormal(torch.zeros(4, dtype=F64), W @ W.T + sigma**2 * torch.eye(4, dtype=F64))
    torch.manual_seed(1)
    x = marginal.sample((2048,)).view(-1, 1, 1, 4)
    evidence = float(marginal.log_prob(x.view(-1, 4)).mean())

    def below(model: iaf_vae.Model) -> float:
        """log p(x) less the ELBO, over eight draws of each image."""
        batch = Batch(x.repeat(8, 1, 1, 1), torch.arange(8 * 2048))
        with torch.no_grad():
            return evidence - float(model.loss(batch, model.hyper(0))["elbo"].value)

    def start(steps: int) -> Any:
        torch.manual_seed(2)
        options = {
            **{"latent_dim": 2, "net": {"name": "mlp", "hidden": []}, "steps": steps, "hidden": [16]},
            **{"likelihood": {"name": "gaussian", "sigma": sigma}},
        }
        model: Any = models.build(iaf_vae.Config.model_validate(options), info).double()
        with torch.no_grad():
            model.decoder[0].weight.copy_(W)
            model.decoder[0].bias.zero_()
            last = model.encoder[1]
            last.weight[:4] = 0.0
            last.weight[:2] = torch.linalg.solve(precision, W.T) / sigma**2
            last.bias[:4] = torch.cat([torch.zeros(2), -precision.diagonal().log()])
        return model

    assert below(start(0)) == pytest.approx(gap, abs=0.05)
    model = start(2)
    model.decoder.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 600)
    for _ in range(600):
        rows = torch.randint(2048, (256,))
        optimizer.zero_grad()
        total(model.loss(Batch(x[rows], rows), model.hyper(0)))[0].backward()
        optimizer.step()
        rate.step()
    assert -0.05 < below(model) < 0.15 * gap

"""What to try first: advice about settings that a model has, by what they are now. All KL in nats."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vaecli.models.base import FreeBitsConfig, Model

EARLY = 1000  # steps before which nothing else is worth trying


@dataclass(frozen=True)
class Evidence:
    """What the verdict takes from a full diagnosis; None where the model has no such number.

    `weight` is what the KL weighs against -log p(x|z) at its best: beta, times sigma^2 / gamma^2 where the likelihood
    is a Gaussian of fixed sigma, gamma^2 being the mean squared error a pixel (gamma is then the best sigma).
    """

    mi: float | None = None  # I(x; z), nats
    auc: float | None = None  # of a classifier between q(z) and p(z)
    auc_error: float | None = None
    moment_kl: float | None = None  # with the whole covariance
    weight: float | None = None
    sigma: float | None = None  # of a Gaussian likelihood, where fixed
    gamma: float | None = None


@dataclass(frozen=True)
class Levers:
    """What advice may speak of, as numbers of the model at the checkpoint: None where it has no such setting.

    `weight` is the KL's weight. `exchangeable`: beta-vae can take the model's place, as it adds nothing to a VAE.
    `fitted`: in closed form, so that there is no training to be longer or otherwise.
    """

    weight: float | None = None
    beta: float | None = None
    beta_norm: float | None = None
    capacity: float | None = None
    sigma: float | None = None
    exchangeable: bool = True
    fitted: bool = False

    @property
    def heavy(self) -> bool:
        """Whether the KL weighs more than 1."""
        if self.weight is not None:
            return self.weight > 1.0
        return (self.beta or 0.0) > 1.0 or (self.beta_norm or 0.0) > 0.0


def levers(hyper: Mapping[str, float], model: Model | None = None) -> Levers:
    """Those of the numbers `hyper` that are what their names say: with a model, `beta` and `beta_norm` only where they
    are the KL's weight (in beta-TCVAE beta weighs another term)."""
    beta, beta_norm = hyper.get("beta"), hyper.get("beta_norm")
    capacity = hyper.get("capacity") if "gamma" in hyper else None
    sigma = hyper.get("likelihood.sigma")
    likelihood = getattr(getattr(model, "config", None), "likelihood", None)
    if getattr(likelihood, "variance", "fixed") != "fixed":
        sigma = None  # the number is where it starts, or nothing that is used
    if model is None:
        return Levers(beta, beta, beta_norm, capacity, sigma)
    weight = model.kl_weight(hyper)
    if weight is None or beta is None or not math.isclose(beta, weight, rel_tol=1e-6):
        beta = None
    if weight is None or "beta" in hyper:
        beta_norm = None
    plain = type(model.config).model_fields.keys() <= FreeBitsConfig.model_fields.keys() and weight == 1.0
    return Levers(weight, beta, beta_norm, capacity, sigma, plain and not model.closed_form, model.closed_form)


def remedy(known: Levers, step: int | None, evidence: Evidence | None = None) -> str:
    """The cheapest thing to try first for more information in z, as far as the numbers of the model tell."""
    if step is not None and step < EARLY and not known.fitted:
        return f"train longer: after {step:,} steps the KL of a sound run can still be near 0."
    if known.beta is not None and known.beta > 1.0:
        return f"a smaller beta (now {known.beta:g}), --set model.beta={max(1.0, known.beta / 4):g}."
    if known.beta_norm is not None and known.beta_norm > 0.0:
        return f"a smaller beta_norm (now {known.beta_norm:g}), --set model.beta_norm={known.beta_norm / 4:g}."
    if known.capacity is not None:
        return f"a larger capacity (now {known.capacity:g} nats), or train until its schedule has risen."
    if evidence is not None and evidence.sigma is not None and evidence.gamma is not None:
        return _best_sigma(evidence.sigma, evidence.gamma)
    if known.sigma is not None and known.sigma >= 0.5:
        smaller = f"--set model.likelihood.sigma={known.sigma / 4:g}"
        return f"a smaller sigma (now {known.sigma:g}), so that the reconstruction counts more: {smaller}."
    if known.fitted:
        return "a smaller variance of its noise, where that is set, or another model: this one is at its optimum."
    warm_up = "{schedule: linear, start: 0, end: 1, steps: 10000}"
    if known.beta is not None:
        return f"warm the KL up, --set 'model.beta={warm_up}'."
    if known.exchangeable:
        return f"warm the KL up, --set model.name=beta-vae --set 'model.beta={warm_up}'."
    return "a smaller learning rate (--set optim.lr=...), or another seed."


def more_weight(known: Levers, evidence: Evidence) -> str:
    """The cheapest way to a q(z) nearer to the prior."""
    if evidence.sigma is not None and evidence.gamma is not None and evidence.sigma < 0.7 * evidence.gamma:
        return _best_sigma(evidence.sigma, evidence.gamma)
    if known.beta is not None:
        larger = 1.0 if known.beta < 1 else 2 * known.beta
        return f"a larger beta (now {known.beta:g}), --set model.beta={larger:g}."
    if known.beta_norm is not None:
        return f"a larger beta_norm (now {known.beta_norm:g}), --set model.beta_norm={2 * known.beta_norm:g}."
    if known.exchangeable:
        return "a larger weight on the KL, --set model.name=beta-vae --set model.beta=2, or fewer latents."
    return "fewer latents."


def _best_sigma(sigma: float, gamma: float) -> str:
    return (
        f"the sigma that the error calls for, --set model.likelihood.sigma={gamma:.2g} (now {sigma:g}), or "
        "--set model.likelihood.variance=optimal, which keeps it there."
    )

"""Annealed VAE: holds the KL at a capacity C that rises during training.

Burgess et al. 2018, "Understanding disentangling in beta-VAE", eq. 8, also known as CCI-VAE or beta-VAE_B:
loss = -E_q(z|x)[log p(x|z)] + gamma |KL(q(z|x) || p(z)) - C|, with the KL averaged over the batch.
"""

from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor

from vaecli.models.base import GaussianVAE, Hyper, NetConfig, Posterior, Term
from vaecli.objectives import terms
from vaecli.settings.schedules import Linear, Weight

C_MAX, C_STEPS = 25.0, 100_000


class Config(NetConfig):
    """`capacity` is C in nats, by default rising from 0 to 25 in 100,000 steps.

    `c_max` and `c_steps`, the usual names, may be given in its place: C rises from 0 to `c_max` in `c_steps`.
    """

    also: ClassVar[tuple[str, ...]] = ("c_max", "c_steps")
    name: Literal["annealed-vae"] = "annealed-vae"
    gamma: Weight = 1000.0
    capacity: Weight = Linear(schedule="linear", start=0.0, end=C_MAX, steps=C_STEPS)

    @model_validator(mode="before")
    @classmethod
    def _usual_names(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not {"c_max", "c_steps"} & data.keys():
            return data
        if "capacity" in data:
            raise ValueError("`capacity` takes the place of `c_max` and `c_steps`; give either it or them")
        rest = {key: value for key, value in data.items() if key not in ("c_max", "c_steps")}
        rise = {"start": 0.0, "end": data.get("c_max", C_MAX), "steps": data.get("c_steps", C_STEPS)}
        return {**rest, "capacity": {"schedule": "linear", **rise}}


class Model(GaussianVAE):
    """The VAE whose KL is pressed to C from both sides."""

    config: Config
    batch_dependent = True  # |KL - C| is of the mean over a batch

    def penalty(self, q: Posterior, z_BD: Tensor, hyper: Hyper) -> dict[str, Term]:
        assert q.kl_BD is not None
        kl_mean = q.kl_BD.sum(dim=1).mean()
        return {"capacity_gap": Term(terms.capacity(kl_mean, hyper["capacity"]), hyper["gamma"])}

    def objective_text(self, hyper: Hyper) -> str:
        weights = f"gamma = {hyper['gamma']:.4g}, C = {hyper['capacity']:.4g} nats"
        return f"minimise recon + gamma |KL - C|; {weights}; {self.likelihood.text(hyper)}; {terms.UNITS}"

"""What can only be learned by running a trained model: what each latent is worth, and variance loss.

Everything in nats, in evaluation mode. A probe seeds torch's global generator itself, from `seed` and its own name.

Shapes: B batch, C H W image, D latents, P = C H W pixels.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vaecli import device
from vaecli.analysis.draws import Source
from vaecli.analysis.likelihood import CERTAIN
from vaecli.analysis.statistics import Moments
from vaecli.analysis.traversal import followers, movers
from vaecli.batch import Batch
from vaecli.data.base import SplitView
from vaecli.models.base import Hyper, Model, NoPrior
from vaecli.objectives import distributions
from vaecli.speed.optimizers import without_compiler

DECODES = 20_000  # images decoded by a probe that goes through the latents
VARIANCE_IMAGES = 10_000

Advance = Callable[[float], None]


def _quiet(amount: float) -> None:
    """No progress wanted."""


def random_batches(view: SplitView, images: int, batch_size: int, seed: int) -> Iterator[Batch]:
    """That many images of a split (all, if there are fewer), chosen at random without repetition."""
    generator = torch.Generator().manual_seed(device.derive(seed, "images"))
    chosen = view.indices.cpu()[torch.randperm(len(view), generator=generator)[:images]]
    for start in range(0, len(chosen), batch_size):
        yield view.dataset.batch(chosen[start : start + batch_size], view.labels)


# ------------------------------------------------------------------------------------------------------- single latents


Array = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class Latents:
    """What each latent is worth to the decoder; float64 (D,), errors are standard errors over images.

    `gain_D`        E[-log p(x|z')] - E[-log p(x|z)] in nats with z = E[z|x] and z' the same but for latent i, which is
                    put to the prior mean 0 (or, as `instead` says, to the mean of the codes where 0 means nothing).
                    None without a likelihood; NaN for a latent that other levels follow, as these hold it too.
    `prior_gain_D`  the same with latent i drawn from the prior: harsher; None without a prior.
    `sensitivity_D` E |d E[x|z] / d z_i|, the Euclidean norm over pixels, by central differences at z = E[z|x] over
                    2 % of the latent's standard deviation, the levels below following.

    All are NaN for codes and labels, which have no values in between.
    """

    gain_D: Array | None
    gain_error_D: Array | None
    prior_gain_D: Array | None
    prior_gain_error_D: Array | None
    sensitivity_D: Array
    instead: str  # "zero" or "mean"
    images: int


def latents(
    source: Source,
    view: SplitView,
    hyper: Hyper,
    scale_D: Tensor,
    mean_D: Tensor | None = None,
    *,
    images: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    advance: Advance = _quiet,
) -> Latents:
    """Probe every latent by itself over random images (`images`; by default as many as DECODES allows).

    `scale_D` is the standard deviation of each q(z_i). Latents are put to `mean_D`, or to 0 if it is None. `advance` is
    told the latents done times images, of `latent_images(D) * D` by default.
    """
    model, d = source.model, len(scale_D)
    prior = Source(model, stage=source.stage)  # a density fitted to the codes is none
    device.seed(seed, "latents")
    base, gain, prior_gain, size = Moments(), Moments(), Moments(), Moments()
    kept = {mover.index: followers(model, mover.level) for mover in movers(model, model.inferred) if not mover.counted}
    where = model.device
    with torch.inference_mode():
        for batch in random_batches(view, images or latent_images(d), batch_size, seed):
            x_BCHW = batch.x_BCHW.to(where)
            z_BD = model.flatten(model.infer(x_BCHW).values)
            nothing_B = torch.full((len(z_BD),), math.nan, dtype=torch.float64)
            nll_B = model.nll(x_BCHW, z_BD, hyper).cpu() if model.has_likelihood else nothing_B
            drawn_BD = prior.table(len(z_BD))
            gains, prior_gains, sizes = [], [], []
            for i in range(d):
                changed_BD = z_BD.clone()
                if i not in kept:
                    gains.append(nothing_B)
                    prior_gains.append(nothing_B)
                    sizes.append(nothing_B)
                    advance(len(z_BD))
                    continue
                alone = model.has_likelihood and not kept[i]
                changed_BD[:, i] = 0.0 if mean_D is None else mean_D[i].to(where, z_BD.dtype)
                gains.append(model.nll(x_BCHW, changed_BD, hyper).cpu() - nll_B if alone else nothing_B)
                if drawn_BD is not None:
                    changed_BD[:, i] = drawn_BD[:, i]
                    prior_gains.append(model.nll(x_BCHW, changed_BD, hyper).cpu() - nll_B if alone else nothing_B)
                # Not below the resolution of the numbers, where a latent hardly varies.
                step = max(0.01 * float(scale_D[i]), 1e-3 * float(z_BD[:, i].abs().mean()), 1e-6)
                changed_BD[:, i] = z_BD[:, i] + step
                above = _image(model, changed_BD, kept[i])
                changed_BD[:, i] = z_BD[:, i] - step
                below = _image(model, changed_BD, kept[i])
                sizes.append((above - below).flatten(1).cpu().double().norm(dim=1) / (2 * step))
                advance(len(z_BD))
            base.add(nll_B)
            gain.add(torch.stack(gains, dim=1))
            size.add(torch.stack(sizes, dim=1))
            if drawn_BD is not None:
                prior_gain.add(torch.stack(prior_gains, dim=1))
    likely, drawn = model.has_likelihood, model.has_likelihood and prior_gain.n > 0
    return Latents(
        gain.mean.numpy() if likely else None,
        gain.standard_error.numpy() if likely else None,
        prior_gain.mean.numpy() if drawn else None,
        prior_gain.standard_error.numpy() if drawn else None,
        size.mean.numpy(),
        "zero" if mean_D is None else "mean",
        base.n,
    )


def _image(model: Model, z_BD: Tensor, left: Sequence[str]) -> Tensor:
    """The image of a table of latents but for the levels `left`, which follow the others."""
    values = {name: v for name, v in model.unflatten(z_BD).items() if name not in left}
    return model.image(model.complete(values))


def latent_images(latents: int) -> int:
    """How many images `latents` probes by default: each takes four decodings a latent."""
    return max(32, min(500, DECODES // (4 * latents)))


# --------------------------------------------------------------------------------------------------------- whole images


@dataclass(frozen=True)
class LevelLoss:
    """The same of a level's codes z against z^ = E[z | the levels above at their inferred means], means over latents:
    of a second stage, Var z, Var z^ and mse_z."""

    level: str
    var_z: float
    var_zhat: float
    mse: float


@dataclass(frozen=True)
class VarianceLoss:
    """Means over pixels of variances over images: reconstructions x^ = E[x|z = E[z|x]] vary less than images do.

    With r = x - x^ the gap is exactly `mse` - `bias` + `covariance`: it equals the MSE where the residual is unbiased
    and uncorrelated with the output, as for PCA and for x^ = E[x|z] (Asperti, variance loss). `identity` is the gap
    less the three, each computed by itself: rounding and nothing else.
    """

    var_x: float
    var_xhat: float
    mse: float
    bias: float  # (E r)^2
    covariance: float  # 2 Cov(x^, r)
    identity: float
    var_generated: float | None  # of E[x|z], z from the prior or the density in its place; None without one
    sampled_mse: float  # of E[x|z], z from q(z|x)
    images: int
    levels: tuple["LevelLoss", ...] = ()

    @property
    def gap(self) -> float:
        """Var x - Var x^."""
        return self.var_x - self.var_xhat

    @property
    def gamma(self) -> float:
        """The sigma of a Gaussian likelihood that suits this model best: the root of the mean squared error a pixel
        under z from q(z|x) (Asperti & Trentin 2020: d/d gamma of |x - x^|^2 / (2 gamma^2) + P log gamma is zero)."""
        return math.sqrt(self.sampled_mse)


def variance_loss(
    source: Source,
    view: SplitView,
    *,
    images: int = VARIANCE_IMAGES,
    batch_size: int = 500,
    seed: int = 0,
    advance: Advance = _quiet,
) -> VarianceLoss:
    """The variance-loss terms over random images; `advance` is told the images of each batch."""
    model = source.model
    x, xhat, r, r2, product, made, sampled = (Moments() for _ in range(7))
    below = [level for level in model.inferred if level.kind == "gaussian" and not level.standard]
    codes = {level.name: (Moments(), Moments(), Moments()) for level in below if len(model.inferred) > 1}
    with torch.inference_mode():
        for batch in random_batches(view, images, batch_size, seed):
            x_BCHW = batch.x_BCHW.to(model.device)
            found = model.infer(x_BCHW)
            x_BP = x_BCHW.flatten(1).cpu().double()
            xhat_BP = model.image(model.complete(found.values)).flatten(1).cpu().double()
            r_BP = x_BP - xhat_BP
            x.add(x_BP)
            xhat.add(xhat_BP)
            r.add(r_BP)
            r2.add(r_BP.square().mean(dim=1))
            product.add(xhat_BP * r_BP)
            if all(isinstance(q, CERTAIN) for q in found.posteriors.values()):
                sampled.add(r_BP.square().mean(dim=1))
            else:
                device.seed(seed, "variance loss", x.n)
                drawn = model.infer(x_BCHW, sample=True)
                again_BP = model.image(model.complete(drawn.values)).flatten(1).cpu().double()
                sampled.add((x_BP - again_BP).square().mean(dim=1))
            for name, moments in codes.items():
                z_BD = found.values[name].flatten(1).cpu().double()
                above = model.p(name, found.values, len(z_BD))
                zhat_BD = distributions.moments(above)[0].flatten(1).cpu().double()
                for moment, values in zip(moments, (z_BD, zhat_BD, (z_BD - zhat_BD).square()), strict=True):
                    moment.add(values)
            device.seed(seed, "variance of samples", x.n)
            with contextlib.suppress(NoPrior):
                made.add(model.image(source.draw(len(x_BP))).flatten(1))
            advance(len(x_BP))
    var_x, var_xhat, mse = float(x.variance.mean()), float(xhat.variance.mean()), float(r2.mean)
    bias = float(r.mean.square().mean())
    covariance = 2 * float((product.mean - xhat.mean * r.mean).mean())
    return VarianceLoss(
        var_x,
        var_xhat,
        mse,
        bias,
        covariance,
        var_x - var_xhat - (mse - bias + covariance),
        float(made.variance.mean()) if made.n else None,
        float(sampled.mean),
        x.n,
        tuple(
            LevelLoss(name, float(z.variance.mean()), float(zhat.variance.mean()), float(error.mean.mean()))
            for name, (z, zhat, error) in codes.items()
        ),
    )


# --------------------------------------------------------------------------------------------------------------- labels


def classifier(z_ND: Tensor, label_N: Tensor, hidden: int = 0, seed: int = 0, steps: int = 600) -> float:
    """How often a classifier of codes is right: trained on one half of them by cross-entropy, judged on the other; a
    linear map, or a hidden layer of `hidden` units. Its randomness is its own."""
    order = torch.randperm(len(z_ND), generator=torch.Generator().manual_seed(device.derive(seed, "probe")))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    centre, scale = z_ND[train].mean(dim=0), z_ND[train].std(dim=0).clamp(min=1e-12)
    x_ND, values = ((z_ND - centre) / scale).float(), int(label_N.max()) + 1
    with device.aside(), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(device.derive(seed, "probe", hidden))
        x_ND = x_ND.clone()
        layers = [nn.Linear(x_ND.shape[1], hidden), nn.ReLU()] if hidden else []
        net = nn.Sequential(*layers, nn.Linear(hidden or x_ND.shape[1], values))
        optimizer = without_compiler(torch.optim.AdamW)(net.parameters(), lr=2e-2, weight_decay=1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-2, total_steps=steps)
        for _ in range(steps):
            index = train[torch.randint(len(train), (min(512, len(train)),))]
            loss = nn.functional.cross_entropy(net(x_ND[index]), label_N[index])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return float((net(x_ND[test]).argmax(dim=1) == label_N[test]).double().mean())

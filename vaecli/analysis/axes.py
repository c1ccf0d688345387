"""Which principal axis of the images each latent moves along, and at what angle.

At its optimum a linear VAE's decoder has principal axes for columns (Lucas et al. 2019, "Don't Blame the ELBO!"): the
angles are 0, but for axes whose eigenvalues are near to each other, which may turn in their plane, the more freely the
nearer they are. Of any other decoder the direction is the derivative of the expected image at the prior's mean, where
much the same is found (Rolinek et al. 2019, "Variational Autoencoders Pursue PCA Directions").

Shapes: P = C H W pixels, D latents, A axes.
"""

import math
from typing import Any

import torch

from vaecli.data.base import SplitView
from vaecli.models._linear import Moments, leading
from vaecli.models.base import Model

LARGEST = 4096  # pixels, for a covariance that is computed in passing
IMAGES = 20_000  # at most, to take the covariance over
STEP = 0.1  # on either side of the prior's mean
APART = 0.1  # an eigenvalue is isolated where no other is nearer than this share of it


def measure(model: Model, view: SplitView) -> dict[str, Any] | None:
    """By latent its nearest axis (0 is the first), the angle in degrees, that axis's eigenvalue and how far it is from
    the next one as a share of it; and the largest angle of those whose axis is isolated.

    Latents that do not move the image are left out. None for images of more than `LARGEST` values, for models whose
    latents are no numbers under N(0, I), and where fewer images than latents are there.
    """
    pixels, latents = model.info.pixels, sum(level.size for level in model.inferred)
    if pixels > LARGEST or not model.standard_prior or model.levels[0].kind != "gaussian" or latents >= pixels:
        return None
    moments = Moments(pixels)
    for batch in view.sample(IMAGES).batches(1024):
        moments.add(batch.x_BCHW.flatten(1).cpu(), model.info.binary)
    if moments.count <= latents + 1:
        return None
    kept = min(2 * latents + 1, pixels, moments.count - 1)  # a latent may have found one beyond the first D
    value_A, axes_PA = leading(moments.covariance_PP, kept)
    with torch.inference_mode():
        z_DD = STEP * torch.eye(latents, device=model.device)
        move_DP = (model.decode(z_DD) - model.decode(-z_DD)).flatten(1).cpu().double() / (2 * STEP)
    size_D = move_DP.norm(dim=1)
    cosine_DA = (move_DP @ axes_PA).abs() / size_D.clamp(min=1e-12)[:, None]
    found, isolated = {}, []
    for d, name in enumerate(model.latent_names()):
        if not float(size_D[d]) > 1e-3 * math.sqrt(float(value_A[0])):
            continue
        a = int(cosine_DA[d].argmax())
        if not float(value_A[a]) > 0:  # along which the images do not vary at all
            continue
        sine = float((move_DP[d] / size_D[d] - axes_PA[:, a] * (move_DP[d] @ axes_PA[:, a]) / size_D[d]).norm())
        angle = math.degrees(math.atan2(sine, float(cosine_DA[d, a])))
        others = [abs(float(value_A[a] - value_A[b])) for b in (a - 1, a + 1) if 0 <= b < kept]
        gap = min(others, default=math.inf) / float(value_A[a])
        found[name] = {"axis": a, "angle": angle, "eigenvalue": float(value_A[a]), "gap": gap}
        if gap >= APART:
            isolated.append(angle)
    return {
        "images": moments.count,
        "latents": found,
        "isolated": len(isolated),
        "largest_angle": max(isolated) if isolated else None,
    }


def text(found: dict[str, Any]) -> str:
    """In words, for the table of the diagnosis."""
    largest = "" if found["largest_angle"] is None else f"; isolated ones within {found['largest_angle']:.1f} degrees"
    each = ", ".join(f"{name} {one['axis'] + 1} at {one['angle']:.0f}" for name, one in found["latents"].items())
    return f"{each} (nearest axis and degrees from it){largest}"

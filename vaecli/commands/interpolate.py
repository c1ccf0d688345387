"""`vae interpolate`: the way from one image to another through the latent space."""

import math

import numpy as np
import torch
from PIL import Image

from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis.codes import Array
from vaecli.batch import at_once
from vaecli.commands import _artifact, _inputs
from vaecli.errors import ConfigError, InputError
from vaecli.models.base import Model, NoPrior
from vaecli.objectives.distributions import Curved, Space
from vaecli.report import figures

DEFAULT_NAME = "interpolation.png"
BATCH = 256
OPPOSITE = 1e-6  # sine of an angle below which two directions span no plane that single precision could tell


def run(
    checkpoint: str,
    a: str,
    b: str,
    steps: int,
    spherical: bool,
    output: str | None,
    device: str,
    force: bool,
    json: bool,
    data_at: str | None = None,
) -> None:
    """Decode `steps` codes from that of `a` (the mode of q(z|x)) to that of `b`, straight or (`spherical`) as in
    `great_circle`; of latents on a sphere or in a ball along its own shortest way. ConfigError where the codes are
    indices, or nothing infers latents.

    The inputs stand beside the reconstructions with which the row begins and ends. PNG, or GIF (there and back) by the
    name's ending. `a` and `b` are image files or indices into the data set.
    """
    if steps < 2:
        raise ConfigError(f"--steps is {steps}; it must be at least 2")
    path = _artifact.check(output, DEFAULT_NAME, force, json, endings=(".png", ".gif"))
    loaded = _artifact.load(checkpoint, devices.pick(device), data_at)
    moving = path.lower().endswith(".gif")
    height, width = loaded.info.shape[1:]
    figures.check_size(1, 3 if moving else steps + 2, height, width)
    model = loaded.model
    if not model.inferred:
        raise ConfigError(f"{loaded.config.model.name} infers no latents from an image")
    if any(level.kind == "codes" for level in model.inferred):
        raise ConfigError(f"{loaded.config.model.name} has codes of a codebook, between which there is nothing")
    t_S = np.linspace(0.0, 1.0, steps)
    with torch.inference_mode():
        x_2CHW, names = _inputs.images(loaded, (a, b))
        ends_2D = model.flatten(model.infer(x_2CHW.to(model.device)).values).double().cpu().numpy()
        if not np.isfinite(ends_2D).all():
            raise InputError(f"{loaded.path}: the codes of {names[0]} and {names[1]} are not finite")
        space = None if spherical else _space(model)
        if space is not None:
            a_D, b_D = torch.from_numpy(ends_2D)
            z_SD = space.way(a_D, b_D, torch.from_numpy(t_S)).numpy()
        else:
            z_SD = (great_circle if spherical else straight)(ends_2D[0], ends_2D[1], t_S)
        parts = torch.split(torch.from_numpy(z_SD).float(), at_once(loaded.info.shape, BATCH))
        y_SCHW = np.concatenate([model.decode(part.to(model.device)).float().cpu().numpy() for part in parts])
    heading = _artifact.title(loaded.config.model.name, loaded.info.name, f"step {loaded.step:,}")
    angle = angle_between(ends_2D[0], ends_2D[1])
    way = "along a great circle" if spherical else "straight" if space is None else space.text
    turn = "" if math.isnan(angle) else f", {math.degrees(angle):.0f} degrees apart"
    distance = float(np.linalg.norm(ends_2D[1] - ends_2D[0]))
    footer = streams.safe(f"from {names[0]} to {names[1]}, {way}; codes at distance {distance:.3g}{turn}")
    texts = _share_texts(t_S)
    x = x_2CHW.cpu().numpy()
    if moving:
        picture = figures.gif(
            [_frame(x, y_CHW, text, heading, footer) for y_CHW, text in zip(y_SCHW, texts, strict=True)]
        )
    else:
        row = figures.Row(np.concatenate([x[:1], y_SCHW, x[1:]]))
        picture = figures.png(figures.sheet([row], ["input", *texts, "input"], heading, footer))
    path = _artifact.write(output, DEFAULT_NAME, picture, force)
    record = {
        "checkpoint": str(loaded.path), "step": loaded.step, "a": a, "b": b, "spherical": spherical,
        "distance": distance, "angle": angle, "values": t_S.tolist(), "codes": z_SD.tolist(),
    }  # fmt: skip
    _artifact.report(path, record, json)


def _space(model: Model) -> Space | None:
    """Where the latents live if that is not all of R^D, so that a straight way could leave it."""
    if len(model.levels) > 1:
        return None
    try:
        p = model.p(model.levels[0].name, {}, 1)
    except NoPrior:
        return None
    return p.space if isinstance(p, Curved) else None


def straight(a_D: Array, b_D: Array, t_S: Array) -> Array:
    """(1 - t) a + t b, (S, D)."""
    t_S1 = t_S[:, None]
    return np.asarray((1 - t_S1) * a_D + t_S1 * b_D)


def great_circle(a_D: Array, b_D: Array, t_S: Array) -> Array:
    """The direction turns evenly from a to b (Shoemake 1985, slerp), the norm changes evenly from |a| to |b|; (S, D).

    Opposite directions have no shortest way between them: the turn is then towards the coordinate axis that is most
    nearly at right angles to a (of several the first). Where a or b is zero, and in one dimension, there is no
    direction to turn, and the way is straight.
    """
    norm_a, norm_b = float(np.linalg.norm(a_D)), float(np.linalg.norm(b_D))
    if norm_a == 0.0 or norm_b == 0.0 or len(a_D) == 1:
        return straight(a_D, b_D, t_S)
    from_D, to_D = a_D / norm_a, b_D / norm_b
    cosine = float(from_D @ to_D)
    aside_D = to_D - cosine * from_D  # the part of the goal at right angles to the start
    sine = float(np.linalg.norm(aside_D))
    angle = math.atan2(sine, cosine)
    if sine < OPPOSITE and cosine < 0:
        axis = int(np.argmin(np.abs(from_D)))
        aside_D = np.eye(len(a_D))[axis] - from_D[axis] * from_D
        sine, angle = float(np.linalg.norm(aside_D)), math.pi
    if sine > 0:
        aside_D = aside_D / sine
    t_S1 = t_S[:, None]
    norm_S1 = (1 - t_S1) * norm_a + t_S1 * norm_b
    way_SD = norm_S1 * (np.cos(t_S1 * angle) * from_D + np.sin(t_S1 * angle) * aside_D)
    # Both ends exactly: they are shown as the reconstructions.
    return np.where(t_S1 == 0.0, a_D, np.where(t_S1 == 1.0, b_D, way_SD))


def angle_between(a_D: Array, b_D: Array) -> float:
    """Radians; NaN where one of the two is zero."""
    norm_a, norm_b = np.linalg.norm(a_D), np.linalg.norm(b_D)
    if norm_a == 0.0 or norm_b == 0.0:
        return math.nan
    u_D, v_D = a_D / norm_a, b_D / norm_b
    # Kahan's formula: exact to the last digits for small angles too, where the arc cosine is not.
    return 2.0 * math.atan2(float(np.linalg.norm(u_D - v_D)), float(np.linalg.norm(u_D + v_D)))


def _share_texts(t_S: Array) -> list[str]:
    digits = next((k for k in range(3) if np.allclose(t_S, np.round(t_S, k), atol=1e-9)), 2)
    return [f"{t:.{digits}f}" for t in t_S]


def _frame(x_2CHW: figures.Images, y_CHW: figures.Images, text: str, heading: str, footer: str) -> Image.Image:
    """The way's image between the two inputs, which stay."""
    row = figures.Row(np.stack([x_2CHW[0], y_CHW, x_2CHW[1]]))
    # Written first, the value keeps its place while it changes.
    return figures.sheet([row], ["input", "", "input"], f"t = {text}", "\n".join([heading, *footer.split("; ")]))

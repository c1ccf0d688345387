"""`vae traverse`: what each latent does to the image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vaecli import data
from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis.diagnosis import Statistics, latent_statistics, limited
from vaecli.commands import _artifact
from vaecli.data.base import Dataset
from vaecli.errors import ConfigError, InputError, MachineError, VaeError
from vaecli.models.base import Model
from vaecli.report import figures
from vaecli.training import checkpoint as checkpoints
from vaecli.training.checkpoint import Loaded

RANKED_BY = 10_000  # held-out images over which the mean KL is taken
BATCH = 256


@dataclass(frozen=True)
class Centre:
    """Where the latents that do not move stand: z of shape (D,), and in words."""

    z_D: Tensor
    text: str


def run(
    checkpoint: str,
    dims: list[str],
    value_range: float,
    steps: int,
    center: str,
    output: str | None,
    seed: int,
    device: str,
    force: bool,
    json: bool,
) -> None:
    """One row of images a latent, the latent going from -range to range, the others at the centre; PNG or GIF.

    Rows are ordered by mean KL, largest first (Burgess et al. 2018, figure 7); without the data, by index. The latents
    of a deterministic code have no natural scale: theirs goes in standard deviations from the mean of the codes.
    """
    if steps < 2:
        raise ConfigError(f"--steps is {steps}; it must be at least 2")
    if not (math.isfinite(value_range) and value_range > 0):
        raise ConfigError(f"--range is {value_range}; it must be more than 0")
    path = _artifact.check(output, "traversal.png", force, json, endings=(".png", ".gif"))
    loaded = checkpoints.load(checkpoint, devices.pick(device))
    names = loaded.model.latent_names()
    chosen = [_index(text, names) for text in dims] or None
    moving = path.lower().endswith(".gif")
    height, width = loaded.info.shape[1:]
    figures.check_size(len(chosen or names), 1 if moving else steps, height, width)
    devices.seed(seed, "traverse")
    with torch.inference_mode():
        dataset, missing = _dataset(loaded)
        stats, over = _statistics(loaded, dataset) if dataset is not None else (None, "")
        if missing is not None:
            streams.notice(f"latents in index order, without KL: the data set is not available ({missing})")
        middle = centre(loaded, center, dataset, missing, stats)
        values = np.linspace(-value_range, value_range, steps)
        order = chosen or (stats.order() if stats is not None else list(range(len(names))))
        # A code has a scale only if it has been seen; without it the values are taken as they are.
        relative = stats if stats is not None and stats.kl_D is None else None
        images = [images_along(loaded.model, middle.z_D, d, values, relative) for d in order]
    labels = [label_of(stats, d) for d in order]
    heading = _artifact.title(loaded.config.model.name, loaded.info.name, f"step {loaded.step:,}")
    unit = " sd" if relative is not None else ""
    texts = [f"{text}{unit}" for text in _value_texts(values)]
    ranked = (
        f"; ordered by {'variance' if relative is not None else 'mean KL'} over {over}" if over and not chosen else ""
    )
    footer = f"one latent at the value shown, the others at {middle.text}{ranked}"
    if moving:
        picture = _animation(images, [names[d] for d in order], labels, texts, heading, footer)
    else:
        rows = [
            figures.Row(x_SCHW, names[d], label, muted=label == "inactive")
            for d, label, x_SCHW in zip(order, labels, images, strict=True)
        ]
        picture = figures.png(figures.sheet(rows, texts, heading, footer))
    path = _artifact.write(output, "traversal.png", picture, force)
    latents = [
        {
            "latent": names[d],
            "index": d,
            "kl": None if stats is None or stats.kl_D is None else float(stats.kl_D[d]),
            "var_mu": None if stats is None else float(stats.var_D[d]),
            "status": None if stats is None else stats.status(d),
        }
        for d in order
    ]
    record = {
        "checkpoint": str(loaded.path), "step": loaded.step, "seed": seed, "center": center, "values": values.tolist(),
        "unit": "standard deviations of the code" if relative is not None else "latent", "latents": latents,
    }  # fmt: skip
    _artifact.report(path, record, json)


def _index(text: str, names: Sequence[str]) -> int:
    """The latent that `3`, `z3` or `group.3` stands for."""
    if text in names:
        return list(names).index(text)
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(names):
        return int(text)
    valid = f"{names[0]} to {names[-1]}" if len(names) > 12 else ", ".join(names)
    raise ConfigError(f"--dim {text}: no such latent; there are {valid}, or 0 to {len(names) - 1}")


def _dataset(loaded: Loaded) -> tuple[Dataset | None, VaeError | None]:
    """The data set named in the checkpoint, or why it cannot be had."""
    try:
        return data.load(loaded.config.data, loaded.info), None
    except (ConfigError, InputError, MachineError) as error:
        return None, error


def _statistics(loaded: Loaded, dataset: Dataset) -> tuple[Statistics, str]:
    split = dataset.split("val")
    total = min(len(split), RANKED_BY)
    with streams.progress("ranking latents", total) as advance:
        batches = limited(split.batches(BATCH), RANKED_BY)
        stats = latent_statistics(loaded.model, batches, loaded.model.hyper(loaded.step), advance)
    return stats, f"{total:,} images of {split.name}"


def centre(
    loaded: Loaded, center: str, dataset: Dataset | None, missing: VaeError | None, stats: Statistics | None
) -> Centre:
    model = loaded.model
    if center == "prior":
        if stats is not None and stats.kl_D is None:
            return Centre(stats.mean_D.float().to(model.device), "the mean code")
        if len(model.groups) == 1:
            return Centre(torch.zeros(len(model.latent_names()), device=model.device), "0")
        return Centre(model.prior(1, temperature=0.0)[0], "the prior's mean")  # a lower group's depends on the upper
    if center.isascii() and center.isdigit():
        if dataset is None:
            assert missing is not None
            raise missing
        if len(center) > 18 or int(center) >= len(dataset.images):
            raise ConfigError(f"--center {center[:40]}: the data set has images 0 to {len(dataset.images) - 1}")
        x_BCHW = dataset.images.gather(torch.tensor([int(center)]))
        text = f"the code of image {center} of {loaded.info.name}"
    else:
        x_BCHW = _artifact.read_image(center, loaded.info.shape)[None]
        text = f"the code of {center}"
    return Centre(model.posterior(x_BCHW.to(model.device)).mean_BD[0], streams.safe(text))


def images_along(model: Model, z_D: Tensor, d: int, values: np.ndarray, relative: Statistics | None) -> figures.Images:
    """(S, C, H, W): latent `d` at each value; in standard deviations from its mean where `relative` gives them."""
    values_S = torch.as_tensor(values)
    if relative is not None:
        values_S = relative.mean_D[d] + values_S * relative.var_D[d].sqrt()
    z_SD = z_D.repeat(len(values), 1)
    z_SD[:, d] = values_S.to(z_SD)
    return np.concatenate([model.decode(part).float().cpu().numpy() for part in torch.split(z_SD, BATCH)])


def label_of(stats: Statistics | None, d: int) -> str:
    if stats is None:
        return ""
    if stats.status(d) == "inactive":
        return "inactive"
    return f"var {float(stats.var_D[d]):#.3g}" if stats.kl_D is None else f"KL {float(stats.kl_D[d]):.2f}"


def _value_texts(values: np.ndarray) -> list[str]:
    digits = next((k for k in range(3) if np.allclose(values, np.round(values, k), atol=1e-9)), 2)
    return [f"{value + 0.0:.{digits}f}" for value in values.round(digits)]


def _animation(
    images: list[figures.Images], names: list[str], labels: list[str], texts: list[str], heading: str, footer: str
) -> bytes:
    """All latents as tiles, moving together."""
    height, width = images[0].shape[2:]
    columns = figures.columns_for(len(images), height, width)
    captions = [f"{name}\n{label}" if label else name for name, label in zip(names, labels, strict=True)]
    muted = [label == "inactive" for label in labels]
    frames = []
    for i, text in enumerate(texts):
        tiles = np.stack([x_SCHW[i] for x_SCHW in images])
        rows = [
            figures.Row(tiles[a : a + columns], captions=captions[a : a + columns], muted=muted[a : a + columns])
            for a in range(0, len(tiles), columns)
        ]
        # Written first, the value keeps its place while it changes.
        frames.append(figures.sheet(rows, title=f"z = {text}", footer="\n".join([heading, *footer.split("; ")])))
    return figures.gif(frames)

"""`vae reconstruct`: images beside what the model makes of them."""

import torch
from torch import Tensor

from vaecli import data
from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis.tables import number_text
from vaecli.batch import at_once
from vaecli.commands import _artifact
from vaecli.errors import ConfigError
from vaecli.report import figures
from vaecli.training.checkpoint import Loaded

COLUMNS = 8
COLUMNS_OF_NUMBERS = (("recon", "-log p(x|z) (nats)", 2), ("kl", "KL (nats)", 2), ("mse", "MSE", 6))


def run(
    checkpoint: str,
    images: list[str],
    split: str | None,
    n: int | None,
    output: str | None,
    seed: int,
    device: str,
    force: bool,
    json: bool,
    data_at: str | None = None,
) -> None:
    """Inputs above outputs, z being the mode of q(z|x), with up to three numbers an image.

    `recon` is -log p(x|z) at that z, less than its mean over q(z|x) that an ELBO has, and no -log p(x); KL is
    KL(q(z|x) || p(z)), both in nats; MSE is the mean over pixels of the squared difference to the expected image.
    A model without likelihood makes a resynthesis, which has an MSE alone; the KL is left out where it has no closed
    form, or depends on the values of other levels. Images are files or, where none is given, the first `n` of a split.
    ConfigError where nothing infers latents.
    """
    given = _artifact.whole_set(images)
    _artifact.check_given(images, given, split, n)
    if given is not None:
        images, split, data_at = [], "all", given
    split, n = split or "test", 16 if n is None else n
    if n < 1:
        raise ConfigError(f"-n is {n}; it must be at least 1")
    path = _artifact.check(output, "reconstructions.png", force, json, endings=(".png",))
    loaded = _artifact.load(checkpoint, devices.pick(device), data_at)
    require_latents(loaded)
    x_BCHW, names, source = _inputs(loaded, images, split, n)
    figures.check_size(2 * -(-len(names) // COLUMNS), COLUMNS, *x_BCHW.shape[2:])
    devices.seed(seed, "reconstruct")
    y_BCHW, recons, kls = outputs(loaded, x_BCHW)
    recon, kl = (torch.cat(parts).tolist() if parts else [None] * len(names) for parts in (recons, kls))
    mse = (x_BCHW.cpu().double() - y_BCHW.double()).square().mean(dim=(1, 2, 3)).tolist()
    columns = zip(names, recon, kl, mse, strict=True)
    # `nll` is what `recon` was called, which it is not: kept for scripts that read it.
    numbers = [{"image": name, "recon": a, "nll": a, "kl": b, "mse": c} for name, a, b, c in columns]
    heading = _artifact.title(loaded.config.model.name, source, f"step {loaded.step:,}")
    picture = _picture(
        x_BCHW.cpu(), y_BCHW, numbers, heading, "output" if loaded.model.has_likelihood else "resynthesis"
    )
    path = _artifact.write(output, "reconstructions.png", picture, force)
    if not json:
        shown = [column for column in COLUMNS_OF_NUMBERS if numbers[0][column[0]] is not None]
        rows = [[str(r["image"]), *(number_text(r[key], digits) for key, _, digits in shown)] for r in numbers]
        streams.table(["image", *(heading for _, heading, _ in shown)], rows, to_stderr=True)
    about = {"checkpoint": str(loaded.path), "step": loaded.step, "seed": seed, "source": source}
    _artifact.report(path, {**about, "images": numbers}, json)


def require_latents(loaded: Loaded) -> None:
    """ConfigError where nothing infers latents."""
    if not loaded.model.inferred:
        raise ConfigError(f"{loaded.config.model.name} infers no latents from an image, and so cannot reconstruct it")


def outputs(loaded: Loaded, x_BCHW: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The expected images at the modes of q(z|x), float32 (B, C, H, W) on the CPU, and batch by batch their -log p(x|z)
    and KL in nats, (b,) each; none where there is none. Seed torch's generator first."""
    model, hyper = loaded.model, loaded.hyper
    images, recons, kls = [], [], []
    with torch.inference_mode():
        for part_BCHW in torch.split(x_BCHW, at_once(loaded.info.shape, 256)):
            on_device = part_BCHW.to(model.device)
            found = model.infer(on_device)
            values = model.complete(found.values)
            images.append(model.image(values).float().cpu())
            log_prob_B = model.log_prob(on_device, values, hyper)
            if log_prob_B is not None:
                recons.append(-log_prob_B.cpu().double())
            rates = list(model.rates(found).values())
            if len(model.inferred) == 1 and rates and rates[0].dim() > 1 and model.has_likelihood:
                kls.append(rates[0].flatten(1).sum(dim=1).cpu())
    return torch.cat(images), recons, kls


def _inputs(loaded: Loaded, images: list[str], split: str, n: int) -> tuple[Tensor, list[str], str]:
    """The images (B, C, H, W), a name for each, and in words where they are from."""
    if images:
        return torch.stack([_artifact.read_image(path, loaded.info) for path in images]), images, "files"
    view = data.load(loaded.config.data, loaded.info).split(split)
    if view.name != split:
        streams.notice(f"the data set has no split {split}: using {view.name}")
    batch = view.take(n)
    if len(batch.index_B) < n:
        streams.notice(f"the split {view.name} has only {len(batch.index_B):,} images")
    return batch.x_BCHW, [str(i) for i in batch.index_B.tolist()], f"{loaded.info.name} {view.name}"


def _picture(x_BCHW: Tensor, y_BCHW: Tensor, numbers: list[dict[str, object]], heading: str, output: str) -> bytes:
    wanted = (("recon", "recon", 1), ("kl", "KL", 1), ("mse", "MSE", 4))
    captions = [
        "\n".join(f"{name} {number_text(r[key], digits)}" for key, name, digits in wanted if r[key] is not None)
        for r in numbers
    ]
    rows = []
    for start in range(0, len(numbers), COLUMNS):
        part = slice(start, start + COLUMNS)
        rows.append(figures.Row(x_BCHW[part].numpy(), "input"))
        rows.append(figures.Row(y_BCHW[part].numpy(), output, captions=captions[part]))
    return figures.png(figures.sheet(rows, title=heading))

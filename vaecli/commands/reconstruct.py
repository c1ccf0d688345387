"""`vae reconstruct`: images beside what the model makes of them."""

import torch
from torch import Tensor

from vaecli import data
from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis.diagnosis import number_text
from vaecli.commands import _artifact
from vaecli.errors import ConfigError
from vaecli.report import figures
from vaecli.training import checkpoint as checkpoints
from vaecli.training.checkpoint import Loaded

COLUMNS = 8


def run(
    checkpoint: str,
    images: list[str],
    split: str,
    n: int,
    output: str | None,
    seed: int,
    device: str,
    force: bool,
    json: bool,
) -> None:
    """Inputs above outputs, z being the mean of q(z|x), with three numbers an image.

    NLL is -log p(x|z) at that z and KL is KL(q(z|x) || p(z)), in nats; MSE is the mean over pixels of the squared
    difference to the expected image. Images are files or, where none is given, the first `n` of a split.
    """
    if not images and n < 1:
        raise ConfigError(f"-n is {n}; it must be at least 1")
    path = _artifact.check(output, "reconstructions.png", force, json)
    loaded = checkpoints.load(checkpoint, devices.pick(device))
    x_BCHW, names, source = _inputs(loaded, images, split, n)
    figures.check_size(2 * -(-len(names) // COLUMNS), COLUMNS, *x_BCHW.shape[2:])
    devices.seed(seed, "reconstruct")
    model, hyper = loaded.model, loaded.model.hyper(loaded.step)
    outputs, nlls, kls = [], [], []
    with torch.inference_mode():
        for part_BCHW in torch.split(x_BCHW, 256):
            on_device = part_BCHW.to(model.device)
            q = model.posterior(on_device)
            outputs.append(model.decode(q.mean_BD).float().cpu())
            nlls.append(model.nll(on_device, q.mean_BD, hyper).cpu().double())
            if q.kl_BD is not None:
                kls.append(q.kl_BD.sum(dim=1).cpu())
    y_BCHW = torch.cat(outputs)
    nll = torch.cat(nlls).tolist()
    kl = torch.cat(kls).tolist() if kls else [None] * len(names)
    mse = (x_BCHW.cpu().double() - y_BCHW.double()).square().mean(dim=(1, 2, 3)).tolist()
    numbers = [{"image": name, "nll": a, "kl": b, "mse": c} for name, a, b, c in zip(names, nll, kl, mse, strict=True)]
    heading = _artifact.title(loaded.config.model.name, source, f"step {loaded.step:,}")
    picture = _picture(x_BCHW.cpu(), y_BCHW, numbers, heading)
    path = _artifact.write(output, "reconstructions.png", picture, force)
    if not json:
        rows = [
            [r["image"], number_text(r["nll"], 2), number_text(r["kl"], 2), number_text(r["mse"], 6)] for r in numbers
        ]
        streams.table(("image", "NLL (nats)", "KL (nats)", "MSE"), rows, to_stderr=True)
    about = {"checkpoint": str(loaded.path), "step": loaded.step, "seed": seed, "source": source}
    _artifact.report(path, {**about, "images": numbers}, json)


def _inputs(loaded: Loaded, images: list[str], split: str, n: int) -> tuple[Tensor, list[str], str]:
    """The images (B, C, H, W), a name for each, and in words where they are from."""
    if images:
        return torch.stack([_artifact.read_image(path, loaded.info.shape) for path in images]), images, "files"
    view = data.load(loaded.config.data, loaded.info).split(split)
    if view.name != split:
        streams.notice(f"the data set has no split {split}: using {view.name}")
    batch = view.take(n)
    if len(batch.index_B) < n:
        streams.notice(f"the split {view.name} has only {len(batch.index_B):,} images")
    return batch.x_BCHW, [str(i) for i in batch.index_B.tolist()], f"{loaded.info.name} {view.name}"


def _picture(x_BCHW: Tensor, y_BCHW: Tensor, numbers: list[dict[str, object]], heading: str) -> bytes:
    captions = []
    for record in numbers:
        lines = [f"NLL {number_text(record['nll'], 1)}"]
        if record["kl"] is not None:
            lines.append(f"KL {number_text(record['kl'], 1)}")
        captions.append("\n".join([*lines, f"MSE {number_text(record['mse'], 4)}"]))
    rows = []
    for start in range(0, len(numbers), COLUMNS):
        part = slice(start, start + COLUMNS)
        rows.append(figures.Row(x_BCHW[part].numpy(), "input"))
        rows.append(figures.Row(y_BCHW[part].numpy(), "output", captions=captions[part]))
    return figures.png(figures.sheet(rows, title=heading))

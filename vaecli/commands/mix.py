"""`vae mix`: the levels of one image with those of another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import intervention
from vaecli.commands import _artifact, _inputs
from vaecli.commands.intervene import level_of
from vaecli.errors import ConfigError
from vaecli.report import figures

DEFAULT_NAME = "mix.png"


def run(
    checkpoint: str,
    rows: Sequence[str],
    columns: Sequence[str],
    take: Sequence[str],
    output: str | None,
    device: str,
    force: bool,
    json: bool,
    data_at: str | None = None,
) -> None:
    """A grid: each row's image with the levels to `take` of each column's image (default: the lowest level).

    Levels are taken as they are, at the modes of their posterior; where labels are taken what is below them follows, as
    in `vae intervene`. Images are files or indices into the data set. ConfigError for a level that there is not, or all
    of them; InputError for an image of another size.
    """
    path = _artifact.check(output, DEFAULT_NAME, force, json, endings=(".png",))
    if not rows or not columns:
        raise ConfigError("images are mixed with others", "--row IMAGE and --column IMAGE, each as often as you like")
    loaded = _artifact.load(checkpoint, devices.pick(device), data_at)
    model = loaded.model
    inferred = [level.name for level in model.inferred]
    taken = list(dict.fromkeys(level_of(name, model, "--take").name for name in take)) or inferred[-1:]
    if strange := [name for name in taken if name not in inferred]:
        raise ConfigError(f"--take: {strange[0]} is not inferred from images; there are: {', '.join(inferred)}")
    if set(inferred) <= set(taken):
        raise ConfigError(
            f"--take {', '.join(taken)} leaves no level to a row's image", f"levels: {', '.join(inferred)}"
        )
    figures.check_size(len(rows) + 1, len(columns) + 2, *loaded.info.shape[1:])
    with torch.inference_mode():
        x_NCHW, names = _inputs.images(loaded, [*rows, *columns], fit=False)
        values = intervention.of_image(model, x_NCHW)
        i_P, j_P = torch.cartesian_prod(torch.arange(len(rows)), len(rows) + torch.arange(len(columns))).T
        one, other = ({name: v[index.to(v.device)] for name, v in values.items()} for index in (i_P, j_P))
        y_PCHW = model.image(intervention.mixed(model, one, other, taken)).float().cpu()
        again_NCHW = model.image(values).float().cpu()
    title = _artifact.title(loaded.config.model.name, loaded.info.name, f"step {loaded.step:,}")
    footer = f"{', '.join(taken)} of the image above, the rest of the image at the left (reconstructed beside it)"
    drawn = sheet(x_NCHW, again_NCHW, y_PCHW, len(rows), names, title, footer)
    path = _artifact.write(output, DEFAULT_NAME, drawn, force)
    record = {"checkpoint": str(loaded.path), "step": loaded.step, "rows": list(rows), "columns": list(columns)}
    _artifact.report(path, {**record, "take": taken}, json)


def sheet(
    x_NCHW: Tensor, again_NCHW: Tensor, y_PCHW: Tensor, rows: int, names: Sequence[str], title: str, footer: str
) -> bytes:
    """The columns' images above, the rows' images and their reconstructions at the left."""
    nothing = torch.ones_like(x_NCHW[:1])
    heading = torch.cat([nothing, nothing, x_NCHW[rows:]]).numpy()
    drawn = [figures.Row(heading)]
    for i, cells in enumerate(torch.chunk(y_PCHW, rows)):
        line = torch.cat([x_NCHW[i : i + 1], again_NCHW[i : i + 1], cells]).numpy()
        drawn.append(figures.Row(line, streams.safe(names[i])))
    headings = ["", "as it is", *(streams.safe(name) for name in names[rows:])]
    return figures.png(figures.sheet(drawn, headings, title, footer))

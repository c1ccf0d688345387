"""What the report shows of a model with labels: all measures, and pictures of what labels do.

Shapes: C columns of a picture, R its rows.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaecli import label_expressions
from vaecli import output as streams
from vaecli.analysis import control, intervention, labelled
from vaecli.analysis.analyze import Analysis
from vaecli.analysis.control import Subject
from vaecli.data.base import SplitView
from vaecli.errors import ConfigError
from vaecli.models.base import NoLabels, Values
from vaecli.report.control import Controlled, Picture

ROWS, COLUMNS = 5, 10  # of a picture, at most
IMAGES = 4  # held-out ones that are changed and mixed


def gathered(analysed: Analysis) -> tuple[Controlled, dict[str, Any]] | None:
    """The section, and the record of its measures; None where nothing can be asked for."""
    try:
        one = control.subject(analysed.loaded, analysed.dataset, analysed.seed)
    except NoLabels:
        return None
    except ConfigError as error:
        streams.notice(f"labels are left out: {error.message}")
        return None
    found = control.measure(analysed.loaded, one, analysed.view)
    with torch.inference_mode():
        pictures = [_requested(one)]
        if labelled.blocks(one.model):
            pictures += [*_changed(one, analysed.view), *_mixed(one, analysed.view), *_traversals(one)]
    return Controlled(control.rows(found), one.reader.text(), pictures), found.record()


def _names(one: Subject, k: int) -> list[str]:
    return label_expressions.names_of(one.dataset.info, one.factors[k])


def _spread(size: int) -> list[int]:
    """Up to COLUMNS positions, from the first to the last."""
    found: list[int] = np.unique(np.linspace(0, size - 1, min(size, COLUMNS)).round().astype(int)).tolist()
    return found


def _requested(one: Subject) -> Picture:
    """A column a value of the first label, all else drawn."""
    places = _spread(one.sizes[0])
    labels_BL = torch.full((ROWS * len(places), len(one.factors)), -1, dtype=torch.int64)
    labels_BL[:, 0] = torch.tensor(places).repeat(ROWS)
    values = one.draw(labels_BL, "requested")
    names = [f"{one.factors[0]} {_names(one, 0)[place]}" for place in places]
    about = f"Images of the {one.factors[0]} asked for, everything else drawn from {one.sampler.text}."
    return Picture("Labels asked for", about, _image(one, values), names)


def _changed(one: Subject, view: SplitView) -> list[Picture]:
    """Images with each label in turn set to some of its values."""
    x_BCHW = view.sample(IMAGES).take(IMAGES).x_BCHW.to(one.model.device)
    old, found = intervention.of_image(one.model, x_BCHW), []
    for k, factor in enumerate(one.factors):
        places = _spread(one.sizes[k])[: COLUMNS - 2]
        changed = [intervention.apply(one.model, old, intervention.Change({k: place})) for place in places]
        columns = [x_BCHW.float().cpu(), *(torch.from_numpy(_image(one, values)) for values in (old, *changed))]
        headings = ["image", "as it is", *(f"{factor} {_names(one, k)[place]}" for place in places)]
        about = f"The {factor} of held-out images set to other values; what is below follows, its noise kept."
        found.append(Picture(f"Interventions on {factor}", about, _in_rows(columns), headings))
    return found


def _mixed(one: Subject, view: SplitView) -> list[Picture]:
    """The lowest level of one image with the others of another, where there are two levels of numbers below labels."""
    below = [level.name for level in labelled.below_labels(one.model) if level.inferred]
    if len(below) < 2:
        return []
    model, x_BCHW = one.model, view.sample(IMAGES).take(IMAGES).x_BCHW.to(one.model.device)
    values, columns = intervention.of_image(model, x_BCHW), [x_BCHW.float().cpu()]
    for j in range(len(x_BCHW)):
        other = {name: v[j : j + 1].expand_as(v) for name, v in values.items()}
        columns.append(torch.from_numpy(_image(one, intervention.mixed(model, values, other, below[-1:]))))
    about = f"Each row's image with the level {below[-1]} of each image; on the diagonal the image's own."
    headings = ["image", *(f"{below[-1]} of image {j + 1}" for j in range(len(x_BCHW)))]
    return [Picture("Recombination", about, _in_rows(columns), headings)]


def _traversals(one: Subject) -> list[Picture]:
    """The latents of largest deviation around the prior of one combination of labels, level by level."""
    labels_L, found = torch.tensor([size // 2 for size in one.sizes]), []
    named = label_expressions.text_of(labels_L.tolist(), one.dataset.info, one.factors)
    headings = [f"{sd + 0.0:.1f} sd" for sd in np.linspace(-control.RANGE, control.RANGE, control.STEPS).tolist()]
    for level in labelled.below_labels(one.model):
        order = control.deviating(one, labels_L, level)[:ROWS]
        rows = [_image(one, control.around(one, labels_L, level, column, "shown")) for column in order]
        which = ", ".join(f"{level.name}.{column}" for column in order)
        around = ", ".join(f"{factor} {value}" for factor, value in named.items())
        about = f"Rows: {which}, by the standard deviation of their prior given {around}; the others at its mode."
        found.append(Picture(f"Prior of {level.name}", about, np.concatenate(rows), headings))
    return found


def _image(one: Subject, values: Values) -> Any:
    return one.model.image(values).float().cpu().numpy()


def _in_rows(columns: list[Tensor]) -> Any:
    """Columns (R, C, H, W) to images in reading order."""
    return torch.stack(columns, dim=1).flatten(0, 1).numpy()

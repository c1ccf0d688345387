"""What `vae analyze` says of a model beyond its latents when asked: how likely images are, and how good samples."""

from dataclasses import dataclass
from typing import Any

import torch

from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import draws, likelihood, samples
from vaecli.analysis.draws import Source
from vaecli.analysis.inception import inception
from vaecli.analysis.likelihood import Nll
from vaecli.analysis.oracle import oracle
from vaecli.analysis.samples import Judge, Samples
from vaecli.data.base import Dataset, SplitView
from vaecli.errors import ConfigError
from vaecli.models.base import NoPrior
from vaecli.training.checkpoint import Loaded


@dataclass(frozen=True)
class Request:
    """`samples` to judge and draws `nll` an image of `nll_images` for log p(x), None for neither; `density` as
    `draws.source` takes it; `fid` is a file of Inception's weights, which judges samples in place of a classifier of
    the data. ConfigError for numbers that mean nothing."""

    samples: int | None = None
    nll: int | None = None
    nll_images: int = likelihood.IMAGES
    density: str = "stored"
    fid: str | None = None

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--samples", self.samples, samples.FEWEST),
            ("--nll", self.nll, 1),
            ("--nll-images", self.nll_images, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{option} is {value}; it must be at least {least}")
        if self.fid is not None and self.samples is None:
            raise ConfigError("--fid says by what samples are judged", "give --samples N, too")


NOTHING = Request()


@dataclass(frozen=True)
class Quality:
    """None is what was not asked for."""

    samples: Samples | None = None
    nll: Nll | None = None

    def record(self) -> dict[str, Any]:
        return {
            "samples": None if self.samples is None else self.samples.record(),
            "nll": None if self.nll is None else self.nll.record(),
        }

    def tables(self) -> list[tuple[str, list[list[str]]]]:
        """Of each part its name and rows of two cells."""
        found = []
        if self.nll is not None:
            found.append(("likelihood", likelihood.rows(self.nll)))
        if self.samples is not None:
            found.append(("samples", samples.rows(self.samples)))
        return found

    def warnings(self) -> list[str]:
        """What the numbers cannot be trusted in."""
        found = []
        if self.nll is not None and self.nll.hangs_on_few:
            found.append(
                f"half of the images have fewer than {self.nll.effective:.1f} effective draws of {self.nll.k:,}: "
                "-log p(x) may be well below what is estimated, and a larger --nll shows it"
            )
        if self.samples is not None and self.samples.n <= self.samples.features:
            found.append(
                f"{self.samples.n:,} images do not fill the {self.samples.features} features of the judge: the "
                f"{self.samples.judge.distance} is mostly bias"
            )
        return found


def prepare(asked: Request, loaded: Loaded, dataset: Dataset, view: SplitView) -> tuple[Source, Judge] | None:
    """All that can be refused, before anything else is computed, and the judge: a classifier may have to be trained.

    ConfigError with the reason: a model without likelihood or with a posterior without density, without anything to
    draw from, data without labels.
    """
    model = loaded.model
    if asked.nll is not None:
        why = likelihood.refusal(model, view.take(2).x_BCHW, loaded.hyper)
        if why is not None:
            raise ConfigError(f"--nll: {why}", "leave out --nll")
    if asked.samples is None:
        return None
    source = draws.source(loaded, asked.density)
    with torch.inference_mode(), devices.aside():
        try:
            source.draw(1)
        except NoPrior as error:
            raise ConfigError(f"--samples: {error.message}", error.hint) from None
    samples.sets(dataset, view, asked.samples)
    if asked.fid is not None:
        return source, inception(asked.fid, dataset.info.shape[0], model.device)
    return source, oracle(dataset, model.device)


def measure(
    asked: Request, prepared: tuple[Source, Judge] | None, loaded: Loaded, dataset: Dataset, view: SplitView, seed: int
) -> Quality:
    """What was asked for, with progress on stderr."""
    found, made = None, None
    if asked.nll is not None:
        images = min(asked.nll_images, len(view))
        with streams.progress("log p(x)", images) as advance:
            found = likelihood.estimate(
                loaded.model, view, loaded.hyper, asked.nll, images=images, seed=seed, advance=advance
            )
    if prepared is not None and asked.samples is not None:
        source, judge = prepared
        count = len(samples.sets(dataset, view, asked.samples)[0])
        if count < asked.samples:
            streams.notice(f"{count:,} images of the split {view.name} to compare with: as many samples are drawn")
        with streams.progress("judging samples", 4 * count) as advance:
            made = samples.measure(source, dataset, view, count, judge, seed=seed, advance=advance)
    return Quality(made, found)

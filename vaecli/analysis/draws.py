"""What `vae sample` draws from, in one place: samples, the variance of samples and the classifier's p(z) are of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vaecli.densities.base import Density
from vaecli.errors import ConfigError
from vaecli.models.base import Model, NoPrior, Values
from vaecli.training import stored_density
from vaecli.training.checkpoint import Loaded

CHUNK = 64  # drawn at a time, always whole: the first images do not depend on how many are asked for


@dataclass(frozen=True)
class Source:
    """A density fitted to a model's codes where there is one, else the model's own prior, or that after a `stage` of
    its training."""

    model: Model
    density: Density | None = None
    stage: str | None = None

    def draw(self, n: int, temperature: float = 1.0) -> Values:
        """n draws of all levels from torch's global generator. NoPrior where there is nothing to draw from, ConfigError
        for a temperature of a density, which has none."""
        if self.stage is not None:
            return self.model.draw_at(self.stage, n, temperature)
        if self.density is None:
            return self.model.draw(n, temperature=temperature)
        if temperature != 1.0:
            raise ConfigError("a temperature scales the model's own prior", "--density none draws from it")
        return self.model.unflatten(self.density.sample(n).to(self.model.device))

    def images(self, n: int, temperature: float = 1.0) -> Iterator[tuple[Tensor, Values]]:
        """n expected images (B, C, H, W) with the draws they are of, chunk by chunk; seed torch's generator first."""
        for start in range(0, n, CHUNK):
            values, keep = self.draw(CHUNK, temperature), min(CHUNK, n - start)
            yield self.model.image(values)[:keep], {name: value[:keep] for name, value in values.items()}

    def table(self, n: int) -> Tensor | None:
        """n draws of the levels inferred, (n, D), on the model's device; None where there is nothing to draw from."""
        try:
            return self.model.flatten(self.draw(n))
        except NoPrior:
            return None

    @property
    def text(self) -> str:
        if self.stage is not None:
            return f"the prior of stage {self.stage}"
        return "the prior" if self.density is None else self.density.text()


def source(loaded: Loaded, density: str = "stored") -> Source:
    """Of a checkpoint; `none` leaves a stored density out, and so does the name of a stage, whose prior is meant then.
    ConfigError for any other word, CheckpointError where the density is damaged."""
    model = loaded.model
    if density not in ("stored", "none"):
        if density not in model.stages or len(model.stages) == 1:
            words = ["stored", "none", *(model.stages if len(model.stages) > 1 else ())]
            raise ConfigError(f"--density is {density[:40]!r}; it must be {', '.join(words[:-1])} or {words[-1]}")
        return Source(model, stage=density)
    numbers = all(level.inferred and level.kind in ("gaussian", "point") for level in model.levels)
    stored = None
    if density == "stored" and numbers:
        stored = stored_density.load(loaded.path.parent, len(model.latent_names()))
    return Source(model, None if stored is None else stored[0])


def posterior_table(model: Model, x_BCHW: Tensor) -> Tensor:
    """An ancestral draw of the levels inferred for each image, (B, D)."""
    with torch.inference_mode():
        return model.flatten(model.infer(x_BCHW, sample=True).values)

"""`vae density`: fit a density to a model's codes, from which `vae sample` then draws; or say which there is."""

import torch
from torch import Tensor

from vaecli import data, densities, output
from vaecli import device as devices
from vaecli.commands.train import duration
from vaecli.config import tree as trees
from vaecli.data.base import SplitView
from vaecli.errors import ConfigError
from vaecli.models.base import Level, Model
from vaecli.training import checkpoint as checkpoints
from vaecli.training import stored_density
from vaecli.training.stop import Stop

CODES = 60_000  # images whose codes a density is fitted to, at most
BATCH = 512


def run(
    checkpoint: str, fit: str | None, components: int | None, settings: list[str], split: str, limit: int | None,
    max_time: str | None, seed: int, device: str, force: bool, json: bool,
    data_at: str | None = None,
) -> None:  # fmt: skip
    """Fit the density `fit` to codes of a split and store it beside the weights; without `fit`, tell what is stored.

    To one draw from q(z|x) an image, or to the point that a deterministic encoder gives. ConfigError where the model
    has no codes of numbers, or a density is there already and not `force`.
    """
    loaded = checkpoints.load(checkpoint, devices.pick(device), data_at)
    step = loaded.path.parent
    latents = sum(level.size for level in _levels(loaded.model))
    stored = stored_density.load(step, latents)
    if fit is None:
        if components is not None or settings:
            raise ConfigError("settings of a density, but no --fit")
        facts = {"density": None if stored is None else stored[0].config.name, "fitted_on": stored and stored[1]}
        if json:
            output.result_json({"schema": 1, "checkpoint": str(loaded.path), **facts})
        else:
            output.result("none" if stored is None else f"{stored[0].text()}, fitted to {stored[1]}")
        return
    if stored is not None and not force:
        raise ConfigError(
            f"{step}: has {stored[0].text()} already, fitted to {stored[1]}", "--force puts another in its place"
        )
    if loaded.path.name != checkpoints.MODEL_FILE or not (step / "manifest.json").is_file():
        raise ConfigError(f"{loaded.path}: a density is stored in a run's step directory", "give the run directory")
    values = {"name": fit} | ({} if components is None else {"components": components})
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write --set key=value")
        values[key] = trees.parse_value(value, f"--set {text}")
    density = densities.build(densities.parse(values), latents)
    stop = Stop(duration(max_time))
    with stop.signals():
        view = data.load(loaded.config.data, loaded.info).split(split).sample(min(limit or CODES, CODES))
        codes_ND = codes(loaded.model, view, seed)
        devices.seed(seed, "density")
        with output.progress("fitting", len(codes_ND)) as advance:
            density.fit(codes_ND, lambda: stop.reason is not None, advance)
        if stop.signal is not None:
            output.notice("stopped: nothing is stored")
            raise SystemExit(128 + stop.signal)
    fitted_on = f"{len(codes_ND):,} codes ({loaded.info.name} {view.name})"
    path = stored_density.add(step, density, fitted_on)
    output.notice(f"density    {density.text()}, fitted to {fitted_on}")
    mean = density.log_prob(codes_ND[:10_000])
    record = {
        "checkpoint": str(loaded.path), "density": fit, "settings": density.config.model_dump(mode="json"),
        "fitted_on": fitted_on, "log_prob": None if mean is None else float(mean.mean()),
    }  # fmt: skip
    if json:
        output.result_json({"schema": 1, "path": str(path), **record})
    else:
        output.result(str(path))


def _levels(model: Model) -> list[Level]:
    found = list(model.levels)
    if any(not level.inferred or level.kind not in ("gaussian", "point") for level in found):
        raise ConfigError(f"{model.config.name} has no codes of numbers to fit a density to")
    return found


def codes(model: Model, view: SplitView, seed: int) -> Tensor:
    """Draws from q(z|x), or points, of the images of a view: float64 (N, D) on the CPU."""
    parts = []
    with torch.inference_mode(), output.progress("encoding", len(view)) as advance:
        for i, batch in enumerate(view.batches(BATCH)):
            devices.seed(seed, "codes", i)
            found = model.infer(batch.x_BCHW.to(model.device), sample=True)
            parts.append(model.flatten(found.values).cpu().double())
            advance(len(batch.x_BCHW))
    return torch.cat(parts)

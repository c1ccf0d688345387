"""`vae density`: fit a density to a model's codes, from which `vae sample` then draws; or say which there is."""

from vaecli import config as configs
from vaecli import data, output
from vaecli import device as devices
from vaecli.commands.train import duration
from vaecli.config import tree as trees
from vaecli.densities.base import DensityConfig
from vaecli.errors import ConfigError
from vaecli.training import checkpoint as checkpoints
from vaecli.training import stored_density
from vaecli.training.stop import Stop


def run(
    checkpoint: str, fit: str | None, components: int | None, settings: list[str], split: str, limit: int | None,
    max_time: str | None, seed: int, device: str, force: bool, json: bool,
    data_at: str | None = None,
) -> None:  # fmt: skip
    """Fit the density `fit` to codes of a split and store it beside the weights; without `fit`, tell what is stored.

    To one draw from q(z|x) an image, or to the point that a deterministic encoder gives. ConfigError where the model
    has no codes of numbers, or a density is there already and not `force`.
    """
    asked = None if fit is None else _asked(fit, components, settings)
    loaded = checkpoints.load(checkpoint, devices.pick(device), data_at)
    step = loaded.path.parent
    latents = stored_density.latents(loaded.model)
    stored = stored_density.load(step, latents)
    if asked is None:
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
    stop = Stop(duration(max_time))
    with stop.signals():
        view = data.load(loaded.config.data, loaded.info).split(split)
        view = view.sample(min(limit or stored_density.CODES, stored_density.CODES))
        fitted = stored_density.fit(asked, loaded.model, view, seed, stop)
    if stop.signal is not None:
        output.notice("stopped: nothing is stored")
        raise SystemExit(128 + stop.signal)
    density, codes_ND, fitted_on = fitted.density, fitted.codes_ND, fitted.fitted_on
    path = stored_density.add(step, density, fitted_on)
    output.notice(f"density    {density.text()}, fitted to {fitted_on}")
    mean = density.log_prob(codes_ND[:10_000])
    record = {
        "checkpoint": str(loaded.path), "density": asked.name, "settings": density.config.model_dump(mode="json"),
        "fitted_on": fitted_on, "log_prob": None if mean is None else float(mean.mean()),
    }  # fmt: skip
    if json:
        output.result_json({"schema": 1, "path": str(path), **record})
    else:
        output.result(str(path))


def _asked(fit: str, components: int | None, settings: list[str]) -> DensityConfig:
    """The section that the options make. ConfigError where it is none."""
    tree = trees.Tree()
    tree.set("density.name", fit, "--fit")
    if components is not None:
        tree.set("density.components", components, "--components")
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write --set key=value")
        tree.set(f"density.{key}", trees.parse_value(value, f"--set {text}"), "--set")
    return configs.build_density(tree)

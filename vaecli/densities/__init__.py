"""Densities on codes, one file each: p(z) fitted after training to what an encoder makes of the training images.

A new file here is a new density: it defines `Config` and `Density`.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vaecli import registry
from vaecli.errors import ConfigError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from vaecli.densities.base import Density, DensityConfig


def build(config: "DensityConfig", latents: int) -> "Density":
    """The density that a checked section describes, not fitted yet."""
    density: Density = registry.load("density", config.name).Density(config, latents)
    return density


def parse(values: Mapping[str, Any]) -> "DensityConfig":
    """A checked section from plain values with a `name`; ConfigError naming what is wrong."""
    from pydantic import ValidationError

    name = values.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"which density? There are: {', '.join(registry.names('density'))}")
    try:
        config: DensityConfig = registry.load("density", name).Config.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"density.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return config


def dump(density: "Density", fitted_on: str) -> dict[str, str]:
    """What beside its tensors a file needs to tell: `load` reads it back."""
    described = {"config": density.config.model_dump(mode="json"), "latents": density.latents, "fitted_on": fitted_on}
    return {"format": "pt", "vaecli.density": json.dumps(described, sort_keys=True)}


def load(metadata: Mapping[str, str], tensors: Mapping[str, "Tensor"], latents: int) -> tuple["Density", str]:
    """A fitted density, and in words what it was fitted to. InputError where the file is no density of `latents`."""
    try:
        described = json.loads(metadata["vaecli.density"])
        density = build(parse(described["config"]), int(described["latents"]))
        if density.latents != latents:
            raise InputError(f"a density over {density.latents} latents, the model has {latents}")
        density.load_state_dict(dict(tensors), strict=True)
        if not all(bool(t.isfinite().all()) for t in density.state_dict().values()):
            raise InputError("values that are not finite")
        return density.eval(), str(described["fitted_on"])
    except (KeyError, ValueError, TypeError, RuntimeError, RecursionError, ConfigError) as error:
        raise InputError(f"not a density of this model: {str(error).partition(chr(10))[0][:200]}") from None

"""The models, one file each. A new file here is a new model: it defines `Config` and `Model`."""

from typing import TYPE_CHECKING, Any

from vaecli import registry
from vaecli.batch import DataInfo

if TYPE_CHECKING:
    from vaecli.models.base import Model, ModelConfig


def build(config: "ModelConfig", info: DataInfo) -> "Model":
    """The model that a checked configuration describes, with fresh parameters from torch's global generator."""
    model: Model = registry.load("model", config.name).Model(settled(config, info)[0], info)
    return model


def settled(config: "ModelConfig", info: DataInfo) -> tuple["ModelConfig", list[str]]:
    """The section with what it leaves to the data (`auto`) decided, and for each choice the reason."""
    from vaecli.nets import coders
    from vaecli.objectives import likelihoods

    choices: dict[str, Any] = {}
    reasons = []
    if isinstance(getattr(config, "net", None), coders.AutoConfig):
        choices["net"], reason = coders.chosen(info.shape)
        reasons.append(reason)
    if isinstance(getattr(config, "likelihood", None), likelihoods.AutoConfig):
        choices["likelihood"], reason = likelihoods.chosen(info.binary, info.contrast)
        reasons.append(reason)
    return config.model_copy(update=choices), reasons


def settled_as(config: "ModelConfig", before: "ModelConfig") -> "ModelConfig":
    """The section with what it leaves to the data decided as it was before, for the same model."""
    if config.name != before.name:
        return config
    found = {key: getattr(config, key, None) for key in ("net", "likelihood", "output_bias")}
    left = [key for key, value in found.items() if getattr(value, "name", value) == "auto"]
    return config.model_copy(update={key: getattr(before, key) for key in left})


def takes_steps(config: "ModelConfig") -> bool:
    """Whether a model is trained step by step; else it is fitted in closed form."""
    stepless: bool = registry.load("model", config.name).Model.closed_form
    return not stepless

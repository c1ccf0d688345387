"""The models, one file each. A new file here is a new model: it defines `Config` and `Model`."""

from typing import TYPE_CHECKING

from vaecli import registry
from vaecli.batch import DataInfo

if TYPE_CHECKING:
    from vaecli.models.base import Model, ModelConfig


def build(config: "ModelConfig", info: DataInfo) -> "Model":
    """The model that a checked configuration describes, with fresh parameters from torch's global generator."""
    model: Model = registry.load("model", config.name).Model(config, info)
    return model


def takes_steps(config: "ModelConfig") -> bool:
    """Whether a model is trained step by step; else it is fitted in closed form."""
    stepless: bool = registry.load("model", config.name).Model.closed_form
    return not stepless

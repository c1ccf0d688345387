"""Libraries that only some things here need: imported when they are asked for, and named with their pip line where
they are missing."""

import importlib
import importlib.util
import platform
from importlib import metadata
from typing import Any

from vaecli import __version__
from vaecli.errors import ConfigError


def need(module: str, extra: str, what: str) -> Any:
    """The module; ConfigError, with the pip line of the `extra` it comes with, where it is not installed."""
    require(module, extra, what)
    return importlib.import_module(module)


def require(module: str, extra: str, what: str) -> None:
    """The same without importing it, which may take seconds."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package that it is in
        found = None
    if found is None:
        raise ConfigError(f"{what} needs {module.partition('.')[0]}", f'pip install "vaecli[{extra}]"')


def versions() -> dict[str, str]:
    """What numbers were computed with."""
    libraries = {name: metadata.version(name) for name in ("torch", "numpy")}
    return {"vae": __version__, "python": platform.python_version(), **libraries}

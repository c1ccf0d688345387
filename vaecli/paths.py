"""Where data sets are looked for and where derived files are kept, and how paths are told. Nothing is created here."""

import os
import re
from pathlib import Path


def _folder(variable: str, xdg: str, fallback: str) -> Path:
    if os.environ.get(variable):
        return Path(os.environ[variable]).expanduser()
    base = Path(os.environ.get(xdg, ""))
    # The XDG specification tells programs to ignore relative paths in its variables.
    return (base if base.is_absolute() else Path.home() / fallback) / "vae"


def data_dir() -> Path:
    """$VAE_DATA_DIR, else $XDG_DATA_HOME/vae, else ~/.local/share/vae."""
    return _folder("VAE_DATA_DIR", "XDG_DATA_HOME", ".local/share")


def cache_dir() -> Path:
    """$VAE_CACHE_DIR, else $XDG_CACHE_HOME/vae, else ~/.cache/vae."""
    return _folder("VAE_CACHE_DIR", "XDG_CACHE_HOME", ".cache")


def _homes() -> list[str]:
    """The home directory as it is called and, where that is a link, as the current directory tells of it."""
    home = os.path.expanduser("~")
    return [place for place in dict.fromkeys((home, os.path.realpath(home))) if os.path.isabs(place) and place != "/"]


def portable(path: str) -> str:
    """An absolute path as it is stored in what may be handed on: below the home directory it begins with `~`, which
    `expanduser` undoes, and so does not tell the user's name.
    """
    path = os.path.abspath(os.path.expanduser(path))
    for home in _homes():
        if path == home or path.startswith(home.rstrip("/") + "/"):
            return "~" + path[len(home.rstrip("/")) :]
    return path


def without_homes(text: str) -> str:
    """A text with each path into a home directory, the user's own or one where systems have them, begun with `~`."""
    own = "|".join(map(re.escape, _homes()))
    anywhere = r"/(?:home|Users)/[^/\s'\"]+"
    return re.sub(rf"(?<![\w/.])(?:{own + '|' if own else ''}{anywhere})(?![\w.-])", "~", text)

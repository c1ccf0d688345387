"""Where data sets are looked for and where derived files are kept. Nothing is created here."""

import os
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

"""Files of the commands that use a model: the picture they write, and the pictures they are given.

`check` comes before the work and `write` after it, so that a mistake in `-o` costs nothing.
"""

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vaecli import output as streams
from vaecli.errors import ConfigError, InputError, MachineError

STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
MAX_PIXELS = 89_000_000  # a compressed image of a few kB can unfold to gigabytes


def check(output: str | None, default_name: str, force: bool, json: bool = False) -> str:
    """The output's name (`-` for stdout), or the error that writing it would end in.

    ConfigError where something would be overwritten or the terminal would get binary data, InputError where the
    folder is missing, MachineError where it cannot be written.
    """
    name = default_name if output is None else output
    if name in STDOUT:
        if json:
            raise ConfigError("--json and -o - both want stdout", "write the picture to a file")
        if sys.stdout is not None and sys.stdout.isatty():
            raise ConfigError("a terminal cannot show binary data", "redirect stdout, or name a file with -o")
        return "-"
    if not name or "\0" in name:
        raise ConfigError("-o needs the name of a file")
    target = Path(os.path.realpath(name))
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        require_folder(target.parent, name)
    except NotADirectoryError:
        raise InputError(f"{name}: a part of this path is a file, not a folder") from None
    except OSError as error:
        raise MachineError(f"{name}: {error.strerror}") from None
    else:
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{name}: is a folder", "name a file in it")
        if stat.S_ISLNK(mode):
            raise InputError(f"{name}: a link that leads round in a circle")
        if stat.S_ISREG(mode):
            if not force:
                raise ConfigError(f"{name}: exists already", "--force overwrites it, -o writes elsewhere")
            require_folder(target.parent, name)
    return name


def require_folder(folder: Path, name: str) -> None:
    """InputError unless `folder` exists, MachineError unless it can be written; `name` is what the user asked for."""
    if not folder.is_dir():
        raise InputError(f"{name}: the folder {folder} does not exist", f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MachineError(f"{name}: no permission to write in {folder}")


def write(output: str | None, default_name: str, data: bytes, force: bool) -> str:
    """Write a result, whole or not at all, and return its name; `-` stands for stdout.

    Links are written through, devices and pipes written to; the mode of a new file follows the umask.
    Raises what `check` raises, and MachineError where the machine refuses.
    """
    name = check(output, default_name, force)
    if name == "-":
        if sys.stdout is None:
            raise MachineError("stdout is closed")
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return name
    target = Path(os.path.realpath(name))
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)  # a pipe or device must not be replaced by a file
        else:
            _replace(target, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MachineError(f"{name}: cannot be written: {error.strerror}") from None
    return name


def _replace(target: Path, data: bytes) -> None:
    """Write beside the target and rename, so that a reader never sees half a file."""
    temporary = target.parent / f".vae-{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def report(name: str, record: dict[str, Any], json: bool) -> None:
    """Say on stdout what was written: the name, or with `json` the record; nothing where stdout was the output."""
    if json:
        streams.result_json({"schema": 1, "path": name, **record})
    elif name != "-":
        streams.result(name)


def read_image(path: str, shape: tuple[int, int, int]) -> Tensor:
    """An image file as float32 (C, H, W) in [0, 1], made to fit a model's image shape.

    Turned as its EXIF says; transparency on black; RGB or grey by the model's channels; the first frame of an
    animation; another size is stretched to the model's (bicubic), with a notice. InputError naming the file.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise InputError(f"{path}: image files have 1 or 3 channels, the model {channels}", "use --split")
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(f"{path}: {opened.width} x {opened.height} pixels are too many")
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I") or picture.mode == "F":
                # Pillow clips 16 bits to 8 instead of scaling them.
                levels = np.asarray(picture, dtype=np.float64)
                top = 255.0 if picture.mode == "F" else 65535.0
                picture = Image.fromarray(np.clip(np.rint(levels * 255.0 / top), 0, 255).astype(np.uint8))
            if "A" in picture.getbands() or "transparency" in picture.info:
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture.convert("RGBA"))
            picture = picture.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise InputError(f"{path}: not an image that can be read") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not an image that can be read: {error}") from None
    if picture.size != (width, height):
        streams.notice(f"{path}: resized from {picture.width} x {picture.height} to the model's {width} x {height}")
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture, dtype=np.float32).reshape(height, width, channels) / 255.0
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def title(*parts: object) -> str:
    """The heading of a picture: `beta-vae · dsprites · step 20,000`."""
    return " · ".join(streams.safe(part) for part in parts if part)

"""Files of the commands that use a model: what they write, and the pictures they are given.

`check` comes before the work and `write` after it, so that a mistake in `-o` costs nothing; `check_images` and
`write_images` are the same for many images.
"""

import contextlib
import io
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaecli import __version__, data, paths
from vaecli import output as streams
from vaecli.batch import DataInfo
from vaecli.data import folder
from vaecli.errors import ConfigError, InputError, MachineError
from vaecli.report import figures
from vaecli.training import checkpoint as checkpoints
from vaecli.training.checkpoint import Loaded

STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def check(
    output: str | None,
    default_name: str,
    force: bool,
    json: bool = False,
    text: bool = False,
    endings: tuple[str, ...] = (),
) -> str:
    """The output's name (`-` for stdout), or the error that writing it would end in. `text`: fit for a terminal.

    ConfigError where something would be overwritten, the terminal would get binary data, or the name ends like another
    kind of file than `endings`; InputError where the folder is missing; MachineError where it cannot be written.
    """
    name = default_name if output is None else output
    if name in STDOUT:
        if streams.stdout_was_closed:
            raise ConfigError("-o - wants stdout, which is closed", "name a file with -o")
        if json:
            raise ConfigError("--json and -o - both want stdout", "name a file with -o")
        if not text and sys.stdout is not None and sys.stdout.isatty():
            raise ConfigError("a terminal cannot show binary data", "redirect stdout, or name a file with -o")
        return "-"
    if not name or "\0" in name:
        raise ConfigError("-o needs the name of a file")
    if ".png" in endings:
        endings = (*endings, ".svg", ".pdf")
    if endings and Path(name).suffix.lower() not in (*endings, ""):
        raise ConfigError(f"{name}: this command writes no such kind of file", f"name it {' or '.join(endings)}")
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
                raise ConfigError(f"{name}: exists already", "--force overwrites it; or give another name")
            require_folder(target.parent, name)
    return name


def require_folder(parent: Path, name: str) -> None:
    """InputError unless `parent` exists, MachineError unless it can be written; `name` is what the user asked for."""
    if not parent.is_dir():
        raise InputError(f"{name}: the folder {parent} does not exist", f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise MachineError(f"{name}: no permission to write in {parent}")


_facts: dict[str, str] = {}  # about the checkpoint at work, for the pictures made of it


def load(checkpoint: str, device: torch.device, data_at: str | None = None) -> Loaded:
    """A checkpoint; the pictures that are written from now on tell of it."""
    loaded = checkpoints.load(checkpoint, device, data_at)
    folders = loaded.path.absolute().parts
    run = folders[-4] if len(folders) > 4 and folders[-3] == "checkpoints" else loaded.path.name
    _facts.update({"vae run": run, "vae step": str(loaded.step)})
    return loaded


def facts() -> dict[str, str]:
    """What a picture tells of itself: the program's version, the command, the run and its step."""
    command = paths.without_homes(shlex.join(["vae", *sys.argv[1:]]))
    return {"Software": f"vae {__version__}", "vae command": command, **_facts}


def write(output: str | None, default_name: str, data: bytes, force: bool) -> str:
    """Write a result, whole or not at all, and return its name; `-` stands for stdout.

    Links are written through, devices and pipes written to; the mode of a new file follows the umask.
    Raises what `check` raises, and MachineError where the machine refuses.
    """
    name = check(output, default_name, force)
    data = figures.signed(figures.as_named(name, data), facts())
    if name == "-":
        streams.result_bytes(data)
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


Array = NDArray[np.float32]


def check_images(output: str | None, default_name: str, n: int, force: bool, json: bool = False) -> None:
    """As `check`, for `n` images; a name that ends in a slash, or a folder that exists, gets a PNG file for each."""
    folder = _folder(output)
    if folder is None:
        check(output, default_name, force, json, endings=(".png", ".npz"))
    elif folder.is_dir():
        taken = [name for i in range(n) if (folder / (name := f"{i:05d}.png")).exists()]
        if taken and not force:
            raise ConfigError(f"{folder / taken[0]}: exists already", "--force overwrites it; or give another name")
        require_folder(folder, str(output))
    elif folder.exists():
        raise ConfigError(f"{output}: is a file, not a folder")
    else:
        require_folder(Path(os.path.realpath(folder)).parent, str(output))


def write_images(
    output: str | None,
    default_name: str,
    chunks: Iterable[tuple[Array, Array]],
    n: int,
    shape: tuple[int, int, int],
    force: bool,
    advance: Callable[[float], None],
    arrays: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    draw: Callable[[Array], bytes] = figures.grid,
) -> str:
    """Write `n` images, given in chunks with their latents, (B, C, H, W) and (B, D); returns the name.

    A grid (PNG, as `draw` draws it), a folder of PNG files, or `.npz` with `images`, `z` and the `arrays`. ConfigError,
    before any image is made, where the grid would be too large; else as `write`.
    """
    folder = _folder(output)
    if folder is not None:
        _write_folder(folder, chunks, force, advance)
        return str(folder)
    packed = output is not None and output.lower().endswith(".npz")
    if not packed:
        columns = figures.columns_for(n, *shape[1:])
        figures.check_size(-(-n // columns), columns, *shape[1:])
    images, codes = [], []
    for x_BCHW, z_BD in chunks:
        images.append(x_BCHW)
        codes.append(z_BD)
        advance(len(z_BD))
    x_NCHW = np.concatenate(images)
    data = _npz(x_NCHW, np.concatenate(codes), arrays) if packed else draw(x_NCHW)
    return write(output, default_name, data, force)


def _folder(output: str | None) -> Path | None:
    if output is None or not (output.endswith(("/", os.sep)) or os.path.isdir(output)):
        return None
    return Path(output)


def _write_folder(
    folder: Path, chunks: Iterable[tuple[Array, Array]], force: bool, advance: Callable[[float], None]
) -> None:
    number = 0
    for x_BCHW, _ in chunks:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise MachineError(f"{folder}: cannot be made: {error.strerror}") from None
        for image_CHW in x_BCHW:
            write(str(folder / f"{number:05d}.png"), "", figures.single(image_CHW), force=True)
            number += 1
        advance(len(x_BCHW))
    # Images of an earlier call with more of them would be taken for this one's. What we did not write stays.
    for path in sorted(folder.glob("*.png")) if force else ():
        if re.fullmatch(r"[0-9]{5,7}", path.stem) and int(path.stem) >= number and figures.is_signed(path):
            path.unlink()


def _npz(images: Array, z: Array, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, images=images, z=z, **arrays)
    return stream.getvalue()


def report(name: str, record: dict[str, Any], json: bool) -> None:
    """Say on stdout what was written: the name, or with `json` the record; nothing where stdout was the output."""
    if json:
        streams.result_json({"schema": 1, "path": name, **record})
    elif name != "-":
        streams.result_path(name)


def whole_set(images: list[str]) -> str | None:
    """The data set that is given in place of image files: the one folder, .npz, .h5, ...; None where they are files.

    ConfigError where one stands among files.
    """
    sets = [path for path in images if data.is_set(path)]
    if sets and len(images) > 1:
        raise ConfigError(f"{sets[0]}: a whole set is given alone, or image files without it")
    return sets[0] if sets else None


def check_given(images: list[str], whole: str | None, split: str | None, n: int | None) -> None:
    """ConfigError where a split, or a number of its images, is asked for beside images that are given."""
    if whole is not None and split is not None:
        raise ConfigError(f"--split is of the model's data, but {whole} is given, which is taken whole")
    if images and whole is None and split is not None:
        raise ConfigError("--split is of the model's data, but image files are given")
    if images and whole is None and n is not None:
        raise ConfigError("-n counts images of a split, but image files are given")


def read_image(path: str, info: DataInfo, fit: bool = True) -> Tensor:
    """An image file as float32 (C, H, W) in [0, 1], of the shape and by the range of values of a model's images.

    The rules are those of the data source `folder`, so a file looks to the model as it did in training; a change of
    size is noted, or refused unless it may be made to `fit`. InputError naming the file.
    """
    channels, height, width = info.shape
    if channels not in (1, 3):
        raise InputError(f"{path}: the model takes images of {channels} channels, which no image file has")
    try:
        size, _ = folder.read_header(path)
        pixels_CHW = folder.read_pixels(path, channels, height, width, data.range_of(info), data.fit_of(info))
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        problem = str(getattr(error, "strerror", None) or error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not an image that can be read ({problem})") from None
    if size != (height, width) and not fit:
        raise InputError(f"{path}: is of {size[1]}x{size[0]} pixels, the model's images of {width}x{height}")
    if size != (height, width):
        streams.notice(f"{path}: fitted from {size[1]}x{size[0]} to the model's {width}x{height} pixels")
    return torch.from_numpy(pixels_CHW) / 255.0


def title(*parts: object) -> str:
    """The heading of a picture: `beta-vae · dsprites · step 20,000`."""
    return " · ".join(streams.safe(part) for part in parts if part)

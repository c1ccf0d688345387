"""Files in directories that a stranger may have made: a run directory handed on, a cache others can write to.

Nothing is opened through a link, which could lead to any file of the user's; a pipe or device in the place of a file
ends in an error and not in waiting; and what replaces a file is first written under a name that nobody can foresee.
"""

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

_PLAIN = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))  # not all are on Windows


def is_plain(path: Path) -> bool:
    """Whether a regular file is there, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_plain_folder(path: Path) -> bool:
    """Whether a directory is there, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file, as `os.open` gives it; OSError, also for a link and for anything else."""
    try:
        handle = os.open(path, flags | _PLAIN, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link, which is not followed here", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return handle


def read(path: Path, most: int | None = None) -> bytes:
    """The content; OSError as `open_plain`, or where it is more than `most` bytes."""
    with os.fdopen(open_plain(path), "rb") as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, "is too large", str(path))
        return file.read()


def append(path: Path) -> TextIO:
    """A text file open for appending, made where there is none; OSError as `open_plain`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    handle = open_plain(path, flags)
    if os.fstat(handle).st_nlink > 1:  # a second name of another file, which archives can hold as well: a copy of ours
        os.close(handle)
        replace(path, read(path))
        handle = open_plain(path, flags)
    return os.fdopen(handle, "a+", encoding="utf-8", errors="backslashreplace")


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, in place of whatever has its name; OSError where the system refuses."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that gets its name at the end, and is gone if there was an error."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.part")
    file = temporary.open("xb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine could leave an empty file by this name
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def json_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object of a stranger's text; empty where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

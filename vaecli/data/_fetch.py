"""Downloads. Over https alone, and a file gets its name only when its sha256 is the expected one."""

import hashlib
import http.client
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaecli import output
from vaecli.errors import MachineError

_TIMEOUT = 20.0  # seconds without a byte
_CHUNK = 1 << 18


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise urllib.error.URLError(f"refused to follow it from https to {newurl[:80]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_opener = urllib.request.build_opener(_HttpsOnly())


def offline() -> bool:
    """Whether VAE_OFFLINE forbids downloads."""
    return os.environ.get("VAE_OFFLINE", "").lower() not in ("", "0", "false", "no")


def fetch(urls: Sequence[str], target: Path, sha256: str, size: int) -> Path:
    """Put the file of that hash and size (bytes) at `target`, from the first of `urls` that has it.

    A second process waits for the first and uses its file. MachineError, naming the URLs and `target`, where it cannot
    be had; then there is nothing at `target`.
    """
    hint = f"put a copy of {urls[0]} at {target}, or set VAE_DATA_DIR to the folder that has it"
    if offline():
        raise MachineError(f"{target.name} is not in {target.parent}, and VAE_OFFLINE forbids downloads", hint)
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent):
            if target.is_file():
                return target
            failures = []
            try:
                for url in urls:
                    output.notice(f"downloading {url} ({size / 1e6:.1f} MB) to {target}")
                    problem = _download(url, part, sha256, size)
                    if problem is None:
                        part.replace(target)
                        return target
                    part.unlink(missing_ok=True)
                    failures.append(f"{url}: {problem}")
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot write {target}: {error.strerror}", hint) from None
    raise MachineError(f"{target.name} could not be downloaded: {'; '.join(failures)}", hint)


def _download(url: str, part: Path, sha256: str, size: int) -> str | None:
    """What went wrong with the network or the content, None if nothing; OSError where the disk did."""
    if not url.startswith("https://"):
        return "refused, not https"
    digest, got = hashlib.sha256(), 0
    with part.open("xb") as file, output.progress(part.name[1:].partition(".")[0], size) as advance:
        try:
            response = _opener.open(url, timeout=_TIMEOUT)
        except (OSError, http.client.HTTPException) as error:
            return _reason(error)
        with response:
            while got <= size:  # one byte too many is enough to know that it is another file
                try:
                    chunk = response.read(min(_CHUNK, size + 1 - got))
                except (OSError, http.client.HTTPException) as error:
                    return f"{_reason(error)} after {got:,} of {size:,} bytes"
                if not chunk:
                    break
                file.write(chunk)
                digest.update(chunk)
                got += len(chunk)
                advance(len(chunk))
        if got != size:
            return f"{'only ' if got < size else 'more than '}{min(got, size):,} bytes came, not {size:,}"
        if digest.hexdigest() != sha256:
            return "its checksum is wrong"
        file.flush()
        os.fsync(file.fileno())
    return None


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One download into a folder at a time. The lock is on the folder itself, so no lock file can be left behind."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes fetch the file twice, which does no harm
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            output.notice(f"waiting for another download to {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)

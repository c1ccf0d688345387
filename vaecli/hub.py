"""Checkpoints on the Hugging Face hub, by its own library (extra `[hub]`): `hf://owner/name` or `hf://owner/name@rev`.

$HF_ENDPOINT, $HF_TOKEN and $HF_HOME are the library's own. Nothing but weights, configuration and manifest is fetched,
and what is fetched is checked as any stranger's checkpoint is.
"""

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vaecli import extras, output
from vaecli.errors import ConfigError, InputError, MachineError
from vaecli.paths import cache_dir

PREFIX = "hf://"
FILES = ("model.safetensors", "config.json", "manifest.json", "density.safetensors")
_NAME = re.compile(r"([\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?:@([\w][\w./-]{0,99}))?", flags=re.ASCII)


def is_name(path: object) -> bool:
    """Whether a checkpoint is one on the hub."""
    return isinstance(path, str) and path.startswith(PREFIX)


def parse(name: str) -> tuple[str, str | None]:
    """(`owner/name`, revision or None) of `[hf://]owner/name[@rev]`; ConfigError for anything else."""
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if found is None or ".." in name:
        raise ConfigError(f"{name[:100]}: not the name of a repository", f"write {PREFIX}owner/name, or ...@revision")
    return found[1], found[2]


def fetch(name: str) -> Path:
    """The folder, in the cache, of a checkpoint on the hub, which is asked for news each time.

    ConfigError without the extra or for what is no name, InputError where there is no such repository or no checkpoint
    in it, MachineError where the hub cannot be reached or VAE_OFFLINE forbids it; what was fetched before is then used.
    """
    repository, revision = parse(name)
    folder = cache_dir() / "hub" / f"{repository.replace('/', '--')}@{(revision or 'main').replace('/', '--')}"
    if os.environ.get("VAE_OFFLINE", "").lower() not in ("", "0", "false", "no"):
        if not (folder / FILES[0]).is_file():
            raise MachineError(f"{name}: is not in {folder}, and VAE_OFFLINE forbids downloads")
        output.notice(f"{name}: {folder}, as it was fetched before")
        return folder
    hub = extras.need("huggingface_hub", "hub", PREFIX)
    with _errors(name):
        hub.snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=list(FILES))
    if not (folder / FILES[0]).is_file():
        raise InputError(f"{name}: holds no {FILES[0]}", "checkpoints of vae come from `vae push`")
    output.notice(f"{name}: fetched to {folder}")
    return folder


def push(folder: Path, name: str, private: bool, message: str) -> str:
    """Upload a folder to a repository, which is made where there is none; its address.

    ConfigError without the extra or a token, MachineError where the hub refuses or cannot be reached.
    """
    repository, revision = parse(name)
    hub = extras.need("huggingface_hub", "hub", "`vae push`")
    if hub.get_token() is None:
        raise ConfigError(f"{name}: there is no token to write with", "`hf auth login`, or set HF_TOKEN")
    with _errors(name):
        api = hub.HfApi(library_name="vaecli")
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message=message,
            ignore_patterns=[".cache/**"],
        )  # fmt: skip
    return str(address)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """The library's errors as ours, in a line."""
    importlib.import_module("huggingface_hub.utils").disable_progress_bars()
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except errors.GatedRepoError:
        raise InputError(f"{name}: asks for consent that was not given", "give it on the repository's page") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise InputError(f"{name}: no such repository, or it is not yours to see", "HF_TOKEN names who asks") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no")
        said = str(getattr(error, "server_message", None) or "").partition("\n")[0][:200]
        hint = "the token may not write there" if status in (401, 403) else None
        raise MachineError(f"{name}: the hub answered {status}{': ' + said if said else ''}", hint) from None
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise MachineError(f"{name}: the hub cannot be reached ({type(error).__name__})") from None
    except OSError as error:
        raise MachineError(f"{name}: {error.strerror or str(error).partition(chr(10))[0][:200]}") from None
    except Exception as error:
        if not type(error).__module__.startswith("http"):  # those of the library's own client
            raise
        raise MachineError(f"{name}: the hub cannot be reached ({type(error).__name__})") from None

"""Checkpoints: whole or not at all, verified when read, and never able to run code.

A step directory holds `model.safetensors` (with the configuration in its metadata, so the file alone is enough),
`config.json` (the same text), `trainer/` (what only resuming needs) and `manifest.json` (size and sha256 of each file,
written last). It is made under a temporary name, every file fsynced, and renamed into place; `latest` moves after that.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import struct
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

import vaecli.models as models
from vaecli import __version__, data, hub, output, safe_files
from vaecli import config as configs
from vaecli import device as devices
from vaecli.batch import DataInfo
from vaecli.config import RunConfig
from vaecli.config import tree as trees
from vaecli.errors import ConfigError, InputError, MachineError
from vaecli.models.base import Model
from vaecli.settings.section import Count

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
DENSITY_FILE = "density.safetensors"
_MAX_HEADER = 16_000_000
_MAX_TENSORS = 20_000
_MAX_VALUES = 400_000  # of the JSON that describes them, which takes up to a hundred times its size in memory
_MAX_SIDE = 8_192


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, hostile or from a newer version (exit code 3)."""


@dataclass(frozen=True)
class Loaded:
    """A model ready for use: in evaluation mode, on its device."""

    model: Model
    info: DataInfo
    config: RunConfig
    step: int
    path: Path  # the .safetensors file

    @property
    def hyper(self) -> dict[str, float]:
        """The model's numbers at the checkpoint's step."""
        return self.model.hyper(self.config.train.in_stage(self.step))


class Files:
    """The file operations of a commit, in one place so that tests can make each of them fail."""

    def write(self, path: Path, content: bytes) -> None:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def fsync_folder(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def symlink(self, target: str, link: Path) -> None:
        os.symlink(target, link)

    def remove(self, path: Path) -> None:
        # Out of sight first: what a crash leaves half deleted must not look like a checkpoint.
        gone = path.with_name(f".tmp-gone-{path.name}-{os.urandom(8).hex()}")
        os.replace(path, gone)
        shutil.rmtree(gone)


FILES = Files()
_undeleted: set[Path] = set()  # steps that were to go and could not

# -------------------------------------------------------------------------------------------------------------- writing


def commit(
    folder: Path,
    model: Model,
    config: RunConfig,
    step: int,
    keep: int,
    optimizers: Mapping[str, Tensor],
    state: Mapping[str, Any],
    best: int | None = None,
    spared: Collection[int | None] = (),
) -> Path:
    """Write `folder/step-N`, then point `folder/latest` at it and `folder/best` at the step `best`, and drop all but
    the newest `keep` steps, the best and those `spared`.

    `optimizers` and `state` (JSON values) go to `trainer/`. MachineError if the disk refuses; nothing is half made.
    """
    final = folder / f"step-{step:08d}"
    described = describe(model, config, step)
    contents = {
        MODEL_FILE: ordered(save_safetensors(contiguous(model.state_dict()), metadata=_metadata(described, step))),
        "config.json": described.encode(),
        "trainer/optimizer.safetensors": ordered(save_safetensors(contiguous(optimizers), metadata={"format": "pt"})),
        "trainer/state.json": json.dumps({"step": step, **state}, sort_keys=True).encode(),
    }
    chance = os.urandom(8).hex()
    aside, temporary, link = (folder / f".tmp-{what}{final.name}-{chance}" for what in ("old-", "", "link-"))
    try:
        _require_own(folder)
        _write_all(temporary, contents)
        if final.exists():  # the same step once more
            FILES.rename(final, aside)
        FILES.rename(temporary, final)
        FILES.fsync_folder(folder)
        for name in ("latest", "best"):
            if safe_files.is_plain_folder(folder / name):  # a copy that was made without links
                FILES.remove(folder / name)
        FILES.symlink(final.name, link)
        FILES.rename(link, folder / "latest")
        if best is not None:
            FILES.symlink(f"step-{best:08d}", link)
            FILES.rename(link, folder / "best")
        FILES.fsync_folder(folder)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists() and not final.exists():
            os.replace(aside, final)
        shutil.rmtree(aside, ignore_errors=True)
        link.unlink(missing_ok=True)
        needed = sum(map(len, contents.values()))
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise MachineError(
            f"{final}: the checkpoint could not be written: {error.strerror}",
            f"it needs {needed:,} bytes, {free:,} are free; "
            + ("the previous checkpoint is intact" if _steps(folder) else "there is no checkpoint before it"),
        ) from error
    for old in _steps(folder)[keep:]:
        if int(old.name[5:]) in (best, *spared):
            continue
        try:
            FILES.remove(old)
        except OSError as error:
            if old not in _undeleted:  # said once, and not at every save from here on
                output.warning(f"{old}: an old checkpoint could not be deleted: {error.strerror}")
            _undeleted.add(old)
    return final


def _require_own(folder: Path) -> None:
    """OSError where the folder of the steps is a link: in it, steps that are not ours would be deleted."""
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "is a link, which is not followed here", str(folder))


def _write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(exist_ok=True)  # not what is around it: a run that is gone must not come back in part
    folder.mkdir()
    (folder / "trainer").mkdir()
    for name, content in contents.items():
        FILES.write(folder / name, content)
    manifest = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}
    FILES.write(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
    FILES.fsync_folder(folder / "trainer")
    FILES.fsync_folder(folder)


def describe(model: Model, config: RunConfig, step: int) -> str:
    """The JSON text from which the model can be rebuilt: plain names and numbers only."""
    return json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "library_name": "vaecli",
            "library_version": __version__,
            "step": step,
            "config": config.to_tree(),
            "data": asdict(model.info),
            **({} if model.origin is None else {"origin": model.origin}),
        },
        sort_keys=True,
        indent=1,
    )


def _metadata(described: str, step: int) -> dict[str, str]:
    name = json.loads(described)["config"]["model"]["name"]
    return {
        "format": "pt",
        "vaecli.format_version": str(FORMAT_VERSION),
        "vaecli.config": described,
        "vaecli.step": str(step),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"vaecli/{name}",
        "modelspec.implementation": "vaecli",
        "modelspec.title": name,
    }


def ordered(file: bytes) -> bytes:
    """A safetensors file with its metadata in alphabetical order: safetensors writes them in another one each time, and
    equal trainings are to give equal files."""
    length = struct.unpack("<Q", file[:8])[0]
    header = json.loads(file[8 : 8 + length])
    metadata = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items()))}
    text = json.dumps({**metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((struct.pack("<Q", len(text)), text, file[8 + length :]))


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # A clone: safetensors refuses tensors that share memory, and tied weights do.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


# -------------------------------------------------------------------------------------------------------------- reading


_STEP = re.compile(r"step-[0-9]{1,24}")


def _steps(folder: Path) -> list[Path]:
    """Step directories, newest first."""
    found = [p for p in folder.glob("step-*") if safe_files.is_plain_folder(p) and _STEP.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


_ASIDE = re.compile(r"\.tmp-old-(step-[0-9]{1,24})(-[0-9a-f]+)?")


def _put_back(folder: Path) -> None:
    """Give a step its name again that was set aside for the same step once more, which then never came."""
    for aside in folder.glob(".tmp-old-*"):
        named = _ASIDE.fullmatch(aside.name)
        if named and safe_files.is_plain_folder(aside) and not os.path.lexists(folder / named[1]):
            FILES.rename(aside, folder / named[1])


def clean_up(folder: Path, step: int) -> None:
    """Before a run goes on from `step`: drop what killed commits left, set aside the steps of the time line given up.

    Call it with the run's lock held.
    """
    _require_own(folder)
    _put_back(folder)
    for rest in folder.glob(".tmp-*"):
        rest.unlink() if rest.is_symlink() else shutil.rmtree(rest, ignore_errors=True)
    for newer in _steps(folder):
        if int(newer.name[5:]) > step:
            output.notice(f"set aside: {newer.name}, which this run leaves behind")
            FILES.rename(newer, folder / f"superseded-{newer.name}-{os.urandom(2).hex()}")


def resolve(path: str | Path) -> Path:
    """The `.safetensors` file that a run, a step directory, a file or `hf://owner/name` stands for; CheckpointError
    otherwise, and what `hub.fetch` raises."""
    path = hub.fetch(str(path)) if hub.is_name(path) else Path(path)
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise CheckpointError(f"{str(path)[:80]}...: {error.strerror}") from None
    if path.suffix.lower() in (".npz", ".npy", ".csv") and path.is_file():
        raise CheckpointError(
            f"{path}: codes, and no checkpoint", "`vae analyze` reads codes from an .npz; `vae decode RUN FILE` decodes"
        )
    if path.is_dir():
        if safe_files.is_plain(path / MODEL_FILE):
            return path / MODEL_FILE
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        latest = _latest(folder)
        if latest is not None and safe_files.is_plain(latest / MODEL_FILE):
            return latest / MODEL_FILE
        complete = [p for p in _steps(folder) if safe_files.is_plain(p / "manifest.json")]
        if complete:
            output.warning(f"{folder / 'latest'} does not lead to a checkpoint; using {complete[0].name}")
            return complete[0] / MODEL_FILE
        if safe_files.is_plain(path / "run.json"):
            raise CheckpointError(
                f"{path}: this run holds no checkpoint yet",
                "one is saved every `train.save_every` steps or `train.save_minutes`, and when it ends or is stopped",
            )
        raise CheckpointError(
            f"{path}: holds no checkpoint", "give a run directory, a step directory or a .safetensors file"
        )
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{path}: no such checkpoint", "give a run directory, a step directory or a .safetensors file"
        )
    return path


def _latest(folder: Path) -> Path | None:
    """The step that `latest` leads to: one beside it and nothing else, or itself in a copy made without links."""
    latest = folder / "latest"
    if not latest.is_symlink():
        return latest
    target = os.readlink(latest)
    step = folder / target
    return step if _STEP.fullmatch(target) and safe_files.is_plain_folder(step) else None


_FILES_OF_A_STEP = frozenset(
    {MODEL_FILE, "config.json", "trainer/optimizer.safetensors", "trainer/state.json", "README.md", DENSITY_FILE}
)


def verify(folder: Path) -> None:
    """Compare every file of a step directory with its manifest; CheckpointError naming the first that differs."""
    damaged = CheckpointError(f"{folder / 'manifest.json'}: damaged")
    try:
        manifest = json.loads(safe_files.read(folder / "manifest.json", 100_000))
        entries = {str(name): (int(e["bytes"]), str(e["sha256"])) for name, e in manifest.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: the checkpoint is incomplete: manifest.json is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise damaged from None
    if MODEL_FILE not in entries or not entries.keys() <= _FILES_OF_A_STEP:
        raise damaged
    for name, (size, digest) in entries.items():
        path = folder / name
        if name.startswith("trainer/") and not (folder / "trainer").exists():
            continue  # a checkpoint handed on without the state that only resuming needs
        try:
            with os.fdopen(safe_files.open_plain(path), "rb") as file:
                if (found := os.fstat(file.fileno()).st_size) != size:
                    raise CheckpointError(f"{path}: damaged: {found:,} bytes where the manifest says {size:,}")
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise CheckpointError(f"{path}: damaged: its sha256 is not the one in manifest.json")
        except FileNotFoundError:
            raise CheckpointError(f"{path}: damaged: the file is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


_LOOKS = (
    (b"version https://git-lfs", "a git-lfs pointer", "run `git lfs pull`"),
    (b"PK\x03\x04", "a zip or torch.save archive", "only safetensors files are read; pickles never are"),
    (b"\x80", "a pickle", "only safetensors files are read; pickles never are"),
    (b"<", "an HTML or XML page", "download the file itself"),
    (b"\x89PNG", "a PNG image", None),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
)


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]], int]:
    """(metadata, {tensor: (dtype, shape)}, bytes of tensor data) of a safetensors file, checked, no tensor loaded."""
    try:
        # A link is followed where the user named it; what is found in a run is none (see `resolve`).
        with os.fdopen(safe_files.open_plain(Path(os.path.realpath(path))), "rb") as file:
            status = os.fstat(file.fileno())
            start = file.read(64)
            if not start:
                raise CheckpointError(f"{path}: the file is empty")
            length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
            if not (2 <= length <= min(_MAX_HEADER, status.st_size - 8)) or start[8:9] != b"{":
                for magic, what, hint in _LOOKS:
                    if start.startswith(magic):
                        raise CheckpointError(f"{path}: not a safetensors file; it looks like {what}", hint)
                raise CheckpointError(f"{path}: not a safetensors file, or cut off")
            file.seek(8)
            header = _parsed(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: the safetensors header is damaged") from None
    try:
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        if len(header) > _MAX_TENSORS:
            raise CheckpointError(f"{path}: {len(header):,} tensors; no model here has so many")
        tensors, extents = {}, []
        for name, entry in header.items():
            shape = tuple(entry["shape"])
            # A value takes a byte or more.
            sides = [s for s in shape if isinstance(s, int) and 0 <= s <= status.st_size]
            if len(name) > 500 or len(shape) > 8 or len(sides) != len(shape):
                raise CheckpointError(f"{path}: the safetensors header is not usable")
            tensors[name] = (str(entry["dtype"]), shape)
            first, end = entry["data_offsets"]
            if end - first != math.prod(shape) * _DTYPES[tensors[name][0]].itemsize:
                raise CheckpointError(f"{path}: the safetensors header is damaged")
            extents.append((first, end))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: the safetensors header is damaged") from None
    size, reached = status.st_size - 8 - length, 0
    for first, end in sorted(extents):  # side by side, to the end of the file
        if first != reached:
            raise CheckpointError(f"{path}: damaged: its tensors do not lie side by side")
        reached = end
    if reached != size:
        what = "cut off" if reached > size else "damaged: more bytes than its tensors have"
        raise CheckpointError(f"{path}: {what}")
    return metadata, tensors, size


def _parsed(text: bytes) -> Any:
    """JSON of a bounded number of values and of keys that each come once; ValueError for any other."""
    if text.count(b",") > _MAX_VALUES:
        raise ValueError("more values than a checkpoint has")
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """ValueError for a key that comes twice: which of the two is meant, readers do not agree on."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def read_config(path: Path, metadata: Mapping[str, str]) -> tuple[RunConfig, DataInfo, int]:
    """The configuration, data facts and step stored in a checkpoint's metadata; every value checked and bounded."""
    text = metadata.get("vaecli.config")
    if text is None:
        raise CheckpointError(
            f"{path}: a safetensors file, but not one made by vae", "checkpoints come from `vae train`"
        )
    beside = path.parent / "config.json"
    if path.name == MODEL_FILE and os.path.lexists(beside):
        try:
            agreed = safe_files.read(beside, _MAX_HEADER) == text.encode(errors="surrogatepass")
        except OSError as error:
            raise CheckpointError(f"{beside}: {error.strerror}") from None
        if not agreed:
            raise CheckpointError(f"{path}: its metadata and {beside} do not agree")
    try:
        stored = _parsed(text.encode(errors="surrogatepass"))
        version = stored["format_version"]
        if not isinstance(version, int) or version > FORMAT_VERSION:
            made_by = str(stored.get("library_version"))[:40]
            raise CheckpointError(f"{path}: made by vae {made_by} in format {str(version)[:20]}", "upgrade vaecli")
        config = configs.build(trees.Tree(_as_written_now(stored["config"]), {}))
        info = TypeAdapter(DataInfo).validate_python(stored["data"])
        step = TypeAdapter(Count).validate_python(stored["step"], strict=True)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.message}", more=error.more) from None
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: the stored configuration is damaged") from None
    if len(info.shape) != 3 or not all(0 < side <= _MAX_SIDE for side in info.shape) or info.shape[0] > 64:
        raise CheckpointError(f"{path}: image shape {info.shape} is not usable")
    return config, info, step


def _as_written_now(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of any version with the settings that it lacks at what they stood for then."""
    net = config["model"].get("net")
    if isinstance(net, dict) and net.get("name") == "resnet":
        net.setdefault("blocks_up_to", 8192)
    return config


def read_origin(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The weights that training started from, of a file that `read_config` has read; None for a start from scratch."""
    found = json.loads(metadata["vaecli.config"]).get("origin")
    if found is None:
        return None
    kinds = {"path": str, "sha256": str, "step": int}
    if not isinstance(found, dict) or {key: type(value) for key, value in found.items()} != kinds:
        raise CheckpointError(f"{path}: the stored origin is damaged")
    return dict(found)


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip


def load_model(path: Path, device: torch.device) -> Loaded:
    """Rebuild the model of one `.safetensors` file. Names, shapes and types must agree exactly with the configuration.

    The model is first built on the meta device, so a hostile configuration is refused before memory is taken.
    """
    metadata, stored, data_bytes = read_header(path)
    config, info, step = read_config(path, metadata)
    try:
        with devices.without_values():
            model = models.build(config.model, info)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.message}", more=error.more) from None
    except (RuntimeError, ValueError, OverflowError, TypeError) as error:
        raise CheckpointError(
            f"{path}: the stored model cannot be built: {str(error).partition(chr(10))[0][:200]}"
        ) from None
    wanted = {n: (t.dtype, tuple(t.shape)) for n, t in model.state_dict().items()}
    _agree(path, wanted, stored)
    if sum(t.numel() * t.element_size() for t in model.state_dict().values()) > data_bytes:
        raise CheckpointError(f"{path}: cut off")
    try:
        tensors = load_safetensors(path.read_bytes())
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    # Built once more, now for real: tied weights stay tied, and what is not stored is computed.
    model = models.build(config.model, info)
    model.load_state_dict(tensors, strict=True)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: tensor {name} holds values that are not finite")
    model.origin = read_origin(path, metadata)
    return Loaded(model.to(device).eval(), info, config, step, path)


def _agree(path: Path, wanted: Mapping[str, Any], stored: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    def some(names: list[str]) -> str:
        return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")

    missing = sorted(wanted.keys() - stored.keys())
    unexpected = sorted(stored.keys() - wanted.keys())
    differing = [
        f"{n} ({stored[n][0]} {list(stored[n][1])}, the configuration says {list(wanted[n][1])})"
        for n in sorted(wanted.keys() & stored.keys())
        if stored[n][1] != wanted[n][1] or _DTYPES.get(stored[n][0]) != wanted[n][0]
    ]
    parts = [
        f"{what}: {some(n)}"
        for what, n in (("missing", missing), ("unexpected", unexpected), ("differing", differing))
        if n
    ]
    if parts:
        raise CheckpointError(f"{path}: weights and configuration disagree; " + "; ".join(parts))


def load(path: str | Path, device: torch.device, data_at: str | None = None) -> Loaded:
    """The model behind a run, a step directory or a `.safetensors` file, verified where there is a manifest.

    `data_at`: the data set that its configuration shall name in place of its own, as `--data` has it.
    """
    file = resolve(path)
    if file.name == MODEL_FILE and os.path.lexists(file.parent / "manifest.json"):
        verify(file.parent)
    elif file.is_file():
        output.notice(f"{file}: no manifest beside it; its content cannot be verified")
    loaded = load_model(file, device)
    if Path(path).is_dir():
        output.notice(f"checkpoint: {file.parent} (step {loaded.step:,})")
    if data_at is not None:
        config = replace(loaded.config, data=data.elsewhere(loaded.config.data, loaded.info, data_at))
        loaded = replace(loaded, config=config)
    return loaded


def load_trainer(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What resuming needs: the optimizers' tensors and the trainer's state."""
    try:
        tensors = load_safetensors(safe_files.read(folder / "trainer" / "optimizer.safetensors"))
        state = _parsed(safe_files.read(folder / "trainer" / "state.json", _MAX_HEADER))
        if not isinstance(state, dict):
            raise ValueError
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename}: missing; this checkpoint can be used but not resumed", "try --init-from"
        ) from None
    except (OSError, ValueError, SafetensorError, RecursionError):
        raise CheckpointError(f"{folder / 'trainer'}: the trainer's state is damaged") from None
    return tensors, state


def newest_intact(run: Path) -> Path:
    """The newest step directory of a run that verifies, with a loud word about any newer one that does not.

    Call it with the run's lock held. CheckpointError where there is none.
    """
    folder = run / "checkpoints"
    _put_back(folder)
    usable: Path | None = None
    for step in _steps(folder):
        try:
            verify(step)
            if safe_files.is_plain_folder(step / "trainer"):
                return step
            usable = usable or step
            raise CheckpointError(f"{step / 'trainer'}: missing; the checkpoint can be used but not resumed")
        except CheckpointError as error:
            output.warning(f"{error}; trying the checkpoint before it")
    if usable is not None:
        return usable  # there is none better, and what it lacks will be said
    raise CheckpointError(f"{run}: holds no intact checkpoint to resume from")

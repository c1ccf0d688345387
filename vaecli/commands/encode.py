"""`vae encode`: images to codes."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch

from vaecli import data, extras
from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import codes as code_files
from vaecli.batch import at_once
from vaecli.commands import _artifact
from vaecli.data.base import Dataset, Floats, SplitView
from vaecli.errors import ConfigError
from vaecli.training import checkpoint as checkpoints
from vaecli.training.checkpoint import Loaded

DEFAULT_NAME = "codes.npz"


def run(
    checkpoint: str,
    images: list[str],
    split: str | None,
    n: int | None,
    output: str | None,
    batch_size: int | None,
    device: str,
    force: bool,
    json: bool,
    data_at: str | None = None,
) -> None:
    """Means, log-variances and true factors (as the data set numbers them) of image files or of a split, beside the
    names of the files and of the factors' values, where they have names. A folder, .npz or .npy is taken as a whole.

    `.npz`, `.csv` or `.parquet` by the name's ending, `-` for CSV on stdout; `analysis.codes` says what is in them. The
    index counts images of the data set or, for files, the files given.
    """
    given = _artifact.whole_set(images)
    _artifact.check_given(images, given, split, n)
    if given is not None:
        images, split, data_at = [], "all", given
    split = split or "test"
    name = _artifact.check(output, DEFAULT_NAME, force, json, text=True)
    if name != "-" and not name.lower().endswith((".npz", ".csv", ".parquet")):
        raise ConfigError(
            f"{name}: codes are written as .npz or .csv, or as .parquet", "end the name in one of them, or use -o -"
        )
    if name.lower().endswith(".parquet"):
        extras.require("pyarrow", "parquet", name)
    loaded = checkpoints.load(checkpoint, devices.pick(device), data_at)
    view = _files(loaded, images) if images else data.load(loaded.config.data, loaded.info).split(split)
    if not images and view.name != split:
        streams.notice(f"the data set has no split {split}: using {view.name}")
    count = min(n or len(view), len(view))
    if n is not None and count < n:
        streams.notice(f"the split {view.name} has only {count:,} images")
    with streams.progress("encoding", count) as advance:
        codes = code_files.encode(loaded, view, count, batch_size or at_once(loaded.info.shape), advance)
    # Not numbered anew, as metrics want it: a class must keep its number whatever else was encoded.
    labels_NK, _ = code_files.known_factors(view, count)
    codes = replace(codes, factors_NK=labels_NK)
    index_N = view.indices[:count].cpu().numpy()
    texts = _texts(view, codes, index_N)
    if name.lower().endswith(".npz"):
        _artifact.write(output, DEFAULT_NAME, code_files.to_npz(codes, index_N, texts), force)
    elif name.lower().endswith(".parquet"):
        _artifact.write(output, DEFAULT_NAME, code_files.to_parquet(codes, index_N, texts), force)
    else:
        _write_csv(name, codes, index_N, texts, force)
    record = {
        "checkpoint": str(loaded.path), "step": loaded.step, "n": count,
        "source": "files" if images else f"{view.dataset.info.name} {view.name}",
        "latents": list(codes.latent_names), "factors": list(codes.factor_names),
        "logvar": codes.logvar_ND is not None,
    }  # fmt: skip
    _artifact.report(name, record, json)


def _files(loaded: Loaded, paths: list[str]) -> SplitView:
    """Image files as a data set of their own."""
    with streams.progress("reading images", len(paths)) as advance:
        images = []
        for path in paths:
            images.append(_artifact.read_image(path, loaded.info))
            advance(1)
    x_NCHW = torch.stack(images)
    source = {"kind": "files", "sha256": hashlib.sha256(x_NCHW.numpy().tobytes()).hexdigest()}
    info = replace(loaded.info, name="files", source=source, factor_names=(), factor_sizes=())
    return Dataset(info, Floats(x_NCHW), None, {}, files=paths).split("all")


def _texts(view: SplitView, codes: code_files.Codes, index_N: code_files.Array) -> dict[str, list[str]]:
    """What has a name: as `file` the file of each image, as `FACTOR_name` what the value of a factor is called."""
    texts: dict[str, list[str]] = {}
    if view.dataset.files is not None:
        texts["file"] = [view.dataset.files[i] for i in index_N.tolist()]
    info = view.dataset.info
    for name, values in zip(info.factor_names, info.value_names, strict=False):
        if values and name in codes.factor_names and codes.factors_NK is not None:
            column_N = codes.factors_NK[:, codes.factor_names.index(name)]
            texts[f"{name}_name"] = [values[v] for v in column_N.tolist()]
    return texts


def _write_csv(
    name: str, codes: code_files.Codes, index_N: code_files.Array, texts: Mapping[str, list[str]], force: bool
) -> None:
    parts = []
    with streams.progress("writing", len(codes)) as advance:
        for part in code_files.to_csv(codes, index_N, texts):
            if name == "-":
                streams.result_bytes(part)
            else:
                parts.append(part)
            advance(part.count(b"\n"))
    if parts:
        _artifact.write(name, DEFAULT_NAME, b"".join(parts), force)

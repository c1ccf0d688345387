"""Codes: what an encoder says about images, as arrays, whoever's encoder it was.

They come from a checkpoint over a split (`encode`, cached) or from a file (`read`), and every metric and the diagnosis
of q(z) take them. As files they are `.npz` or CSV, which `read_table` reads back for decoding.

Shapes: N images, D latents, K factors, C columns of a file.
"""

import csv
import hashlib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from vaecli import __version__, extras, output, paths, safe_files
from vaecli import device as devices
from vaecli.analysis.statistics import ACTIVE_SHARE, ACTIVE_VARIANCE
from vaecli.data.array import is_number
from vaecli.data.base import SplitView, require_memory
from vaecli.errors import InputError, VaeError
from vaecli.models.base import Model
from vaecli.objectives import distributions
from vaecli.speed import fast
from vaecli.training import checkpoint

Array = np.ndarray[Any, Any]

LARGEST_LOGVAR = 100.0  # beyond it a float32 variance is 0 or infinite
LATENT_NAME = re.compile(r"(z|[A-Za-z_][\w.-]*\.)\d+")  # as Model.latent_names: z3, top.3
TEXT_COLUMN = re.compile(r"file|.*_name")  # of names: the file of an image, what a factor's value is called
FORMAT = 3  # of what the cache keeps: since 2 labels have no log-variances, since 3 codes of unit variance have none
CACHE_BYTES = 2 << 30  # what the cache keeps, the files used last


@dataclass(frozen=True)
class Codes:
    """Means, log-variances and true factors of N images. Everything finite, but for log-variances of latents that have
    no variance of their own, as the probabilities of labels, which are NaN; `factors_NK` counts from 0 per factor.

    Of a model `standard_D` says which latents have the prior N(0, 1), `exact_D` of which q(z_j|x) is a Gaussian of the
    image alone, bool (D,) each; None, of codes from elsewhere, is all of them. `known_active_D`: what the statistics of
    its levels say is active.
    """

    mean_ND: Array  # float64
    logvar_ND: Array | None = None  # float64; None for a deterministic code
    factors_NK: Array | None = None  # int64
    factor_names: tuple[str, ...] = ()
    latent_names: tuple[str, ...] = ()
    source: str = ""  # for messages and records
    standard_D: Array | None = None
    exact_D: Array | None = None
    known_active_D: Array | None = None

    def __len__(self) -> int:
        return len(self.mean_ND)

    @property
    def latents(self) -> int:
        return int(self.mean_ND.shape[1])

    @property
    def gaussian_D(self) -> Array:
        """Which latents have a log-variance, bool (D,)."""
        if self.logvar_ND is None:
            return np.zeros(self.latents, dtype=bool)
        return np.asarray(~np.isnan(self.logvar_ND).all(axis=0))

    @property
    def active_D(self) -> Array:
        """Which latents vary with the image: Var_x[mu] > 0.01 (Burda et al. 2016) where there are log-variances, which
        give a scale, of the whole variance where the prior is not N(0, 1); else more than 1e-4 of the largest."""
        if self.known_active_D is not None:
            return self.known_active_D
        variance_D = self.mean_ND.var(axis=0)
        if self.logvar_ND is not None:
            scale_D = np.ones(self.latents)
            if self.standard_D is not None:
                other_D = ~self.standard_D & self.gaussian_D
                scale_D[other_D] = variance_D[other_D] + np.exp(self.logvar_ND[:, other_D]).mean(axis=0)
            return np.asarray(variance_D > ACTIVE_VARIANCE * scale_D)
        return np.asarray((variance_D > ACTIVE_SHARE * variance_D.max(initial=0.0)) & (variance_D > 0))

    @property
    def posterior_D(self) -> Array:
        """Of which latents mean and log-variance are all of q(z_j|x), bool (D,)."""
        return self.gaussian_D if self.exact_D is None else self.gaussian_D & self.exact_D

    @property
    def kl_D(self) -> Array | None:
        """E_x[KL(q(z_j|x) || N(0, 1))] in nats, (D,); NaN of latents whose KL this is not, or without log-variance."""
        if self.logvar_ND is None:
            return None
        kl_ND = 0.5 * (np.square(self.mean_ND) + np.exp(self.logvar_ND) - self.logvar_ND - 1.0)
        known_D = self.posterior_D if self.standard_D is None else self.posterior_D & self.standard_D
        return np.where(known_D, kl_ND.mean(axis=0), np.nan) if known_D.any() else None

    @property
    def varying(self) -> list[int]:
        """Columns of `factors_NK` with more than one value in these rows; metrics are over these alone."""
        if self.factors_NK is None:
            return []
        return [k for k in range(self.factors_NK.shape[1]) if np.ptp(self.factors_NK[:, k]) > 0]

    def rows(self, index_N: Array) -> "Codes":
        """These images only, in this order."""
        logvar_ND = None if self.logvar_ND is None else self.logvar_ND[index_N]
        factors_NK = None if self.factors_NK is None else self.factors_NK[index_N]
        return replace(self, mean_ND=self.mean_ND[index_N], logvar_ND=logvar_ND, factors_NK=factors_NK)

    def latents_only(self, keep: Array | Sequence[int]) -> "Codes":
        """These latents only (a mask or indices)."""
        keep = np.flatnonzero(keep) if np.asarray(keep).dtype == bool else np.asarray(keep, dtype=int)
        logvar_ND = None if self.logvar_ND is None else self.logvar_ND[:, keep]
        names = tuple(self.latent_names[int(d)] for d in keep)
        masks = {key: getattr(self, key) for key in ("standard_D", "exact_D", "known_active_D")}
        kept: dict[str, Any] = {key: None if mask is None else mask[keep] for key, mask in masks.items()}
        return replace(self, mean_ND=self.mean_ND[:, keep], logvar_ND=logvar_ND, latent_names=names, **kept)

    def factors_only(self, keep: Sequence[int]) -> "Codes":
        """These factors only."""
        assert self.factors_NK is not None
        names = tuple(self.factor_names[k] for k in keep)
        return replace(self, factors_NK=self.factors_NK[:, list(keep)], factor_names=names)


def make(
    mean_ND: Array,
    logvar_ND: Array | None = None,
    factors_NK: Array | None = None,
    factor_names: Sequence[str] = (),
    latent_names: Sequence[str] = (),
    source: str = "codes",
) -> Codes:
    """Checked codes. InputError naming the first row that is not finite, or the shape that does not fit.

    Factor values of any integers are renumbered 0, 1, ... in increasing order.
    """
    mean_ND = np.asarray(mean_ND)
    if mean_ND.ndim != 2 or 0 in mean_ND.shape or mean_ND.dtype.kind not in "fiu":
        raise InputError(f"{source}: codes must be numbers of shape (N, D), not {mean_ND.dtype} {mean_ND.shape}")
    mean_ND = _finite(np.ascontiguousarray(mean_ND, dtype=np.float64), "codes", source)
    n, d = mean_ND.shape
    if logvar_ND is not None:
        logvar_ND = np.asarray(logvar_ND)
        if logvar_ND.shape != (n, d) or logvar_ND.dtype.kind not in "fiu":
            raise InputError(f"{source}: logvar is {logvar_ND.dtype} {logvar_ND.shape}, the codes are {(n, d)}")
        logvar_ND = np.ascontiguousarray(logvar_ND, dtype=np.float64)
        given_D = ~np.isnan(logvar_ND).all(axis=0)
        _finite(logvar_ND[:, given_D], "logvar", source)
        if len(wild := np.flatnonzero((np.abs(logvar_ND) > LARGEST_LOGVAR).any(axis=1))):
            value = float(np.abs(logvar_ND[wild[0]]).max())
            raise InputError(
                f"{source}: logvar of row {int(wild[0])} is of size {value:g}: no variance's logarithm",
                "logvar is the natural logarithm of sigma^2",
            )
        logvar_ND = logvar_ND if given_D.any() else None
    if factors_NK is not None:
        factors_NK = np.asarray(factors_NK)
        if factors_NK.ndim != 2 or len(factors_NK) != n or factors_NK.shape[1] == 0:
            raise InputError(f"{source}: factors are {factors_NK.shape}, but must be ({n}, K)")
        if not np.issubdtype(factors_NK.dtype, np.integer):
            raise InputError(
                f"{source}: factors are {factors_NK.dtype}, not integers", "number the values of each factor 0, 1, ..."
            )
        columns = [np.unique(column, return_inverse=True)[1].reshape(n) for column in factors_NK.T]
        factors_NK = np.stack(columns, axis=1).astype(np.int64)
    k = 0 if factors_NK is None else factors_NK.shape[1]
    factor_names = tuple(map(str, factor_names)) or tuple(f"factor{i}" for i in range(k))
    latent_names = tuple(map(str, latent_names)) or tuple(f"z{i}" for i in range(d))
    if len(factor_names) != k or len(latent_names) != d:
        raise InputError(f"{source}: {len(factor_names)} names for {k} factors, {len(latent_names)} for {d} latents")
    return Codes(mean_ND, logvar_ND, factors_NK, factor_names, latent_names, source)


def _finite(array: Array, what: str, source: str) -> Array:
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        more = f" and {len(bad) - 1:,} more" if len(bad) > 1 else ""
        raise InputError(f"{source}: {what} of row {int(bad[0])}{more} are not finite")
    return array


# --------------------------------------------------------------------------------------------------------------- encode


def encode(
    loaded: checkpoint.Loaded,
    view: SplitView,
    images: int | None = None,
    batch_size: int = 512,
    advance: Callable[[int], None] = lambda count: None,
) -> Codes:
    """The posterior of the first `images` images of a split; kept in the cache under the checkpoint's sha256.

    Factors that are not known for all of these images are left out, with a notice. `advance` is called with the images
    of each batch (with all at once where the cache had them). InputError where a code is not finite, MachineError where
    the codes need more memory than there is.
    """
    count = len(view) if images is None else min(images, len(view))
    # Mean and log-variance in float32 as the encoder gives them, and in float64 as they are worked with.
    require_memory(
        24 * count * len(loaded.model.latent_names()), f"{count:,} codes", "take fewer images: --limit or -n"
    )
    file = _cache_file(loaded, view, count)
    tensors = _cached(file, count, len(loaded.model.latent_names()))
    if tensors is None:
        tensors = run_encoder(loaded, view, count, batch_size, advance)
        _keep(file, tensors)
    else:
        advance(count)
    logvar = tensors.get("logvar")
    factors_NK, factor_names = known_factors(view, count)
    if missing := [name for name in view.dataset.info.factor_names if name not in factor_names]:
        output.notice(f"left out, because not known for all images: {', '.join(missing)}")
    found = make(
        tensors["mean"].numpy(),
        None if logvar is None else logvar.numpy(),
        factors_NK,
        factor_names,
        loaded.model.latent_names(),
        f"{loaded.path} over {count:,} images ({view.name})",
    )
    standard_D, exact_D = kinds(loaded.model, view.dataset.images.gather(view.indices[:1]))
    return replace(found, standard_D=standard_D, exact_D=exact_D)


def kinds(model: Model, x_1CHW: torch.Tensor) -> tuple[Array, Array]:
    """`Codes.standard_D` and `exact_D` of a model, as seen on an image of its data: Gaussians, and of a level that is
    inferred before all others."""
    with torch.inference_mode(), devices.aside():
        posteriors = model.infer(x_1CHW.to(model.device)).posteriors
    first = next(iter(model.inference_order()), None)
    exact = {name: name == first and distributions.independent_normal(q) for name, q in posteriors.items()}
    levels = [(level, level.size) for level in model.inferred]
    return (
        np.concatenate([np.full(n, level.standard) for level, n in levels]),
        np.concatenate([np.full(n, exact[level.name]) for level, n in levels]),
    )


def known_factors(view: SplitView, count: int) -> tuple[Array | None, list[str]]:
    """Those factors that are known for each of the first `count` images, as the data set numbers them: int64
    (count, K), and their names."""
    labels_NK, names = view.dataset.labels, view.dataset.info.factor_names
    if labels_NK is None:
        return None, []
    found_NK = labels_NK.index_select(0, view.indices[:count].to(labels_NK.device)).cpu().numpy()
    known = [k for k in range(found_NK.shape[1]) if found_NK[:, k].min() >= 0]
    return (found_NK[:, known], [names[k] for k in known]) if known else (None, [])


def fully_known(codes: Codes, view: SplitView, count: int) -> Codes:
    """The codes of those of the first `count` images of a view all of whose factors are known, with all factors, where
    `encode` left some out; said. The codes as they are where there are no two such images."""
    labels_NK, names = view.dataset.labels, view.dataset.info.factor_names
    if labels_NK is None or codes.factor_names == names:
        return codes
    found_NK = labels_NK.index_select(0, view.indices[:count].to(labels_NK.device)).cpu().numpy()
    rows = np.flatnonzero((found_NK >= 0).all(axis=1))
    if len(rows) < 2:
        return codes
    output.notice(f"metrics are over the {len(rows):,} of {count:,} images whose factors are all known")
    of_rows = codes.rows(rows)
    found = make(of_rows.mean_ND, of_rows.logvar_ND, found_NK[rows], names, codes.latent_names, codes.source)
    return replace(found, standard_D=codes.standard_D, exact_D=codes.exact_D)


def run_encoder(
    loaded: checkpoint.Loaded,
    view: SplitView,
    count: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, torch.Tensor]:
    """Of the first `count` images `mean` and, where there are variances, `logvar`: float32 (count, D), NaN for the
    probabilities of labels, which have no variance of their own. The model's layers become those of the fast path."""
    fast.tune_allocator()
    fast.accelerate(loaded.model)
    means, logvars = [], []
    label_D = torch.cat([torch.full((level.size,), level.kind == "labels") for level in loaded.model.inferred])
    with torch.inference_mode():
        for start in range(0, count, batch_size):
            index_B = view.indices[start : min(start + batch_size, count)]
            x_BCHW = view.dataset.images.gather(index_B).to(loaded.model.device)
            q = loaded.model.posterior(x_BCHW)
            means.append(q.mean_BD.float().cpu())
            if q.logvar_BD is not None:
                logvars.append(q.logvar_BD.float().cpu().masked_fill(label_D, torch.nan))
            advance(len(index_B))
    return {"mean": torch.cat(means), **({"logvar": torch.cat(logvars)} if logvars else {})}


def _cache_file(loaded: checkpoint.Loaded, view: SplitView, count: int) -> Path | None:
    """The name says all that the codes depend on: weights and configuration (in the file), which images, how many.
    None where the file is no longer there, or the data set has no checksum."""
    source = view.dataset.info.source
    try:
        with loaded.path.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
    if not source.get("sha256"):
        return None
    images = hashlib.sha256(view.indices[:count].cpu().numpy().tobytes()).hexdigest()
    key = json.dumps([__version__, FORMAT, weights, images, source], sort_keys=True)
    return paths.cache_dir() / "codes" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _cached(file: Path | None, count: int, latents: int) -> dict[str, torch.Tensor] | None:
    if file is None:
        return None
    try:
        metadata, _, _ = checkpoint.read_header(file)
        tensors = load_safetensors(file.read_bytes())
        os.utime(file)  # used now: the last to be dropped
    except (OSError, SafetensorError, checkpoint.CheckpointError):
        return None
    if metadata.get("sha256") != _digest(tensors):
        return None
    usable = "mean" in tensors and tensors.keys() <= {"mean", "logvar"}
    if not usable or any(t.shape != (count, latents) or t.dtype != torch.float32 for t in tensors.values()):
        return None
    return tensors


def _keep(file: Path | None, tensors: dict[str, torch.Tensor]) -> None:
    """Into the cache, whole or not at all; a cache that cannot be written costs time and nothing else."""
    if file is None:
        return
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        safe_files.replace(file, save_safetensors(tensors, metadata={"sha256": _digest(tensors)}))
        _drop_oldest(file.parent)
    except OSError as error:
        output.notice(f"{file.parent}: codes not cached: {error.strerror}")


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, types, shapes and values: safetensors itself notices no flipped bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _drop_oldest(folder: Path) -> None:
    """Keep the codes used last, `CACHE_BYTES` of them and always the newest."""
    kept = 0
    files = sorted(((f.stat(), f) for f in folder.glob("*.safetensors")), key=lambda pair: -pair[0].st_mtime_ns)
    for i, (status, file) in enumerate(files):
        kept += status.st_size
        if i and kept > CACHE_BYTES:
            file.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------------- writing


def to_npz(codes: Codes, index_N: Array, texts: Mapping[str, Sequence[str]] = MappingProxyType({})) -> bytes:
    """`codes` and `logvar` (N, D) float32 (NaN where a latent has none), `factors` (N, K), `index` (N,), `latent_names`
    and `factor_names`; what the codes do not have is not there. `index_N` are the images' positions in their data set,
    `texts` columns of names (`file` is called `files` here)."""
    arrays: dict[str, Array] = {"codes": codes.mean_ND.astype(np.float32)}
    if codes.logvar_ND is not None:
        arrays["logvar"] = codes.logvar_ND.astype(np.float32)
    if codes.factors_NK is not None:
        arrays["factors"] = codes.factors_NK
        arrays["factor_names"] = np.array(codes.factor_names, dtype=np.str_)
    arrays["index"] = index_N
    arrays["latent_names"] = np.array(codes.latent_names, dtype=np.str_)
    for name, column in texts.items():
        arrays["files" if name == "file" else name] = np.array(column, dtype=np.str_)
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)  # not compressed: float noise does not get smaller
    return stream.getvalue()


def to_csv(
    codes: Codes, index_N: Array, texts: Mapping[str, Sequence[str]] = MappingProxyType({}), rows: int = 4096
) -> Iterator[bytes]:
    """CSV, `rows` rows at a time: `index`, a column a latent, one a log-variance (`z0_logvar`), one a factor, and at
    the end those of `texts` (see `TEXT_COLUMN`).

    Nine digits, which single precision needs to be read back exactly.
    """
    d, k = codes.latents, len(codes.factor_names)
    names, columns, formats = ["index", *codes.latent_names], [index_N[:, None], codes.mean_ND], ["%d", *["%.9g"] * d]
    if codes.logvar_ND is not None:
        given = np.flatnonzero(codes.gaussian_D)
        names += [f"{codes.latent_names[d]}_logvar" for d in given]
        columns.append(codes.logvar_ND[:, given])
        formats += ["%.9g"] * len(given)
    if codes.factors_NK is not None:
        names += codes.factor_names
        columns.append(codes.factors_NK)
        formats += ["%d"] * k
    yield f"{output.csv_lines([[*names, *texts]])[0]}\n".encode()
    line = ",".join(formats)
    for start in range(0, len(codes), rows):
        lists = [column[start : start + rows].tolist() for column in columns]
        lines = [line % tuple(v for part in row for v in part) for row in zip(*lists, strict=True)]
        if texts:
            ends = output.csv_lines(list(zip(*(t[start : start + rows] for t in texts.values()), strict=True)))
            lines = [f"{numbers},{text}" for numbers, text in zip(lines, ends, strict=True)]
        yield "".join(f"{text}\n" for text in lines).encode()


def to_parquet(codes: Codes, index_N: Array, texts: Mapping[str, Sequence[str]] = MappingProxyType({})) -> bytes:
    """A Parquet table of the columns of `to_csv`: int64, float32 and text. ConfigError without pyarrow."""
    arrow = extras.need("pyarrow", "parquet", "Parquet")
    parquet = extras.need("pyarrow.parquet", "parquet", "Parquet")
    columns: dict[str, Any] = {"index": index_N}
    columns |= dict(zip(codes.latent_names, codes.mean_ND.astype(np.float32).T, strict=True))
    if codes.logvar_ND is not None:
        for d in np.flatnonzero(codes.gaussian_D):
            columns[f"{codes.latent_names[d]}_logvar"] = codes.logvar_ND[:, d].astype(np.float32)
    if codes.factors_NK is not None:
        columns |= dict(zip(codes.factor_names, codes.factors_NK.T, strict=True))
    columns = {name: arrow.array(np.ascontiguousarray(column)) for name, column in columns.items()}
    # A name that is no text of Unicode (a file's on a disk) has a sign for what it is not.
    columns |= {
        name: arrow.array([text.encode(errors="replace").decode() for text in column], arrow.string())
        for name, column in texts.items()
    }
    stream = io.BytesIO()
    parquet.write_table(arrow.table(columns), stream)
    return stream.getvalue()


# -------------------------------------------------------------------------------------------------------------- reading


def read(path: str | Path) -> Codes:
    """Codes from an `.npz`: `codes` (N, D), optionally `logvar` (N, D), `factors` (N, K), `factor_names` (K,) and
    `latent_names` (D,).

    InputError where the file is missing, damaged, holds pickled objects, or does not fit; MachineError where it does
    not fit into memory.
    """
    arrays = _arrays(path, ("codes", "logvar", "factors", "factor_names", "latent_names"))
    if "codes" not in arrays:
        raise InputError(f"{path}: has no array `codes`")
    factor_names, latent_names = (
        [str(name)[:200] for name in arrays[key].ravel()] if key in arrays else ()
        for key in ("factor_names", "latent_names")
    )
    source = str(path)
    return make(arrays["codes"], arrays.get("logvar"), arrays.get("factors"), factor_names, latent_names, source)


def _arrays(file: str | Path | io.BytesIO, wanted: Sequence[str], name: str = "") -> dict[str, Array]:
    """Those of the `wanted` arrays that an .npz has; how large they are is asked before they are unpacked."""
    name = name or str(file)
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
        require_memory(sum(sizes.get(key, 0) for key in wanted), name, "give fewer rows")
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in wanted if key in arrays}
    except VaeError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except Exception as error:  # zipfile and NumPy raise nearly everything on damaged files
        raise InputError(f"{name}: not an .npz of numbers ({_problem(error)})") from None


def _problem(error: Exception) -> str:
    """An error of NumPy or the system in a line; without NumPy's advice to allow pickles, or its own file names."""
    if "allow_pickle" in str(error):
        return "it holds Python objects, which are never read"
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return text.partition("\n")[0].partition(";")[0].rstrip(".")[:200]


@dataclass(frozen=True)
class Table:
    """Numbers of a file with codes, not yet matched with a model: its columns, where they have names."""

    source: str
    values_NC: Array  # float64
    columns: tuple[str, ...] | None = None
    text: bool = False  # CSV, where index, log-variances and factors may stand beside the codes

    def __len__(self) -> int:
        return len(self.values_NC)

    def latents(self, names: Sequence[str], factor_names: Sequence[str] = ()) -> Array:
        """The codes, float64 (N, D), for a model with these latents; columns of other things are passed over.

        With a header, columns named like latents (`z0`, `top.3`) count, else all but index, log-variances and factors;
        named as the model's they may stand in any order. Without, there are either as many columns as latents, or
        those that `to_csv` writes for this model. InputError where the number of latents is another, or a code not
        finite.
        """
        d, k, c = len(names), len(factor_names), self.values_NC.shape[1]
        if self.columns is not None:
            others = [
                name
                for name in self.columns
                if name not in ("", "index", *factor_names) and not name.endswith("_logvar")
            ]
            chosen = [name for name in others if LATENT_NAME.fullmatch(name)] or others
            if len(set(chosen)) < len(chosen):
                raise InputError(f"{self.source}: two columns have the same name")
            self._require(len(chosen), d)
            keep = [self.columns.index(name) for name in (names if set(names) == set(chosen) else chosen)]
        elif self.text and c in (1 + 2 * d, 1 + 2 * d + k, 1 + d + k) and c != 1 + d and self._starts_with_index():
            output.notice(f"{self.source}: no header; of {c} columns, the second and following are {names[0]}, ...")
            keep = list(range(1, 1 + d))
        else:
            self._require(c, d)
            keep = list(range(d))
        return _finite(np.ascontiguousarray(self.values_NC[:, keep]), "codes", self.source)

    def _starts_with_index(self) -> bool:
        first_N = self.values_NC[:, 0]
        whole = bool(np.all((first_N >= 0) & (first_N == np.floor(first_N))))
        return whole and len(np.unique(first_N)) == len(first_N)

    def _require(self, found: int, wanted: int) -> None:
        if found != wanted:
            raise InputError(f"{self.source}: has codes of {found} latents, the model has {wanted}")


def read_table(path: str) -> Table:
    """Codes to be decoded: an `.npz` (`codes`, or `z` as `vae sample` writes it), an `.npy`, CSV or Parquet, told apart
    by their first bytes; `-` is stdin.

    InputError where the file is missing, damaged or holds anything but numbers.
    """
    name = "stdin" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except (OSError, ValueError) as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else _problem(error)
        raise InputError(f"{name}: {problem}") from None
    if data.startswith(b"PK"):
        arrays = _arrays(io.BytesIO(data), ("codes", "z"), name)
        if not arrays:
            raise InputError(f"{name}: has no array `codes`")
        values_NC = arrays["codes"] if "codes" in arrays else arrays["z"]
    elif data.startswith(b"\x93NUMPY"):
        try:
            values_NC = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception as error:  # NumPy raises nearly everything on damaged files
            raise InputError(f"{name}: not an .npy of numbers ({_problem(error)})") from None
    elif data.startswith(b"PAR1"):
        return _read_parquet(data, name)
    else:
        return _read_csv(data, name)
    if values_NC.ndim != 2 or 0 in values_NC.shape or values_NC.dtype.kind not in "fiu":
        raise InputError(f"{name}: codes must be numbers of shape (N, D), not {values_NC.dtype} {values_NC.shape}")
    return Table(name, values_NC.astype(np.float64))


def _read_parquet(data: bytes, name: str) -> Table:
    parquet = extras.need("pyarrow.parquet", "parquet", f"{name}: Parquet")
    try:
        table = parquet.ParquetFile(io.BytesIO(data)).read()
        found = {column: table[column].to_numpy() for column in table.column_names if not TEXT_COLUMN.fullmatch(column)}
    except Exception as error:  # pyarrow raises errors of its own on damaged files
        raise InputError(f"{name}: not a Parquet file of numbers ({_problem(error)})") from None
    if not found or not table.num_rows or any(column.dtype.kind not in "fiu" for column in found.values()):
        raise InputError(f"{name}: not a Parquet file of numbers")
    return Table(name, np.stack([c.astype(np.float64) for c in found.values()], axis=1), tuple(found), text=True)


def _read_csv(data: bytes, name: str) -> Table:
    try:
        lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
        if not lines:
            raise InputError(f"{name}: holds no codes")
        first = [cell.strip() for cell in next(csv.reader([lines[0].removeprefix("#")]))]
        # A damaged number in the first row must not make a header of it.
        named = any(map(LATENT_NAME.fullmatch, first)) or not any(map(is_number, first))
        columns = tuple(first) if named else None
        rows = lines if columns is None else lines[1:]
        if not rows:
            raise InputError(f"{name}: holds no codes, only the header")
        cells, last = csv.reader([rows[0], rows[-1]])
        if columns is None:  # the names that `to_csv` puts at the end are numbers neither in the first row nor the last
            count = len(cells)
            while 1 < count <= len(last) and not is_number(cells[count - 1]) and not is_number(last[count - 1]):
                count -= 1
            numbers = list(range(count))
        else:
            numbers = [i for i, column in enumerate(columns) if not TEXT_COLUMN.fullmatch(column)]
        wanted = None if len(numbers) == len(columns or cells) else numbers
        values_NC = np.loadtxt(rows, delimiter=",", ndmin=2, comments=None, quotechar='"', usecols=wanted)
        if columns is not None and wanted is not None:
            columns = tuple(columns[i] for i in wanted)
    except UnicodeDecodeError:
        raise InputError(f"{name}: not a file of codes", "give .npz, .npy or CSV") from None
    except (ValueError, csv.Error) as error:
        raise InputError(f"{name}: not CSV of numbers ({_problem(error)})") from None
    if columns is not None and len(columns) != values_NC.shape[1]:
        raise InputError(f"{name}: {len(columns)} names in the header for {values_NC.shape[1]} columns")
    return Table(name, values_NC, columns, text=True)

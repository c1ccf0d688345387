"""Codes: what an encoder says about images, as arrays, whoever's encoder it was.

They come from a checkpoint over a split (`encode`, cached) or from a file (`read`), and every metric and the diagnosis
of q(z) take them. Shapes: N images, D latents, K factors.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from vaecli import __version__, checkpoint, output
from vaecli.data import _paths
from vaecli.data.base import SplitView
from vaecli.errors import InputError

Array = np.ndarray[Any, Any]

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5
ACTIVE_SHARE = 1e-4  # of the largest variance, where codes have no scale of their own


@dataclass(frozen=True)
class Codes:
    """Means, log-variances and true factors of N images. Everything finite; `factors_NK` counts from 0 per factor."""

    mean_ND: Array  # float64
    logvar_ND: Array | None = None  # float64; None for a deterministic code
    factors_NK: Array | None = None  # int64
    factor_names: tuple[str, ...] = ()
    latent_names: tuple[str, ...] = ()
    source: str = ""  # for messages and records

    def __len__(self) -> int:
        return len(self.mean_ND)

    @property
    def latents(self) -> int:
        return int(self.mean_ND.shape[1])

    @property
    def active_D(self) -> Array:
        """Which latents vary with the image: Var_x[mu] > 0.01 (Burda et al. 2016) where there are log-variances, which
        give a scale; else more than 1e-4 of the largest variance."""
        variance_D = self.mean_ND.var(axis=0)
        if self.logvar_ND is not None:
            return np.asarray(variance_D > ACTIVE_VARIANCE)
        return np.asarray((variance_D > ACTIVE_SHARE * variance_D.max(initial=0.0)) & (variance_D > 0))

    @property
    def kl_D(self) -> Array | None:
        """E_x[KL(q(z_j|x) || N(0, 1))] in nats, (D,)."""
        if self.logvar_ND is None:
            return None
        kl_ND = 0.5 * (np.square(self.mean_ND) + np.exp(self.logvar_ND) - self.logvar_ND - 1.0)
        return np.asarray(kl_ND.mean(axis=0))

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
        return replace(self, mean_ND=self.mean_ND[:, keep], logvar_ND=logvar_ND, latent_names=names)

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
    if mean_ND.ndim != 2 or 0 in mean_ND.shape or not np.issubdtype(mean_ND.dtype, np.number):
        raise InputError(f"{source}: codes must be numbers of shape (N, D), not {mean_ND.dtype} {mean_ND.shape}")
    mean_ND = _finite(np.ascontiguousarray(mean_ND, dtype=np.float64), "codes", source)
    n, d = mean_ND.shape
    if logvar_ND is not None:
        logvar_ND = np.asarray(logvar_ND)
        if logvar_ND.shape != (n, d) or not np.issubdtype(logvar_ND.dtype, np.number):
            raise InputError(f"{source}: logvar is {logvar_ND.shape}, the codes are {(n, d)}")
        logvar_ND = _finite(np.ascontiguousarray(logvar_ND, dtype=np.float64), "logvar", source)
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

    `advance` is called with the images of each batch (with all at once where the cache had them).
    """
    count = len(view) if images is None else min(images, len(view))
    file = _cache_file(loaded, view, count)
    tensors = _cached(file, count)
    if tensors is None:
        tensors = _run_encoder(loaded, view, count, batch_size, advance)
        _keep(file, tensors)
    else:
        advance(count)
    index_N = view.indices[:count].cpu()
    labels = view.dataset.labels
    logvar = tensors.get("logvar")
    return make(
        tensors["mean"].numpy(),
        None if logvar is None else logvar.numpy(),
        None if labels is None else labels.cpu().index_select(0, index_N).numpy(),
        loaded.info.factor_names,
        loaded.model.latent_names(),
        f"{loaded.path} over {count:,} images ({view.name})",
    )


def _run_encoder(
    loaded: checkpoint.Loaded, view: SplitView, count: int, batch_size: int, advance: Callable[[int], None]
) -> dict[str, torch.Tensor]:
    means, logvars = [], []
    with torch.inference_mode():
        for start in range(0, count, batch_size):
            index_B = view.indices[start : min(start + batch_size, count)]
            x_BCHW = view.dataset.images.gather(index_B).to(loaded.model.device)
            q = loaded.model.posterior(x_BCHW)
            means.append(q.mean_BD.float().cpu())
            if q.logvar_BD is not None:
                logvars.append(q.logvar_BD.float().cpu())
            advance(len(index_B))
    return {"mean": torch.cat(means), **({"logvar": torch.cat(logvars)} if logvars else {})}


def _cache_file(loaded: checkpoint.Loaded, view: SplitView, count: int) -> Path:
    """The name says all that the codes depend on: weights and configuration (in the file), which images, how many."""
    weights = hashlib.sha256(loaded.path.read_bytes()).hexdigest()
    images = hashlib.sha256(view.indices[:count].cpu().numpy().tobytes()).hexdigest()
    key = json.dumps([__version__, weights, images, loaded.info.source], sort_keys=True)
    return _paths.cache_dir() / "codes" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _cached(file: Path, count: int) -> dict[str, torch.Tensor] | None:
    try:
        tensors = load_safetensors(file.read_bytes())
    except (OSError, SafetensorError):
        return None
    mean = tensors.get("mean")
    usable = mean is not None and mean.dim() == 2 and len(mean) == count and mean.dtype == torch.float32
    return tensors if usable and tensors.keys() <= {"mean", "logvar"} else None


def _keep(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Into the cache, whole or not at all; a cache that cannot be written costs time and nothing else."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(save_safetensors({k: v.contiguous() for k, v in tensors.items()}))
        os.replace(temporary, file)
    except OSError as error:
        output.notice(f"{file.parent}: codes not cached: {error.strerror}")
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------- files


def read(path: str | Path) -> Codes:
    """Codes from an `.npz`: `codes` (N, D), optionally `logvar` (N, D), `factors` (N, K) and `factor_names` (K,).

    InputError where the file is missing, damaged, holds pickled objects, or does not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if "codes" not in file:
                raise InputError(f"{path}: has no array `codes`; it has {', '.join(sorted(file.files)[:8]) or 'none'}")
            arrays = {name: file[name] for name in ("codes", "logvar", "factors", "factor_names") if name in file}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # zipfile and NumPy raise nearly everything on damaged files
        problem = str(getattr(error, "strerror", None) or error).partition("\n")[0][:200]
        raise InputError(f"{path}: not an .npz of numbers ({problem})") from None
    names = [str(name) for name in arrays["factor_names"].ravel()] if "factor_names" in arrays else ()
    return make(arrays["codes"], arrays.get("logvar"), arrays.get("factors"), names, source=str(path))

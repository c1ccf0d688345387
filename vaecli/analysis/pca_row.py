"""The row that a z_diff is read beside: ten principal components of the same images, found without training.

PCA alone passes z_diff at 92 % on dSprites with 64 pairs a point (`metrics.beta_vae`), so that a score says little by
itself. The components are those of the images that are scored (of a sample of many), whitened as in Higgins et al.
2017, table 1, and scored by the same protocol with the same seed; kept in the cache under the images' checksum.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vaecli import __version__, output, paths, registry, safe_files
from vaecli.analysis import codes as code_files
from vaecli.analysis import metrics
from vaecli.analysis.codes import Codes
from vaecli.analysis.metrics import Result
from vaecli.data.base import SplitView
from vaecli.errors import InputError, MachineError
from vaecli.models import pca_white

COMPONENTS = 10
FITTED = 20_000  # images that the components are of; the variance they explain is that of all within 0.2 %
PIXELS = 4096  # of an image at most: the covariance of more takes too long for a row that nobody asked for
LARGEST = 1 << 16  # bytes of a file of the cache


def beside(results: Sequence[Result], view: SplitView, images: int, seed: int) -> list[Result]:
    """The results, those of z_diff and MIG with what `COMPONENTS` principal components of the first `images` of the
    view score; as they are where no z_diff is among them, the images are no grid of two factors or more, too large, or
    vary in too few directions."""
    wanted = [r.name for r in results if r.score is not None and r.name in (*metrics.Z_DIFF, "mig")]
    several = (view.dataset.varying_factors or 0) > 1 and view.dataset.info.pixels <= PIXELS
    if not several or not any(name in metrics.Z_DIFF for name in wanted):
        return list(results)
    files = {name: _file(name, view, images, seed) for name in wanted}
    found = {name: known for name, file in files.items() if (known := _read(file)) is not None}
    if missing := [name for name in wanted if name not in found]:
        codes = _codes(view, images)
        for name in missing if codes is not None else ():
            found[name] = registry.load("metric", name).score(codes, seed).values
            _write(files[name], found[name])
    return [replace(r, pca=found[r.name]) if r.name in found else r for r in results]


def _codes(view: SplitView, images: int) -> Codes | None:
    dataset, info = view.dataset, view.dataset.info
    config = pca_white.Config(latent_dim=min(COMPONENTS, info.pixels))
    shown = SplitView(dataset, view.name, view.indices[:images], view.labels)
    output.notice("PCA        to read z_diff beside, of the same images")
    try:
        model = pca_white.Model(config, info).eval()
        with output.progress("principal components", min(images, FITTED)) as advance:
            model.fit(shown.sample(FITTED), lambda: False, advance)
    except (InputError, MachineError) as error:
        output.notice(f"no PCA to read z_diff beside: {error}")
        return None
    with torch.inference_mode():
        parts = [model.posterior(batch.x_BCHW.cpu()).mean_BD for batch in shown.batches(2048)]
    factors_NK, names = code_files.known_factors(view, images)
    codes = code_files.make(torch.cat(parts).numpy(), None, factors_NK, names)
    return codes.factors_only(codes.varying) if codes.varying else None


def _file(name: str, view: SplitView, images: int, seed: int) -> Path | None:
    """Its name says all that a row depends on; None where the data set has no checksum."""
    source = view.dataset.info.source
    if not source.get("sha256"):
        return None
    shown = hashlib.sha256(view.indices[:images].cpu().numpy().tobytes()).hexdigest()
    key = json.dumps([__version__, name, seed, COMPONENTS, FITTED, shown, source], sort_keys=True)
    return paths.cache_dir() / "pca" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(file: Path | None) -> dict[str, float] | None:
    if file is None:
        return None
    try:
        values = json.loads(safe_files.read(file, LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    plain = isinstance(values, dict) and all(isinstance(v, float) for v in values.values())
    return values if plain and values else None


def _write(file: Path | None, values: dict[str, float]) -> None:
    """A cache that cannot be written costs time and nothing else."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        safe_files.replace(file, json.dumps({key: float(value) for key, value in values.items()}).encode())
    except OSError as error:
        output.notice(f"{file.parent}: not cached: {error.strerror}")

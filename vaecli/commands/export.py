"""`vae export`, `vae push`: a trained model for where there is no `vae`, or for the hub."""

import contextlib
import hashlib
import io
import json as json_format
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli import __version__, extras, hub, registry, safe_files
from vaecli import device as devices
from vaecli import output as streams
from vaecli.analysis import codes as code_files
from vaecli.commands import _artifact
from vaecli.errors import ConfigError, MachineError
from vaecli.models.base import Model
from vaecli.training import checkpoint as checkpoints
from vaecli.training.checkpoint import DENSITY_FILE, MODEL_FILE, Loaded

FORMATS = ("onnx", "torch", "hub")
OPSET = 18


def run(checkpoint: str, kind: str, output: str, force: bool, json: bool) -> None:
    """Write a folder. `onnx` and `torch`: the encoder, images to the mean and log-variance of q(z|x), and the decoder,
    codes to the mean image, for any number of images. `hub`: weights, configuration, manifest and a model card.

    ConfigError for another format, a folder that holds something, or a model that cannot be put in this form;
    MachineError where it cannot be written. The folder is there whole or not at all.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format is {kind[:40]!r}; it must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    target = _check(output, force)
    if kind == "onnx":
        for module in ("onnx", "onnxscript"):
            extras.require(module, "onnx", "--format onnx")
    loaded = checkpoints.load(checkpoint, torch.device("cpu"))
    with _folder(target, output) as folder:
        facts = _hub(loaded, folder) if kind == "hub" else _programs(loaded, kind, folder)
        names = sorted(path.name for path in folder.iterdir())
    about = {"checkpoint": str(loaded.path), "step": loaded.step, "format": kind, "files": names}
    _artifact.report(output, {**about, **facts}, json)


def push(checkpoint: str, name: str, private: bool, json: bool) -> None:
    """Upload what `--format hub` writes; prints `hf://owner/name`, which every command takes as a checkpoint."""
    hub.parse(name)
    extras.require("huggingface_hub", "hub", "`vae push`")
    loaded = checkpoints.load(checkpoint, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as place:
        _hub(loaded, Path(place))
        address = hub.push(Path(place), name, private, f"{loaded.config.model.name} at step {loaded.step:,}")
    streams.notice(f"pushed to {address}")
    where = hub.PREFIX + name.removeprefix(hub.PREFIX)
    _artifact.report(where, {"checkpoint": str(loaded.path), "step": loaded.step, "address": address}, json)


# ----------------------------------------------------------------------------------------------------------- the folder


def _check(output: str, force: bool) -> Path:
    """ConfigError where something would be overwritten, MachineError where nothing can be written."""
    target = Path(os.path.realpath(output))
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{output}: is a file, not a folder")
    if target.is_dir():
        if any(target.iterdir()) and not force:
            raise ConfigError(f"{output}: exists already", "--force replaces files of the same names in it")
        _artifact.require_folder(target, output)
    _artifact.require_folder(target.parent, output)
    return target


@contextlib.contextmanager
def _folder(target: Path, output: str) -> Iterator[Path]:
    """A folder that gets its name, or gives its files to the one there, when all is in it."""
    beside = target.parent / f".vae-{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        beside.mkdir()
        yield beside
        if target.is_dir():
            for path in sorted(beside.iterdir()):
                os.replace(path, target / path.name)
        else:
            os.rename(beside, target)
    except OSError as error:
        raise MachineError(f"{output}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# -------------------------------------------------------------------------------------------- programs for other worlds


class Encoder(nn.Module):
    """Images (N, C, H, W) to mean and log-variance of q(z|x), (N, D) each; the mean alone of a code without."""

    def __init__(self, model: Model, has_variance: bool) -> None:
        super().__init__()
        self.model, self.has_variance = model, has_variance

    def forward(self, images: Tensor) -> Any:
        q = self.model.posterior(images)
        return (q.mean_BD.float(), q.logvar_BD.float()) if self.has_variance and q.logvar_BD is not None else q.mean_BD


class Decoder(nn.Module):
    """Codes (N, D) to the expected images, (N, C, H, W)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes)


@dataclass(frozen=True)
class Part:
    """One of the two programs, with an example of what goes in."""

    name: str
    module: nn.Module
    example: Tensor
    input: str
    outputs: list[str]


def _parts(loaded: Loaded) -> list[Part]:
    model = loaded.model
    images, codes = torch.rand(2, *loaded.info.shape), torch.zeros(2, len(model.latent_names()))
    parts = []
    if model.inferred:
        with torch.inference_mode():
            has_variance = model.posterior(images).logvar_BD is not None
        outputs = ["mean", "logvar"] if has_variance else ["mean"]
        parts.append(Part("encoder", Encoder(model, has_variance), images, "images", outputs))
    else:
        codes = torch.zeros(2, len(model.latent_names(model.levels)))
    return [*parts, Part("decoder", Decoder(model), codes, "codes", ["images"])]


def _programs(loaded: Loaded, kind: str, folder: Path) -> dict[str, Any]:
    suffix = {"onnx": "onnx", "torch": "pt2"}[kind]
    loaded.model.requires_grad_(False)
    parts = _parts(loaded)
    for part in parts:
        with _plain(), _told(f"{loaded.config.model.name}: its {part.name} cannot be exported"):
            # An attribute of a part is its name in the graph; the batch is of any size.
            program = torch.export.export(
                part.module, (part.example,), dynamic_shapes={part.input: {0: torch.export.Dim("n", min=1)}}
            )
            file = folder / f"{part.name}.{suffix}"
            if kind == "torch":
                torch.export.save(program, file)
            else:
                torch.onnx.export(
                    program, (), file, input_names=[part.input], output_names=part.outputs, opset_version=OPSET,
                    dynamo=True, external_data=False, verbose=False,
                )  # fmt: skip
    described = checkpoints.describe(loaded.model, loaded.config, loaded.step)
    (folder / "config.json").write_text(described)
    (folder / "README.md").write_text(_readme(loaded, kind, parts))
    inputs = {part.name: {"input": part.input, "outputs": part.outputs} for part in parts}
    return {"shape": list(loaded.info.shape), "latents": loaded.model.latent_names(), "programs": inputs}


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """Without what only checks, warns or records: it is no part of a program. torch prints whole graphs where it cannot
    trace one."""
    checked = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        with (
            warnings.catch_warnings(), torch.no_grad(), devices.aside(), contextlib.redirect_stderr(io.StringIO()),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            devices.seed(0, "export")
            yield
    finally:
        Distribution.set_default_validate_args(checked)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """What torch cannot trace is told in a line."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if os.environ.get("VAE_DEBUG"):
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "Constraints violated" in reason:  # torch says no more of it
            reason = "it would be for one number of images alone"
        raise ConfigError(f"{what}: {reason.strip()[:200]}", "--format hub keeps the model as it is") from None


# ---------------------------------------------------------------------------------------------------------------- words

_USE: dict[str, Callable[[bool], str]] = {
    "onnx": lambda encodes: (
        "import numpy as np\nimport onnxruntime\n\n"
        + (
            'encoder = onnxruntime.InferenceSession("encoder.onnx")\n'
            'mean, *logvar = encoder.run(None, {"images": images.astype(np.float32)})\n'
            if encodes
            else ""
        )
        + 'decoder = onnxruntime.InferenceSession("decoder.onnx")\n'
        f'(decoded,) = decoder.run(None, {{"codes": {"mean" if encodes else "codes.astype(np.float32)"}}})\n'
    ),
    "torch": lambda encodes: (
        "import torch\n\n"
        + (
            'encoder = torch.export.load("encoder.pt2").module()\nmean, *logvar = encoder(torch.as_tensor(images))\n'
            if encodes
            else ""
        )
        + 'decoder = torch.export.load("decoder.pt2").module()\n'
        f"decoded = decoder({'mean' if encodes else 'torch.as_tensor(codes)'})\n"
    ),
}


def _readme(loaded: Loaded, kind: str, parts: list[Part]) -> str:
    """How to use the folder without `vae`."""
    config, info = loaded.config, loaded.info
    shape = ", ".join(map(str, info.shape))
    names = loaded.model.latent_names()
    encodes = parts[0].name == "encoder"
    variances = encodes and len(parts[0].outputs) > 1
    use = _USE[kind](encodes)
    if encodes and not variances and kind == "torch":
        use = use.replace("mean, *logvar = ", "mean = ")
    rows = [
        f"| `{part.name}.{'onnx' if kind == 'onnx' else 'pt2'}` | `{part.input}` ({_dims(part.example)}) | "
        + ", ".join(f"`{name}`" for name in part.outputs)
        + " |"
        for part in parts
    ]
    lines = [
        f"# {config.model.name} of {info.name}",
        "",
        f"Exported by vae {__version__} at step {loaded.step:,}; `config.json` is the whole configuration.",
        "",
        "| file | in, float32 | out, float32 |",
        "|---|---|---|",
        *rows,
        "",
        f"- `images`: (n, {shape}), pixels from 0 (black) to 1 (white), as the model was trained on; n is any number.",
        f"- `mean`{', `logvar`' if variances else ''}: (n, {len(names)}), columns {_columns(names)}: the mean"
        + (" and the natural logarithm of the variance of q(z|x)." if variances else " of q(z|x), or the code itself."),
        f"- `decoder` gives the mean image E[x|z], (n, {shape}).",
        "",
        "```python",
        use.rstrip(),
        "```",
        "",
    ]
    others: list[str] = []
    if variances:
        exact_D = code_files.kinds(loaded.model, parts[0].example[:1])[1]
        others = [name for name, exact in zip(names, exact_D, strict=True) if not exact]
    if variances and not others:
        lines += ["A draw of q(z|x) is `mean + exp(logvar / 2) * noise` with standard normal noise.", ""]
    elif variances:
        has_labels = any(level.kind == "labels" for level in loaded.model.inferred)
        labels = ", and of labels `mean` is a probability" if has_labels else ""
        lines += [
            f"No draws of q(z|x) can be made of these for {_columns(others)}: given the image alone they are no "
            f"Gaussians with independent latents{labels}.", "",
        ]  # fmt: skip
    return "\n".join(lines)


def _dims(example: Tensor) -> str:
    return ", ".join(["n", *map(str, example.shape[1:])])


def _columns(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{names[0]}, {names[1]}, ..., {names[-1]}"


# ---------------------------------------------------------------------------------------------------------- for the hub


def _hub(loaded: Loaded, folder: Path) -> dict[str, Any]:
    """A step directory without what only resuming needs, and a model card."""
    described = checkpoints.describe(loaded.model, loaded.config, loaded.step).encode()
    metadata = checkpoints.read_header(loaded.path)[0]
    contents = {
        MODEL_FILE: safe_files.read(loaded.path),
        "config.json": metadata.get("vaecli.config", "").encode() or described,
    }
    density = loaded.path.parent / DENSITY_FILE
    if loaded.path.name == MODEL_FILE and safe_files.is_plain(density):
        contents[DENSITY_FILE] = safe_files.read(density)
    manifest = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}
    contents["README.md"] = _card(loaded).encode()  # which may be edited on the hub
    contents["manifest.json"] = json_format.dumps(manifest, indent=1, sort_keys=True).encode()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {}


def _card(loaded: Loaded) -> str:
    """A model card: front matter that the hub reads, then what it is and how it is used."""
    config, info, found = loaded.config, loaded.info, _evaluation(loaded)
    name, data = config.model.name, info.name
    front: dict[str, Any] = {
        "library_name": "vaecli",
        "tags": list(dict.fromkeys(["vae", "variational-autoencoder", name, data])),
    }
    if found:
        metrics = [{"type": key, "name": text, "value": round(found[key], 4)} for key, text in _METRICS if key in found]
        entry = {"task": {"type": "image-feature-extraction"}, "dataset": {"type": data, "name": data}}
        front["model-index"] = [{"name": f"{name}-{data}", "results": [{**entry, "metrics": metrics}]}]
    numbers = [
        f"- {text}: {found[key]:.2f}, mean over {found['images']:,.0f} held-out images"
        for key, text in _METRICS
        if key in found
    ]
    settings = yaml.safe_dump(config.to_tree(), sort_keys=False, default_flow_style=None, width=110)
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "",
        f"# {name} of {data}", "",
        registry.summary("model", name), "",
        f"{len(loaded.model.latent_names())} latents of images {'x'.join(map(str, info.shape))}, trained for "
        f"{loaded.step:,} steps by vae {__version__}.", "",
        *numbers, *([""] if numbers else []),
        "```sh", "vae sample hf://OWNER/NAME -o samples.png", "```", "",
        "```python", 'import vaecli', '', 'm = vaecli.load("hf://OWNER/NAME")', "images = m.sample(16)", "```", "",
        "Settings:", "", "```yaml", settings.rstrip(), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


_METRICS = (("elbo", "ELBO (nats)"), ("recon", "reconstruction (nats)"), ("kl", "KL (nats)"))


def _evaluation(loaded: Loaded) -> dict[str, float]:
    """The last evaluation of the run at the step of the checkpoint, {} where there is none."""
    file = loaded.path.parent.parent.parent / "metrics.jsonl"
    found: dict[str, float] = {}
    try:
        for line in safe_files.read(file).decode().splitlines():
            record = json_format.loads(line)
            if record.get("kind") == "val" and record.get("step") == loaded.step:
                found = {k: float(v) for k, v in record.items() if isinstance(v, (int, float))}
    except (OSError, ValueError, AttributeError):
        return {}
    return found if "images" in found else {}

"""The oracle: a small classifier of the true factors, by which images that a model made are judged.

It is trained once for a data set on those of its images whose labels are known, whatever a model was allowed to see of
them, and kept in the cache with how often it is right on images it was not trained on. Its penultimate features are
what distances between sets of images are taken in (`samples`), its predictions what images are checked for factors by.

Shapes: B batch, C H W image, K factors, F features, N images.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from vaecli import device as devices
from vaecli import output, paths, safe_files
from vaecli.data.base import Dataset
from vaecli.data.orders import Shuffled, generator
from vaecli.errors import ConfigError
from vaecli.speed.optimizers import without_compiler
from vaecli.training import checkpoint

RECIPE = 1  # of the network and its training: raised with every change that makes another classifier of the same data
FEATURES = 128
BATCH = 128
SEEN = 180_000  # images in training, three times MNIST's: a minute or two on two cores
LEAST_STEPS = 300
HELD_OUT = 10_000  # images at most by which the accuracy is taken
MOST_EPOCHS = 60  # over small sets
FEWEST = 20  # labelled images
LARGEST = 256 << 20  # bytes of a file in the cache that are read

Shares = tuple[dict[str, float], dict[str, float]]  # by factor: images judged right; those of the commonest label


@dataclass(frozen=True)
class Oracle:
    """A trained classifier with one softmax for each factor, in evaluation mode; every image is judged by itself.

    `accuracy`   by factor, the share of the held-out images with a known label that it gets right.
    `chance`     by factor, the share of the commonest label among these: what always saying it would reach.
    `held_out`   how many images these were.
    `digest`     of its weights: distances in the features of two oracles that differ in it cannot be compared.
    """

    distance: ClassVar[str] = "FCD"
    net: "Classifier"
    factors: tuple[str, ...]
    accuracy: dict[str, float]
    chance: dict[str, float]
    held_out: int
    trained_on: int
    digest: str

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Penultimate activations, float32 (B, F), of images on any device; values outside [0, 1] are cut off."""
        with torch.inference_mode():
            return self.net.features(_images(x_BCHW, self.net))

    def predict(self, x_BCHW: Tensor) -> Tensor:
        """The most likely value of each factor, int64 (B, K), counted as the data set counts them."""
        with torch.inference_mode():
            logits = self.net(_images(x_BCHW, self.net))
            return torch.stack([logits_BV.argmax(dim=1) for logits_BV in logits], dim=1)

    def text(self) -> str:
        """`classifier trained on 60,000 images; right on 10,000 others: digit 99.2 %`."""
        right = ", ".join(f"{name} {value:.1%}" for name, value in self.accuracy.items())
        return f"classifier trained on {self.trained_on:,} images; right on {self.held_out:,} others: {right}"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        about = {"trained_on": self.trained_on, "held_out": self.held_out, "digest": self.digest}
        return {"accuracy": self.accuracy, "chance": self.chance, **about}


class Classifier(nn.Module):
    """Convolutions that halve the image until no side exceeds 8 (twice at least) and double the channels, up to 64; a
    hidden layer; a head for each factor. With batch norm a few epochs are enough."""

    def __init__(self, shape: tuple[int, int, int], sizes: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        halvings = max(2, math.ceil(math.log2(max(height, width) / 8)))
        for left in reversed(range(halvings)):
            out = max(8, 64 >> left)
            # Sides are rounded up: no row may be lost.
            layers += [nn.ZeroPad2d((1, 1 + width % 2, 1, 1 + height % 2)), nn.Conv2d(channels, out, 4, 2, bias=False)]
            layers += [nn.BatchNorm2d(out), nn.ReLU()]
            channels, height, width = out, (height + 1) // 2, (width + 1) // 2
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Sequential(
            nn.Linear(channels * height * width, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Linear(FEATURES, size) for size in sizes)

    def features(self, x_BCHW: Tensor) -> Tensor:
        features_BF: Tensor = self.hidden(self.convolutions(x_BCHW))
        return features_BF

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Logits of each factor's values, (B, V)."""
        features_BF = self.features(x_BCHW)
        return [head(features_BF) for head in self.heads]


def _images(x_BCHW: Tensor, net: nn.Module) -> Tensor:
    return x_BCHW.to(next(net.parameters()).device, torch.float32).clamp(0.0, 1.0)


@torch.inference_mode(False)  # in which nothing could be trained
def oracle(dataset: Dataset, device: torch.device | str = "cpu", seed: int = 0) -> Oracle:
    """The oracle of a data set: from the cache, else trained, which is said on stderr as it takes a minute or two.

    It depends on the images, their labels and `seed` alone, not on a run's `data.limit`, `data.labelled` or holdout.
    ConfigError where no labels are known, or too few.
    """
    labels_NK, info = dataset.labels, dataset.info
    if labels_NK is None or not info.factor_names:
        raise ConfigError(
            f"{info.name}: the images have no labels, from which a classifier of them could be trained",
            "images of folders and arrays are labelled by subfolders or an array of factors",
        )
    labels_NK = labels_NK.cpu()
    train_N, test_N = _parts(dataset, labels_NK)
    if len(train_N) + len(test_N) < FEWEST or len(test_N) == 0:
        count = len(train_N) + len(test_N)
        raise ConfigError(f"{info.name}: {count:,} labelled images are too few to train a classifier on")
    net = _fresh(info.shape, tuple(info.factor_sizes), seed)
    steps = _steps(len(train_N))
    file = _cache_file(dataset, labels_NK, train_N, test_N, seed)
    shares = _cached(file, net, steps, info.factor_names)
    known = shares is not None
    if shares is None:
        what = f"training a classifier of {', '.join(info.factor_names)} to judge images by"
        output.notice(f"{info.name}: {what}, once: {steps:,} steps")
        _train(net.to(device), dataset, labels_NK, train_N, steps, seed)
        shares = _shares(net, dataset, labels_NK, test_N)
        _keep(file, net, shares, steps)
    digest = _digest(net.state_dict())[:12]
    net = net.to(device).eval().requires_grad_(False)
    made = Oracle(net, tuple(info.factor_names), *shares, len(test_N), len(train_N), digest)
    if not known:
        output.notice(f"{info.name}: {made.text()}")
    return made


def is_trained(dataset: Dataset, seed: int = 0) -> bool:
    """Whether it is in the cache, so that `oracle` takes no time."""
    if dataset.labels is None or not dataset.info.factor_names:
        return False
    labels_NK = dataset.labels.cpu()
    return _cache_file(dataset, labels_NK, *_parts(dataset, labels_NK), seed).is_file()


def _parts(dataset: Dataset, labels_NK: Tensor) -> tuple[Tensor, Tensor]:
    """The labelled images to train on and those held out: a published test set, else a tenth, always the same."""
    known_N = (labels_NK >= 0).any(dim=1)
    if "test" in dataset.splits:
        test_N = dataset.splits["test"].cpu()
        rest_N = torch.ones(len(labels_NK), dtype=torch.bool)
        rest_N[test_N] = False
        train_N = rest_N.nonzero()[:, 0]
    else:
        order_N = torch.randperm(len(labels_NK), generator=generator("oracle", len(labels_NK)))
        count = max(1, len(labels_NK) // 10)
        train_N, test_N = order_N[count:], order_N[:count]
    return train_N[known_N[train_N]], test_N[known_N[test_N]][:HELD_OUT]


def _steps(images: int) -> int:
    return max(LEAST_STEPS, math.ceil(min(SEEN, MOST_EPOCHS * images) / BATCH))


def _fresh(shape: tuple[int, int, int], sizes: tuple[int, ...], seed: int) -> Classifier:
    """With first weights that depend on `seed` alone; the caller's generator is left as it was."""
    with devices.aside():
        torch.default_generator.manual_seed(devices.derive(seed, "oracle"))
        return Classifier(shape, sizes)


def _train(net: Classifier, dataset: Dataset, labels_NK: Tensor, train_N: Tensor, steps: int, seed: int) -> None:
    """Cross-entropy summed over the factors, labels that are not known left out; AdamW with one cycle of its rate."""
    where = next(net.parameters()).device
    net.train()
    optimizer = without_compiler(torch.optim.AdamW)(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    order = Shuffled(len(train_N), devices.derive(seed, "oracle", "order"), BATCH)
    with torch.enable_grad(), output.progress("training the classifier", steps) as advance:
        for step in range(steps):
            index_B = train_N[order.indices(step)]
            x_BCHW, y_BK = dataset.images.gather(index_B).to(where), labels_NK[index_B].to(where)
            loss = _loss(net(x_BCHW), y_BK)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            advance(1)
    net.eval()


def _loss(logits: list[Tensor], y_BK: Tensor) -> Tensor:
    parts = [
        F.cross_entropy(logits_BV, y_BK[:, k], ignore_index=-1, reduction="sum") / max(1, int((y_BK[:, k] >= 0).sum()))
        for k, logits_BV in enumerate(logits)
    ]
    return torch.stack(parts).sum()


def _shares(net: Classifier, dataset: Dataset, labels_NK: Tensor, test_N: Tensor) -> Shares:
    """Over the held-out images with a known label, how often the classifier is right, and how often the commonest label
    would be; factors without any such image are left out."""
    predicted = []
    with torch.inference_mode():
        for index_B in torch.split(test_N, 512):
            logits = net(_images(dataset.images.gather(index_B), net))
            predicted.append(torch.stack([logits_BV.argmax(dim=1) for logits_BV in logits], dim=1).cpu())
    right_NK = torch.cat(predicted) == labels_NK[test_N]
    accuracy, chance = {}, {}
    for k, name in enumerate(dataset.info.factor_names):
        truth_N = labels_NK[test_N, k]
        known_N = truth_N >= 0
        if count := int(known_N.sum()):
            accuracy[name] = int(right_NK[known_N, k].sum()) / count
            chance[name] = int(torch.bincount(truth_N[known_N]).max()) / count
    return accuracy, chance


# ---------------------------------------------------------------------------------------------------------------- cache


def _cache_file(dataset: Dataset, labels_NK: Tensor, train_N: Tensor, test_N: Tensor, seed: int) -> Path:
    """The name says all that the classifier depends on. The source's checksum is of the files; what options made of
    them (size, binarisation, range) is seen in a thousand of the images."""
    info, digest = dataset.info, hashlib.sha256()
    about = [RECIPE, seed, info.name, info.shape, info.source.get("sha256"), info.factor_names, info.factor_sizes]
    digest.update(json.dumps(about, sort_keys=True).encode())
    some_N = torch.linspace(0, len(dataset.images) - 1, min(1000, len(dataset.images))).long()
    for part in (dataset.images.gather(some_N).cpu(), labels_NK, train_N, test_N):
        digest.update(part.contiguous().numpy().data)
    return paths.cache_dir() / "oracles" / f"{info.name}-{digest.hexdigest()[:32]}.safetensors"


def _cached(file: Path, net: Classifier, steps: int, factors: Sequence[str]) -> Shares | None:
    """Loads the weights into `net`, and gives what the file says of its accuracy. None where it is missing, damaged, of
    another network or of a training that was not finished: then it is trained again."""
    try:
        metadata, _, _ = checkpoint.read_header(file)
        tensors = load_safetensors(safe_files.read(file, LARGEST))
        about = json.loads(metadata["about"])
        shares = tuple({str(name): float(share) for name, share in about[key].items()} for key in ("right", "chance"))
        whole = about["steps"] == steps and metadata["sha256"] == _checksum(tensors, metadata["about"])
    except (OSError, LookupError, ValueError, TypeError, AttributeError, SafetensorError, checkpoint.CheckpointError):
        return None
    fresh = net.state_dict()
    fits = tensors.keys() == fresh.keys() and all(
        tensors[name].shape == t.shape and tensors[name].dtype == t.dtype for name, t in fresh.items()
    )
    if not whole or not fits or not set(shares[0]) == set(shares[1]) <= set(factors):
        return None
    net.load_state_dict(tensors)
    return shares[0], shares[1]


def _keep(file: Path, net: Classifier, shares: Shares, steps: int) -> None:
    """Into the cache, whole or not at all; a cache that cannot be written costs time and nothing else."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}
    about = json.dumps({"right": shares[0], "chance": shares[1], "steps": steps}, sort_keys=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"about": about, "sha256": _checksum(tensors, about)}
        safe_files.replace(file, save_safetensors(tensors, metadata=metadata))
    except OSError as error:
        output.notice(f"{file.parent}: the classifier is not cached: {error.strerror}")


def _checksum(tensors: Mapping[str, Tensor], about: str) -> str:
    return hashlib.sha256((_digest(tensors) + about).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

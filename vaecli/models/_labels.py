"""What models share that learn from few labels: which factors are labels, and the images with labels of each batch.

Shapes: B batch, K labelled factors, C their values side by side.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from vaecli.batch import Batch, DataInfo, Split
from vaecli.data.orders import Mixed, Order, WarmUp
from vaecli.errors import ConfigError, InputError
from vaecli.models.base import Level, NetConfig, NetModel, Values
from vaecli.nets import coders, semafo
from vaecli.objectives import distributions, labels, likelihoods
from vaecli.registry import nearest
from vaecli.settings.section import Count, Fraction, Width


class Config(NetConfig):
    """`factors`         which factors of the data are labels; null for all whose values differ.
    `labelled_share`  of every batch are images with a label, rounded up: the few there are are repeated.
    `warm_up`         steps at the start whose batches are images with a label alone.

    Which labels may be seen is `data.labelled`: dealt out value by value where there is one factor or
    a number of each.
    """

    latent_dim: Width = 32
    likelihood: likelihoods.LikelihoodConfig = likelihoods.BernoulliConfig()  # as in their papers
    net: coders.NetConfig = semafo.SemafoConfig()
    factors: list[str] | None = None
    labelled_share: Fraction = 0.1
    warm_up: Count = 0


class Model(NetModel):
    """A level `y` of labels; what else there is, its models say."""

    config: Config
    uses_labels: ClassVar[bool] = True

    def __init__(self, config: Config, info: DataInfo) -> None:
        super(NetModel, self).__init__(config, info)  # whose nets are those of a single level
        self.factors = chosen_factors(config, info)
        self.columns = [info.factor_names.index(name) for name in self.factors]
        self.sizes = tuple(info.factor_sizes[column] for column in self.columns)
        self.likelihood = likelihoods.build(config.likelihood, info.binary, info.contrast)
        self.settled = config.warm_up

    @property
    def width_y(self) -> int:
        """C, the values of all labels side by side."""
        return sum(self.sizes)

    def level_y(self) -> Level:
        return Level("y", (self.width_y,), "labels", sizes=self.sizes, factors=self.factors)

    def uniform(self, n: int) -> labels.OneHotBlocks:
        """n labels, every value as likely."""
        like = next(self.parameters())
        return labels.OneHotBlocks(like.new_zeros(n, self.width_y), self.sizes)

    def condition(self, labels_BK: Tensor) -> Values:
        """y alone; labels of -1 are drawn from its prior, with the same noise whichever they are."""
        told_BC, known_BC = self.asked_for(labels_BK)
        return {"y": torch.where(known_BC, told_BC, distributions.sample(self.p("y", {}, len(labels_BK))))}

    # ---- the images with labels

    def order(self, train: Split, seed: int, batch_size: int) -> Order:
        """ConfigError where no image with a label has some value that training images have: nothing would tell it."""
        if train.labels_NK is None:
            raise ConfigError(f"{self.config.name} learns from labels, but {self.info.name} has none")
        self.check_batch(batch_size)
        visible_NK = train.labels_NK[:, self.columns].cpu()
        self._check_values(visible_NK, train)
        labelled_N = (visible_NK >= 0).any(dim=1)
        mixed = Mixed(labelled_N, seed, batch_size, self.config.labelled_share)
        order = self.afterwards(mixed)
        if self.config.warm_up == 0:
            return order
        return WarmUp(Mixed(labelled_N, seed, batch_size, 1.0), self.config.warm_up, order)

    def afterwards(self, mixed: Mixed) -> Order:
        """The order after the warm-up."""
        return mixed

    def _check_values(self, visible_NK: Tensor, train: Split) -> None:
        unseen = [set(range(size)) - set(visible_NK[:, k].tolist()) for k, size in enumerate(self.sizes)]
        if not any(unseen):
            return
        truths = [batch.truth_BK for batch in train.batches(4096)]
        for k, column in enumerate(self.columns):
            there = {value for truth in truths if truth is not None for value in truth[:, column].tolist()}
            if missing := sorted(unseen[k] & there):
                names = self.info.value_names[column] if self.info.value_names else ()
                said = [str(names[value]) if names else str(value) for value in missing[:3]]
                more = f" and {len(missing) - 3} more values" if len(missing) > 3 else ""
                raise ConfigError(
                    f"no labelled training image has {self.factors[k]} = {', '.join(said)}{more}",
                    "raise data.labelled, or name in model.factors the factors that have labels",
                )

    def labels_of(self, batch: Batch) -> Tensor:
        """What may be seen of the batch's labels, int64 (B, K); -1 where one is not known."""
        if batch.labels_BK is None:
            return torch.full((len(batch.x_BCHW), len(self.sizes)), -1, device=batch.x_BCHW.device)
        return batch.labels_BK[:, self.columns]

    def known_mean(self, values_B: Tensor, labelled_B: Tensor) -> Tensor:
        """The mean over the images with labels, for the record: no number for held-out ones, which show none."""
        mean = mean_over(values_B, labelled_B)
        return mean if self.training or bool(labelled_B.any()) else mean * math.nan

    def asked_for(self, labels_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Labels as one-hot blocks (B, C), and as bool (B, C) the blocks that are known. InputError for values that
        there are not."""
        sizes_K = torch.tensor(self.sizes, device=labels_BK.device)
        if labels_BK.shape[1] != len(self.sizes) or bool((labels_BK >= sizes_K).any()):
            wanted = ", ".join(f"{name} 0 to {size - 1}" for name, size in zip(self.factors, self.sizes, strict=True))
            raise InputError(f"the labels of {self.config.name} are {wanted}")
        return labels.one_hot(labels_BK, self.sizes), labels.spread(labels_BK >= 0, self.sizes)


def chosen_factors(config: Config, info: DataInfo) -> tuple[str, ...]:
    """The names of the factors that are labels, in the data's order; ConfigError where there are none such."""
    varying = [name for name, size in zip(info.factor_names, info.factor_sizes, strict=True) if size > 1]
    if not varying:
        raise ConfigError(f"{config.name} learns from labels, but {info.name} has none that differ")
    for name in config.factors or []:
        if name not in varying:
            raise ConfigError(f"model.factors: no factor {name[:80]!r} that varies{nearest(name, varying)}")
    if config.factors == []:
        raise ConfigError(f"model.factors is empty; there are: {', '.join(varying)}")
    return tuple(name for name in varying if config.factors is None or name in config.factors)


def mean_over(values_B: Tensor, rows_B: Tensor) -> Tensor:
    """The mean over the rows that are meant, 0 where there is none; it waits for no device."""
    return (values_B * rows_B).sum() / rows_B.sum().clamp(min=1)

"""The true factors as code: what a perfect encoder would say, the ceiling of every score.

Higgins et al. 2017, "beta-VAE", table 1, row "Ground truth". A latent a factor, its values spread evenly over [0, 1].
It knows the images of its data set and their labels by heart, held-out ones too, and no other image. Where two images
are the same (dSprites at the orientations 0 and 39) so are their codes. Decoding adds up what each factor does by
itself: the mean image, and for each factor the difference that its value makes to it.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Uniform

from vaecli.batch import DataInfo, Split
from vaecli.data.base import SplitView
from vaecli.errors import ConfigError, InputError
from vaecli.models._fingerprint import fingerprint
from vaecli.models.base import Hyper, Level, ModelConfig, Values
from vaecli.models.base import Model as Base
from vaecli.objectives.distributions import Point


class Config(ModelConfig):
    """No settings."""

    name: Literal["factors"] = "factors"


class Model(Base):
    """z_k = value / (values - 1) of factor k, looked up by the image's fingerprint."""

    closed_form = True
    has_likelihood = False
    uses_labels = True
    config: Config
    known_N: Tensor
    value_NK: Tensor
    mean_P: Tensor
    effect_VP: Tensor

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        if not info.factor_names:
            raise ConfigError(f"factors needs labels, but {info.name} has none", "take data with labels")
        n, k, p = info.total or info.size, len(info.factor_names), info.pixels
        self.levels = (Level("z", (k,), "point"),)
        self.register_buffer("known_N", torch.zeros(n, dtype=torch.int64))  # fingerprints, rising
        self.register_buffer("value_NK", torch.zeros(n, k, dtype=torch.int32))
        self.register_buffer("mean_P", torch.zeros(p))
        self.register_buffer("effect_VP", torch.zeros(sum(info.factor_sizes), p))  # values of all factors in a row

    def fit(self, train: Split, stop: Callable[[], bool], progress: Callable[[float], None]) -> None:
        """All images of the data set. ConfigError where a label is missing, InputError where `stop` comes first: half
        a table knows nothing of the rest."""
        whole = train.dataset.split("all") if isinstance(train, SplitView) else train
        labels_NK, seen_NK = whole.labels_NK, train.labels_NK
        if labels_NK is None or seen_NK is None or min(int(labels_NK.min()), int(seen_NK.min())) < 0:
            raise ConfigError("factors needs all labels of all images", "leave data.labelled out, or take other data")
        seen, print_N = 0, torch.empty(len(whole), dtype=torch.int64)
        sizes = self.info.factor_sizes
        sum_VP = torch.zeros(self.effect_VP.shape, dtype=torch.float64)
        for batch in whole.batches(2048):
            assert batch.labels_BK is not None
            # In place: small tensors kept between the large ones of each block would hold all of their memory.
            print_N[seen : seen + len(batch.x_BCHW)] = fingerprint(batch.x_BCHW).cpu()
            hot_BV = torch.zeros(len(batch.x_BCHW), len(sum_VP))
            hot_BV.scatter_(1, batch.labels_BK.cpu() + self._starts(), 1.0)
            x_BP = batch.x_BCHW.flatten(1).cpu()
            sum_VP += hot_BV.T @ x_BP if self.info.binary else hot_BV.double().T @ x_BP.double()
            seen += len(batch.x_BCHW)
            progress(len(batch.x_BCHW))
            if stop() and seen < len(whole):
                raise InputError(f"only {seen:,} of {len(whole):,} images were looked at: too few for a table")
        self.known_N.copy_(print_N)
        order_N = self.known_N.argsort(stable=True)
        self.known_N.copy_(self.known_N[order_N])
        self.value_NK.copy_(labels_NK.to(order_N.device)[order_N])
        count_V = torch.cat([labels_NK[:, k].bincount(minlength=size) for k, size in enumerate(sizes)]).cpu()
        mean_P = sum_VP[: sizes[0]].sum(dim=0) / seen
        self.mean_P.copy_(mean_P)
        # A value that no image has makes no difference.
        self.effect_VP.copy_(torch.where(count_V[:, None] > 0, sum_VP / count_V.clamp(min=1)[:, None] - mean_P, 0.0))

    def _starts(self) -> Tensor:
        """Where each factor's values start in the row of all, (K,)."""
        sizes = torch.tensor(self.info.factor_sizes)
        return sizes.cumsum(0) - sizes

    def _last_K(self) -> Tensor:
        """The largest value of each factor, at least 1."""
        return torch.tensor(self.info.factor_sizes, device=self.device).sub(1).clamp(min=1)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Values of the factors, (B, K). InputError for an image that is not of the data set."""
        print_B = fingerprint(x_BCHW)
        place_B = torch.searchsorted(self.known_N, print_B).clamp(max=len(self.known_N) - 1)
        strange_B = self.known_N[place_B] != print_B
        if bool(strange_B.any()):
            raise InputError(
                f"{int(strange_B.sum()):,} images are not of {self.info.name}: their factors are not known"
            )
        return self.value_NK[place_B]

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        return Point(features.float() / self._last_K())

    def p(self, level: str, given: Values, n: int) -> Distribution:
        """Such that the nearest value is uniform over the values of each factor."""
        half_K = (0.5 / self._last_K()).expand(n, -1)
        return Uniform(-half_K, 1 + half_K, validate_args=False)

    def image(self, values: Values) -> Tensor:
        value_BK = (values["z"] * self._last_K()).round().long().clamp(min=0)
        value_BK = torch.minimum(value_BK, torch.tensor(self.info.factor_sizes, device=self.device) - 1)
        rows_BK = value_BK + self._starts().to(self.device)
        x_BP = (self.mean_P + self.effect_VP[rows_BK].sum(dim=1)).clamp(0, 1)
        return x_BP.reshape(-1, *self.info.shape)

    def objective_text(self, hyper: Hyper) -> str:
        return "none: the code is what is known of the image"

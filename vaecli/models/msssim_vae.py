"""MS-SSIM VAE: reconstruction as structural similarity at several scales, which is no likelihood: no nats, no ELBO.

Snell et al. 2017, "Learning to Generate Images with Perceptual Similarity Metrics", the expected-loss VAE:
loss = strength E_q(z|x)[1 - MS-SSIM(x, D(z))] + KL(q(z|x) || N(0, I)), MS-SSIM of Wang et al. 2003 in (0, 1].
There is no p(x|z) whose logarithm the first term would be: what the KL weighs against it is a choice.

pythae takes powers of factors averaged over the whole batch, which is no mean over images, puts (1 + s) / 2 in place of
every factor s, which halves what there is to lose, and pads windows with black; its beta is 1 / strength.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor

from vaecli.batch import Batch, DataInfo
from vaecli.errors import ConfigError
from vaecli.models import _perceptual
from vaecli.models.base import Hyper, Term, kl_terms, kl_text
from vaecli.objectives import similarity, terms
from vaecli.settings.schedules import Weight


class Config(_perceptual.Config):
    """`strength` weighs 1 - MS-SSIM against the KL in nats. `window` is the side of the windows in pixels; `scales` how
    often images are looked at, each time half as large: all of the five into which a window fits where not given."""

    name: Literal["msssim-vae"] = "msssim-vae"
    strength: Weight = 100.0
    window: Annotated[int, Field(ge=3, le=63)] = 11
    scales: Annotated[int, Field(ge=1, le=5)] | None = None

    @model_validator(mode="after")
    def _odd(self) -> "Config":
        if self.window % 2 == 0:
            raise ValueError("`window` must be odd, to have a middle")
        return self


class Model(_perceptual.Model):
    """The VAE with another measure of how far two images are apart."""

    config: Config

    def __init__(self, config: Config, info: DataInfo) -> None:
        super().__init__(config, info)
        _, height, width = info.shape
        fit = similarity.scales_that_fit(height, width, config.window)
        self.scales = fit if config.scales is None else config.scales
        if self.scales > fit or fit == 0:
            raise ConfigError(
                f"a window of {config.window} pixels fits into {fit} scales of {height}x{width} images, "
                f"not {self.scales or 1}",
                hint="set model.window to 3, 5 or 7" + (", or model.scales to fewer" if fit else ""),
            )

    def similarity(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """MS-SSIM of each pair, (B,)."""
        return similarity.ms_ssim(x_BCHW, y_BCHW, self.scales, self.config.window)

    def loss(self, batch: Batch, hyper: Hyper, player: str = "main") -> dict[str, Term]:
        mean_BD, logvar_BD = self.features(batch.x_BCHW)
        made_BCHW = self.image({"z": terms.reparameterize(mean_BD, logvar_BD)})
        return {
            "unlike": Term(1 - self.similarity(batch.x_BCHW, made_BCHW), hyper["strength"], "1 - MS-SSIM"),
            **kl_terms(self.config, terms.kl_normal(mean_BD, logvar_BD), hyper, hyper["beta"]),
            "mse": Term((batch.x_BCHW - made_BCHW).square().mean(), None, "a pixel"),
        }

    def objective_text(self, hyper: Hyper) -> str:
        return (
            f"minimise strength (1 - MS-SSIM) + beta {kl_text(hyper)}; strength = {hyper['strength']:.4g}, "
            f"beta = {hyper['beta']:.4g}, {self.scales} scales, "
            f"windows of {self.config.window} pixels; KL in nats, sum over latents, mean over the batch"
        )

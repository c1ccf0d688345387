"""Linear codes fitted from the covariance of the images: what PCA, its rotations and ICA share.

Shapes: B images, P = C H W pixels, D latents, M rows of a sample.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from vaecli import output
from vaecli.batch import Batch, DataInfo, Split
from vaecli.data.base import require_memory
from vaecli.data.orders import generator
from vaecli.errors import ConfigError, InputError
from vaecli.models.base import Hyper, Level, Model, ModelConfig, Values
from vaecli.objectives.distributions import Gaussian, Point
from vaecli.settings.section import Width

Stop = Callable[[], bool]
Progress = Callable[[float], None]

BLOCK = 2048  # images worked on together; fewer where they are large
ENTRIES = 2**23  # pixels of a block
STRIP = 512  # rows of a covariance computed together, from the diagonal on
EXACT = 1024  # pixels up to which all eigenvectors are computed; above, the leading ones alone
SLOW = 8192  # pixels above which the eigenvectors take longer than a reader waits without a word
TOLERANCE = 1e-9  # norm of C v - lambda v of an eigenvector v, in units of the largest eigenvalue


class Moments:
    """Mean and covariance of rows that come in blocks, in float64 (Chan, Golub & LeVeque 1983, eq. 2.1).

    `scatter_PP` is symmetric: of what lies below its diagonal only parts are computed, and none is used.
    """

    def __init__(self, pixels: int, where: torch.device | None = None) -> None:
        self.count = 0
        self.mean_P = torch.zeros(pixels, dtype=torch.float64, device=where)
        self.scatter_PP = torch.zeros(pixels, pixels, dtype=torch.float64, device=where)  # about the mean

    def add(self, x_BP: Tensor, binary: bool = False) -> None:
        """`binary` says that every value is 0 or 1: their products are counted in float32, exactly and in half the
        time."""
        n, total = len(x_BP), self.count + len(x_BP)
        mean_P = x_BP.sum(dim=0, dtype=torch.float64) / n
        counted = binary and n < 2**24
        rows_BP = x_BP if counted else x_BP.double() - mean_P
        for start in range(0, rows_BP.shape[1], STRIP):
            strip = slice(start, start + STRIP)
            self.scatter_PP[strip, start:] += rows_BP[:, strip].T @ rows_BP[:, start:]
        if counted:
            self.scatter_PP.addr_(mean_P, mean_P, alpha=-n)
        step_P = mean_P - self.mean_P
        self.scatter_PP.addr_(step_P, step_P, alpha=self.count * n / total)
        self.mean_P += step_P * (n / total)
        self.count = total

    @property
    def covariance_PP(self) -> Tensor:
        """Divided by the number of rows: the estimate of largest likelihood."""
        upper_PP = self.scatter_PP.triu() / self.count
        return upper_PP + upper_PP.triu(1).T


def leading(covariance_PP: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """The d largest eigenvalues (D,), falling, and their eigenvectors (P, D), in float64.

    Of large matrices by subspace iteration with Rayleigh-Ritz projection (Golub & Van Loan, 8.2.4), which is enough
    for a few axes; by the full decomposition where the matrix is small or the spectrum too flat.
    """
    pixels, width = len(covariance_PP), 2 * d + 20
    if pixels > max(EXACT, 4 * width):
        start_PW = torch.randn(pixels, width, generator=generator("subspace", pixels, d), dtype=torch.float64)
        basis_PW = torch.linalg.qr(start_PW.to(covariance_PP.device)).Q
        for _ in range(300):
            image_PW = covariance_PP @ basis_PW
            values_W, turn_WW = torch.linalg.eigh(basis_PW.T @ image_PW)
            values_D, turn_WD = values_W.flip(0)[:d], turn_WW.flip(1)[:, :d]
            axes_PD = basis_PW @ turn_WD
            error = (image_PW @ turn_WD - axes_PD * values_D).norm(dim=0).max()
            if error <= TOLERANCE * values_D[0]:
                return values_D, axes_PD
            basis_PW = torch.linalg.qr(image_PW).Q
    values_P, axes_PP = torch.linalg.eigh(covariance_PP)
    return values_P.flip(0)[:d], axes_PP.flip(1)[:, :d]


def sign(rows_DP: Tensor) -> Tensor:
    """(D,) of +1 and -1 that make the entry of largest size in each row positive: an axis has no sign of its own."""
    largest_D1 = rows_DP.gather(1, rows_DP.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest_D1[:, 0] < 0, -1.0, 1.0).to(rows_DP)


class LinearConfig(ModelConfig):
    """`latent_dim`: components kept. For a sample of the images in place of all of them, `data.limit`."""

    tiny: ClassVar[dict[str, Any]] = {"latent_dim": 3}
    latent_dim: Width = 10


class LinearModel(Model):
    """z = (x - mean) E, a point; its image is mean + z G. A model says what becomes of the principal axes in `maps`.

    Latents are told apart by nothing but their direction, whose sign makes the largest weight in the image positive.
    Sampling draws the latents as independent Gaussians of the variances that the codes had.
    """

    closed_form = True
    has_likelihood = False
    config: LinearConfig
    mean_P: Tensor
    encode_PD: Tensor
    decode_DP: Tensor
    variance_D: Tensor
    eigenvalue_D: Tensor
    total_variance: Tensor

    def __init__(self, config: LinearConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        p, d = info.pixels, config.latent_dim
        if d > p:
            raise ConfigError(f"model.latent_dim is {d:,}, but an image has only {p:,} values")
        self.levels = (Level("z", (d,), "point"),)
        self.register_buffer("mean_P", torch.zeros(p))
        self.register_buffer("encode_PD", torch.zeros(p, d))
        self.register_buffer("decode_DP", torch.zeros(d, p))
        self.register_buffer("variance_D", torch.ones(d))  # of the codes
        self.register_buffer("eigenvalue_D", torch.zeros(d))  # of the covariance: variance along the principal axes
        self.register_buffer("total_variance", torch.zeros(()))  # its trace

    @property
    def explained(self) -> float:
        """Share of the pixels' variance in the components kept, of the images fitted to."""
        return float(self.eigenvalue_D.double().sum() / self.total_variance.double())

    def importance(self) -> Tensor:
        """The variance of the images that each latent carries, summed over pixels, (D,); of principal components the
        eigenvalues, scaled or not."""
        return self.variance_D.double() * self.decode_DP.double().square().sum(dim=1)

    def facts(self) -> dict[str, float]:
        return {"explained": self.explained, "total_variance": float(self.total_variance)}

    def fit(self, train: Split, stop: Stop, progress: Progress) -> None:
        """Statistics of all images in blocks of a few thousand, memory for four matrices of P x P in float64.

        MachineError where that is not there; InputError where the images vary in fewer directions than there are
        components.
        """
        moments = self.moments(train, stop, progress)
        d, total = self.config.latent_dim, float(moments.scatter_PP.trace() / moments.count)
        if self.info.pixels > SLOW:
            output.notice(f"axes       {d} of a covariance of {self.info.pixels:,} values an image: may take minutes")
        value_D, axes_PD = leading(moments.covariance_PP, d)
        if not float(value_D[-1]) > 1e-10 * total:
            raise InputError(
                f"{moments.count:,} images vary in fewer than {d} directions", "lower model.latent_dim, or fit to more"
            )
        axes_PD = axes_PD * sign(axes_PD.T)
        self.mean_P.copy_(moments.mean_P)
        self.eigenvalue_D.copy_(value_D)
        self.total_variance.fill_(total)
        output.notice(
            f"explained  {value_D.sum() / total:.2%} of the variance {total:.6g} (sum over pixels) by {d} components "
            f"of {moments.count:,} images"
        )
        encode_PD, decode_DP = self.maps(axes_PD, value_D, moments, train, stop)
        sign_D = sign(decode_DP)
        self.encode_PD.copy_(encode_PD * sign_D)
        self.decode_DP.copy_(decode_DP * sign_D[:, None])
        # The principal axes are uncorrelated, and every map goes through them.
        through_DD = axes_PD.T @ encode_PD
        self.variance_D.copy_((value_D[:, None] * through_DD.square()).sum(dim=0))

    def maps(
        self, axes_PD: Tensor, value_D: Tensor, moments: Moments, train: Split, stop: Stop
    ) -> tuple[Tensor, Tensor]:
        """E (P, D) and G (D, P) from the leading eigenvectors and eigenvalues, in float64."""
        raise NotImplementedError

    def rows(self, batch: Batch) -> Tensor:
        """Those images of a batch that the model is fitted to, (B, P)."""
        return batch.x_BCHW.flatten(1)

    def blocks(self, train: Split) -> Iterator[tuple[int, Tensor]]:
        """Images read, and the pixels of those fitted to, where float64 is at hand."""
        for batch in train.batches(min(BLOCK, max(1, ENTRIES // self.info.pixels))):
            x_BP = self.rows(batch)
            yield len(batch.x_BCHW), x_BP.cpu() if x_BP.device.type == "mps" else x_BP

    def moments(self, train: Split, stop: Stop, progress: Progress) -> Moments:
        """Of the images of the split, or of those seen when `stop` says so."""
        p = self.info.pixels
        require_memory(4 * 8 * p * p, f"the covariance of {p:,} values an image", "make the images smaller")
        found: Moments | None = None
        for read, x_BP in self.blocks(train):
            found = found or Moments(p, x_BP.device)
            if len(x_BP):
                found.add(x_BP, self.info.binary)
            progress(read)
            if stop():
                break
        if found is None or found.count < 2:
            raise InputError(f"{0 if found is None else found.count} images are too few for a covariance")
        return found

    def q(self, level: str, features: Any, given: Values) -> Distribution:
        return Point((features.flatten(1) - self.mean_P) @ self.encode_PD)

    def p(self, level: str, given: Values, n: int) -> Distribution:
        return Gaussian(torch.zeros_like(self.variance_D).expand(n, -1), self.variance_D.log().expand(n, -1))

    def image(self, values: Values) -> Tensor:
        return (self.mean_P + values["z"] @ self.decode_DP).reshape(-1, *self.info.shape)

    def objective_text(self, hyper: Hyper) -> str:
        return "least squared error of linear codes, in closed form; no likelihood"


def whitened(axes_PD: Tensor, value_D: Tensor) -> tuple[Tensor, Tensor]:
    """The maps to principal components of variance 1 and back."""
    return axes_PD / value_D.sqrt(), (axes_PD * value_D.sqrt()).T


def random_rotation(d: int) -> Tensor:
    """An orthogonal matrix (D, D), float64, uniform over all of them (Haar), from torch's global generator."""
    q_DD, r_DD = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))
    turn_DD: Tensor = q_DD * r_DD.diagonal().sign()
    return turn_DD

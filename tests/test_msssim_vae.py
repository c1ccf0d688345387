"""msssim-vae: the similarity against an implementation in NumPy that goes window by window, and the objective."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vaecli import models
from vaecli.batch import Batch, DataInfo
from vaecli.errors import ConfigError
from vaecli.models import msssim_vae
from vaecli.models.base import total
from vaecli.objectives import similarity

F64 = torch.float64


def by_windows(x: np.ndarray, y: np.ndarray, scales: int, window: int) -> float:
    """MS-SSIM of two images (C, H, W), every window written out."""
    distance = np.arange(window) - window // 2
    bell = np.exp(-(distance**2) / (2 * 1.5**2))
    bell_2d = np.outer(bell, bell) / np.outer(bell, bell).sum()
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights = weights / weights.sum()
    value = 1.0
    for j, weight in enumerate(weights):
        found = []
        for c in range(len(x)):
            for i in range(x.shape[1] - window + 1):
                for k in range(x.shape[2] - window + 1):
                    a, b = (image[c, i : i + window, k : k + window] for image in (x, y))
                    mean_a, mean_b = (bell_2d * a).sum(), (bell_2d * b).sum()
                    var_a, var_b = (bell_2d * (a - mean_a) ** 2).sum(), (bell_2d * (b - mean_b) ** 2).sum()
                    cov = (bell_2d * (a - mean_a) * (b - mean_b)).sum()
                    cs = (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)
                    light = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
                    found.append(cs * light if j == scales - 1 else cs)
        factor = float(np.mean(found))
        value *= (factor if factor >= 0.01 else 0.01 / (2 - factor / 0.01)) ** weight
        h, w = x.shape[1] // 2, x.shape[2] // 2
        x, y = (t[:, : 2 * h, : 2 * w].reshape(len(t), h, 2, w, 2).mean(axis=(2, 4)) for t in (x, y))
    return value


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("channels", "height", "width", "scales", "window"), [(1, 28, 28, 2, 11), (3, 17, 22, 3, 3), (2, 24, 21, 1, 7)]
)
def test_similarity_against_numpy_window_by_window(
    channels: int, height: int, width: int, scales: int, window: int
) -> None:
    x = images(3, channels, height, width)
    y = (0.7 * x + 0.3 * images(3, channels, height, width, seed=1)).clamp(0, 1)
    y[2] = 1 - x[2]  # of negative structure
    found = similarity.ms_ssim(x, y, scales, window)
    wanted = [by_windows(a.numpy(), b.numpy(), scales, window) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=F64), rtol=1e-9, atol=1e-9)
    assert 0 < float(found[2]) < 0.02 < float(found[0]) < 1


def test_all_five_scales_and_equal_images() -> None:
    x = images(2, 1, 176, 180)
    y = 0.5 * x + 0.5 * images(2, 1, 176, 180, seed=2)
    torch.testing.assert_close(similarity.ms_ssim(x, x), torch.ones(2, dtype=F64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(similarity.ms_ssim(x, y), similarity.ms_ssim(y, x), rtol=1e-12, atol=1e-12)
    alone = torch.cat([similarity.ms_ssim(x[:1], y[:1]), similarity.ms_ssim(x[1:], y[1:])])
    torch.testing.assert_close(similarity.ms_ssim(x, y), alone, rtol=1e-12, atol=1e-12)  # each pair by itself
    assert sum(similarity.WEIGHTS) == pytest.approx(1.0, abs=1e-4)
    fits = {(176, 176): 5, (28, 28): 2, (64, 64): 3, (10, 90): 0}
    assert {size: similarity.scales_that_fit(*size, 11) for size in fits} == fits


def build(info: DataInfo, **options: Any) -> Any:
    torch.manual_seed(0)
    return models.build(msssim_vae.Config.model_validate({**msssim_vae.Config.tiny, **options}), info).double()


def test_the_objective_by_hand_and_what_it_prefers() -> None:
    model = build(DataInfo("toy", (1, 16, 16), 64), strength=40.0, window=5)
    x = images(4, 1, 16, 16)
    torch.manual_seed(3)
    loss, logged = total(model.loss(Batch(x, torch.arange(4)), model.hyper(0)))
    mean, logvar = model.encoder(x).chunk(2, dim=1)
    torch.manual_seed(3)
    z = mean + (logvar / 2).exp() * torch.randn_like(mean)
    made = model.decoder(z).sigmoid().detach().numpy()
    unlike = np.mean([1 - by_windows(a.numpy(), b, 2, 5) for a, b in zip(x, made, strict=True)])
    kl = float((0.5 * (mean.square() + logvar.exp() - 1 - logvar)).sum(dim=1).mean().detach())
    assert model.scales == 2 and "2 scales, windows of 5 pixels" in model.objective_text(model.hyper(0))
    assert float(torch.as_tensor(logged["unlike"]).detach()) == pytest.approx(unlike, abs=1e-9)
    assert float(loss.detach()) == pytest.approx(40.0 * unlike + kl, abs=1e-9)
    y = (1 - x[:1]).clone().requires_grad_()  # the negative, of similarity 0.0001
    optimizer = torch.optim.Adam([y], lr=0.02)
    for _ in range(300):  # down the gradient to the image itself
        gap = 1 - model.similarity(x[:1], y).mean()
        optimizer.zero_grad()
        torch.autograd.backward(gap)
        optimizer.step()
    assert float(gap.detach()) < 0.01


def test_no_likelihood_and_sizes_that_do_not_fit() -> None:
    model = build(DataInfo("toy", (1, 16, 16), 64))
    assert not model.has_likelihood and model.kl_weight(model.hyper(0)) is None and model.scales == 1
    with pytest.raises(ConfigError, match="fits into 1 scales of 16x16 images, not 3"):
        build(DataInfo("toy", (1, 16, 16), 64), scales=3)
    with pytest.raises(ConfigError, match="fits into 0 scales"):
        build(DataInfo("toy", (1, 8, 8), 64))
    with pytest.raises(ValidationError, match="odd"):
        build(DataInfo("toy", (1, 16, 16), 64), window=4)

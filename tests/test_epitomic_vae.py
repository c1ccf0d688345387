"""The epitomic VAE: masks, the bound and the choice of an epitome by hand in float64; active latents."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Result
from pydantic import ValidationError

from vaecli import data, models, registry
from vaecli.batch import Batch, DataInfo
from vaecli.data.squares import Config as Squares
from vaecli.models.base import Model

INFO = DataInfo("toy", (1, 4, 4), 40, binary=True, total=50)
F64 = torch.float64


def made(**settings: object) -> Model:
    torch.manual_seed(0)
    values = {"name": "epitomic-vae", "latent_dim": 6, "epitome": 2, "net": {"name": "mlp", "hidden": [8]}, **settings}
    return models.build(registry.load("model", "epitomic-vae").Config.model_validate(values), INFO).double()


def batch(n: int = 5) -> Batch:
    x_BCHW = torch.rand(n, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    return Batch(x_BCHW, torch.arange(n))


def kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    return 0.5 * (mean**2 + logvar.exp() - logvar - 1)


def nll(model: Model, z_BD: torch.Tensor, x_BCHW: torch.Tensor) -> torch.Tensor:
    logits = model.decoder(z_BD)
    return F.binary_cross_entropy_with_logits(logits, x_BCHW, reduction="none").flatten(1).sum(1)


@pytest.mark.parametrize(
    ("d", "k", "stride", "count"), [(8, 2, None, 4), (8, 2, 2, 4), (20, 2, 1, 19), (6, 6, None, 1), (24, 3, None, 8)]
)
def test_masks(d: int, k: int, stride: int | None, count: int) -> None:
    mask_PD = made(latent_dim=d, epitome=k, stride=stride).mask_PD
    assert mask_PD.shape == (count, d)
    assert mask_PD.sum(dim=1).tolist() == [k] * count
    for y, row in enumerate(mask_PD.tolist()):
        assert [i for i, v in enumerate(row) if v] == list(range(y * (stride or k), y * (stride or k) + k))
    assert bool((mask_PD.sum(dim=0) > 0).all())


def test_epitomes_that_do_not_fit_are_refused() -> None:
    for settings in ({"epitome": 7}, {"epitome": 4}, {"epitome": 2, "stride": 3}):
        with pytest.raises(ValidationError, match=r"epitome|latents in no"):
            made(**settings)


def test_the_choice_is_of_the_least_cost() -> None:
    model, b = made(), batch()
    mean_BD, logvar_BD, _ = model.features(b.x_BCHW)
    exact = []
    for y in range(3):
        mask = torch.zeros(6, dtype=F64)
        mask[2 * y : 2 * y + 2] = 1
        exact.append(nll(model, mask * mean_BD, b.x_BCHW) + (kl(mean_BD, logvar_BD) * mask).sum(1))
    cost_BP = torch.stack(exact, dim=1)
    torch.testing.assert_close(model.costs(b.x_BCHW, mean_BD, logvar_BD, {}), cost_BP, rtol=1e-9, atol=1e-9)
    assert torch.equal(model.infer(b.x_BCHW).values["y"].argmax(dim=1), cost_BP.argmin(dim=1))


def test_the_bound() -> None:
    """recon + KL of the masked latents + log P; and the levels' rates add up to the same KL."""
    model, b = made(), batch()
    model.train()
    model.assignment_N[:5] = torch.tensor([0, 1, 2, 0, 1])
    torch.manual_seed(3)
    parts = model.loss(b, model.hyper(0))
    torch.manual_seed(3)
    mean_BD, logvar_BD = model.encoder(b.x_BCHW).chunk(2, dim=1)
    mask_BD = torch.zeros(5, 6, dtype=F64)
    for i, y in enumerate([0, 1, 2, 0, 1]):
        mask_BD[i, 2 * y : 2 * y + 2] = 1
    z_BD = mean_BD + (0.5 * logvar_BD).exp() * torch.randn_like(mean_BD)
    recon = float(nll(model, mask_BD * z_BD, b.x_BCHW).mean())
    wanted = float((kl(mean_BD, logvar_BD) * mask_BD).sum(1).mean())
    assert float(parts["recon"].value) == pytest.approx(recon, abs=1e-9)
    assert float(parts["kl"].value) == pytest.approx(wanted, abs=1e-9)
    assert float(parts["choice"].value) == pytest.approx(math.log(3), abs=1e-9)
    assert float(parts["elbo"].value) == pytest.approx(-(recon + wanted + math.log(3)), abs=1e-9)
    model.eval()
    rates = model.rates(model.infer(b.x_BCHW))
    torch.testing.assert_close(rates["y"].double(), torch.full((5,), math.log(3), dtype=F64), rtol=1e-6, atol=1e-6)
    y_B = model.infer(b.x_BCHW).values["y"].argmax(dim=1)
    torch.testing.assert_close(rates["z"], kl(mean_BD, logvar_BD) * model.mask_PD[y_B], rtol=1e-9, atol=1e-9)


def test_latents_outside_an_epitome_change_nothing() -> None:
    model = made()
    y = F.one_hot(torch.tensor([1, 1]), 3).double()
    z_BD = torch.randn(2, 6, dtype=F64)
    z_BD[1, 2:4] = z_BD[0, 2:4]
    images = model.image({"y": y, "z": z_BD})
    assert torch.equal(images[0], images[1])


def test_assignments_are_made_each_epoch_and_balance_the_batches(vae: Callable[..., Result]) -> None:
    dataset = data.load(Squares(name="squares"))
    torch.manual_seed(0)
    config = registry.load("model", "epitomic-vae").Config.model_validate(
        {"name": "epitomic-vae", "latent_dim": 6, "epitome": 2, "net": {"name": "mlp", "hidden": [16]}}
    )
    model = models.build(config, dataset.info)
    train = dataset.training(0)
    model.order(train, 0, 32)
    assert [step for step in range(40) if model.due(step)] == [0, 15, 30]  # 456 images in batches of 32
    model.prepare(0, "main", train)
    chosen_N = model.assignment_N[train.indices]
    assert bool((chosen_N >= 0).all()) and int((model.assignment_N < 0).sum()) == 51  # those held out have none
    share_P = torch.bincount(chosen_N, minlength=3) / len(chosen_N)
    order = model.order(train, 0, 32)
    for step in range(14):
        count_P = torch.bincount(chosen_N[order.indices(step)], minlength=3)
        assert float((count_P - 32 * share_P).abs().max()) < 2, step


def test_resume_in_the_middle_of_an_epoch_is_bit_exact(vae: Callable[..., Result]) -> None:
    args = ["train", "--data", "squares", "--model", "epitomic-vae", "-S", "model.net={name: mlp, hidden: [16]}"]
    args += ["-S", "model.latent_dim=6", "-S", "model.epitome=2", "--batch-size", 32, "--runs-dir", "runs", "-q"]
    assert vae(*args, "--steps", 70, "--name", "straight").code == 0
    assert vae(*args, "--steps", 37, "--name", "broken").code == 0
    assert vae("train", "--resume", "runs/broken", "--steps", 70, "-q").code == 0
    from safetensors.torch import load_file

    a, b = (load_file(f"runs/{r}/checkpoints/latest/model.safetensors") for r in ("straight", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a) and "assignment_N" in a


def test_more_latents_stay_active_than_in_a_vae(vae: Callable[..., Result]) -> None:
    """What it is for: with room for eight latents a VAE on squares prunes some, the epitomes keep theirs."""
    active = {}
    for name, extra in (("vae", []), ("epitomic-vae", ["-S", "model.epitome=2"])):
        args = ["train", "--data", "squares", "--model", name, "-S", "model.net={name: mlp, hidden: [64]}", *extra]
        args += ["-S", "model.latent_dim=8", "--steps", 3000, "--lr", 2e-3, "--runs-dir", "runs", "--name", name, "-q"]
        assert vae(*args).code == 0
        found = json.loads(vae("analyze", Path("runs") / name, "--json", "-q").out)
        active[name] = found["totals"]["active_units"]
    assert active["epitomic-vae"] > active["vae"], active

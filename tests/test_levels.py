"""What the commands say of models that are no plain VAE: levels, sampled rates, codes, labels, noise, no likelihood.

No false numbers: what is printed is computed here once more from the model's own distributions.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributions as td
from conftest import Result
from torch import Tensor

from vaecli import data, device, models, registry
from vaecli.analysis import analyze as analysis
from vaecli.analysis import codes, diagnosis, draws, likelihood, probes, tables, traversal
from vaecli.analysis.gathering import label_factors, latent_statistics, limited, usage
from vaecli.analysis.statistics import LevelStatistics, Statistics
from vaecli.batch import DataInfo
from vaecli.models.base import Inference, Level, Model, ModelConfig, NetConfig
from vaecli.noise import ByImage
from vaecli.training import checkpoint, stored_density
from vaecli.training.checkpoint import Loaded

Vae = Callable[..., Result]
CPU = torch.device("cpu")
# A sharp likelihood: the latents depend on the image within a few steps.
SHARP = ["-S", "model.likelihood={name: gaussian, sigma: 0.1}", "-S", "model.net={name: mlp, hidden: [16]}"]
SMALL = {
    "vq-vae": ["-S", "model.net={name: spatial, width: 8}", "-S", "model.codes=8", "-S", "model.code_dim=4"],
    "vae": SHARP,
    "stages": SHARP,
    "flow": SHARP,
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, toy_models: list[str]) -> None:
    monkeypatch.setattr(analysis, "TESTED", 200)
    monkeypatch.setattr(analysis, "COMPARED", 100)
    monkeypatch.setattr(probes, "DECODES", 1000)
    monkeypatch.setattr(likelihood, "GLANCE", (10, 200))


@pytest.fixture
def run_of(vae: Vae) -> Callable[[str], Path]:
    """A run of a few steps, so that its latents depend on the image."""

    def train(name: str) -> Path:
        line = ["train", "--data", "squares", "--model", name, "--steps", 40, "--batch-size", 32, "--lr", 0.01]
        done = vae(*line, *SMALL.get(name, []), "--runs-dir", "runs", "--name", name, "-q")
        assert done.code == 0, done.err
        return Path(done.out.strip())

    return train


def load(run: Path) -> tuple[Loaded, Any]:
    loaded = checkpoint.load(run, CPU)
    return loaded, data.load(loaded.config.data, loaded.info)


def analyzed(vae: Vae, run: Path, *more: object) -> dict[str, Any]:
    done = vae("analyze", run, "--json", *more)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def of_images(rates: dict[str, Tensor]) -> Tensor:
    """What all levels cost each image, (B,)."""
    costs = [rate.flatten(1).sum(dim=1) if rate.dim() > 1 else rate for rate in rates.values()]
    return torch.stack(costs).sum(dim=0)


def of_densities(model: Model, found: Inference) -> Tensor:
    """log p - log q of all levels at the values, (B,); codes, known for certain, under their uniform prior."""
    total = torch.zeros(())
    for name, q in found.posteriors.items():
        value = found.values[name]
        if model.level(name).kind == "codes":
            total = total - value[0].numel() * math.log(model.level(name).sizes[0])
            continue
        for sign, density in ((1, model.p(name, found.values, len(value))), (-1, q)):
            each = density.log_prob(value)
            total = total + sign * (each.flatten(1).sum(dim=1) if each.dim() > 1 else each)
    return total


# ---------------------------------------------------------------------------------------------------- no false numbers


@pytest.mark.parametrize("name", ["vae", "hierarchy", "flow", "labels", "stages", "vq-vae"])
def test_the_elbo_is_that_of_the_models_own_draws(name: str, vae: Vae, run_of: Callable[[str], Path]) -> None:
    """Minus the mean of nll + rates over the very draws, and within its error that of thousands of others."""
    run = run_of(name)
    record = analyzed(vae, run, "--seed", 3, "--split", "all")
    (loaded, dataset), totals = load(run), record["totals"]
    model, hyper = loaded.model, loaded.model.hyper(loaded.step)
    with torch.inference_mode():
        bounds = []
        for batch in dataset.split("all").batches(512):
            drawn = []
            for draw in range(4):  # of so few images
                with ByImage(3, batch.index_B, draw):
                    found = model.infer(batch.x_BCHW, sample=True)
                log_prob = model.log_prob(batch.x_BCHW, found.values, hyper)
                assert log_prob is not None
                drawn.append((log_prob - of_images(model.rates(found))).double())
            bounds.append(torch.stack(drawn).mean(dim=0))
        assert totals["elbo"] == pytest.approx(float(torch.cat(bounds).mean()), rel=1e-6)
        assert totals["elbo_standard_error"] == pytest.approx(float(torch.cat(bounds).std()) / 507**0.5, rel=1e-4)
        x = dataset.split("all").take(507).x_BCHW.repeat(8, 1, 1, 1)
        values = model.infer(x, sample=True)
        log_ratio = model.log_prob(x, values.values, hyper)
        assert log_ratio is not None
        log_ratio = log_ratio + of_densities(model, values)
    spread = float(log_ratio.view(8, 507).mean(dim=1).std())  # of a mean over draws, the images being the same
    assert totals["elbo"] == pytest.approx(float(log_ratio.mean()), abs=6 * spread + 0.01)
    assert sum(level["rate"] for level in record["levels"]) == pytest.approx(totals["kl"])
    assert totals["elbo"] == pytest.approx(-(totals["recon"] + totals["kl"]), rel=1e-9)


@pytest.mark.parametrize("name", ["vae", "hierarchy", "labels", "stages", "vq-vae", "adversary"])
def test_every_latent_called_active_changes_pixels(name: str, vae: Vae, run_of: Callable[[str], Path]) -> None:
    """Also one of an upper level that the decoder does not read: the levels below follow."""
    loaded, dataset = load(run_of(name))
    model = loaded.model
    with torch.inference_mode():
        stats = latent_statistics(model, dataset.split("all").batches(512), model.hyper(loaded.step))
        middle = traversal.at_rest(model)
        movers = traversal.movers(model, model.levels)
        assert [m.index for m in movers if m.index is not None and m.size == 1] == [
            i for i, n in enumerate(model.latent_names()) if not (name == "labels" and n.startswith("y"))
        ]
        moved = 0
        for mover in movers:
            if mover.index is not None and stats.status(mover.index) not in ("active", "varies"):
                continue
            values = traversal.values_of(model, middle, mover, np.linspace(-3, 3, 5), stats)
            images = traversal.images_along(model, middle, mover, values)
            assert np.abs(images - images[:1]).max() > 1e-4, mover.name
            moved += 1
    assert moved > 0


def test_what_stays_and_what_follows(run_of: Callable[[str], Path]) -> None:
    """By hand: the lower level stands at its prior's mean given the upper one that moved; a standard one stays."""
    loaded, dataset = load(run_of("hierarchy"))
    model, x = loaded.model, dataset.split("val").take(1).x_BCHW
    prior: Any = model.prior_net
    with torch.inference_mode():
        middle = traversal.of_image(model, x)
        top, low = traversal.movers(model, model.levels)[1], traversal.movers(model, model.levels)[2 + 3]
        images = traversal.images_along(model, middle, top, torch.tensor([-1.0, 2.0]))
        for image, value in zip(images, (-1.0, 2.0), strict=True):
            above = torch.tensor([[float(middle["top"][0, 0]), value]])
            mean = prior(above).chunk(2, dim=1)[0]  # type: ignore[operator]
            np.testing.assert_allclose(image.ravel(), model.decoder(mean).sigmoid().ravel(), atol=1e-6)  # type: ignore[operator]
        # A latent of the lower level goes in standard deviations of its prior, and all else stays.
        values = traversal.values_of(model, middle, low, np.array([-2.0, 0.0, 1.0]), None)
        mean, logvar = (t.double()[0, 3] for t in prior(middle["top"]).chunk(2, dim=1))  # type: ignore[operator]
        expected = float(mean) + np.array([-2.0, 0.0, 1.0]) * math.exp(float(logvar) / 2)
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5)
        moved = middle["low"].flatten(1).clone()
        moved[0, 3] = values[2]
        image = traversal.images_along(model, middle, low, values)[2]
        np.testing.assert_allclose(image.ravel(), model.decoder(moved).sigmoid().ravel(), atol=1e-6)  # type: ignore[operator]
        assert traversal.unit(model, middle, top, None) == ""
        assert traversal.unit(model, middle, low, None) == "sd of the prior"
    loaded, dataset = load(run_of("adversary"))
    model = loaded.model
    with torch.inference_mode():
        middle = traversal.of_image(model, x)
        noise = traversal.movers(model, model.levels)[0]
        assert noise.index is None and middle["noise"].tolist() == [[0.0] * 4] and middle["code"].abs().sum() > 0
        image = traversal.images_along(model, middle, noise, torch.tensor([1.5]))[0]
        values = {"noise": torch.tensor([[1.5, 0.0, 0.0, 0.0]]), "code": middle["code"]}
        np.testing.assert_allclose(image, model.image(values)[0], atol=1e-6)


class Flat(Model):
    """One level under a uniform prior."""

    def __init__(self) -> None:
        super().__init__(ModelConfig(name="flat"), DataInfo("d", (1, 1, 2), 9))
        self.levels = (Level("u", (2,)),)

    def p(self, level: str, given: object, n: int) -> td.Distribution:
        low = torch.tensor([[-1.0, 2.0]]).expand(n, 2)
        return td.Independent(td.Uniform(low, low + 2.0), 1)

    def image(self, values: dict[str, Tensor]) -> Tensor:
        return values["u"].reshape(-1, 1, 1, 2)


def test_a_bounded_prior_is_gone_through_from_end_to_end() -> None:
    model = Flat()
    middle = {"u": torch.tensor([[0.5, 3.0]])}
    mover = traversal.movers(model, model.levels)[1]
    assert traversal.unit(model, middle, mover, None) == "range of the prior"
    values = traversal.values_of(model, middle, mover, np.array([-3.0, 0.0, 3.0]), None)
    assert values.tolist() == [2.0, 3.0, 4.0]
    images = traversal.images_along(model, middle, mover, values)
    np.testing.assert_allclose(images[:, 0, 0], [[0.5, 2.0], [0.5, 3.0], [0.5, 4.0]], rtol=1e-6)


def test_points_are_judged_by_their_variance_with_or_without_likelihood() -> None:
    var_D = torch.tensor([4.0, 1e-9]).double()
    level = LevelStatistics(Level("z", (2,), "point"), torch.zeros(2).double(), var_D)
    stats = Statistics(500, level.mean_D, var_D, None, None, None, None, None, (level,), mse=0.1, mse_error=0.01)
    said = diagnosis.verdict(stats, ["z0", "z1"], {}, model=Weighted(None))
    assert said.name == "partly collapsed" and "latent_dim" in said.sentences[1]
    bare = Flat()  # which has no setting of that name
    assert "latent_dim" not in diagnosis.verdict(stats, ["z0", "z1"], {}, model=bare).sentences[1]
    assert "reconstruction" not in " ".join(said.sentences)


def test_the_iwae_bound_of_several_levels(run_of: Callable[[str], Path]) -> None:
    """By hand from the same noise; nothing where there is no bound."""
    for name in ("hierarchy", "flow", "stages", "labels"):
        loaded, dataset = load(run_of(name))
        model, view, hyper = loaded.model, dataset.split("val"), loaded.model.hyper(loaded.step)
        assert likelihood.refusal(model, view.take(2).x_BCHW, hyper) is None
        found = likelihood.estimate(model, view, hyper, 50, images=40, seed=1)
        assert found.nll < found.negative_elbo
        weights = []
        with torch.inference_mode():
            for batch in view.sample(40).batches(1):
                device.seed(1, "nll", int(batch.index_B), 0)
                x = batch.x_BCHW.expand(likelihood.UNIT, *batch.x_BCHW.shape[1:])
                drawn = model.infer(x, sample=True)
                weight = model.log_prob(x, drawn.values, hyper)
                assert weight is not None
                weights.append((weight + of_densities(model, drawn)).double()[:50])
        weight_BK = torch.stack(weights)
        assert found.negative_elbo == pytest.approx(-float(weight_BK.mean()), rel=1e-5)
        bound = weight_BK.logsumexp(dim=1) - math.log(50)
        assert found.nll == pytest.approx(-float(bound.mean()), rel=1e-5)
    for name in ("autoencoder", "vq-vae", "adversary"):
        loaded, dataset = load(run_of(name))
        assert likelihood.refusal(loaded.model, dataset.split("val").take(2).x_BCHW, loaded.hyper) is not None


@pytest.mark.parametrize("name", ["hierarchy", "flow"])
def test_the_classifier_is_against_what_sample_draws(name: str, vae: Vae, run_of: Callable[[str], Path]) -> None:
    run = run_of(name)
    loaded, dataset = load(run)
    source = draws.source(loaded)
    stats = latent_statistics(loaded.model, dataset.split("val").batches(64), loaded.model.hyper(40))
    drawn = analysis._prior(source, stats, 5)
    assert drawn is not None and drawn.shape == (2 * 200 + 100, len(loaded.model.latent_names()))
    device.seed(5, "prior")
    with torch.no_grad():
        np.testing.assert_allclose(drawn, loaded.model.flatten(loaded.model.draw(500)).double().numpy())
    assert vae("sample", run, "-n", 64, "-o", "s.npz", "-q").code == 0
    device.seed(0, "sample")
    with torch.no_grad():
        np.testing.assert_allclose(np.load("s.npz")["z"], loaded.model.flatten(loaded.model.draw(64)).numpy())
    # What it is told apart from are ancestral draws, not draws around the modes of the levels above.
    with torch.inference_mode():
        posterior = analysis._posterior(
            loaded, dataset.split("val"), stats, analysis.code_files.encode(loaded, dataset.split("val")), 5
        )
        device.seed(5, "posterior")
        mine = loaded.model.flatten(loaded.model.infer(dataset.split("val").take(51).x_BCHW, sample=True).values)
    assert posterior is not None and posterior.logvar_ND is None
    np.testing.assert_allclose(posterior.mean_ND, mine.double().numpy(), rtol=1e-6)


def test_a_fitted_density_is_what_is_sampled_and_compared(vae: Vae, run_of: Callable[[str], Path]) -> None:
    run = run_of("vae")
    own = vae("sample", run, "-n", 5, "-o", "own.npz", "-q")
    assert own.code == 0
    assert vae("density", run, "--fit", "normal", "-q").code == 0
    done = vae("sample", run, "-n", 5, "-o", "fitted.npz", "--json")
    assert done.code == 0 and json.loads(done.out)["density"] == "normal" and "drawing from" in done.err
    loaded, _ = load(run)
    stored = stored_density.load(loaded.path.parent, 10)
    assert stored is not None
    device.seed(0, "sample")
    np.testing.assert_allclose(np.load("fitted.npz")["z"], stored[0].sample(64)[:5].numpy())
    assert vae("sample", run, "-n", 5, "-o", "none.npz", "--density", "none", "-q").code == 0
    np.testing.assert_array_equal(np.load("none.npz")["z"], np.load("own.npz")["z"])
    refused = vae("sample", run, "-o", "t.npz", "--temperature", 0.5)
    assert refused.code == 2 and "--density none" in refused.err
    assert vae("sample", run, "-o", "t.npz", "--density", "mixture").code == 2
    record = analyzed(vae, run, "--diagnosis", "--limit", 20)
    assert record["diagnosis"]["drawn_from"] == stored[0].text()
    shown = vae("analyze", run, "--diagnosis", "--limit", 20).err
    assert f"q(z) against {stored[0].text()}" in shown and "q(z) against p(z)" not in shown


# ---------------------------------------------------------------------------------------------------- what is not there


def test_without_likelihood_nothing_is_said_in_its_nats(vae: Vae, run_of: Callable[[str], Path]) -> None:
    run = run_of("adversary")
    loaded, dataset = load(run)
    model = loaded.model
    record = analyzed(vae, run, "--split", "all", "--diagnosis")
    x = dataset.split("all").take(507).x_BCHW
    with torch.inference_mode():
        mean = model.encoder(x.flatten(1)).chunk(2, dim=1)[0]  # type: ignore[operator]
        made = model.image({"noise": torch.zeros(507, 4), "code": mean})
    mse = (x - made).double().square().mean()
    totals, found = record["totals"], record["diagnosis"]
    assert totals["mse"] == pytest.approx(float(mse), rel=1e-6)
    assert totals["elbo"] is totals["recon"] is totals["elbo_standard_error"] is None
    assert found["iwae"] is found["gamma"] is found["distortion"] is found["law"] is None
    assert record["latents"][0]["gain"] is None and record["latents"][0]["sensitivity"] > 0
    assert [latent["latent"] for latent in record["latents"]] in (["code.0", "code.1"], ["code.1", "code.0"])
    assert record["levels"][1]["status"] == "not inferred" and record["levels"][1]["name"] == "noise"
    assert totals["latents"] == 2 and record["verdict"]["name"] == "not judged"
    done = vae("analyze", run, "--diagnosis")
    said = (done.out + done.err).split("verdict:")[0]
    for word in ("reconstruction ", "NLL", "ELBO", "IWAE", "gamma", "variance law", "-log p(x|z)"):
        assert word not in said, word
    assert "noise: 4 latents of noise, not inferred" in said and "MSE" in said
    shown = vae("reconstruct", run, "-o", "r.png", "-n", 3)
    assert shown.code == 0 and "image\tMSE\n" in shown.err
    page = vae("report", run, "-o", "r.html", "--metrics", "mig")
    assert page.code == 0, page.err
    text = Path("r.html").read_text()
    assert "Resyntheses" in text and "not inferred" in text and "MSE a pixel" in text
    for word in ("reconstruction term", "reconstruction (nats)", "ELBO (nats)", "gain (nats)", "IWAE"):
        assert word not in text, word


def test_a_sampled_rate_has_its_error_and_no_share_a_latent(vae: Vae, run_of: Callable[[str], Path]) -> None:
    run = run_of("flow")
    record = analyzed(vae, run)
    (level,) = record["levels"]
    assert level["exact"] is False and level["rate_standard_error"] == record["totals"]["kl_standard_error"] > 0
    assert all(latent["kl"] is None for latent in record["latents"])
    err = vae("analyze", run).err
    assert f"rate {level['rate']:.3f} +- {level['rate_standard_error']:.3f} nats (sampled)" in err
    assert "KL " not in err.split("verdict")[0]
    # What a mixture of Gaussians would tell is not told; what draws tell is. And codes are the same at every call.
    full = analyzed(vae, run, "--diagnosis")
    found = full["diagnosis"]
    assert found["information"] is found["law"] is found["moment_kl"] is found["largest_covariance"] is None
    assert full["latents"][0]["ks"] is None and full["latents"][0]["marginal_kl"] is None
    assert found["iwae"]["nll"] <= found["iwae"]["negative_elbo"] and 0.3 < found["classifier"]["auc"] <= 1
    assert vae("encode", run, "-o", "a.npz").code == vae("encode", run, "-o", "b.npz").code == 0
    np.testing.assert_array_equal(np.load("a.npz")["codes"], np.load("b.npz")["codes"])
    assert vae("reconstruct", run, "-o", "r.png", "-n", 2).err.count("-log p(x|z) (nats)\tMSE") == 1  # no KL an image


def test_several_levels_are_several_tables_or_one_with_a_column(
    vae: Vae, run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("hierarchy")
    rows = [line.split("\t") for line in vae("analyze", run).out.splitlines()]
    assert rows[0] == ["latent", "KL (nats)", "mean mu", "var mu", "mean sigma^2", "sum", "status", "level"]
    assert [row[7] for row in rows[1:]] == ["top"] * 2 + ["low"] * 6
    for level in ("top", "low"):
        kl = [float(row[5]) for row in rows[1:] if row[7] == level]
        assert kl == sorted(kl, reverse=True)
    head = vae("analyze", run, "--csv").out.splitlines()[0]
    assert head == "latent,kl,mean_mu,var_mu,mean_sigma2,sum,status,level"
    loaded, dataset = load(run)
    stats = latent_statistics(loaded.model, dataset.split("val").batches(64), {})
    top, low = tables.level_tables(stats, loaded.model.latent_names())
    assert top.title is not None and top.title.startswith("top (gaussian): rate ") and "sum" in top.headers
    assert len(low.rows) == 6 and "sum" not in low.headers and "KL (nats)" in low.headers
    verdict = analyzed(vae, run)["verdict"]
    text = " ".join(verdict["sentences"])
    assert verdict["name"] == "not judged" and "beta" not in text and "latent_dim" not in text
    assert vae("analyze", run, "--fail-if", "not judged").code == 6
    batches = dataset.split("val").batches(64)
    _, shown, lines, said = diagnosis.final_report(loaded.model, batches, {}, title="{images}!")
    assert [t.title for t in shown] == [f"{t.title} - 51!" for t in (top, low)] or len(shown) == 2
    assert said.name == "not judged" and len(lines) == 1


def test_codes_have_usage_and_neither_mean_nor_verdict(vae: Vae, run_of: Callable[[str], Path]) -> None:
    run = run_of("vq-vae")
    loaded, dataset = load(run)
    record = analyzed(vae, run, "--diagnosis", "--metrics", "mig")
    with torch.inference_mode():
        index = loaded.model.infer(dataset.split("val").take(51).x_BCHW).values["z"].flatten(1).numpy()
    share = np.bincount(index.ravel(), minlength=8) / index.size
    (level,) = record["levels"]
    entropy = -sum(s * math.log(s) for s in share if s > 0)
    assert level["perplexity"] == pytest.approx(math.exp(entropy)) and level["dead"] == pytest.approx(
        (share == 0).mean()
    )
    assert level["codes"] == 8 and level["rate"] == pytest.approx(16 * math.log(8)) and level["exact"] is True
    for latent in record["latents"]:
        assert latent.keys().isdisjoint({"mean_mu", "var_mu", "mean_sigma2", "sum", "kl"})
        column = np.bincount(index[:, latent["index"]], minlength=8) / 51
        own = math.exp(-sum(s * math.log(s) for s in column if s > 0))
        assert latent["perplexity"] == pytest.approx(own)
        assert latent["status"] == ("varies" if len(set(index[:, latent["index"]])) > 1 else "constant")
    assert record["verdict"]["name"] == "not judged" and "healthy" not in json.dumps(record)
    assert record["totals"]["active_units"] is None
    assert record["metrics"][0]["values"] is None and "codebook" in record["metrics"][0]["problem"]
    assert record["diagnosis"]["classifier"] is None and record["diagnosis"]["iwae"] is None
    done = vae("analyze", run)
    assert done.out.splitlines()[0] == "latent\tperplexity\tstatus" and "latents active" not in done.err
    assert vae("traverse", run, "--dim", "z3", "-o", "t.png", "--json", "--steps", 8).code == 0
    traversed = json.loads(vae("traverse", run, "--dim", "z3", "-o", "u.png", "--json", "--steps", 8).out)
    assert traversed["latents"][0]["values"] == list(range(8))
    assert vae("interpolate", run, 0, 1, "-o", "i.png").code == 2


def test_labels_are_right_as_often_as_they_are(vae: Vae, run_of: Callable[[str], Path]) -> None:
    run = run_of("labels")
    loaded, dataset = load(run)
    record = analyzed(vae, run, "--split", "all")
    batch = dataset.split("all").take(507)
    assert batch.truth_BK is not None
    with torch.inference_mode():
        guess = loaded.model.classifier(batch.x_BCHW.flatten(1)).argmax(dim=1)  # type: ignore[operator]
    (label,) = record["levels"][0]["labels"]
    right = float((guess == batch.truth_BK[:, 0]).double().mean())
    assert label["accuracy"] == pytest.approx(right) and label["images"] == 507
    assert label["factor"] == loaded.info.factor_names[0]
    y = [latent for latent in record["latents"] if latent["level"] == "y"]
    assert sum(latent["mean_mu"] for latent in y) == pytest.approx(1.0) and all("kl" not in latent for latent in y)
    assert record["totals"]["active_units"] <= 3  # of z alone
    assert "y: size right in" in vae("analyze", run).err


def test_which_factor_a_block_of_labels_is() -> None:
    info = DataInfo("d", (1, 1, 1), 9, factor_names=("shape", "x", "y"), factor_sizes=(3, 8, 8))

    def found(sizes: tuple[int, ...], name: str = "u") -> list[int | None]:
        return label_factors(Level(name, (sum(sizes),), "labels", sizes=sizes), info)

    assert found((3, 8, 8)) == [0, 1, 2] and found((3,)) == [0] and found((8, 8)) == [1, 2]
    assert found((8,)) == [None] and found((8,), "y") == [2] and found((3, 8)) == [None, None]
    assert found((4,)) == [None] and found((3,), "y") == [None]


def test_usage_by_hand() -> None:
    used = usage(torch.tensor([[2, 2, 0, 0], [4, 0, 0, 0]]))
    assert used.perplexity_D.tolist() == pytest.approx([2.0, 1.0]) and used.varies_D.tolist() == [True, False]
    assert used.dead == 0.5 and used.codes == 4
    assert used.perplexity == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


# ------------------------------------------------------------------------------------------------ what advice speaks of


class Weighted(Model):
    """Only what is asked of it here: what the KL weighs."""

    def __init__(self, weight: float | None) -> None:
        super().__init__(NetConfig(name="w"), DataInfo("d", (1, 1, 1), 9))
        self.weight = weight

    def kl_weight(self, hyper: object) -> float | None:
        return self.weight


def test_the_variance_law_is_of_objectives_with_a_kl_alone() -> None:
    """Latents off by 0.5: "not at rest" of a VAE, nothing of a model that adds other terms to the KL."""
    var_D = torch.full((3,), 0.9, dtype=torch.float64)
    off = Statistics(1000, torch.zeros(3).double(), var_D, var_D - 0.3, torch.full((3,), 3.0).double(), 50.0, 0.1, 0.1)

    def restless(model: Model | None) -> bool:
        return any(s.startswith("Not at rest") for s in diagnosis.verdict(off, model=model).sentences)

    assert restless(None) and restless(Weighted(1.0)) and not restless(Weighted(None))


def test_advice_speaks_of_beta_only_where_it_weighs_the_kl() -> None:
    low = Statistics(
        10_000,
        torch.zeros(4).double(),
        torch.full((4,), 1e-5).double(),
        torch.ones(4).double(),
        torch.full((4,), 1e-5).double(),
        50.0,
        0.1,
        0.1,
    )
    of_kl = diagnosis.verdict(low, None, {"beta": 6.0}, step=10**6, model=Weighted(6.0))
    of_tc = diagnosis.verdict(low, None, {"beta": 6.0}, step=10**6, model=Weighted(1.0))
    unknown = diagnosis.verdict(low, None, {"beta": 6.0}, step=10**6, model=Weighted(None))
    assert of_kl.name == of_tc.name == unknown.name == "collapsed"
    assert "model.beta=1.5" in of_kl.sentences[-1]
    assert "model.beta=1.5" not in of_tc.sentences[-1] and "beta" not in unknown.sentences[-1]
    warned = diagnosis.warn_while_training([0.001] * 4, 5000, 9000, {"beta": 6.0}, Weighted(None))
    assert warned is not None and "beta" not in warned
    silent = Weighted(None)
    silent.has_likelihood = False  # type: ignore[misc]
    assert diagnosis.warn_while_training([0.001] * 4, 5000, 9000, {}, silent) is None


def part(name: str, var: list[float], **more: Any) -> LevelStatistics:
    var_D = torch.tensor(var, dtype=torch.float64)
    level = Level(name, (len(var),), more.pop("kind", "gaussian"), standard=more.pop("standard", False))
    return LevelStatistics(level, torch.zeros_like(var_D), var_D, **more)


def test_latents_are_ordered_by_what_is_known() -> None:
    importance = torch.tensor([1.0, 3.0, 2.0]).double()
    kl = torch.tensor([0.2, 0.1, 0.3]).double()
    assert part("z", [1.0, 2.0, 3.0]).order() == [2, 1, 0]
    assert part("z", [1.0, 2.0, 3.0], importance_D=importance).order() == [1, 2, 0]
    assert part("z", [1.0, 2.0, 3.0], importance_D=importance, kl_D=kl).order() == [2, 0, 1]
    assert part("z", [2.0, 2.0, 2.0]).order() == [0, 1, 2]  # stable


@pytest.mark.parametrize(("name", "standard", "exact"), [
    ("vae", [True], [True]), ("iaf-vae", [True], [False]), ("vamp-vae", [False], [True]), ("svae", [False], [False]),
    ("hamiltonian-vae", [True], [False]), ("ladder-vae", [True, False], [True, False]), ("infogan", [False], [True]),
])  # fmt: skip
def test_whose_codes_are_gaussians(name: str, standard: list[bool], exact: list[bool]) -> None:
    module = registry.load("model", name)
    info = DataInfo("toy", (1, 8, 8), 50, binary=True)
    model = models.build(module.Config.model_validate(module.Config.tiny), info).eval()
    x_1CHW, before = torch.rand(1, 1, 8, 8), torch.random.get_rng_state()
    kinds = codes.kinds(model, x_1CHW)
    found = [sorted(set(kind.tolist()), reverse=True) for kind in kinds]
    assert found == [standard, exact] and torch.equal(torch.random.get_rng_state(), before)
    unit = model.posterior(torch.rand(3, 1, 8, 8)).logvar_BD
    assert (unit is None) == (name in ("infogan", "svae"))  # of Q it is 1 by convention


def test_metrics_take_the_table_s_word_for_what_is_active() -> None:
    """The codes of a sphere have no log-variances; its level has variances."""
    level = part("z", [5e-3, 0.2], sigma2_D=torch.tensor([0.9, 0.1]).double())
    stats = Statistics(40, level.mean_D, level.var_D, None, None, None, None, None, (level,))
    mean_ND = np.random.default_rng(0).standard_normal((40, 2)) * [0.07, 0.45]
    found = codes.make(mean_ND)
    assert found.active_D.tolist() == [True, True]
    numbers = analysis._numbers(found, stats)
    assert numbers is not None and numbers.active_D.tolist() == [False, True]


def test_the_rule_of_activity_is_told_as_it_is() -> None:
    sigma2 = torch.tensor([0.9, 1e-3]).double()
    standard, other = (part(name, [5e-3, 5e-3], sigma2_D=sigma2, standard=name == "a") for name in "ab")
    point, labels = part("c", [5.0, 1e-3], kind="point"), part("y", [0.2], kind="labels")
    rules = {
        "var mu > 0.01": [standard], "var mu > 0.01 of var z": [other, labels],
        "var mu > 0.0001 of the largest": [point],
        "var mu > 0.01 (a), var mu > 0.01 of var z (b)": [standard, other],
    }  # fmt: skip
    for rule, parts in rules.items():
        mean_D, var_D = (torch.cat([getattr(p, key) for p in parts]) for key in ("mean_D", "var_D"))
        stats = Statistics(9, mean_D, var_D, None, None, None, None, None, tuple(parts))
        assert stats.active_rule == rule and f" active by {rule}; 9 images" in tables.totals_text(stats)
        assert tables.totals(stats)["active_rule"] == rule


def test_activity_has_the_scale_of_its_level() -> None:
    sigma2 = torch.tensor([0.9, 1e-3]).double()
    assert part("z", [5e-3, 5e-3], sigma2_D=sigma2, standard=True).active_D.tolist() == [False, False]
    assert part("z", [5e-3, 5e-3], sigma2_D=sigma2).active_D.tolist() == [False, True]  # a share of its own variance
    assert part("z", [5e-3, 5e-8], kind="point").active_D.tolist() == [True, False]


def test_not_finite_in_a_level_is_told(run_of: Callable[[str], Path]) -> None:
    loaded, dataset = load(run_of("hierarchy"))
    with torch.no_grad():
        loaded.model.to_top.bias[1] = math.nan  # type: ignore[union-attr, index, operator]
    stats = latent_statistics(loaded.model, limited(dataset.split("val").batches(64), 10), {})
    said = diagnosis.verdict(stats, loaded.model.latent_names(), {}, model=loaded.model)
    assert said.name == "not finite" and "top.1" in said.sentences[0]


def test_traverse_takes_a_level(vae: Vae, run_of: Callable[[str], Path]) -> None:
    run = run_of("hierarchy")
    record = json.loads(vae("traverse", run, "--level", "top", "-o", "t.png", "--json").out)
    assert {latent["latent"] for latent in record["latents"]} == {"top.0", "top.1"}
    assert {latent["level"] for latent in record["latents"]} == {"top"} and record["unit"] == "latent"
    wrong = vae("traverse", run, "--level", "topp", "-o", "u.png")
    assert wrong.code == 2 and "did you mean 'top'" in wrong.err and not Path("u.png").exists()
    assert "low, top" in vae("traverse", run, "--level", "zzz", "-o", "u.png").err
    run = run_of("adversary")
    shown = json.loads(vae("traverse", run, "-o", "v.png", "--json").out)["latents"]
    assert {latent["latent"] for latent in shown} == {"code.0", "code.1"}  # noise is shown where it is asked for
    noise = json.loads(vae("traverse", run, "--level", "noise", "-o", "w.png", "--json").out)["latents"]
    assert [latent["latent"] for latent in noise] == [f"noise.{d}" for d in range(4)]
    assert {latent["status"] for latent in noise} == {"not inferred"}
    back = vae("sample", run, "-n", 3, "-o", "s.npz", "-q")
    assert back.code == 0 and np.load("s.npz")["z"].shape == (3, 6)
    assert vae("decode", run, "s.npz", "-o", "d.npz", "-q").code == 0  # with the noise that it was made of
    np.testing.assert_allclose(np.load("d.npz")["images"], np.load("s.npz")["images"], atol=1e-6)


def test_likelihoods_with_other_settings_are_told_apart(vae: Vae, run_of: Callable[[str], Path]) -> None:
    names = []
    for i, settings in enumerate(("sigma: 1.0", "sigma: 0.1", "variance: learned")):
        line = ["train", "--data", "squares", "--model", "vae", "--steps", 2, "--runs-dir", "runs", "-q"]
        done = vae(*line, "--name", f"g{i}", "-S", f"model.likelihood={{name: gaussian, {settings}}}")
        assert done.code == 0, done.err
        names.append(done.out.strip())
    done = vae("compare", *names, "--json", "--limit", 20)
    assert done.code == 0, done.err
    best = json.loads(done.out)["best"]
    assert best["elbo"] == best["recon"] == []
    assert "Gaussian, sigma = 1 (g0); Gaussian, sigma = 0.1 (g1); Gaussian, sigma learned (g2)" in done.err
    both = vae("compare", names[0], run_of("adversary"), "--json", "--limit", 20)
    assert both.code == 0 and "Gaussian, sigma = 1 (g0); none (adversary)" in both.err
    assert json.loads(both.out)["best"]["elbo"] == []

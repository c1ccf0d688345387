"""`vae analyze` with a diagnosis, metrics, codes from a file and `--fail-if`; numbers checked where they come from."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Result

from vaecli import data
from vaecli.analysis import aggregate, codes, likelihood, metrics, probes
from vaecli.analysis import analyze as analysis
from vaecli.analysis.metrics.base import Score
from vaecli.training import checkpoint

SEVEN = ["latent", "kl", "mean_mu", "var_mu", "mean_sigma2", "sum", "status"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer draws: what is tested is that they arrive, not how precise they are."""
    monkeypatch.setattr(analysis, "TESTED", 500)
    monkeypatch.setattr(analysis, "COMPARED", 200)
    monkeypatch.setattr(probes, "DECODES", 2000)
    monkeypatch.setattr(likelihood, "GLANCE", (20, 200))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Metrics whose values are known; the calls are recorded."""
    calls: list[dict[str, Any]] = []

    def evaluate(
        names: list[str], codes: codes.Codes, seed: int, advance: Callable[[str], None], *, lenient: bool
    ) -> list[metrics.Result]:
        calls.append({"names": names, "n": len(codes), "seed": seed, "lenient": lenient})
        one = Score({"mig": 0.25}, notes=("Over a few images.",))
        two = Score({"disentanglement": 0.5, "completeness": 0.75})
        found = {
            "mig": metrics.Result("mig", one, Score({"mig": 0.3}), {"mig": 0.01}, {"mig": 1.0}),
            "dci": metrics.Result("dci", two, None, {"disentanglement": 0.1, "completeness": 0.2}, None),
        }
        for name in names:
            advance(name)
        return [found[name] for name in names]

    monkeypatch.setattr(metrics, "evaluate", evaluate)
    monkeypatch.setattr(metrics, "chosen", lambda text: [] if text is None else text.split(","))
    return calls


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """400 codes of three latents: two in use, one not; two factors."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 5, size=(400, 2))
    noise = rng.normal(size=(400, 3)) * [0.1, 0.1, 0.001]
    mean = np.concatenate([(factors - 2) / math.sqrt(2), np.zeros((400, 1))], axis=1) + noise
    path = tmp_path / "c.npz"
    logvar = np.broadcast_to(np.log([0.02, 0.02, 1.0]), mean.shape)
    np.savez(path, codes=mean, logvar=logvar, factors=factors, factor_names=np.array(["a", "b"]))
    return path


# ------------------------------------------------------------------------------------------------------------ diagnosis


def test_a_quiet_pipe_gets_what_was_asked_for(tiny_run: Path, vae: Callable[..., Result]) -> None:
    plain = vae("analyze", tiny_run, "-q")
    assert plain.code == 0 and plain.err == "", plain.err
    likely = vae("analyze", tiny_run, "--nll", 5, "-q")
    assert likely.out == plain.out and likely.err.startswith("likelihood\t\n-log p(x), K = 5\t")
    assert "verdict" not in likely.err and "ELBO " not in likely.err.splitlines()[0]
    both = vae("analyze", tiny_run, "--metrics", "mig", "--diagnosis", "-q")
    assert both.err.startswith("diagnosis\t\n") and "\nmetric\tvalue\t" in both.err


def test_diagnosis_of_a_run(tiny_run: Path, vae: Callable[..., Result]) -> None:
    done = vae("analyze", tiny_run, "--split", "all", "--diagnosis", "--json", "--seed", 3)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    plain = json.loads(vae("analyze", tiny_run, "--split", "all", "--json", "--seed", 3).out)
    assert plain["diagnosis"] is None and plain["metrics"] == []
    assert {k: v for k, v in plain.items() if k not in ("latents", "diagnosis", "verdict")}.items() <= record.items()
    loaded = checkpoint.load(tiny_run, torch.device("cpu"))
    view = data.load(loaded.config.data, loaded.info).split("all")
    c = codes.encode(loaded, view)
    assert c.logvar_ND is not None
    found, n = record["diagnosis"], record["n"]
    assert n == 507 == len(c)

    m = aggregate.marginals(c.mean_ND, c.logvar_ND)
    assert m.sigma_D is not None
    for latent, basic in zip(record["latents"], plain["latents"], strict=True):
        assert basic.items() <= latent.items()
        d = latent["index"]
        assert latent["skewness"] == pytest.approx(m.skewness_D[d])
        assert latent["kurtosis"] == pytest.approx(m.kurtosis_D[d])
        assert latent["mean_sigma"] == pytest.approx(m.sigma_D[d])
        assert latent["rho2_10"] <= latent["rho2_50"] <= latent["rho2_90"]
        assert latent["range_low"] < latent["mean_mu"] < latent["range_high"] and 0 <= latent["ks"] <= 1
        assert latent["inactive_burda"] is bool(m.var_mu_D[d] < 0.01)
        assert {k for k in latent if k.startswith("inactive_")} == {f"inactive_{rule}" for rule in aggregate.RULES}
    information = found["information"]
    assert information["kl"] == pytest.approx(record["totals"]["kl"], rel=1e-4) == found["rate"]
    assert information["log_n"] == pytest.approx(math.log(507)) and information["mi"] <= math.log(507)
    assert abs(information["residual"]) < 5 * information["residual_error"] + 1e-6
    assert found["distortion"] == record["totals"]["recon"]
    assert found["moment_kl"] == pytest.approx(
        aggregate.moment_kl(m.mean_D, aggregate.covariance(c.mean_ND, c.logvar_ND))
    )
    assert found["law"]["mean"] == pytest.approx(m.variance_D.mean())
    assert found["iwae"]["samples"] == 20 and found["iwae"]["nll"] <= found["iwae"]["negative_elbo"]
    loss = found["variance_loss"]
    images = view.take(507).x_BCHW.double()
    assert loss["var_x"] == pytest.approx(float(images.var(dim=0, unbiased=False).mean()), rel=1e-9)
    assert loss["gap"] == pytest.approx(loss["mse"] - loss["bias"] + loss["covariance"], abs=1e-12)
    assert found["gamma"] == pytest.approx(math.sqrt(loss["sampled_mse"])) and abs(loss["identity"]) < 1e-12
    assert found["classifier"]["held_out"] == 500 and 0 <= found["classifier"]["auc"] <= 1
    assert found["mmd"]["points"] == 200 and found["inactive"]["burda"] == int((m.var_mu_D < 0.01).sum())
    assert vae("analyze", tiny_run, "--split", "all", "--diagnosis", "--json", "--seed", 3).out == done.out


def test_what_makes_no_sense_for_points_is_left_out(vae: Callable[..., Result]) -> None:
    net = ["-S", "model.net={name: mlp, hidden: [16]}", "--latent-dim", 3]
    args = ["--data", "squares", "--model", "autoencoder", *net, "--steps", 30, "--runs-dir", "runs", "--name", "r"]
    assert vae("train", *args, "-q").code == 0
    done = vae("analyze", "runs/r", "--diagnosis", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    found, latent = record["diagnosis"], record["latents"][0]
    assert found["iwae"] is None and found["moment_kl"] is None and found["law"] is None
    assert found["latent_probe"]["instead"] == "mean" and latent["ks"] is None and latent["gain"] is not None
    assert latent["inactive_odin"] is None and latent["inactive_gain"] in (True, False)
    assert found["information"] is None and found["classifier"] is None and found["mmd"] is None
    assert latent["prior_gain"] is None and found["rate"] is None and latent["rho2_50"] is None
    text = vae("analyze", "runs/r", "--diagnosis").err
    assert "IWAE" not in text and "KL" not in text.replace("no KL", "") and "ELBO" not in text
    assert {rule: found["inactive"][rule] is None for rule in aggregate.RULES}["odin"] is True


def test_one_image_is_analyzed_as_before(tiny_run: Path, vae: Callable[..., Result]) -> None:
    done = vae("analyze", tiny_run, "--limit", 1, "--diagnosis", "--metrics", "mig", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["verdict"]["name"] == "not judged" and record["diagnosis"] is None
    assert record["metrics"][0]["values"] is None and "one image" in record["metrics"][0]["problem"]


# -------------------------------------------------------------------------------------------------------------- streams


def test_in_a_pipe_the_rows_of_the_latents_with_more_columns(tiny_run: Path, vae: Callable[..., Result]) -> None:
    short, long = vae("analyze", tiny_run), vae("analyze", tiny_run, "--diagnosis")
    rows, wide = ([line.split("\t") for line in r.out.splitlines()] for r in (short, long))
    assert len(wide) == 4 and [row[:7] for row in wide] == rows
    assert {len(row) for row in wide} == {len(wide[0])} and {"ks", "gain", "inactive_odin"} < set(wide[0])
    assert "information I(x; z)" in long.err and "verdict:" in long.err
    rows = list(csv.DictReader(io.StringIO(vae("analyze", tiny_run, "--diagnosis", "--csv").out)))
    record = json.loads(vae("analyze", tiny_run, "--diagnosis", "--json").out)
    assert list(rows[0])[:7] == SEVEN
    assert [float(row["gain"]) for row in rows] == [latent["gain"] for latent in record["latents"]]


def test_a_terminal_has_it_all_on_stdout(
    tiny_run: Path, scored: list[dict[str, Any]], vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaecli.commands import analyze

    monkeypatch.setattr(analyze, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    out = vae("analyze", tiny_run, "--diagnosis", "--metrics", "mig,dci").out
    places = [out.index(text) for text in ("mean mu", "rate E KL", "dci.completeness", "verdict:")]
    assert places == sorted(places) and "mig: Over a few images." in out


def test_metrics_of_a_run(tiny_run: Path, scored: list[dict[str, Any]], vae: Callable[..., Result]) -> None:
    done = vae("analyze", tiny_run, "--metrics", "mig,dci", "--seed", 5, "--limit", 40)
    assert scored == [{"names": ["mig", "dci"], "n": 40, "seed": 5, "lenient": False}]
    assert len(done.out.splitlines()) == 4 and done.out.startswith("metric\t")
    assert "mig\t0.2500\t0.3000\t0.0100\t1.0000" in done.out
    assert "dci.completeness\t0.7500\tn/a\t0.2000\tn/a" in done.out
    record = json.loads(vae("analyze", tiny_run, "--metrics", "mig,dci", "--json").out)
    assert [m["name"] for m in record["metrics"]] == ["mig", "dci"] and record["diagnosis"] is None
    assert record["metrics"][0]["values"] == {"mig": 0.25}


# ---------------------------------------------------------------------------------------------------------------- codes


def test_codes_from_a_file(npz: Path, vae: Callable[..., Result]) -> None:
    done = vae("analyze", npz, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["codes"] == str(npz) and record["n"] == 400 and "checkpoint" not in record
    with np.load(npz) as stored:
        mean, logvar = stored["codes"], stored["logvar"]
    kl = 0.5 * (mean**2 + np.exp(logvar) - logvar - 1).mean(axis=0)
    for latent in record["latents"]:
        d = latent["index"]
        assert latent["kl"] == pytest.approx(kl[d]) and latent["var_mu"] == pytest.approx(mean[:, d].var())
        assert latent["status"] == ("inactive" if d == 2 else "active")
    totals = record["totals"]
    assert totals["recon"] is None and totals["elbo"] is None and totals["kl"] == pytest.approx(kl.sum())
    assert record["verdict"]["name"] == "healthy" and "reconstruction" not in record["verdict"]["sentences"][0]
    rows = [line.split("\t") for line in vae("analyze", npz).out.splitlines()]
    assert len(rows) == 4 and len(rows[0]) == 7


def test_diagnosis_of_codes_from_a_file(npz: Path, vae: Callable[..., Result]) -> None:
    record = json.loads(vae("analyze", npz, "--diagnosis", "--json").out)
    found = record["diagnosis"]
    # 25 clusters, each with noise that the posterior's width hides only partly.
    assert math.log(25) - 0.1 < found["information"]["mi"] < math.log(400)
    assert "rate" not in found and "iwae" not in found and found["classifier"]["held_out"] == 500
    assert found["inactive"] == {
        "burda": 1, "yeung": 1, "split_mu": 1, "split_sigma2": 1, "balancing": 1, "odin": 1, "gain": None
    }  # fmt: skip
    done = vae("analyze", npz, "--diagnosis")
    assert done.code == 0 and "I(x; z)" in done.err and len(done.out.splitlines()) == 4


def test_codes_asked_for_metrics_alone_give_their_rows(
    npz: Path, scored: list[dict[str, Any]], vae: Callable[..., Result]
) -> None:
    done = vae("analyze", npz, "--metrics", "mig,dci")
    assert [line.split("\t")[0] for line in done.out.splitlines()] == [
        "metric", "mig", "dci.disentanglement", "dci.completeness"
    ]  # fmt: skip
    assert "verdict: healthy" in done.err and "metric\t" not in done.err
    assert vae("analyze", npz, "--metrics", "mig", "--csv").out.startswith("metric,value,")
    assert vae("analyze", npz, "--metrics", "mig", "--diagnosis", "--csv").out.startswith(",".join(SEVEN))
    assert vae("analyze", npz, "--metrics", "mig", "--diagnosis").out.startswith("latent\t")
    assert vae("analyze", npz, "--metrics", "mig", "--limit", 50).code == 0 and scored[-1]["n"] == 50


def test_limit_takes_a_random_part_of_codes_in_order(tmp_path: Path, vae: Callable[..., Result]) -> None:
    """Rows of a file may stand in order: the first hundred of these are all below 0."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "p.npz", codes=np.sort(rng.normal(size=(2000, 2)), axis=0))
    totals = [json.loads(vae("analyze", tmp_path / "p.npz", "--limit", 100, "--json").out) for _ in range(2)]
    assert totals[0] == totals[1] and totals[0]["n"] == 100
    assert abs(totals[0]["latents"][0]["mean_mu"]) < 0.4 and totals[0]["latents"][0]["var_mu"] > 0.5


def test_points_without_logvar_have_moments_alone(tmp_path: Path, vae: Callable[..., Result]) -> None:
    points = np.random.default_rng(0).gamma(2.0, size=(300, 2))
    np.savez(tmp_path / "p.npz", codes=points)
    record = json.loads(vae("analyze", tmp_path / "p.npz", "--diagnosis", "--json").out)
    assert record["totals"]["kl"] is None and record["diagnosis"]["information"] is None
    assert record["latents"][0]["skewness"] > 0.5 and record["verdict"]["name"] == "healthy"


@pytest.mark.parametrize(("n", "d"), [(2, 1), (7, 3), (40, 1)])
def test_few_codes_or_a_single_latent(n: int, d: int, tmp_path: Path, vae: Callable[..., Result]) -> None:
    mean = np.random.default_rng(0).normal(size=(n, d))
    np.savez(tmp_path / "few.npz", codes=mean, logvar=np.full((n, d), -3.0))
    done = vae("analyze", tmp_path / "few.npz", "--diagnosis", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["diagnosis"]
    assert (found["classifier"]["auc"] is None) == (n < 8) and found["information"]["mi"] <= math.log(n) + 1e-9
    assert (found["largest_covariance"] == 0) == (d == 1)
    assert vae("analyze", tmp_path / "few.npz", "--diagnosis").code == 0


def test_codes_have_no_split(npz: Path, tmp_path: Path, vae: Callable[..., Result]) -> None:
    assert vae("analyze", npz, "--split", "train").code == 2
    (tmp_path / "bad.npz").write_text("no")
    assert vae("analyze", tmp_path / "bad.npz").code == 3


def test_true_metrics_of_codes(npz: Path, vae: Callable[..., Result]) -> None:
    record = json.loads(vae("analyze", npz, "--metrics", "mig", "--json").out)
    (mig,) = record["metrics"]
    # Each factor of entropy log 5 in one latent: nearly all of it, and nothing in the others.
    assert 0.7 < next(iter(mig["values"].values())) <= 1.0


def test_what_tells_of_what(npz: Path, vae: Callable[..., Result]) -> None:
    """Beside metrics: of each latent its best factor, of each factor its best two latents, by NMI of 20 bins as an
    independent computation has it; the mean gap is MIG. And how each metric was estimated."""
    found = json.loads(vae("analyze", npz, "--metrics", "mig,dci", "--json").out)
    arrays = np.load(npz)
    mean, factors = arrays["codes"].astype(np.float64), arrays["factors"]

    def nmi(d: int, k: int) -> float:
        table, _, _ = np.histogram2d(mean[:, d], factors[:, k], bins=(20, 5))
        p = table / table.sum()
        own, other = p.sum(axis=1, keepdims=True), p.sum(axis=0, keepdims=True)
        some = p > 0
        information = float((p[some] * np.log((p / (own * other + 1e-300))[some])).sum())
        return information / -float((other * np.log(other)).sum())

    expected = np.array([[nmi(d, k) for k in range(2)] for d in range(3)])
    for k, record in enumerate(found["factors"]):
        best, second = np.argsort(-expected[:, k])[:2]
        assert record["factor"] == "ab"[k] and [one["latent"] for one in record["latents"]] == [
            f"z{best}",
            f"z{second}",
        ]
        assert [one["nmi"] for one in record["latents"]] == pytest.approx(expected[[best, second], k], rel=1e-9)
        assert record["informativeness"] == found["metrics"][1]["matrices"]["accuracy"][0][k] > 0.9
    assert np.mean([record["gap"] for record in found["factors"]]) == pytest.approx(
        found["metrics"][0]["values"]["mig"], rel=1e-12
    )
    for latent in found["latents"]:
        d = latent["index"]
        assert latent["best_factor"] == "ab"[expected[d].argmax()]
        assert latent["best_factor_nmi"] == pytest.approx(expected[d].max(), rel=1e-9)
    said = vae("analyze", npz, "--metrics", "mig,dci").err
    assert "factor\tbest latent\tNMI" in said and "  mig: points 400, bins 20" in said
    assert f"numpy {np.__version__}" in said and found["versions"]["numpy"] == np.__version__


def test_metrics_without_factors_say_so(tmp_path: Path, vae: Callable[..., Result]) -> None:
    np.savez(tmp_path / "p.npz", codes=np.random.default_rng(0).normal(size=(300, 2)))
    done = vae("analyze", tmp_path / "p.npz", "--metrics", "mig")
    assert done.code == 0 and "mig\tn/a" in done.out and "factors" in done.err


# -------------------------------------------------------------------------------------------------------------- fail-if


@pytest.mark.parametrize("text", ["collapsed", "Partly-Collapsed, collapsed", "partly_collapsed,collapsed,healthy"])
def test_fail_if_comes_after_the_output(text: str, tmp_path: Path, vae: Callable[..., Result]) -> None:
    np.savez(tmp_path / "c.npz", codes=np.zeros((200, 2)), logvar=np.zeros((200, 2)))
    done = vae("analyze", tmp_path / "c.npz", "--json", "--fail-if", text)
    assert done.code == 6 and json.loads(done.out)["verdict"]["name"] == "collapsed"
    assert "verdict is collapsed" in done.err


def test_fail_if_lets_others_pass_and_knows_the_names(npz: Path, vae: Callable[..., Result]) -> None:
    assert vae("analyze", npz, "--fail-if", "collapsed,over-regularized,prior mismatch").code == 0
    assert "without --diagnosis" in vae("analyze", npz, "--fail-if", "prior mismatch").err
    refused = vae("analyze", npz, "--fail-if", "colapsed")
    assert refused.code == 2 and "did you mean 'collapsed'" in refused.err and refused.out == ""
    assert vae("analyze", npz, "--fail-if", "").code == 2
    assert vae("analyze", "nowhere", "--fail-if", "bad").code == 2  # before any work


def test_the_weight_of_the_kl(tiny_run: Path, vae: Callable[..., Result]) -> None:
    loaded = checkpoint.load(tiny_run, torch.device("cpu"))
    numbers = {"information": None, "classifier": None, "moment_kl": 0.1, "gamma": 0.2}
    evidence = analysis._evidence(loaded, {"beta": 4.0}, numbers)
    assert evidence.weight == 4.0 and evidence.sigma is None and evidence.auc is None and evidence.moment_kl == 0.1
    likelihood = "model.likelihood={name: gaussian, sigma: 0.1}"
    args = ("train", "--model", "beta-vae", *TINY, "--steps", 3, "--runs-dir", "runs", "-q", "--name", "g")
    assert vae(*args, "-S", likelihood).code == 0
    loaded = checkpoint.load(Path("runs/g"), torch.device("cpu"))
    evidence = analysis._evidence(loaded, loaded.model.hyper(3), numbers)
    # beta = 4 and a sigma at half of the best one: four times (1/2)^2.
    assert evidence.weight == pytest.approx(1.0) and evidence.sigma == 0.1 and evidence.gamma == 0.2
    assert vae(*args[:-1], "n", "-S", "model.beta_norm=0.5", "-S", "model.beta=null", "-S", likelihood).code == 0
    loaded = checkpoint.load(Path("runs/n"), torch.device("cpu"))
    evidence = analysis._evidence(loaded, {**loaded.model.hyper(3), "likelihood.sigma": 0.2}, numbers)
    assert evidence.weight == pytest.approx(0.5 * 256 / 3)


def test_unknown_metric_is_refused_before_any_work(tiny_run: Path, vae: Callable[..., Result]) -> None:
    assert vae("analyze", tiny_run, "--metrics", "mgi").code == 2


def test_metrics_of_a_handful_of_images_come_with_a_caution(tiny_run: Path, vae: Callable[..., Result]) -> None:
    for limit, said in ((12, True), (51, True), (100, False)):
        done = vae("analyze", tiny_run, "--split", "all", "--limit", limit, "--metrics", "mig")
        assert done.code == 0 and ("say little" in done.err) == said

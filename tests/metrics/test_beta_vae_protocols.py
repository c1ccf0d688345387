"""The protocols of BetaVAE by name: what each depends on, and the numbers that Higgins et al. print."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import known_codes
import numpy as np
import pytest
import torch
from conftest import Result

from vaecli import data, registry
from vaecli.analysis import metrics
from vaecli.analysis.codes import Array, Codes
from vaecli.analysis.metrics import beta_vae, beta_vae_converged, beta_vae_higgins
from vaecli.data.dsprites import FACTORS
from vaecli.data.dsprites import Config as DSprites
from vaecli.errors import ConfigError

sklearn = pytest.importorskip("sklearn")
SHORT = {"STEPS": 4000}  # of Adagrad, where no published number is asked for


def dsprites_code(mean: Callable[[Array], Array], rows: int = 20_000) -> Codes:
    """A code of some rows of dSprites' factors."""
    factors_NK = known_codes.grid(known_codes.DSPRITES)
    factors_NK = factors_NK[np.random.default_rng(0).choice(len(factors_NK), rows, replace=False)]
    names = tuple(FACTORS)
    return Codes(
        mean(factors_NK), None, factors_NK, names, tuple(f"z{d}" for d in range(mean(factors_NK[:2]).shape[1]))
    )


def the_factors(factors_NK: Array) -> Array:
    return np.asarray(factors_NK / (np.array(known_codes.DSPRITES) - 1))


def nothing(factors_NK: Array) -> Array:
    return np.random.default_rng(1).normal(size=(len(factors_NK), 10))


# ---- the rule of the better half


def test_best_half() -> None:
    scores = [0.5 + i / 100 for i in (*range(15), *range(100, 115))]
    mean, deviation = beta_vae.best_half(np.random.default_rng(0).permutation(scores).tolist())
    assert mean == pytest.approx(0.5 + 1.07)
    assert deviation == pytest.approx(math.sqrt(20) / 100)  # of 0, 1, ..., 14, by n - 1
    assert beta_vae.best_half([0.2, 0.9, 0.5])[0] == pytest.approx(0.7)
    assert beta_vae.best_half([0.2])[0] == 0.2 and math.isnan(beta_vae.best_half([0.2])[1])


# ---- which factors are classes


def test_shape_is_no_class_and_still_varies() -> None:
    code = dsprites_code(the_factors)
    settings = beta_vae.score(code, 0, beta_vae.CONVERGED).settings
    assert settings["classes"] == ["scale", "orientation", "posX", "posY"]
    feature_MD, factor_M = beta_vae._points(code, 400, np.random.default_rng(0), 25, [1, 2, 3, 4])
    assert set(factor_M.tolist()) == {1, 2, 3, 4}
    assert (feature_MD[:, 0] > 0).all()  # 25 pairs of which none differs in shape: (1/3)^25
    for k in range(1, 5):
        assert (feature_MD[factor_M == k, k] == 0).all() and (feature_MD[factor_M != k, k] > 0).all()


def test_where_shape_is_one_of_two_it_is_a_class() -> None:
    assert beta_vae._classes(("shape", "posX"), ("shape",)) == [0, 1]
    assert beta_vae._classes(("shape", "posX", "posY"), ("shape",)) == [1, 2]
    assert beta_vae._classes(("shape", "posX", "posY"), ()) == [0, 1, 2]


# ---- known answers


@pytest.mark.parametrize("protocol", [beta_vae.DLIB, beta_vae.HIGGINS, beta_vae.CONVERGED], ids=lambda p: p.name)
def test_ceiling_and_chance(protocol: beta_vae.Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    """Higgins' first row is 100 %, and a code that knows nothing gets one of K right."""
    monkeypatch.setattr(beta_vae, "STEPS", 4000)
    protocol, classes = replace(protocol, scores=1), 5 - len(protocol.free)
    assert beta_vae.score(dsprites_code(the_factors), 0, protocol).value > 0.998
    assert beta_vae.score(dsprites_code(nothing), 0, protocol).value == pytest.approx(1 / classes, abs=0.02)


def test_order_sign_and_scale_do_not_matter_to_the_converged_score() -> None:
    """Without standardising they do: a latent a thousand times smaller is next to invisible to the penalty."""

    def rotated(factors_NK: Array) -> Array:
        return known_codes.standardised(factors_NK) @ np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]

    code = dsprites_code(rotated)
    moved = replace(code, mean_ND=code.mean_ND[:, [3, 0, 4, 2, 1]] * [1e-3, -1, 1, 5, -1] + 7)
    a, b = (beta_vae.score(c, 0, beta_vae.CONVERGED) for c in (code, moved))
    assert a.value == pytest.approx(b.value, abs=6e-4)  # three of 5,000 points
    assert 0.4 < a.value < 0.97
    plain = replace(beta_vae.CONVERGED, standardise=False)
    assert abs(beta_vae.score(code, 0, plain).value - beta_vae.score(moved, 0, plain).value) > 0.01


# ---- the classifiers


def points(n: int = 640, d: int = 3, k: int = 4) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, k, n)
    return np.abs(rng.normal(size=(n, d)) + np.eye(k, d)[y]), y


def test_gradient_is_that_of_the_mean_loss() -> None:
    x, y = points()
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 4))).requires_grad_()
    torch.nn.functional.cross_entropy(torch.from_numpy(x) @ weight[:3] + weight[3], torch.from_numpy(y)).backward()
    assert weight.grad is not None
    np.testing.assert_allclose(beta_vae._gradient(x, y, weight.detach().numpy()), weight.grad, atol=1e-14)


def test_adagrad_is_the_one_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beta_vae, "STEPS", 25)  # two epochs of ten batches and a half
    x, y = points(660)
    found = beta_vae._adagrad(x, y, 4, np.random.default_rng(5))
    rng, order = np.random.default_rng(5), []
    for _ in range(3):
        order += list(rng.permutation(660)[:640].reshape(10, 64))[::-1]
    weight = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adagrad([weight], lr=0.01)
    for batch in order[:25]:
        optimizer.zero_grad()
        logits = torch.from_numpy(x[batch]) @ weight[:3] + weight[3]
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[batch])).backward()
        optimizer.step()
    np.testing.assert_allclose(found, weight.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_is_scikit_learns(classes: int) -> None:
    """Its predictions, for two classes too, and at the end a gradient of the penalised loss that is next to nothing."""
    from sklearn.linear_model import LogisticRegression

    x, y = points(k=classes)
    weight = beta_vae._logistic(x, y, 10_000)
    expected = LogisticRegression(max_iter=10_000).fit(x, y).predict_proba(x)
    logit = beta_vae._logits(x, weight)
    found = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_settings_say_whether_it_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    code = dsprites_code(lambda f: known_codes.standardised(f)[:, [0, 1, 2]] + 0.5 * nothing(f)[:, :3])
    done = beta_vae.score(code, 0, beta_vae.CONVERGED).settings
    assert done["converged"] is True and 0 < done["gradient"] <= 1e-3
    monkeypatch.setattr(beta_vae, "STEPS", 100)
    early = beta_vae.score(code, 0, beta_vae.HIGGINS).settings
    assert early["converged"] is False and early["gradient"] > 1e-3


# ---- by name


def test_protocols_are_metrics_by_name() -> None:
    assert {"beta-vae", "beta-vae-higgins", "beta-vae-converged"} <= set(registry.names("metric"))
    named = "beta-vae-higgins,beta-vae-converged"
    assert metrics.chosen(named) == ["beta-vae-higgins", "beta-vae-converged", "mig"]  # MIG stands beside z_diff
    assert metrics.chosen("mig,beta-vae") == ["mig", "beta-vae"] and metrics.chosen("dci") == ["dci"]
    everything = metrics.chosen("all")  # one of the three is enough
    assert "beta-vae" in everything and not {"beta-vae-higgins", "beta-vae-converged"} & set(everything)


def test_a_protocol_names_the_metric() -> None:
    by = metrics.by_protocol
    assert by("mig,beta-vae", "higgins") == "mig,beta-vae-higgins" and by(None, "dlib") == "beta-vae"
    assert by("none", "converged") == "beta-vae-converged" and by("all", "higgins") == "all,beta-vae-higgins"
    assert by("mig", None) == "mig" and by(None, None) is None
    protocols = {beta_vae.DLIB, beta_vae.HIGGINS, beta_vae.CONVERGED}
    assert {p.name for p in protocols} == set(metrics.PROTOCOLS)
    with pytest.raises(ConfigError, match="no protocol is called 'higgin'; did you mean 'higgins'"):
        by(None, "higgin")


def test_analyze_prints_what_a_score_depends_on(
    vae: Callable[..., Result], tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beta_vae, "STEPS", 500)
    names = "beta-vae-higgins,beta-vae-converged"
    done = vae("analyze", tiny_run, "--split", "all", "--metrics", names, "--json")
    assert done.code == 0, done.err
    higgins, converged, _ = json.loads(done.out)["metrics"]
    assert higgins["name"] == "beta-vae-higgins" and set(higgins["values"]) == {"accuracy", "best_half"}
    scores = higgins["settings"]["accuracies"]
    assert len(scores) == 3
    assert higgins["values"]["accuracy"] == pytest.approx(sum(scores) / 3)
    assert higgins["values"]["best_half"] == pytest.approx(sum(sorted(scores)[1:]) / 2)
    keys = {"protocol", "pairs", "train_points", "test_points", "classes", "predictor", "converged", "gradient",
            "standardised"}  # fmt: skip
    assert keys <= set(higgins["settings"]) and keys <= set(converged["settings"])
    assert (higgins["settings"]["pairs"], converged["settings"]["pairs"]) == (30, 25)
    assert (higgins["settings"]["standardised"], converged["settings"]["standardised"]) == (False, True)
    assert higgins["ceiling"]["accuracy"] > higgins["chance"]["accuracy"]


def test_scores_are_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beta_vae, "STEPS", 200)
    code = dsprites_code(lambda f: the_factors(f)[:, :2] + nothing(f)[:, :2])
    a, again, b = (beta_vae_higgins.score(code, seed).settings["accuracies"] for seed in (0, 0, 1))
    assert a == again and a != b and len(set(a)) > 1
    assert beta_vae_converged.score(code, 0).settings["protocol"] == "converged"
    said = beta_vae_higgins.score(code, 0)
    assert said.settings["inferred"] == ["pairs", "predictor"] and "inferred, not published" in said.notes[0]
    assert "inferred" not in beta_vae_converged.score(code, 0).settings


# ---- the published rows


class Packed:
    """Pixels of binary images as a table of codes, unpacked where they are asked for."""

    def __init__(self, packed_NB: Array) -> None:
        self.packed_NB, self.shape = packed_NB, (len(packed_NB), 8 * packed_NB.shape[1])

    def __len__(self) -> int:
        return len(self.packed_NB)

    def __getitem__(self, index: Array) -> Array:
        return np.unpackbits(self.packed_NB[index], axis=1).astype(np.float32)


@pytest.mark.long
def test_rows_of_higgins_on_all_of_dsprites(vae: Callable[..., Result]) -> None:
    """PCA and raw pixels, over all 737,280 images and their exact covariance: 3 minutes on two cores.

    Paper: PCA 84.9, 60.8 % of the variance, and pixels 45.75, within a point and a half with 20 pairs. Ours with the 30
    of the protocol: 88.4 and 48.2. Measured too: of a sample of 60,000 images the leading two axes, of nearly equal
    eigenvalues, may stand at any angle, and PCA's score at anything between 82 and 92.
    """
    from vaecli.analysis import codes
    from vaecli.training import checkpoint

    done = vae("train", "--data", "dsprites", "-S", "data.holdout=0", "--model", "pca-white", "--runs-dir", "runs")
    assert done.code == 0, done.err
    loaded = checkpoint.load(done.out.strip().splitlines()[-1], torch.device("cpu"))
    dataset = data.load(DSprites(name="dsprites", holdout=0))
    assert loaded.model.explained == pytest.approx(0.6083, abs=1e-4)
    assert float(loaded.model.total_variance) == pytest.approx(154.054, abs=1e-3)
    pca = codes.encode(loaded, dataset.split("all"))
    np.testing.assert_allclose(np.cov(pca.mean_ND.T, ddof=0), np.eye(10), atol=1e-4)
    pixels = replace(pca, mean_ND=Packed(dataset.images.data.numpy()), latent_names=())
    for code, published, ours in ((pca, 0.849, 0.884), (pixels, 0.4575, 0.482)):
        for pairs, expected in ((20, published), (30, ours)):
            protocol = replace(beta_vae.HIGGINS, pairs=pairs, scores=1)
            assert beta_vae.score(code, 0, protocol).value == pytest.approx(expected, abs=0.015)

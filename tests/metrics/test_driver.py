"""`metrics.chosen` and `metrics.evaluate`: which metrics run, on which codes, and what stands beside each value."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import known_codes as known
import numpy as np
import pytest

from vaecli import registry
from vaecli.analysis import codes as coding
from vaecli.analysis import metrics
from vaecli.analysis.codes import Codes
from vaecli.errors import ConfigError

TOYS = {
    "toy_share.py": (
        '''"""Share of the factors that are among the latents, and how many rows it saw."""
from vaecli.analysis.metrics.base import Score
NEEDS = ("factors",)
CHANCE = {"share": 0.25}
def score(codes, seed):
    equal = (codes.mean_ND[:, :, None] == codes.factors_NK[:, None, :]).all(axis=0).any(axis=0)
    return Score({"share": float(equal.mean())}, {"points": len(codes)})
'''
    ),
    "toy_slow.py": '"""Slow."""\nIN_ALL = False\ndef score(codes, seed): raise AssertionError\n',
    "toy_pair.py": '"""Of two."""\nIN_ALL = False\nSEVERAL = True\ndef score(codes, seed): raise AssertionError\n',
}


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three metrics beside the real ones, using what a module may hold."""
    folder = tmp_path / "toy_metrics"
    folder.mkdir()
    for name, text in TOYS.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.PACKAGES, "metric", [*registry.PACKAGES["metric"], ("toy_metrics", folder)])
    for name in list(sys.modules):
        if name.startswith("toy_metrics"):
            monkeypatch.delitem(sys.modules, name)


def one(name: str, codes: Codes, seed: int = 0) -> metrics.Result:
    return metrics.evaluate([name], codes, seed)[0]


# --------------------------------------------------------------------------------------------------------------- chosen


def test_names_are_chosen(toys: None) -> None:
    assert metrics.chosen(None) == metrics.chosen("none") == []
    assert metrics.chosen("mig, dcimig,mig") == ["mig", "dcimig"]
    everything = metrics.chosen("all")
    assert {"mig", "mig-exact", "edi", "toy-share"} <= set(everything) and everything == sorted(everything)
    assert not {"toy-slow", "toy-pair"} & set(everything)
    assert metrics.chosen("toy-slow") == ["toy-slow"]
    assert metrics.chosen("all,toy-slow") == [*everything, "toy-slow"]


def test_wrong_names_are_refused(toys: None) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mig-exact'"):
        metrics.chosen("mig,mig-exakt")
    for text in ("", "mig,,aam", "none,mig"):
        with pytest.raises(ConfigError, match="metrics are"):
            metrics.chosen(text)


def test_metrics_of_several_models_need_several(toys: None) -> None:
    with pytest.raises(ConfigError, match="several models") as refused:
        metrics.chosen("mig,toy-pair")
    assert "vae compare RUN RUN --metrics toy-pair" in (refused.value.hint or "")
    assert metrics.chosen("mig,toy-pair", several=True) == ["mig", "toy-pair"]
    assert one("toy-pair", known.perfect()).problem == "it compares several models"


# ----------------------------------------------------------------------------------------------------- values beside it


def test_chance_and_ceiling_are_the_metric_on_other_codes() -> None:
    codes = known.noisy(std=0.3)
    result = one("mig", codes)
    assert result.score is not None and result.chance is not None and result.ceiling is not None
    assert result.ceiling["mig"] == pytest.approx(1) and 0.5 < result.score.value < 0.8
    assert 0 <= result.chance["mig"] < 0.02
    assert result.active is not None and result.active.values == result.score.values  # all are


def test_ceiling_knows_that_bins_and_factors_limit_it() -> None:
    rows = np.random.default_rng(0).choice(737_280, 20_000, replace=False)
    codes = known.perfect(known.DSPRITES).rows(rows)
    ceiling = one("mig", codes).ceiling
    assert ceiling is not None and ceiling["mig"] == pytest.approx(0.896, abs=0.005)
    # Of two factors that are the same, the other one's latent is a second best that is as good.
    twice = np.repeat(known.grid((4, 5))[:, :1], 2, axis=1)
    ceiling = one("mig-exact", known.made(known.standardised(twice), twice)).ceiling
    assert ceiling is not None and ceiling["mig_exact"] == pytest.approx(0, abs=1e-9)


def test_what_a_module_says_of_itself_is_taken(toys: None) -> None:
    factors_NK = known.grid((3, 4))
    codes = coding.make([1, 0] * factors_NK, None, factors_NK)
    result = one("toy-share", codes)
    assert result.score is not None and result.score.value == 0.5
    assert result.chance == {"share": 0.25} and result.ceiling == {"share": 0.0}  # the ceiling's codes are standardised


def test_active_latents_are_scored_apart() -> None:
    codes = known.perfect(dead=4)
    result = one("mig-sup", codes)
    assert result.score is not None and result.active is not None
    assert result.active.value == pytest.approx(1) and result.score.value < 0.6
    assert result.active.values == one("mig-sup", codes.latents_only(range(4))).score.values  # type: ignore[union-attr]


def test_no_active_latent_is_said() -> None:
    result = one("modularity", known.constant())
    assert result.score is not None and result.score.value == 0 and result.active is None
    assert "No latent is active." in result.score.notes


def test_metrics_without_factors_have_no_chance_and_no_ceiling() -> None:
    codes = coding.make(known.noisy().mean_ND)
    result = one("gaussian-total-correlation", codes)
    assert result.score is not None and result.chance is None and result.ceiling is None and result.problem is None
    assert result.score.settings["factors"] == 0


def test_settings_say_what_was_measured() -> None:
    result = one("infomec", known.perfect(), seed=3)
    assert result.score is not None
    settings = result.score.settings
    assert {k: settings[k] for k in ("points", "images", "latents", "factors", "seed", "neighbours")} == {
        "points": 1152, "images": 1152, "latents": 4, "factors": 4, "seed": 3, "neighbours": 10,
    }  # fmt: skip
    import sklearn

    assert settings["scikit-learn"] == sklearn.__version__


# ------------------------------------------------------------------------------------------------------------- problems


def test_factors_that_do_not_vary_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    codes = known.perfect((1, 6, 8))
    result, without = one("mig", codes), one("gaussian-total-correlation", codes)
    assert result.score is not None and result.score.value == pytest.approx(1)
    assert result.score.matrices["mutual_information"].shape == (3, 2) and result.score.settings["factors"] == 2
    assert without.score is not None
    assert "f0" in capsys.readouterr().err


@pytest.mark.parametrize(("codes", "name", "problem"), [
    (coding.make(known.perfect().mean_ND), "mig", "true factors"),
    (coding.make(known.perfect().mean_ND, None, known.grid()), "mig-exact", "no distribution"),
    (known.perfect((1, 1)), "mig", "one image"),
    (known.noisy((2, 2)).rows(np.array([0, 0, 0])), "mig", "no factor varies"),
    (coding.make(np.zeros((1, 2))), "gaussian-total-correlation", "one image"),
])  # fmt: skip
def test_what_is_missing_is_a_problem_and_no_crash(codes: Codes, name: str, problem: str) -> None:
    result = one(name, codes)
    assert result.score is None and result.problem is not None and problem in result.problem
    assert result.record()["values"] is None


def test_what_is_exact_for_gaussians_is_said_of_them_alone() -> None:
    """`standard_D` and `exact_D` follow the latents; activity has the scale of the prior."""
    codes = known.perfect((3, 4))
    flow = replace(codes, exact_D=np.array([False, False]))
    problem = one("mig-exact", flow).problem
    assert problem is not None and "Gaussian with independent latents" in problem and flow.kl_D is None
    half = replace(codes, exact_D=np.array([True, False]))
    score = one("mig-exact", half).score
    assert score is not None and score.settings["latents"] == 1
    other = replace(half, standard_D=np.array([False, True]))
    assert other.kl_D is None and half.kl_D is not None and np.isnan(half.kl_D).tolist() == [False, True]
    second = other.latents_only([1])
    assert second.standard_D is not None and second.standard_D.tolist() == [True]
    assert second.exact_D is not None and second.exact_D.tolist() == [False]
    mean_N2 = np.stack([np.linspace(-1, 1, 50)] * 2, axis=1) * [0.15, 0.15]
    narrow = coding.make(mean_N2, np.log(np.broadcast_to([0.1, 0.1], (50, 2))))
    assert not narrow.active_D.any()  # 0.0078 against 0.01
    assert replace(narrow, standard_D=np.array([True, False])).active_D.tolist() == [False, True]
    told = replace(codes, known_active_D=np.array([False, False]))
    none = one("mig", told)
    assert none.active is None and none.score is not None and "No latent is active." in none.score.notes


@pytest.mark.parametrize("name", ["infomec", "edi"])
def test_without_scikit_learn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=f"{name} needs scikit-learn") as missing:
        one(name, known.perfect((3, 4)))
    assert "vaecli[analyze]" in (missing.value.hint or "")
    both = metrics.evaluate([name, "mig"], known.perfect((3, 4)), 0, lenient=True)
    assert both[0].score is None and "scikit-learn" in (both[0].problem or "")
    assert both[1].score is not None and both[1].score.value == pytest.approx(1)


MINE = ["mig", "mig-exact", "mig-sup", "aam", "jemmig", "dcimig", "med", "modularity", "infomec", "edi"]
UNSUPERVISED = ["gaussian-total-correlation", "wasserstein-correlation", "mutual-information-score"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [2, 3, 5, 30])
@pytest.mark.parametrize(("latents", "factors"), [(1, 1), (3, 2), (2, 5)])
def test_a_handful_of_rows_gives_numbers_or_a_reason(rows: int, latents: int, factors: int) -> None:
    rng = np.random.default_rng(rows)
    mean_ND = rng.normal(size=(rows, latents))
    mean_ND[:, -1] = 0.1
    codes = coding.make(mean_ND, rng.normal(size=(rows, latents)), rng.integers(0, 3, (rows, factors)))
    for result in metrics.evaluate(MINE + UNSUPERVISED, codes, 0):
        assert (result.score is None) == (result.problem is not None)
        if result.score is not None and any(math.isnan(v) for v in result.score.values.values()):
            assert result.score.notes, result.name


# -------------------------------------------------------------------------------------------------------------- results


def test_progress_is_told_and_results_come_in_order() -> None:
    seen: list[str] = []
    results = metrics.evaluate(["modularity", "mig"], known.perfect((3, 4)), 0, seen.append)
    assert seen == ["modularity", "mig"] == [result.name for result in results]


def test_records_are_plain_json_and_repeat() -> None:
    codes = known.perfect((3, 6, 8), dead=1)
    first = [result.record() for result in metrics.evaluate(MINE + UNSUPERVISED, codes, 0)]
    again = [result.record() for result in metrics.evaluate(MINE + UNSUPERVISED, codes, 0)]
    assert json.dumps(first) == json.dumps(again)
    assert first[0].keys() == {
        "name", "values", "active", "chance", "ceiling", "pca", "settings", "notes", "problem", "matrices",
    }  # fmt: skip
    mig = json.loads(json.dumps(first[0]))
    assert mig["name"] == "mig" and mig["problem"] is None
    assert mig["active"]["mig"] == pytest.approx(1) and len(mig["matrices"]["mutual_information"]) == 4
    assert mig["matrices"]["mutual_information"][1][1] == pytest.approx(math.log(6))


def test_all_leaves_out_what_compares_models_unless_there_are_several() -> None:
    assert "udr" not in metrics.chosen("all") and "udr" in metrics.chosen("all", several=True)
    assert "dci-sklearn" not in metrics.chosen("all", several=True)

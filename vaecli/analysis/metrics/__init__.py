"""Disentanglement metrics: `evaluate` runs some of them on codes, each with its chance level and ceiling.

A metric's module may hold, beside `score`:

    NEEDS    what it cannot do without: "factors", "logvar"
    IN_ALL   False: `all` leaves it out
    SEVERAL  True: it compares several models, and `evaluate` does not run it
    CHANCE, CEILING   by value, where they are known; else they are estimated
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from vaecli import output, registry
from vaecli.analysis.codes import Codes
from vaecli.analysis.metrics.base import Score
from vaecli.errors import ConfigError

# The metrics that are z_diff, by the protocol that each follows (`beta_vae`).
PROTOCOLS = {"dlib": "beta-vae", "higgins": "beta-vae-higgins", "converged": "beta-vae-converged"}
Z_DIFF = tuple(PROTOCOLS.values())
NARROW = -20.0  # log-variance of q(z|x) where the factors themselves are the code


@dataclass(frozen=True)
class Result:
    """One metric on one set of codes. Where it could not be computed `score` is None and `problem` says why."""

    name: str
    score: Score | None  # over all latents
    active: Score | None = None  # over the active latents; None where none is
    chance: Mapping[str, float] | None = None  # the same values for codes that know nothing of the factors
    ceiling: Mapping[str, float] | None = None  # the same values for the factors themselves as codes
    pca: Mapping[str, float] | None = None  # the same values for principal components of the same images (`pca_row`)
    problem: str | None = None

    def record(self) -> dict[str, Any]:
        """For JSON: plain numbers, matrices as nested lists."""
        score = self.score
        return {
            "name": self.name,
            "values": None if score is None else _plain(score.values),
            "active": None if self.active is None else _plain(self.active.values),
            "chance": None if self.chance is None else _plain(self.chance),
            "ceiling": None if self.ceiling is None else _plain(self.ceiling),
            "pca": None if self.pca is None else _plain(self.pca),
            "settings": {} if score is None else _plain(score.settings),
            "notes": [] if score is None else list(score.notes),
            "problem": self.problem,
            "matrices": {} if score is None else _plain(score.matrices),
        }


def chosen(text: str | None, *, several: bool = False) -> list[str]:
    """The names in `all`, `none` or `mig,dci`; ConfigError with the nearest name for a wrong one.

    `several`: there are several models to compare, so that metrics of several models can be named. With a z_diff comes
    MIG, which sees what z_diff passes.
    """
    if text is None or text.strip() == "none":
        return []
    names: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        if word == "all":
            for name in registry.names("metric"):
                metric = registry.load("metric", name)
                if getattr(metric, "IN_ALL", True) and (several or not getattr(metric, "SEVERAL", False)):
                    names.append(name)
        elif word in ("", "none"):
            raise ConfigError(f"metrics are {text[:80]!r}", "give `all`, `none` or names with commas: mig,dci")
        elif getattr(registry.load("metric", word), "SEVERAL", False) and not several:
            raise ConfigError(
                f"metric {word} compares several models", f"name them all: vae compare RUN RUN --metrics {word}"
            )
        else:
            names.append(word)
    return list(dict.fromkeys([*names, *(["mig"] if any(name in Z_DIFF for name in names) else [])]))


def by_protocol(text: str | None, protocol: str | None) -> str | None:
    """The metrics named in `text` with z_diff by this protocol: in place of `beta-vae` where that is named, else as one
    more. ConfigError with the nearest name for a protocol that there is not."""
    if protocol is None:
        return text
    if protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ConfigError(
            f"no protocol is called {protocol[:80]!r}{registry.nearest(protocol, PROTOCOLS)}", f"there are {known}"
        )
    words = [word.strip() for word in (text or "none").split(",")]
    kept = [word for word in words if word not in ("none", "beta-vae", PROTOCOLS[protocol])]
    return ",".join([*kept, PROTOCOLS[protocol]])


def evaluate(
    names: Sequence[str],
    codes: Codes,
    seed: int,
    advance: Callable[[str], None] = lambda name: None,
    *,
    lenient: bool = False,
) -> list[Result]:
    """Run metrics in turn; `advance` is called with each name as it is finished.

    Factors that do not vary in these rows are left out, with a notice. `lenient`: a metric whose library is not
    installed becomes a result with a problem (it came with `all`); else that is a ConfigError.
    """
    varying = codes.varying
    still = ", ".join(name for k, name in enumerate(codes.factor_names) if k not in varying)
    if still:
        output.notice(f"metrics leave out factors that are the same in all {len(codes):,} images: {still}")
        codes = codes.factors_only(varying) if varying else replace(codes, factors_NK=None, factor_names=())
    results = []
    for name in names:
        metric = registry.load("metric", name)
        problem = _problem(metric, codes, still)
        try:
            result = Result(name, None, problem=problem) if problem else _run(name, metric, codes, seed, still)
        except ConfigError as error:
            if not lenient:
                raise
            result = Result(name, None, problem=str(error))
        results.append(result)
        advance(name)
    return results


def _problem(metric: ModuleType, codes: Codes, still: str) -> str | None:
    """Why a metric cannot be computed on these codes; `still` names the factors that do not vary."""
    needs = getattr(metric, "NEEDS", ())
    if getattr(metric, "SEVERAL", False):
        return "it compares several models"
    if len(codes) < 2:
        return "one image is too few"
    if "factors" in needs and codes.factors_NK is None:
        return (
            "no factor varies in these images"
            if still
            else "it needs true factors, of which these images have none that is known for all"
        )
    if "logvar" in needs and codes.logvar_ND is None:
        return "it needs q(z|x), and this code has no distribution"
    if "logvar" in needs and not codes.posterior_D.any():
        return "it needs a q(z|x) that is a Gaussian with independent latents, which this model's is not"
    return None


def _run(name: str, metric: ModuleType, codes: Codes, seed: int, still: str) -> Result:
    if "logvar" in getattr(metric, "NEEDS", ()):
        codes = codes.latents_only(codes.posterior_D)
    with_factors = "factors" in getattr(metric, "NEEDS", ())
    score: Score = metric.score(codes, seed)
    active_D, active, notes = codes.active_D, None, list(score.notes)
    if not active_D.any():
        notes.append("No latent is active.")
    elif not active_D.all():
        active = metric.score(codes.latents_only(active_D), seed)
    else:
        active = score
    factors = 0 if codes.factors_NK is None else codes.factors_NK.shape[1]
    settings = {**score.settings, "seed": seed, "images": len(codes), "latents": codes.latents, "factors": factors}
    score = replace(score, settings=settings, notes=tuple(notes))
    chance, ceiling = getattr(metric, "CHANCE", None), getattr(metric, "CEILING", None)
    if with_factors and chance is None:
        chance = metric.score(_ignorant(codes, seed), seed).values
    if with_factors and ceiling is None:
        ceiling = metric.score(_omniscient(codes), seed).values
    return Result(name, score, active, chance, ceiling)


def _ignorant(codes: Codes, seed: int) -> Codes:
    """The same codes with the factors of other rows: they know nothing of the factors."""
    assert codes.factors_NK is not None
    order_N = np.random.default_rng([seed, len(codes)]).permutation(len(codes))
    return replace(codes, factors_NK=codes.factors_NK[order_N])


def _omniscient(codes: Codes) -> Codes:
    """The factors of the same rows as code, each with variance 1 and next to no noise."""
    factors_NK = codes.factors_NK
    assert factors_NK is not None
    mean_NK = (factors_NK - factors_NK.mean(axis=0)) / factors_NK.std(axis=0)
    return Codes(
        mean_NK, np.full_like(mean_NK, NARROW), factors_NK, codes.factor_names, codes.factor_names, "the factors"
    )


def _plain(value: Any) -> Any:
    """Numbers and lists of Python's own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value

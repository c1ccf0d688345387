"""The report: one HTML page with its pictures inside, from numbers alone; `vaecli.commands.report` gathers them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from vaecli.analysis.codes import Codes
from vaecli.analysis.metrics import Result
from vaecli.report import charts, explorer, factors, figures, profiles, sections, tables
from vaecli.report.control import Controlled, control
from vaecli.report.markup import Html, document, join, tag
from vaecli.report.section import Section
from vaecli.report.sections import History, Reconstructions, Traversal, Traversals

__all__ = ["Content", "History", "Reconstructions", "Traversal", "Traversals", "render"]


@dataclass(frozen=True)
class Content:
    """All that the page shows; what is None or empty is left out.

    `names` are the latents in index order, `latents` their records in the order of the table, `active` the indices of
    the active ones in the same order.
    """

    title: str
    subtitle: str
    step: int
    verdict: tuple[str, Sequence[str]]
    totals: Mapping[str, Any]
    names: Sequence[str]
    latents: Sequence[Mapping[str, Any]]
    active: Sequence[int]
    configuration: str
    standard_prior: bool = True
    mixture: bool = True  # whether q(z) is the mixture of what the codes describe
    likelihood: bool = True  # whether there is a reconstruction in nats
    levels: Sequence[str] = ()  # lines about codes, labels and noise
    history: History | None = None
    reconstructions: Reconstructions | None = None
    samples_NCHW: figures.Images | None = None
    samples_from: str | None = None  # what was drawn from or, without samples, why there are none
    traversals: Traversals | None = None
    exploration: explorer.Exploration | None = None
    exploration_from: str | None = None  # without an exploration: why
    codes: Codes | None = None
    value_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    units: Mapping[str, tuple[float, float, str]] = field(default_factory=dict)  # of a factor: first, last value, unit
    about_nll: str | None = None  # what the reconstruction is, where it is a density
    leak: Mapping[str, Any] | None = None  # `analysis.leak.table`
    diagnosis: Mapping[str, str] = field(default_factory=dict)
    results: Sequence[Result] = ()
    factors: Sequence[Mapping[str, Any]] = ()  # as `analysis.told` has them
    environment: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    computed: Mapping[str, Any] = field(default_factory=dict)
    control: Controlled | None = None


def _placed(shown: Sequence[Section]) -> list[Html]:
    """The sections, those of pictures side by side where there is room."""
    pictures = [part.html for part in shown if part.id in ("reconstructions", "resyntheses", "samples")]
    placed: list[Html] = []
    for part in shown:
        if part.html not in pictures:
            placed.append(part.html)
        elif part.html is pictures[0]:
            placed.append(tag("div", *pictures, class_="two"))
    return placed


def render(content: Content) -> str:
    """The page as text."""
    codes = content.codes if content.codes is not None and content.codes.varying else None
    varied = None if codes is None else codes.factors_only(codes.varying)
    order = [int(record["index"]) for record in content.latents]
    parts = [
        sections.traversals(content.traversals),
        sections.reconstructions(content.reconstructions),
        sections.samples(content.samples_NCHW, content.samples_from),
        explorer.part(content.exploration, content.exploration_from),
        tables.latent_table(content.latents, content.standard_prior, content.levels),
        tables.matrices(
            content.results,
            None if varied is None else profiles.explained(varied),
            content.names,
            () if varied is None else varied.factor_names,
            order,
            content.active,
            content.factors,
        ),
        tables.leaks(content.leak, content.latents),
        tables.metrics(content.results),
        tables.diagnosis(content.diagnosis),
        control(content.control),
        factors.profiles_of(varied, content.active, content.value_names, content.units),
        factors.marginals(content.codes if content.mixture else None, content.active, content.standard_prior),
        sections.training(content.history, content.names, content.step, content.likelihood),
        sections.provenance(content.configuration, content.environment, content.source, content.computed),
    ]
    shown = [part for part in parts if part is not None]
    header = tag(
        "header",
        tag("h1", content.title),
        tag("p", content.subtitle, class_="sub"),
        sections.verdict(*content.verdict),
        sections.key_numbers(content.totals, content.about_nll),
        tag("nav", *(tag("a", part.heading, href=f"#{part.id}") for part in shown), aria_label="sections"),
    )
    body = join([header, tag("main", *_placed(shown)), tag("footer", "Made by vae report.")])
    resources = files("vaecli.report")
    style = (resources / "page.css").read_text(encoding="utf-8") + charts.cell_style()
    script = (resources / "page.js").read_text(encoding="utf-8")
    if content.exploration is not None:
        style, script = style + explorer.style(), script + explorer.script()
    return document(content.title, body, style, script)

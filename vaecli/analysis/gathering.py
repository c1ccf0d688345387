"""The statistics of a model over a stream of images.

Everything accumulates in float64, batch by batch, so a data set of any size fits. All KL and likelihoods in nats.

Shapes: B batch, D latents (of a level, or of all of them side by side), V values of a label or codes of a codebook.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vaecli.analysis.statistics import JUDGED, Accuracy, LevelStatistics, Moments, Statistics, Usage
from vaecli.batch import Batch, DataInfo, at_once
from vaecli.errors import InputError
from vaecli.models.base import Inference, Level, Model, NoPrior
from vaecli.noise import ByImage, lot
from vaecli.objectives import distributions
from vaecli.objectives.likelihoods import Likelihood

BLANK_IMAGES = 2_000  # of all, whose mean image is held against the reconstructions, at most


def limited(batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """At most the first `images` images of a stream of batches."""
    for batch in batches:
        if images <= 0:
            return
        if len(batch.x_BCHW) > images:
            batch = batch.part(images)
        images -= len(batch.x_BCHW)
        yield batch


def latent_statistics(
    model: Model,
    batches: Iterable[Batch],
    hyper: Mapping[str, float],
    on_batch: Callable[[int], None] | None = None,
    *,
    seed: int = 0,
    draws: int = 1,
) -> Statistics:
    """Stream over images and gather `Statistics`; the model should be in evaluation mode.

    Reconstruction and rates are means over `draws` ancestral draws an image, whose noise is that of the image and
    `seed` (`noise.ByImage`): no number depends on the size of the batches. `on_batch` is told the number of images of
    each batch. InputError if there are no images.
    """
    gathered = [_Gathered(model, level) for level in model.inferred]
    recon, cost, bound, mse = (Moments() for _ in range(4))
    recons: list[Tensor] = []
    bounds: list[Tensor] = []
    some = _Some(at_once(model.info.shape, BLANK_IMAGES))
    n = 0
    with torch.inference_mode():
        for batch in batches:
            x_BCHW = batch.x_BCHW.to(model.device)
            some.add(x_BCHW, batch.index_B)
            n += len(x_BCHW)
            sums = _Sums()
            for draw in range(draws):
                with ByImage(seed, batch.index_B, draw) as noise:
                    found = model.infer(x_BCHW, sample=True)
                    rates = model.rates(found)
                    sums.add(rates, _nll(model, x_BCHW, found, hyper))
                if draw == 0:
                    first_draw = found
                if noise.calls == 0:
                    break  # nothing is drawn
            found, (rates, nll_B) = first_draw, sums.means()
            tables = _tables(model, x_BCHW, found)
            for level, part in zip(model.inferred, gathered, strict=True):
                part.add(batch, found, rates.get(level.name), *tables[level.name])
            costs = [rate.flatten(1).sum(dim=1) if rate.dim() > 1 else rate for rate in rates.values()]
            if costs:
                cost.add(sum(costs[1:], costs[0]))
            if nll_B is not None:
                recon.add(nll_B)
                recons.append(nll_B.cpu().double())
                if all(level.name in rates for level in model.levels):
                    bound.add(nll_B + sum(costs[1:], costs[0]))
                    bounds.append(-(nll_B + sum(costs[1:], costs[0])).cpu().double())
            elif gathered:
                y_BCHW = model.image(model.complete(model.infer(x_BCHW).values))
                mse.add((x_BCHW.cpu().double() - y_BCHW.cpu().double()).square().flatten(1).mean(dim=1))
            if on_batch is not None:
                on_batch(len(x_BCHW))
    if n == 0:
        raise InputError("there are no images to analyze")
    blank = _blank(model, some.images, hyper)
    levels = tuple(part.statistics() for part in gathered)
    mean_D, var_D = (_side_by_side([getattr(part, key) for part in levels]) for key in ("mean_D", "var_D"))
    assert mean_D is not None and var_D is not None
    return Statistics(
        n=n,
        mean_D=mean_D,
        var_D=var_D,
        sigma2_D=_side_by_side([part.sigma2_D for part in levels]),
        kl_D=_side_by_side([part.kl_D for part in levels]),
        recon=float(recon.mean) if recon.n else None,
        recon_error=float(recon.standard_error) if recon.n else None,
        elbo_error=float(bound.standard_error) if bound.n else None,
        levels=_with_importance(model, levels),
        noise=tuple(level for level in model.levels if not level.inferred),
        mse=float(mse.mean) if mse.n else None,
        mse_error=float(mse.standard_error) if mse.n else None,
        kl_error=float(cost.standard_error) if cost.n and not all(part.exact for part in levels) else None,
        blank=float(blank.mean) if blank.n else None,
        blank_error=float(blank.standard_error) if blank.n else None,
        recon_N=torch.cat(recons) if recons else None,
        elbo_N=torch.cat(bounds) if bounds else None,
    )


def _nll(model: Model, x_BCHW: Tensor, found: Inference, hyper: Mapping[str, float]) -> Tensor | None:
    """-log p(x|z) of what was drawn, (B,); None without a likelihood."""
    if not model.has_likelihood:
        return None
    log_prob_B = model.log_prob(x_BCHW, model.complete(found.values), hyper)
    assert log_prob_B is not None
    return -log_prob_B


class _Sums:
    """Rates and -log p(x|z) of several draws of a batch, and their means."""

    def __init__(self) -> None:
        self.n = 0
        self.rates: dict[str, Tensor] = {}
        self.nll_B: Tensor | None = None

    def add(self, rates: Mapping[str, Tensor], nll_B: Tensor | None) -> None:
        self.n += 1
        for name, rate in rates.items():
            self.rates[name] = rate + self.rates[name] if name in self.rates else rate
        if nll_B is not None:
            self.nll_B = nll_B if self.nll_B is None else self.nll_B + nll_B

    def means(self) -> tuple[dict[str, Tensor], Tensor | None]:
        means = {name: rate / self.n if self.n > 1 else rate for name, rate in self.rates.items()}
        return means, None if self.nll_B is None else self.nll_B / self.n


class _Some:
    """At most `most` of the images that pass, drawn from all of them alike: where they are in order, the first are of
    few kinds."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.lots = torch.zeros(0, dtype=torch.float64)
        self.images: Tensor | None = None  # (at most `most`, C, H, W)

    def add(self, x_BCHW: Tensor, index_B: Tensor) -> None:
        lots_B = lot(index_B, "some images")
        if self.images is None or len(self.images) < self.most:
            self.images = x_BCHW if self.images is None else torch.cat([self.images, x_BCHW])
            self.lots = torch.cat([self.lots, lots_B])
        elif bool((drawn_B := lots_B < self.lots.max()).any()):  # rarely, after the first
            self.images = torch.cat([self.images, x_BCHW[drawn_B.to(x_BCHW.device)]])
            self.lots = torch.cat([self.lots, lots_B[drawn_B]])
        if len(self.images) > self.most:
            kept = self.lots.topk(self.most, largest=False, sorted=False).indices
            self.images, self.lots = self.images[kept.to(self.images.device)], self.lots[kept]


def _blank(model: Model, images_NCHW: Tensor | None, hyper: Mapping[str, float]) -> Moments:
    """-log p of images under their mean image, whatever the latents: what a decoder that knows nothing can come to."""
    found, likelihood = Moments(), getattr(model, "likelihood", None)
    if isinstance(likelihood, Likelihood) and model.has_likelihood and images_NCHW is not None:
        with torch.inference_mode():
            out_CHW = likelihood.raw(images_NCHW.mean(dim=0))
            for x_BCHW in torch.split(images_NCHW, 256):
                found.add(-likelihood.log_prob(x_BCHW, out_CHW.expand(len(x_BCHW), *out_CHW.shape), hyper))
    return found


def _side_by_side(vectors: Sequence[Tensor | None]) -> Tensor | None:
    known = [v for v in vectors if v is not None]
    if len(known) < len(vectors):
        return None
    return torch.cat(known) if known else torch.zeros(0, dtype=torch.float64)


def _tables(model: Model, x_BCHW: Tensor, found: Inference) -> dict[str, tuple[Tensor, Tensor | None]]:
    """(mean, variance) of each level as float64 tables, a function of the image alone: of one level they are those of
    the posterior just drawn from, of several those given the modes above."""
    if len(model.inferred) > 1:
        found = model.infer(x_BCHW)
    tables: dict[str, tuple[Tensor, Tensor | None]] = {}
    for level in model.inferred:
        q = found.posteriors[level.name]
        if level.kind == "codes":
            tables[level.name] = found.values[level.name].flatten(1).cpu().double(), None
            continue
        mean, variance = distributions.moments(q)
        if isinstance(q, distributions.Gaussian):
            variance_BD: Tensor | None = q.logvar.flatten(1).cpu().double().exp()
        else:
            variance_BD = None if variance is None else variance.flatten(1).cpu().double()
        tables[level.name] = mean.flatten(1).cpu().double(), variance_BD
    return tables


class _Gathered:
    """What is gathered of one level, batch by batch."""

    def __init__(self, model: Model, level: Level) -> None:
        self.model, self.level = model, level
        self.mean, self.sigma2, self.kl, self.rate, self.prior = (Moments() for _ in range(5))
        self.exact = self.exact_moments = self.normal = True
        self.counts_DV: Tensor | None = None
        self.factors = label_factors(level, model.info)
        self.hits = [Moments() for _ in self.factors]

    def add(
        self, batch: Batch, found: Inference, rate: Tensor | None, mean_BD: Tensor, variance_BD: Tensor | None
    ) -> None:
        level, q = self.level, found.posteriors[self.level.name]
        self.exact_moments = distributions.exact_moments(q)
        self.normal = distributions.independent_normal(q)
        self.mean.add(mean_BD)
        if variance_BD is not None:
            self.sigma2.add(variance_BD)
        if rate is not None and rate.dim() > 1 and level.kind == "gaussian":
            self.kl.add(rate.flatten(1))
        elif rate is not None:
            self.rate.add(rate.flatten(1).sum(dim=1) if rate.dim() > 1 else rate)
            self.exact = rate.dim() > 1 or (not self._upwards() and self._closed(found))
        if level.kind in JUDGED and not self.kl.n:
            self._add_prior(found)
        if level.kind == "codes":
            self._add_codes(found.values[level.name])
        if level.kind == "labels" and batch.truth_BK is not None:
            self._add_labels(mean_BD, batch.truth_BK.cpu())

    def _upwards(self) -> bool:
        """Whether a level above is inferred from this one, so that its rate is no divergence to its prior."""
        order = list(self.model.inference_order())
        names = [level.name for level in self.model.levels]
        above = [name for name in names[: names.index(self.level.name)] if name in order]
        return any(order.index(name) > order.index(self.level.name) for name in above)

    def _closed(self, found: Inference) -> bool:
        p = self.model.p(self.level.name, found.values, len(found.values[self.level.name]))
        return distributions.exact_kl(found.posteriors[self.level.name], p)

    def _add_prior(self, found: Inference) -> None:
        try:
            p = self.model.p(self.level.name, self.model.complete(found.values), len(found.values[self.level.name]))
        except NoPrior:
            return
        if distributions.exact_moments(p) and (variance := distributions.moments(p)[1]) is not None:
            self.prior.add(variance.flatten(1))

    def _add_codes(self, index: Tensor) -> None:
        index_BD, codes = index.flatten(1).cpu(), self.level.sizes[0]
        if self.counts_DV is None:
            self.counts_DV = torch.zeros(index_BD.shape[1], codes, dtype=torch.int64)
        self.counts_DV.scatter_add_(1, index_BD.T.contiguous(), torch.ones_like(index_BD.T))

    def _add_labels(self, mean_BD: Tensor, truth_BK: Tensor) -> None:
        blocks = torch.split(mean_BD, list(self.level.sizes), dim=1)
        for block_BV, factor, hits in zip(blocks, self.factors, self.hits, strict=True):
            if factor is not None:
                known_B = truth_BK[:, factor] >= 0
                hits.add((block_BV.argmax(dim=1) == truth_BK[:, factor])[known_B].double())

    def statistics(self) -> LevelStatistics:
        names = self.model.info.factor_names
        sampled = self.rate if self.rate.n else None
        return LevelStatistics(
            self.level,
            self.mean.mean,
            self.mean.variance,
            self.sigma2.mean if self.sigma2.n else None,
            self.kl.mean if self.kl.n else None,
            None if sampled is None else float(sampled.mean),
            None if sampled is None else float(sampled.standard_error),
            self.exact,
            self.exact_moments,
            self.normal,
            self.mean.variance / self.prior.mean if self.prior.n else None,
            None if self.counts_DV is None else usage(self.counts_DV),
            tuple(
                Accuracy(names[factor], float(hits.mean), float(hits.standard_error), hits.n)
                for factor, hits in zip(self.factors, self.hits, strict=True)
                if factor is not None and hits.n
            ),
        )


def usage(counts_DV: Tensor) -> Usage:
    """From how often each of V codes stands at each of D positions."""
    perplexity_D = _perplexity(counts_DV)
    pooled_V = counts_DV.sum(dim=0)
    # Exactly 1 where a position has one code: logarithms would leave a rounding error.
    perplexity_D = torch.where((counts_DV > 0).sum(dim=1) == 1, torch.ones_like(perplexity_D), perplexity_D)
    dead = float((pooled_V == 0).double().mean())
    return Usage(counts_DV.shape[1], float(_perplexity(pooled_V[None])[0]), dead, perplexity_D)


def _perplexity(counts_DV: Tensor) -> Tensor:
    share_DV = counts_DV.double() / counts_DV.sum(dim=1, keepdim=True)
    return torch.exp(-torch.special.xlogy(share_DV, share_DV).sum(dim=1))


def label_factors(level: Level, info: DataInfo) -> list[int | None]:
    """The factor of the data that each block of labels stands for, None where it cannot be told: the one that bears
    the level's name, or those of the blocks' sizes in this order, if but one choice of factors fits."""
    if level.kind != "labels":
        return []
    sizes, known = list(level.sizes), list(info.factor_sizes)
    if len(sizes) == 1 and level.name in info.factor_names:
        named = list(info.factor_names).index(level.name)
        return [named] if known[named] == sizes[0] else [None]
    if sizes == known:
        return list(range(len(known)))
    fits = _choices(sizes, known, 0)
    return list(fits[0]) if len(fits) == 1 else [None] * len(sizes)


def _choices(sizes: Sequence[int], known: Sequence[int], start: int) -> list[tuple[int, ...]]:
    """Up to two ways to find the sizes in order among the known ones."""
    if not sizes:
        return [()]
    found: list[tuple[int, ...]] = []
    for k in range(start, len(known)):
        if known[k] == sizes[0]:
            found += [(k, *rest) for rest in _choices(sizes[1:], known, k + 1)]
        if len(found) > 1:
            break
    return found[:2]


def _with_importance(model: Model, levels: tuple[LevelStatistics, ...]) -> tuple[LevelStatistics, ...]:
    """With the model's own importance of its latents, if it has one: `importance()` gives (D,) over all inferred."""
    own = getattr(model, "importance", None)
    if own is None:
        return levels
    parts = torch.split(torch.as_tensor(own()).detach().cpu().double(), [len(part.mean_D) for part in levels])
    return tuple(replace(part, importance_D=values) for part, values in zip(levels, parts, strict=True))

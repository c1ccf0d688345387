"""The training objective on held-out images."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vaecli import noise
from vaecli.batch import Batch, Split, at_once
from vaecli.config import RunConfig
from vaecli.models.base import Model, Player, total
from vaecli.noise import ByImage
from vaecli.training.state import TrainState
from vaecli.training.stop import Stop

BATCH = 256
SEED = 0  # of the noise: what `analyze` takes unless told another


def evaluate(model: Model, split: Split, config: RunConfig, state: TrainState, stop: Stop) -> dict[str, Any] | None:
    """The objective of every player of the stage, in evaluation mode, averaged over the held-out images; `kl_j` per
    latent and `rates` per level.

    The noise is that of the images (`noise.ByImage`), several draws where they are few: the same at every evaluation,
    in every run and in `analyze`, whatever the batches. A model whose terms depend on the batch is evaluated on whole
    batches of the training size (`batch_size` in the record). None if a signal asked to stop on the way.
    """
    model.eval()
    hyper = model.hyper(state.step - state.stage.start)
    playing = [player for player, _ in state.playing()]
    size = config.train.batch_size
    if not model.batch_dependent:
        size = max(at_once(model.info.shape, BATCH), size)
    draws = noise.draws(min(len(split), config.train.eval_images))
    sums: dict[str, float] = {}
    kl_D: Tensor | None = None
    seen = 0
    with torch.no_grad():  # not inference mode: a loss may take gradients of its own inside
        for batch in split.batches(size):
            if stop.signal is not None:
                return None
            batch = batch.part(config.train.eval_images - seen).to(model.device)
            n = len(batch.x_BCHW)
            if model.batch_dependent and n < size and seen > 0:
                break  # not a whole one
            for name, value in _terms(model, playing, batch, hyper, draws, stop).items():
                sums[name] = sums.get(name, 0.0) + value * n
            with ByImage(SEED, batch.index_B):
                per_latent, rates = _rates(model, batch)
            for name, value in rates.items():
                sums[f"rate.{name}"] = sums.get(f"rate.{name}", 0.0) + value * n
            if per_latent is not None:
                kl_D = per_latent if kl_D is None else kl_D + per_latent
            seen += n
            if seen >= config.train.eval_images:
                break
    if stop.signal is not None:  # the last batch may have been cut short
        return None
    record: dict[str, Any] = {name: value / seen for name, value in sums.items()}
    record = {name: value if math.isfinite(value) else None for name, value in record.items()}
    if kl_D is not None:
        record["kl_j"] = [round(v, 6) if math.isfinite(v) else None for v in (kl_D / seen).tolist()]
    if model.batch_dependent:
        record["batch_size"] = min(size, seen)
    return {**record, "images": seen}


def _terms(
    model: Model, playing: list[Player], batch: Batch, hyper: Mapping[str, float], draws: int, stop: Stop
) -> dict[str, float]:
    """The logged scalars of every player's objective, means over the draws."""
    sums: dict[str, float] = {}
    done = 0
    for draw in range(draws):
        with ByImage(SEED, batch.index_B, draw) as drawn:
            for player in playing:
                prefix = "" if player is playing[0] else f"{player.name}."
                for name, value in total(model.loss(_for(player, batch), hyper, player.name))[1].items():
                    if not name.endswith(".weight"):  # which are in the records of training
                        sums[prefix + name] = sums.get(prefix + name, 0.0) + float(value)
        done += 1
        if drawn.calls == 0 or stop.signal is not None:
            break  # nothing is drawn, or nobody waits for it
    return {name: value / done for name, value in sums.items()}


def _for(player: Player, batch: Batch) -> Batch:
    """The batch with as many others as the player reads; here they are the same images dealt anew."""
    others = []
    for _ in range(player.batches - 1):
        index = torch.randperm(len(batch.x_BCHW)).to(batch.x_BCHW.device)

        def dealt(t: Tensor | None, index: Tensor = index) -> Tensor | None:
            return None if t is None else t.index_select(0, index.to(t.device))

        x_BCHW, index_B = (
            batch.x_BCHW.index_select(0, index),
            batch.index_B.index_select(0, index.to(batch.index_B.device)),
        )
        others.append(Batch(x_BCHW, index_B, dealt(batch.labels_BK), dealt(batch.truth_BK)))
    return Batch(batch.x_BCHW, batch.index_B, batch.labels_BK, batch.truth_BK, tuple(others))


def _rates(model: Model, batch: Batch) -> tuple[Tensor | None, dict[str, float]]:
    """Sums over images of the KL of every latent, float64 (D,), where each has one, and means of each level's rate,
    where there are several levels or no KL of every latent."""
    if model.standard_prior:
        kl_BD = model.posterior(batch.x_BCHW).kl_BD
        if kl_BD is not None:
            return kl_BD.double().sum(dim=0).cpu(), {}
    rates = model.rates(model.infer(batch.x_BCHW, sample=True))
    means = {name: float(r.flatten(1).sum(dim=1).mean() if r.dim() > 1 else r.mean()) for name, r in rates.items()}
    every = [rates.get(level.name) for level in model.inferred if level.kind == "gaussian"]
    if not every or len(every) < len(model.inferred) or any(r is None or r.dim() < 2 for r in every):
        return None, means
    flat = torch.cat([r.flatten(1) for r in every if r is not None], dim=1)
    return flat.double().sum(dim=0).cpu(), means

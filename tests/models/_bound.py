"""What several toys minimise: minus the ELBO along one ancestral draw, from the distributions alone."""

from torch import Tensor

from vaecli.batch import Batch
from vaecli.models.base import Hyper, Model, Term


def bound(model: Model, batch: Batch, hyper: Hyper) -> dict[str, Term]:
    found = model.infer(batch.x_BCHW, sample=True)
    log_prob = model.log_prob(batch.x_BCHW, model.complete(found.values), hyper)
    assert log_prob is not None
    rates: list[Tensor] = [
        rate.flatten(1).sum(dim=1) if rate.dim() > 1 else rate for rate in model.rates(found).values()
    ]
    kl = sum(rates[1:], rates[0])
    return {"recon": Term(-log_prob), "kl": Term(kl), "elbo": Term(log_prob - kl, None)}

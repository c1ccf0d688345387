"""The measures of control, on a model whose every answer is known (tests/known/painter.py)."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vaecli import data, registry
from vaecli.analysis import control, draws, intervention, labelled, probes, readers
from vaecli.analysis.transitivity import transitivity
from vaecli.batch import DataInfo
from vaecli.data._drawn import Channels
from vaecli.data.base import Bits, Dataset, Floats, grid_labels
from vaecli.data.squares import Config as Squares
from vaecli.models.base import Model, NoLabels

SQUARES = data.load(Squares(name="squares"))
IMAGES = 600


def painter(slip: float = 0.0) -> Model:
    module = registry.load("model", "painter")
    found: Model = module.Model(module.Config(name="painter", slip=slip), SQUARES.info).eval().requires_grad_(False)
    return found


def subject(slip: float = 0.0, dataset: Dataset = SQUARES) -> control.Subject:
    return control.Subject(labelled.OfModel(painter(slip)), readers.templates(dataset), dataset, 3, IMAGES)


pytestmark = pytest.mark.usefixtures("known_models")


# ---- control


def test_a_model_that_obeys() -> None:
    found = control.control_accuracy(subject())
    assert [r["factor"] for r in found] == ["size", "posX"]
    for record, size in zip(found, (3, 13), strict=True):
        assert (record["share"], record["error"], record["own"]) == (1.0, 0.0, 1.0)
        assert record["chance"] == pytest.approx(1 / size)
        assert record["images"] == size * round(IMAGES / size)


def test_a_model_that_slips_as_often_as_it_is_told() -> None:
    """The share is that of the draws whose latent w lies in the upper quantiles."""
    one = subject(slip=0.3)
    size, column = control.control_accuracy(one)
    labels_BL = torch.stack([torch.arange(600) % 3, torch.full((600,), -1)], dim=1)
    drawn = one.draw(labels_BL, "control accuracy", "size")["z0"]
    eps = (drawn[:, 17] - labels_BL[:, 0]) / 0.5
    slipped = 0.5 * (1 + torch.erf(eps / math.sqrt(2))) > 0.7
    assert size["share"] == pytest.approx(1 - float(slipped.double().mean()), abs=1e-12)
    assert abs(size["share"] - 0.7) < 4 * size["error"] and column["share"] == 1.0
    assert size["error"] == pytest.approx(math.sqrt(size["share"] * (1 - size["share"]) / 600))
    assert size["own"] == size["share"]  # its own reading is of the image, too


def test_what_each_level_changes() -> None:
    matrix = control.intervention_matrix(subject())
    found = {(r["level"], r["set"]): r["changes"] for r in matrix}
    assert list(found) == [("y", "size"), ("y", "posX"), ("u", None), ("z0", None), ("z1", None)]
    assert found["y", "size"] == {"size": 1.0, "posX": 0.0, "posY": 0.0}
    assert found["y", "posX"] == {"size": 0.0, "posX": 1.0, "posY": 0.0}
    # Another u says another size twice in three times, another column twelve times in thirteen; the row's noise stays.
    for level, expected in (("u", (2 / 3, 12 / 13, 0.0)), ("z0", (0.0, 0.0, 12 / 13)), ("z1", (0.0, 0.0, 0.0))):
        for factor, share in zip(("size", "posX", "posY"), expected, strict=True):
            error = math.sqrt(share * (1 - share) / IMAGES)
            assert abs(found[level, None][factor] - share) <= 4 * error, (level, factor)
    flips = control.flip_rates(matrix, ("size", "posX"))
    assert flips["y"] == 1.0 and flips["z0"] == flips["z1"] == 0.0
    assert flips["u"] == pytest.approx((found["u", None]["size"] + found["u", None]["posX"]) / 2)


def test_slips_are_seen_in_the_matrix() -> None:
    """w keeps its noise when the label changes, so that a slip stays a slip; another z0 slips or not anew."""
    matrix = control.intervention_matrix(subject(slip=0.3))
    found = {(r["level"], r["set"]): r["changes"] for r in matrix}
    assert found["y", "size"]["size"] == 1.0
    assert abs(found["z0", None]["size"] - 2 * 0.3 * 0.7) < 4 * math.sqrt(0.42 * 0.58 / IMAGES)


def test_another_value_is_another() -> None:
    rng = np.random.default_rng(0)
    labels_BL = torch.stack([torch.arange(3000) % 3, torch.arange(3000) % 13], dim=1)
    for k, size in enumerate((3, 13)):
        other = control._another(subject(), k, labels_BL, rng)
        assert not bool((other == labels_BL[:, k]).any()) and set(other.tolist()) == set(range(size))
        counts = torch.bincount((other - labels_BL[:, k]) % size, minlength=size)[1:].double()
        assert float((counts / 3000 - 1 / (size - 1)).abs().max()) < 0.04


# ---- combinations


def test_combinations_never_seen() -> None:
    dataset = data.load(Squares(name="squares", exclude={"size": 2, "posX": "0-5"}))
    one = subject(slip=0.25, dataset=dataset)
    found = control.combination_accuracy(one)
    assert found is not None and set(found) == {"seen", "excluded"}
    for part in found.values():
        assert part["factors"]["posX"]["share"] == 1.0
        assert part["all"]["share"] == part["factors"]["size"]["share"]
        assert abs(part["all"]["share"] - 0.75) < 4 * part["all"]["error"]
        assert part["chance"] == pytest.approx(1 / 39)


def test_what_was_seen_with_another_factor_is_no_new_combination() -> None:
    """Excluded rows of the picture: the labels of size and column have been seen together."""
    dataset = data.load(Squares(name="squares", exclude={"size": 2, "posY": "0-5"}))
    found = control.combination_accuracy(subject(dataset=dataset))
    assert found is not None and set(found) == {"seen"}


# ---- posterior and prior


def kl(q: tuple[float, float], p: tuple[float, float]) -> float:
    """KL of normals given by mean and variance."""
    return 0.5 * (math.log(p[1] / q[1]) + (q[1] + (q[0] - p[0]) ** 2) / p[1] - 1)


def test_the_prior_gap_is_the_divergence_from_the_prior_of_the_true_labels() -> None:
    view = SQUARES.split("all")
    z0, z1 = control.prior_gap(subject(), view)
    narrow, row = math.exp(-8), torch.special.ndtri((torch.arange(13).double() + 0.5) / 13).tolist()
    rows = float(np.mean([kl((mean, narrow), (0, 1)) for mean in row]))
    expected = 16 * kl((0, narrow), (0, 1e-4)) + rows + kl((0, narrow), (0, 0.25))
    assert z0["level"] == "z0" and z0["kl"] == pytest.approx(expected, abs=2e-3) and z0["images"] == 507
    sizes = float(np.mean([kl((mean, narrow), (0, 1)) for mean in (0, 1, 2)]))
    standard = 2 * kl((1, narrow), (0, 1)) + 14 * kl((0, narrow), (0, 1)) + rows + sizes
    assert z0["kl_standard"] == pytest.approx(standard, abs=2e-3)
    assert z0["auc"] > 0.8  # the posterior of w is a point, its prior is wide
    assert z1["level"] == "z1" and math.isfinite(z1["kl"])


def test_where_posterior_and_prior_agree_nothing_tells_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    one = subject()
    model, q = one.model, one.model.q

    def prior(level: str, features: Tensor, given: dict[str, Tensor]) -> object:
        return model.p(level, given, len(features)) if level in ("z0", "z1") else q(level, features, given)

    monkeypatch.setattr(type(model), "q", lambda self, *args: prior(*args))
    for record in control.prior_gap(one, SQUARES.split("all")):
        assert record["kl"] == pytest.approx(0, abs=1e-6) and abs(record["auc"] - 0.5) < 5 * record["auc_error"]


def test_labels_read_and_decoded() -> None:
    found = control.label_accuracy(subject(), SQUARES.split("all"))
    for record, size in zip(found, (3, 13), strict=True):
        assert record["q"]["share"] == record["p"]["share"] == 1.0 and record["q"]["images"] == 507
        shared = record["transitivity"]
        for part in ("a_b", "a_y", "y_b", "y"):
            assert shared[part] == pytest.approx(math.log(size), abs=1e-9)
        assert shared["slack"] == pytest.approx(0, abs=1e-9)


def test_transitivity_holds_for_any_counts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = rng.integers(1, 5, 3)[:, None]
        a, b, y = torch.from_numpy(rng.integers(0, sizes, (3, int(rng.integers(2, 60)))))
        found = transitivity(a, b, y)
        assert found.slack >= -1e-9
        assert found.slack == pytest.approx(found.a_b - found.a_y - found.y_b + found.y)


def test_information_by_hand() -> None:
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    expected = 0.25 * math.log(0.25 / (0.5 * 0.25)) + 0.25 * math.log(0.25 / (0.5 * 0.75)) + 0.5 * math.log(0.5 / 0.375)
    assert transitivity(a, b, b).a_b == pytest.approx(expected, abs=1e-12)
    independent = transitivity(a, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0]))
    assert independent.a_b == pytest.approx(0, abs=1e-12) and independent.slack == pytest.approx(math.log(2))


# ---- traversals of the prior


def test_latents_go_by_the_deviation_of_their_prior() -> None:
    one = subject()
    labels_L = torch.tensor([2, 5])
    order = control.deviating(one, labels_L, one.model.level("z0"))
    assert order[:2] == [16, 17] and sorted(order[2:]) == list(range(16))
    along = control.around(one, labels_L, one.model.level("z0"), 16)
    np.testing.assert_allclose(along["z0"][:, 16], np.linspace(-3, 3, 11), atol=1e-6)
    np.testing.assert_allclose(along["z0"][:, 17], 2.0)
    along = control.around(one, labels_L, one.model.level("z0"), 17)
    np.testing.assert_allclose(along["z0"][:, 17], 2 + 0.5 * np.linspace(-3, 3, 11), atol=1e-6)
    assert one.model.image(along).flatten(1).std(dim=0).max() == 0


def test_smoothness_and_what_is_kept() -> None:
    z0, z1 = control.prior_traversals(subject())
    assert z0["kept"] == z1["kept"] == {"size": 1.0, "posX": 1.0}
    # Of five latents of z0 only the row's moves anything: it goes down through the image in rows of whole pixels.
    assert z0["moving"] == pytest.approx(1 / 5) and z0["straight"] == pytest.approx(0.1)
    tops = (13 * 0.5 * (1 + torch.erf(torch.linspace(-3, 3, 11) / math.sqrt(2)))).long().clamp(0, 12)
    ratios = []
    for side in control._centres(subject())[:, 0] + 2:
        place = torch.arange(16)
        on = ((place >= tops[:, None]) & (place < tops[:, None] + side)).double()
        ratios.append(float((on[1:] - on[:-1]).abs().mean() / (on[-1] - on[0]).abs().mean()))
    # z1 stands at the row's value, so that the shade, a fifth at most, changes along the way as well.
    assert z0["smoothness"] == pytest.approx(np.mean(ratios), abs=0.05)
    # The shade goes from 1 - 0.2 sigmoid(-3) to 1 - 0.2 sigmoid(3) without turning back: ten equal shares.
    assert z1["moving"] == pytest.approx(1 / 2) and z1["smoothness"] == pytest.approx(0.1, abs=1e-6)


def test_a_label_that_is_lost_along_the_way() -> None:
    """From 3 standard deviations down to 3 up in w: the upper 30 % are at more than 0.52 of them."""
    z0 = control.prior_traversals(subject(slip=0.3))[0]
    lost = sum(sd > 0.5245 for sd in np.linspace(-3, 3, 11)) / 11
    assert z0["kept"]["posX"] == 1.0 and z0["kept"]["size"] == pytest.approx(1 - lost / 5)


# ---- probes


def test_a_linear_probe_and_one_that_bends() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 3, generator=g).double()
    straight, bent = (z[:, 0] > 0).long(), ((z[:, 0] > 0) ^ (z[:, 1] > 0)).long()
    assert probes.classifier(z, straight) > 0.98
    assert 0.4 < probes.classifier(z, bent) < 0.62
    assert probes.classifier(z, bent, hidden=64) > 0.93
    assert probes.classifier(z, bent, hidden=64) == probes.classifier(z, bent, hidden=64)


# ---- interventions


def test_noise_is_recovered_and_used_again() -> None:
    model, x = painter(), SQUARES.split("all").take(507).x_BCHW
    old = intervention.of_image(model, x)
    new = intervention.apply(model, old, intervention.Change({0: 2}))
    assert labelled.labels_of(model, new)[:, 0].eq(2).all()
    assert torch.equal(labelled.labels_of(model, new)[:, 1], labelled.labels_of(model, old)[:, 1])
    priors = [model.p("z0", values, 507) for values in (old, new)]
    before, after = ((v["z0"] - p.mean) / p.stddev for v, p in zip((old, new), priors, strict=True))
    np.testing.assert_allclose(after, before, atol=2e-3)
    read = readers.templates(SQUARES).predict(model.image(new))
    assert SQUARES.labels is not None
    assert read[:, 0].eq(2).all() and torch.equal(read[:, 1:], SQUARES.labels[:, 1:])
    same = intervention.apply(model, old, intervention.Change())
    assert all(torch.equal(same[name], old[name]) for name in old)


def test_what_is_kept_stays() -> None:
    model, x = painter(), SQUARES.split("all").take(20).x_BCHW
    old = intervention.of_image(model, x)
    row = {("z0", 16): 2.0}
    follows = intervention.apply(model, old, intervention.Change({}, row))
    kept = intervention.apply(model, old, intervention.Change({}, row, keep=["z1"]))
    np.testing.assert_allclose(follows["z1"] - follows["z0"][:, 16:17], old["z1"] - old["z0"][:, 16:17], atol=1e-5)
    assert torch.equal(kept["z1"], old["z1"]) and torch.equal(kept["y"], old["y"])
    assert float((kept["z0"][:, 16] - 2).abs().max()) < 1e-6


def test_labels_below_what_is_set_follow() -> None:
    model = painter()
    values = intervention.generated(model, torch.zeros(4, 2, dtype=torch.int64), 1)
    change = intervention.Change({}, {("u", 0): -3.0, ("u", 2): 5.0})
    new = intervention.apply(model, values, change)
    assert labelled.labels_of(model, new).tolist() == [[2, 0]] * 4


# ---- readers and samplers


def test_the_nearest_template_is_found_by_bounds_as_by_comparing_all() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = (torch.rand(7, 8, 8, generator=g) < 0.4) * torch.tensor(255, dtype=torch.uint8)
    even = torch.cat([torch.zeros(1, 8, 8, dtype=torch.uint8), shapes, shapes // 3, shapes // 5])
    uneven = torch.randint(256, (22, 8, 8), generator=g).to(torch.uint8)
    for table in (even, uneven):
        store = Channels(table, grid_labels((22, 22, 22)).int())
        info = DataInfo("drawn", (3, 8, 8), 9, ("r", "g", "b"), (22, 22, 22))
        dataset = Dataset(info, store, grid_labels((22, 22, 22)), {})
        x = torch.rand(20, 3, 8, 8, generator=g)
        everything = store.gather(torch.arange(22**3))
        expected = torch.cdist(x.flatten(1).double(), everything.flatten(1).double()).argmin(dim=1)
        assert torch.equal(readers.templates(dataset).predict(x), grid_labels((22, 22, 22))[expected])
    images = (torch.rand(40 * 50, 1, 16, 16, generator=g) < 0.5).float()
    for store in (Bits.pack(images.numpy()), Floats(images)):
        info = DataInfo("grid", (1, 16, 16), 9, ("a", "b"), (40, 50), isinstance(store, Bits))
        dataset = Dataset(info, store, grid_labels((40, 50)), {})
        found = readers.templates(dataset)
        x = (images[:100] + 0.6 * torch.randn(100, 1, 16, 16, generator=g)).clamp(0, 1)
        expected = torch.cdist(x.flatten(1).double(), images.flatten(1).double()).argmin(dim=1)
        assert torch.equal(found.predict(x), grid_labels((40, 50))[expected])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xyobject", "xysquares", "dsprites"])
def test_drawn_sets_are_read_exactly(name: str) -> None:
    dataset = data.load(registry.load("dataset", name).Config(name=name))
    found = readers.reader(dataset)
    assert isinstance(found, readers.Templates) and set(found.accuracy.values()) == {1.0}
    turns = {factor: same[-1] == 0 for factor, same in zip(found.factors, found.same, strict=True)}
    assert [factor for factor, full in turns.items() if full] == (["orientation"] if name == "dsprites" else [])


def test_values_that_give_the_same_images_are_one() -> None:
    labels = grid_labels((2, 5))
    images = torch.stack([labels[:, 0], labels[:, 1] % 4], dim=1).float().div(4).view(10, 1, 1, 2)
    info = DataInfo("turn", (1, 1, 2), 9, ("kind", "turn"), (2, 5))
    found = readers.templates(Dataset(info, Floats(images), labels, {}))
    assert [same.tolist() for same in found.same] == [[0, 1], [0, 1, 2, 3, 0]]
    assert set(found.accuracy.values()) == {1.0}
    asked = torch.tensor([[1, 4], [-1, 2], [0, -1]])
    assert readers.canonical(found, asked, ["kind", "turn"]).tolist() == [[1, 0], [-1, 2], [0, -1]]
    assert readers.canonical(None, asked, ["kind", "turn"]) is asked


def test_a_model_without_labels_has_nothing_to_ask_for() -> None:
    from vaecli import models
    from vaecli.models.vae import Config

    model = models.build(Config(name="vae", latent_dim=2), SQUARES.info)
    with pytest.raises(NoLabels, match="vae has no labels to ask for"):
        labelled.sampler(draws.Source(model))


class ByClass:
    """A density that draws the label itself."""

    factors = ("size",)

    def sample_labelled(self, labels_BK: Tensor) -> Tensor:
        return labels_BK.float().repeat(1, 2)

    def text(self) -> str:
        return "a Gaussian a class"


def test_a_density_of_each_label_is_asked_as_a_model_is() -> None:
    from vaecli import models
    from vaecli.models.vae import Config

    model = models.build(Config(name="vae", latent_dim=2), SQUARES.info).eval()
    found = labelled.sampler(draws.Source(model, ByClass()))  # type: ignore[arg-type]
    assert (found.factors, found.text) == (("size",), "a Gaussian a class")
    assert found.draw(torch.tensor([[2], [0]]))["z"].tolist() == [[2.0, 2.0], [0.0, 0.0]]
    one = control.Subject(found, readers.templates(SQUARES), SQUARES, 0, 30)
    assert control.control_accuracy(one)[0]["own"] is None
    assert control.intervention_matrix(one) == control.label_accuracy(one, SQUARES.split("val")) == []
    (gap,) = control.prior_gap(one, SQUARES.split("all"))
    assert gap["kl"] is None and gap["auc"] > 0.5


def test_mixing_takes_levels_as_they_are() -> None:
    model = painter()
    x = SQUARES.images.gather(torch.tensor([(0 * 13 + 4) * 13 + 7, (2 * 13 + 9) * 13 + 1]))
    values = intervention.of_image(model, x)
    one, other = ({name: v[i : i + 1] for name, v in values.items()} for i in (0, 1))
    reader = readers.templates(SQUARES)

    def read(take: list[str]) -> list[int]:
        found: list[int] = reader.predict(model.image(intervention.mixed(model, one, other, take)))[0].tolist()
        return found

    assert read([]) == [0, 4, 7] and read(["z1"]) == [0, 4, 7]
    assert read(["z0"]) == [2, 9, 1]  # of which the image is
    assert read(["u"]) == [0, 4, 7]  # what is below is the row's own
    assert read(["y"]) == [2, 9, 7]  # the labels of the other, at the row of the one
    assert read(["u", "y"]) == [2, 9, 7] and read(["y", "z0"]) == [2, 9, 1]

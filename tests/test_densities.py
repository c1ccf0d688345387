"""Densities on codes: fits against closed forms, draws against what was fitted, and the command that stores them."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result

from vaecli import densities, registry
from vaecli.batch import DataInfo
from vaecli.densities.base import Density
from vaecli.errors import ConfigError, InputError
from vaecli.training import checkpoint, stored_density

COVARIANCE = torch.tensor([[2.0, 0.8, 0.0], [0.8, 1.0, -0.1], [0.0, -0.1, 0.05]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 30.0], dtype=torch.float64)


def fitted(values: dict[str, object], codes_ND: torch.Tensor, labels_NK: torch.Tensor | None = None) -> Density:
    torch.manual_seed(0)
    density = densities.build(densities.parse(values), codes_ND.shape[1])
    if density.labelled:
        kind_NK = torch.randint(3, (len(codes_ND), 1)) if labels_NK is None else labels_NK
        sizes = tuple(kind_NK.amax(dim=0).add(1).tolist())
        density.told(kind_NK, DataInfo("toy", (1, 2, 2), len(codes_ND), ("kind", "other")[: len(sizes)], sizes))
    density.fit(codes_ND, lambda: False, lambda amount: None)
    return density


def correlated(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    eps_ND = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return MEAN + eps_ND @ torch.linalg.cholesky(COVARIANCE).T


def log_normal(z_BD: torch.Tensor, mean_D: torch.Tensor, covariance_DD: torch.Tensor) -> torch.Tensor:
    off_BD = z_BD - mean_D
    square_B = (off_BD @ torch.linalg.inv(covariance_DD) * off_BD).sum(dim=1)
    return -0.5 * (square_B + torch.linalg.slogdet(covariance_DD)[1] + len(mean_D) * math.log(2 * math.pi))


def test_normal_is_the_maximum_likelihood_fit() -> None:
    codes_ND = correlated(500)
    density = fitted({"name": "normal"}, codes_ND)
    mean_D, off_ND = codes_ND.mean(dim=0), codes_ND - codes_ND.mean(dim=0)
    exact_B = log_normal(codes_ND, mean_D, off_ND.T @ off_ND / 500)
    torch.testing.assert_close(density.log_prob(codes_ND), exact_B, rtol=1e-9, atol=1e-9)
    # At the maximum the mean log-density is -(log det + D (1 + log 2 pi)) / 2.
    top = -0.5 * (torch.linalg.slogdet(off_ND.T @ off_ND / 500)[1] + 3 * (1 + math.log(2 * math.pi)))
    assert float(exact_B.mean()) == pytest.approx(float(top), abs=1e-9)


@pytest.mark.parametrize("name", registry.names("density"))
def test_draws_have_the_moments_of_the_codes(name: str) -> None:
    pytest.importorskip("sklearn")
    codes_ND = correlated(4000)
    small = {"vae": {"width": 64, "steps": 1500}, "mixture": {"components": 3}}.get(name, {})
    density = fitted({"name": name, **small}, codes_ND)
    torch.manual_seed(2)
    drawn_ND = density.sample(20_000).double()
    scale_D = codes_ND.std(dim=0)
    assert float(((drawn_ND.mean(dim=0) - codes_ND.mean(dim=0)) / scale_D).abs().max()) < 0.08
    found, wanted = torch.corrcoef(drawn_ND.T), torch.corrcoef(codes_ND.T)
    assert float((found - wanted).abs().max()) < (0.1 if name == "vae" else 0.04)
    assert float((drawn_ND.std(dim=0) / scale_D - 1).abs().max()) < (0.15 if name == "vae" else 0.04)


def test_mixture_finds_its_components_and_their_density() -> None:
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(3)
    eps_ND = torch.randn(3000, 2, generator=generator, dtype=torch.float64)
    left_N = torch.rand(3000, generator=generator) < 0.25
    codes_ND = torch.where(left_N[:, None], eps_ND * 0.5 + torch.tensor([-4.0, 0.0]), eps_ND + torch.tensor([4.0, 1.0]))
    density = fitted({"name": "mixture", "components": 2}, codes_ND)
    order = density.mean_KD[:, 0].argsort()
    torch.testing.assert_close(density.weight_K[order], torch.tensor([0.25, 0.75]).double(), atol=0.03, rtol=0)
    torch.testing.assert_close(
        density.mean_KD[order], torch.tensor([[-4.0, 0.0], [4.0, 1.0]]).double(), atol=0.1, rtol=0
    )
    covariance_KDD = density.factor_KDD @ density.factor_KDD.transpose(1, 2)
    parts = [density.weight_K[k].log() + log_normal(codes_ND, density.mean_KD[k], covariance_KDD[k]) for k in range(2)]
    exact_B = torch.stack(parts).logsumexp(dim=0)
    torch.testing.assert_close(density.log_prob(codes_ND), exact_B, rtol=1e-9, atol=1e-9)


# ---- of labels


def of_three_kinds(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of kinds with means and covariances of their own, half of them of kind 2, and the kinds (n, 1)."""
    generator = torch.Generator().manual_seed(8)
    kind_N = torch.tensor([0, 1, 2, 2])[torch.randint(4, (n,), generator=generator)]
    eps_ND = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    spread_K22 = torch.tensor([[[1.0, 0.0], [0.0, 0.2]], [[0.3, 0.0], [0.6, 0.3]], [[0.5, 0.0], [0.0, 0.5]]]).double()
    mean_K2 = torch.tensor([[-3.0, 0.0], [3.0, 1.0], [0.0, 5.0]]).double()
    return mean_K2[kind_N] + (spread_K22[kind_N] @ eps_ND[:, :, None])[:, :, 0], kind_N[:, None]


def test_class_normal_is_the_maximum_likelihood_fit_of_each_class() -> None:
    codes_ND, kind_NK = of_three_kinds(600)
    density = fitted({"name": "class-normal"}, codes_ND, kind_NK)
    assert density.factors == ("kind",) and density.config.covariance == "own"
    parts = []
    for kind in range(3):
        of_kind = codes_ND[kind_NK[:, 0] == kind]
        off_ND = of_kind - of_kind.mean(dim=0)
        share = math.log(len(of_kind) / 600)
        parts.append(share + log_normal(codes_ND, of_kind.mean(dim=0), off_ND.T @ off_ND / len(of_kind)))
    exact_B = torch.stack(parts).logsumexp(dim=0)
    torch.testing.assert_close(density.log_prob(codes_ND), exact_B, rtol=1e-9, atol=1e-9)
    shared = fitted({"name": "class-normal", "covariance": "shared"}, codes_ND, kind_NK)
    means = torch.stack([codes_ND[kind_NK[:, 0] == kind].mean(dim=0) for kind in range(3)])
    off_ND = codes_ND - means[kind_NK[:, 0]]
    pooled = torch.stack(
        [
            math.log(float((kind_NK == kind).double().mean()))
            + log_normal(codes_ND, means[kind], off_ND.T @ off_ND / 600)
            for kind in range(3)
        ]
    ).logsumexp(dim=0)
    torch.testing.assert_close(shared.log_prob(codes_ND), pooled, rtol=1e-9, atol=1e-9)


def test_class_normal_draws_the_label_asked_for() -> None:
    codes_ND, kind_NK = of_three_kinds(2000)
    density = fitted({"name": "class-normal"}, codes_ND, kind_NK)
    for kind in range(3):
        torch.manual_seed(9)
        drawn = density.sample_labelled(torch.full((20_000, 1), kind)).double()
        of_kind = codes_ND[kind_NK[:, 0] == kind]
        torch.testing.assert_close(drawn.mean(dim=0), of_kind.mean(dim=0), atol=0.04, rtol=0)
        torch.testing.assert_close(torch.cov(drawn.T), torch.cov(of_kind.T, correction=0), atol=0.04, rtol=0)

    # The noise is the same whatever is asked for.
    def noise(asked: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(9)
        drawn = density.sample_labelled(asked).double()
        return torch.linalg.solve_triangular(
            density.factor_MDD[asked[:, 0]], (drawn - density.effect_CD[asked[:, 0]])[:, :, None], upper=False
        )

    torch.testing.assert_close(noise(torch.tensor([[0], [1]])), noise(torch.tensor([[2], [0]])), atol=1e-5, rtol=1e-4)
    torch.manual_seed(10)
    left_open = density.sample_labelled(torch.full((20_000, 1), -1)).double()
    torch.testing.assert_close(left_open.mean(dim=0), codes_ND.mean(dim=0), atol=0.1, rtol=0)
    with pytest.raises(InputError, match="labels of kind have 3 values"):
        density.sample_labelled(torch.tensor([[3]]))


def test_class_normal_adds_the_effects_of_several_labels() -> None:
    """And so draws a combination that no code had."""
    generator = torch.Generator().manual_seed(11)
    labels_NK = torch.stack([torch.randint(n, (3000,), generator=generator) for n in (3, 2)], dim=1)
    labels_NK = labels_NK[~((labels_NK[:, 0] == 2) & (labels_NK[:, 1] == 1))]
    first, second = torch.tensor([[0.0, 0.0], [4.0, 0.0], [-2.0, 1.0]]).double(), torch.tensor([[0.0, 0.0], [1.0, 7.0]])
    noise_ND = 0.1 * torch.randn(len(labels_NK), 2, generator=generator, dtype=torch.float64)
    codes_ND = first[labels_NK[:, 0]] + second.double()[labels_NK[:, 1]] + noise_ND
    density = fitted({"name": "class-normal"}, codes_ND, labels_NK)
    drawn = density.sample_labelled(torch.tensor([[2, 1]]).expand(5000, 2)).double()
    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor([-1.0, 8.0]).double(), atol=0.03, rtol=0)
    assert density.text() == "a Gaussian for each kind and other, one covariance"


def test_class_normal_uses_so_many_labels_class_by_class() -> None:
    codes_ND, kind_NK = of_three_kinds(600)
    density = fitted({"name": "class-normal", "labelled": 30}, codes_ND, kind_NK)
    assert density.used == 30
    assert (density.share_C * 30).tolist() == pytest.approx([10, 10, 10])
    assert density.config.covariance == "own"
    assert fitted({"name": "class-normal", "labelled": 9}, codes_ND, kind_NK).config.covariance == "shared"
    for labelled, words in ((2, "no labelled code has kind"), (6, "a class has too few codes for 2 latents")):
        with pytest.raises(ConfigError, match=words):
            fitted({"name": "class-normal", "labelled": labelled, "covariance": "own"}, codes_ND, kind_NK)
    with pytest.raises(ConfigError, match="no factor 'kint' that varies; did you mean 'kind'"):
        fitted({"name": "class-normal", "factors": ["kint"]}, codes_ND, kind_NK)
    with pytest.raises(ConfigError, match="fitted to codes with labels, and there are none"):
        densities.build(densities.parse({"name": "class-normal"}), 2).fit(codes_ND, lambda: False, lambda amount: None)


def test_class_normal_is_stored_and_sampled_by_label(vae: Callable[..., Result], tiny_run: Path) -> None:
    done = vae("density", tiny_run, "--fit", "class-normal", "--set", "factors=[size]", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["settings"]["sizes"] == [3] and facts["settings"]["factors"] == ["size"]
    found = stored_density.load(Path(facts["checkpoint"]).parent, 3)
    assert found is not None and found[0].text() == "a Gaussian for each size, its own covariance"
    assert vae("sample", tiny_run, "-n", 3, "-o", "s.npz").code == 0
    asked = vae("sample", tiny_run, "--label", "size=2", "-n", 3, "-o", "two.npz")
    assert asked.code == 0, asked.err


def test_second_vae_holds_two_clusters_apart() -> None:
    """What a Gaussian cannot: nothing is drawn between two clusters."""
    generator = torch.Generator().manual_seed(4)
    side_N = (torch.rand(4000, generator=generator) < 0.5).double() * 2 - 1
    codes_ND = 0.2 * torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    codes_ND[:, 0] += 2 * side_N
    between = {}
    for name, settings in {"vae": {"width": 64, "steps": 2500}, "normal": {}}.items():
        density = fitted({"name": name, **settings}, codes_ND)
        torch.manual_seed(5)
        between[name] = float((density.sample(4000)[:, 0].abs() < 1).double().mean())
    assert between["normal"] > 0.3 and between["vae"] < 0.12, between


def test_second_vae_minimises_its_bound() -> None:
    """In float64 by hand: the KL and the Gaussian's density with one g."""
    torch.manual_seed(6)
    density = densities.build(densities.parse({"name": "vae", "width": 8}), 3).double()
    density.log_g.data.fill_(-0.7)
    z_BD = torch.randn(5, 3, dtype=torch.float64)
    torch.manual_seed(7)
    found_B = density.loss(z_BD)
    torch.manual_seed(7)
    mean_BD, logvar_BD = density.encoder(z_BD).chunk(2, dim=1)
    u_BD = mean_BD + (0.5 * logvar_BD).exp() * torch.randn_like(mean_BD)
    kl_B = 0.5 * (mean_BD**2 + logvar_BD.exp() - logvar_BD - 1).sum(dim=1)
    g = math.exp(-0.7)
    square_B = ((z_BD - density.decoder(u_BD)) ** 2).sum(dim=1)
    exact_B = kl_B + square_B / (2 * g**2) + 3 * (math.log(g) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(found_B, exact_B, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_fitted_is_refused() -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(ConfigError, match="20 components, but only 10 codes"):
        fitted({"name": "mixture", "components": 20}, correlated(10))
    with pytest.raises(InputError, match="no latent varies"):
        fitted({"name": "normal"}, torch.ones(10, 2, dtype=torch.float64))
    with pytest.raises(ConfigError, match="did you mean 'mixture'"):
        densities.parse({"name": "mixtur"})
    with pytest.raises(ConfigError, match=r"density\.components"):
        densities.parse({"name": "mixture", "components": 0})


def test_stored_beside_the_weights(vae: Callable[..., Result], tiny_run: Path) -> None:
    assert vae("density", tiny_run).out == "none\n"
    done = vae("density", tiny_run, "--fit", "normal", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["fitted_on"] == "456 codes (squares train)"
    step = Path(facts["checkpoint"]).parent
    checkpoint.verify(step)
    assert "density.safetensors" in json.loads((step / "manifest.json").read_text())
    found = stored_density.load(step, 3)
    assert found is not None and found[0].text() == "a Gaussian with full covariance"
    assert vae("density", tiny_run).out == "a Gaussian with full covariance, fitted to 456 codes (squares train)\n"
    # Refused twice, unless asked for; and the run is what it was.
    again = vae("density", tiny_run, "--fit", "normal")
    assert again.code == 2 and "--force" in again.err
    assert vae("density", tiny_run, "--fit", "normal", "--force", "--seed", 1).code == 0
    assert vae("train", "--resume", tiny_run, "--steps", 35, "-q").code == 0
    assert vae("density", tiny_run).out == "none\n"  # the new step's codes are others


def test_a_damaged_density_is_refused(vae: Callable[..., Result], tiny_run: Path) -> None:
    path = Path(json.loads(vae("density", tiny_run, "--fit", "normal", "--json").out)["path"])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused = vae("density", tiny_run)
    assert refused.code == 3 and "density.safetensors" in refused.err
    with pytest.raises(InputError, match="the model has 4"):
        densities.load(*_parts(tiny_run), 4)


def _parts(run: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    density = densities.build(densities.parse({"name": "normal"}), 3)
    return densities.dump(density, "nothing"), density.state_dict()


class Failing(checkpoint.Files):
    """The disk is full after `left` writes and renames."""

    def __init__(self, left: int) -> None:
        self.left = left

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")

    def write(self, path: Path, content: bytes) -> None:
        self._count()
        super().write(path, content)

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        super().rename(old, new)


def test_every_moment_of_an_exchange_is_whole(
    vae: Callable[..., Result], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before any of its file operations, the checkpoint still loads, with the old density, none or the new."""
    first = json.loads(vae("density", tiny_run, "--fit", "normal", "--json").out)
    step = Path(first["checkpoint"]).parent
    density = densities.build(densities.parse({"name": "normal"}), 3)
    seen = set()
    for k in range(12):
        failing = Failing(k)
        monkeypatch.setattr(checkpoint, "FILES", failing)
        try:
            stored_density.add(step, density, f"fit {k}")
        except Exception as error:
            assert "No space left" in str(error)
        monkeypatch.setattr(checkpoint, "FILES", checkpoint.Files())
        checkpoint.verify(step)
        found = stored_density.load(step, 3)
        seen.add(None if found is None else found[1].split()[0])
        assert vae("info", tiny_run).code == 0
        if failing.left >= 0:
            break
    assert seen >= {"456", "fit"}
    assert not [p.name for p in step.iterdir() if p.name.startswith(".")]

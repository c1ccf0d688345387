"""sample, traverse, reconstruct and analyze on a model whose every number is known; and the writing of outputs."""

import csv
import io
import json
import math
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image
from torch import Tensor

from vaecli import data
from vaecli.analysis import traversal
from vaecli.batch import DataInfo
from vaecli.commands import _artifact, analyze, reconstruct, sample, traverse
from vaecli.config import TrainConfig
from vaecli.data import folder
from vaecli.data.base import Dataset, Floats
from vaecli.errors import ConfigError, InputError, MachineError
from vaecli.models.base import Hyper, Level, Model, ModelConfig, NoPrior, Values
from vaecli.objectives.distributions import Gaussian, Point, Standard
from vaecli.training import checkpoint
from vaecli.training.checkpoint import Loaded

LATENTS = 4
COMMON = {"seed": 0, "device": "cpu", "force": False}


class Pixels(Model):
    """Four pixels, four latents: z = spread * (x - 1/2) + noise of variance 1/100, x = z / 10 + 1/2."""

    spread = torch.tensor([1.0, 2.0, 0.0, 4.0])

    def __init__(self, deterministic: bool = False) -> None:
        super().__init__(ModelConfig(name="pixels"), DataInfo("dots", (1, 2, 2), 40))
        self.deterministic = deterministic

    @property
    def deterministic(self) -> bool:
        return self.levels[0].kind == "point"

    @deterministic.setter
    def deterministic(self, yes: bool) -> None:
        self.levels = (Level("z", (LATENTS,), "point" if yes else "gaussian", standard=not yes),)

    def q(self, level: str, features: Tensor, given: Values) -> Gaussian | Point:
        mean_BD = self.spread * (features.flatten(1) - 0.5)
        return Point(mean_BD) if self.deterministic else Gaussian(mean_BD, torch.full_like(mean_BD, math.log(0.01)))

    def p(self, level: str, given: Values, n: int) -> Standard:
        if self.deterministic:
            raise NoPrior("no prior")
        return Standard((n, LATENTS))

    def image(self, values: Values) -> Tensor:
        return (values["z"] / 10 + 0.5).reshape(-1, 1, 2, 2)

    def log_prob(self, x_BCHW: Tensor, values: Values, hyper: Hyper) -> Tensor:
        return -values["z"].sum(dim=1)

    def hyper(self, step: int) -> dict[str, float]:
        return {"beta": 1.0}


def images() -> np.ndarray:
    return np.random.default_rng(0).random((40, 1, 2, 2)).astype(np.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pixels:
    """The commands find this model in any checkpoint; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    net = Pixels().eval()
    store = Floats(torch.from_numpy(images()))
    splits = {"train": torch.arange(10, 30), "val": torch.arange(30, 40), "test": torch.arange(10)}
    dataset = Dataset(net.info, store, None, splits)
    config = SimpleNamespace(model=net.config, data=None, train=TrainConfig())
    loaded = Loaded(net, net.info, config, 5000, Path("run/model.safetensors"))  # type: ignore[arg-type]
    monkeypatch.setattr(checkpoint, "load", lambda path, device, data_at=None: loaded)
    monkeypatch.setattr(data, "load", lambda config, trained_on=None: dataset)
    return net


def gone(config: object, trained_on: object) -> Dataset:
    raise InputError("dots: not there")


# ------------------------------------------------------------------------------------------------------------- sample


def test_sample_npz_holds_images_and_their_latents(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    sample.run("run", 70, "a.npz", temperature=2.0, json=False, **COMMON)
    assert capsys.readouterr().out == "a.npz\n"
    with np.load("a.npz") as stored:
        x, z = stored["images"], stored["z"]
    assert x.shape == (70, 1, 2, 2) and x.dtype == np.float32 and z.shape == (70, LATENTS)
    np.testing.assert_allclose(x.reshape(70, 4), z / 10 + 0.5, rtol=1e-6)
    sample.run("run", 5, "b.npz", temperature=1.0, json=False, **COMMON)
    with np.load("b.npz") as stored:
        np.testing.assert_allclose(z[:5], 2 * stored["z"], rtol=1e-6)  # same seed; only the temperature differs


def test_sample_is_a_function_of_the_seed(model: Pixels) -> None:
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        sample.run("run", 9, name, temperature=1.0, json=False, **{**COMMON, "seed": seed})
    a, b, c = (Path(name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert a == b != c


def test_sample_default_name_and_json(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    sample.run("run", 4, None, temperature=0.0, json=True, **COMMON)
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == 1 and record["path"] == "samples.png" and record["n"] == 4 and record["temperature"] == 0
    picture = np.asarray(Image.open("samples.png").convert("L"))
    assert set(np.unique(picture)) == {128, 255}  # temperature 0: all images are x = 1/2, on white


def test_sample_into_a_folder(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    sample.run("run", 66, "many/", temperature=1.0, json=False, **COMMON)
    assert sorted(os.listdir("many")) == [f"{i:05d}.png" for i in range(66)]
    assert capsys.readouterr().out == "many\n"
    sample.run("run", 66, "same.npz", temperature=1.0, json=False, **COMMON)
    with np.load("same.npz") as stored:
        expected = np.clip(np.rint(stored["images"][65, 0] * 255), 0, 255)
    assert np.array_equal(np.asarray(Image.open("many/00065.png")), expected)
    with pytest.raises(ConfigError, match="exists already"):
        sample.run("run", 2, "many", temperature=1.0, json=False, **COMMON)
    (Path("many") / "00000.png").unlink()
    (Path("many") / "00001.png").unlink()
    sample.run("run", 2, "many", temperature=1.0, json=False, **COMMON)
    assert len(os.listdir("many")) == 66  # without --force nothing goes
    # Older images of ours go, as they would pass for new ones; what we did not write stays.
    Image.new("L", (4, 4)).save("many/00070.png")
    sample.run("run", 2, "many", temperature=1.0, json=False, **{**COMMON, "force": True})
    assert sorted(os.listdir("many")) == ["00000.png", "00001.png", "00070.png"]


def test_sample_lets_no_prior_pass_and_refuses_nonsense(model: Pixels) -> None:
    for n, temperature in ((0, 1.0), (-3, 1.0), (4, -1.0), (4, float("nan"))):
        with pytest.raises(ConfigError):
            sample.run("run", n, None, temperature=temperature, json=False, **COMMON)
    with pytest.raises(ConfigError, match="pixels"):
        sample.run("run", 10**6, None, temperature=1.0, json=False, **COMMON)
    model.deterministic = True
    with pytest.raises(NoPrior):
        sample.run("run", 4, None, temperature=1.0, json=False, **COMMON)
    assert os.listdir() == []


# ----------------------------------------------------------------------------------------------------------- traverse


def run_traverse(path: str | None, dims: list[str] | None = None, **changes: object) -> None:
    options = {"value_range": 3.0, "steps": 5, "center": "prior", "json": True, **COMMON, **changes}
    traverse.run("run", dims or [], output=path, **options)  # type: ignore[arg-type]


def test_traverse_orders_latents_by_kl(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    run_traverse(None)
    record = json.loads(capsys.readouterr().out)
    assert record["path"] == "traversal.png" and record["values"] == [-3.0, -1.5, 0.0, 1.5, 3.0]
    assert [latent["latent"] for latent in record["latents"]] == ["z3", "z1", "z0", "z2"]
    assert [latent["status"] for latent in record["latents"]] == ["active"] * 3 + ["inactive"]
    z3 = 4 * (images()[30:, 0, 1, 1].astype(np.float64) - 0.5)  # the split `val`
    assert record["latents"][0]["kl"] == pytest.approx(0.5 * ((z3**2).mean() + 0.01 - np.log(0.01) - 1), rel=1e-5)
    assert record["latents"][0]["var_mu"] == pytest.approx(z3.var(), rel=1e-5)


def test_traverse_moves_one_latent_and_holds_the_others(model: Pixels) -> None:
    values = torch.tensor([-2.0, 0.0, 2.0])
    middle = {"z": torch.tensor([[0.1, 0.2, 0.3, 0.4]])}
    moved = traversal.images_along(model, middle, traversal.movers(model, model.levels)[1], values)
    np.testing.assert_allclose(moved.reshape(3, 4) * 10 - 5, [[0.1, v, 0.3, 0.4] for v in values.tolist()], atol=1e-5)


def test_traverse_centre_is_prior_dataset_image_or_file(model: Pixels) -> None:
    loaded = checkpoint.load("run", torch.device("cpu"))
    dataset = data.load(None)  # type: ignore[arg-type]
    middle, where = traverse.centre(loaded, "prior", dataset, None, None)
    assert middle["z"].tolist() == [[0.0] * 4] and where == "0"
    at = traverse.centre(loaded, "7", dataset, None, None)[0]["z"][0]
    np.testing.assert_allclose(at, model.spread.numpy() * (images()[7].ravel() - 0.5), rtol=1e-6)
    Image.fromarray(np.array([[0, 51], [102, 255]], dtype=np.uint8)).save("x.png")
    at = traverse.centre(loaded, "x.png", dataset, None, None)[0]["z"][0]
    np.testing.assert_allclose(at, [-0.5, 2 * -0.3, 0, 4 * 0.5], rtol=1e-6)
    with pytest.raises(ConfigError, match="images 0 to 39"):
        traverse.centre(loaded, "40", dataset, None, None)


def test_traverse_names_latents(model: Pixels) -> None:
    movers = traversal.movers(model, model.levels)
    assert traverse._chosen("z2", movers) is traverse._chosen("2", movers) is movers[2]
    for wrong in ("4", "z4", "-1", "", "x"):
        with pytest.raises(ConfigError, match="z0, z1, z2, z3"):
            traverse._chosen(wrong, movers)


def test_traverse_without_data_goes_by_index_and_says_so(
    model: Pixels, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "load", gone)
    run_traverse("t.png")
    captured = capsys.readouterr()
    assert [latent["latent"] for latent in json.loads(captured.out)["latents"]] == ["z0", "z1", "z2", "z3"]
    assert "dots: not there" in captured.err
    with pytest.raises(InputError, match="dots"):
        run_traverse("u.png", center="3")


def test_traverse_of_an_autoencoder_goes_in_standard_deviations(
    model: Pixels, capsys: pytest.CaptureFixture[str]
) -> None:
    model.deterministic = True
    run_traverse("t.png", ["z3"], steps=3)
    record = json.loads(capsys.readouterr().out)
    assert record["unit"] == "standard deviations of the code" and record["latents"][0]["kl"] is None
    code = (4 * (images()[30:].astype(np.float64).reshape(-1, 4) - 0.5))[:, 3]
    stats, over = traverse._statistics(checkpoint.load("", torch.device("cpu")), data.load(None))  # type: ignore[arg-type]
    mover = traversal.movers(model, model.levels)[3]
    values_S = traversal.values_of(model, {}, mover, np.array([-3.0, 0.0, 3.0]), stats)
    moved = traversal.images_along(model, {"z": torch.zeros(1, 4)}, mover, values_S)
    expected = code.mean() + np.array([-3.0, 0.0, 3.0]) * code.std()
    np.testing.assert_allclose(moved[:, 0, 1, 1] * 10 - 5, expected, rtol=1e-4)
    assert over == "10 images of val"


def test_traverse_gif_has_a_frame_a_value_and_back(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    run_traverse("t.gif", steps=6, json=False)
    assert capsys.readouterr().out == "t.gif\n"
    assert Image.open("t.gif").n_frames == 2 * 6 - 2  # type: ignore[attr-defined]


def test_headings_have_as_many_decimals_as_they_need() -> None:
    assert traverse._value_texts(np.linspace(-3, 3, 7)) == ["-3", "-2", "-1", "0", "1", "2", "3"]
    assert traverse._value_texts(np.linspace(-3, 3, 5)) == ["-3.0", "-1.5", "0.0", "1.5", "3.0"]


# -------------------------------------------------------------------------------------------------------- reconstruct


def run_reconstruct(path: str | None, files: list[str] | None = None, **changes: object) -> None:
    part = {"split": None, "n": None} if files else {"split": "test", "n": 3}
    options = {**part, "json": True, **COMMON, **changes}
    reconstruct.run("run", files or [], output=path, **options)  # type: ignore[arg-type]


def test_reconstruct_numbers(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    run_reconstruct(None)
    record = json.loads(capsys.readouterr().out)
    assert record["path"] == "reconstructions.png" and record["source"] == "dots test"
    x = images()[:3].astype(np.float64).reshape(3, 4)
    z = model.spread.numpy() * (x - 0.5)
    for i, entry in enumerate(record["images"]):
        assert entry["image"] == str(i)
        assert entry["nll"] == pytest.approx(z[i].sum(), rel=1e-5)
        assert entry["kl"] == pytest.approx((0.5 * (z[i] ** 2 + 0.01 - np.log(0.01) - 1)).sum(), rel=1e-5)
        assert entry["mse"] == pytest.approx(((x[i] - z[i] / 10 - 0.5) ** 2).mean(), rel=1e-5)


def test_reconstruct_keeps_stdout_for_the_path(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    run_reconstruct("r.png", json=False)
    captured = capsys.readouterr()
    assert captured.out == "r.png\n"
    table = [line.split("\t") for line in captured.err.splitlines()]
    assert table[0] == ["image", "-log p(x|z) (nats)", "KL (nats)", "MSE"] and len(table) == 4


def test_reconstruct_files(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 4), (255, 255, 255)).save("white.png")
    run_reconstruct("r.png", ["white.png"])
    captured = capsys.readouterr()
    assert "fitted from 8x4" in captured.err
    assert json.loads(captured.out)["images"][0]["nll"] == pytest.approx(0.5 * 7)  # z = spread / 2
    Path("text.png").write_text("not a picture")
    for name in ("text.png", "absent.png"):
        with pytest.raises(InputError, match=name):
            run_reconstruct("s.png", [name])


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (0, 0, 0, 0), [1.0, 1.0, 1.0]),
        ("RGB", (255, 51, 0), [1.0, 0.2, 0.0]),
        ("L", 51, [0.2, 0.2, 0.2]),
        ("I;16", 13107, [0.2, 0.2, 0.2]),
        ("1", 1, [1.0, 1.0, 1.0]),
        ("CMYK", (0, 255, 255, 0), [1.0, 0.0, 0.0]),
    ],
)
def test_image_files_of_all_modes(tmp_path: Path, mode: str, colour: object, expected: list[float]) -> None:
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    Image.new(mode, (3, 2), colour).save(path)  # type: ignore[arg-type]
    x_CHW = _artifact.read_image(str(path), DataInfo("files", (3, 2, 3), 1))
    assert x_CHW.dtype == torch.float32
    np.testing.assert_allclose(x_CHW, np.array(expected)[:, None, None] * np.ones((3, 2, 3)), atol=1e-6)


def test_image_bomb_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (3000, 3000)).save(tmp_path / "big.png")
    monkeypatch.setattr(folder, "MAX_PIXELS", 1_000_000)
    with pytest.raises(InputError, match="3000x3000"):
        _artifact.read_image(str(tmp_path / "big.png"), DataInfo("files", (1, 2, 2), 1))


# ------------------------------------------------------------------------------------------------------------ analyze


def run_analyze(**changes: object) -> None:
    options = {"split": None, "limit": None, "batch_size": 3, "seed": 0, "device": "cpu", "json": False, "csv": False}
    analyze.run("run", **{**options, **changes})  # type: ignore[arg-type]


def test_analyze_json(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    run_analyze(json=True)
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert "split test, 10 of 10 images" in captured.err
    assert (record["schema"], record["model"], record["split"], record["n"]) == (1, "pixels", "test", 10)
    z = model.spread.numpy() * (images()[:10].astype(np.float64).reshape(10, 4) - 0.5)
    kl = (0.5 * (z**2 + 0.01 - np.log(0.01) - 1)).mean(axis=0)
    assert [latent["index"] for latent in record["latents"]] == np.argsort(-kl).tolist()
    for latent in record["latents"]:
        d = latent["index"]
        assert latent["mean_mu"] == pytest.approx(z[:, d].mean(), abs=1e-6)
        assert latent["var_mu"] == pytest.approx(z[:, d].var(), rel=1e-5)
        assert latent["mean_sigma2"] == pytest.approx(0.01, rel=1e-5)
        assert latent["kl"] == pytest.approx(kl[d], rel=1e-5)
    totals = record["totals"]
    assert totals["kl"] == pytest.approx(kl.sum(), rel=1e-5) and totals["active_units"] == 3
    assert totals["elbo"] == pytest.approx(-totals["recon"] - totals["kl"])
    assert record["verdict"]["name"] == "not judged"  # of 10 images


def test_analyze_in_a_pipe_prints_rows_only(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    run_analyze(split="train", limit=7)
    captured = capsys.readouterr()
    lines = [line.split("\t") for line in captured.out.splitlines()]
    assert len(lines) == 1 + LATENTS and {len(line) for line in lines} == {7}
    assert lines[-1][0] == "z2" and lines[-1][-1] == "inactive"
    assert "7 of 20 images" in captured.err and "verdict:" in captured.err and "3 of 4 latents" in captured.err


def test_analyze_csv_has_all_digits(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    run_analyze(csv=True)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    run_analyze(json=True)
    latents = json.loads(capsys.readouterr().out)["latents"]
    assert [float(row["kl"]) for row in rows] == [latent["kl"] for latent in latents]
    with pytest.raises(ConfigError):
        run_analyze(csv=True, json=True)


def test_analyze_autoencoder_leaves_kl_empty(model: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    model.deterministic = True
    run_analyze(json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["totals"]["kl"] is None and record["totals"]["elbo"] is None
    assert [latent["latent"] for latent in record["latents"]] == ["z3", "z1", "z0", "z2"]


# ------------------------------------------------------------------------------------------------------------ writing


def test_nothing_is_overwritten_without_force(model: Pixels) -> None:
    Path("a.png").write_text("mine")
    calls = (
        lambda: sample.run("run", 4, "a.png", temperature=1.0, json=False, **COMMON),
        lambda: run_traverse("a.png"),
        lambda: run_reconstruct("a.png"),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=r"a\.png: exists already") as caught:
            call()
        assert "--force" in str(caught.value.hint)
    assert Path("a.png").read_text() == "mine"
    run_traverse("a.png", force=True)
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_overwriting_is_refused_before_the_work(model: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("samples.png").write_text("mine")
    monkeypatch.setattr(checkpoint, "load", lambda path, device, data_at=None: pytest.fail("loaded in vain"))
    with pytest.raises(ConfigError, match="exists already"):
        sample.run("run", 4, None, temperature=1.0, json=False, **COMMON)


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_bytes_to_stdout(model: Pixels, capfdbinary: pytest.CaptureFixture[bytes], name: str) -> None:
    sample.run("run", 4, name, temperature=1.0, json=False, **COMMON)
    written = capfdbinary.readouterr().out
    sample.run("run", 4, "a.png", temperature=1.0, json=False, **COMMON)
    assert written == Path("a.png").read_bytes()
    with pytest.raises(ConfigError, match="stdout"):
        sample.run("run", 4, name, temperature=1.0, json=True, **COMMON)


def test_terminal_gets_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(ConfigError, match="terminal"):
        _artifact.check("-", "x", False)


def test_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "real" / "a.png")
    assert _artifact.write(str(link), "", b"one", force=False) == str(link)
    assert link.is_symlink() and (tmp_path / "real" / "a.png").read_bytes() == b"one"
    with pytest.raises(ConfigError, match="exists already"):
        _artifact.write(str(link), "", b"two", force=False)
    _artifact.write(str(link), "", b"two", force=True)
    assert link.is_symlink() and (tmp_path / "real" / "a.png").read_bytes() == b"two"
    assert os.listdir(tmp_path / "real") == ["a.png"]  # no temporary file left
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(InputError, match="circle"):
        _artifact.check(str(circle), "", True)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        _artifact.write(str(tmp_path / "a"), "", b"x", force=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_device_is_written_to_not_replaced() -> None:
    """A terminal of its own, which nothing can replace: the machine's /dev/null could be."""
    keeper, terminal = os.openpty()
    try:
        _artifact.write(os.ttyname(terminal), "", b"x", force=False)
        assert os.read(keeper, 9) == b"x" and stat.S_ISCHR(os.fstat(terminal).st_mode)
    finally:
        os.close(keeper)
        os.close(terminal)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        _artifact.check(str(tmp_path / "no" / "a.png"), "", False)
    with pytest.raises(ConfigError, match="folder"):
        _artifact.check(str(tmp_path), "", True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        _artifact.check(str(tmp_path / "file" / "a.png"), "", False)


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MachineError, match="No space left"):
        _artifact.write(str(tmp_path / "a"), "", b"new", force=True)
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("words", [("traverse", "RUN"), ("interpolate", "RUN", 0, 1)])
def test_pictures_of_another_kind_are_refused(
    words: tuple[object, ...], tiny_run: Path, vae: Callable[..., Result]
) -> None:
    arguments = [tiny_run if word == "RUN" else word for word in words]
    done = vae(*arguments, "-o", "x.jpg")
    assert done.code == 2 and ".png or .gif" in done.err and not Path("x.jpg").exists()


def test_a_file_is_read_by_the_range_of_the_models_images(tmp_path: Path) -> None:
    """A mask of 0 and 1, which training took for black and white, is no black image to a model of such masks."""
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8)).save(path)
    for stored, white in (({"uint8": [0, 1]}, 1.0), ("dtype", 1 / 255)):
        info = DataInfo("masks", (1, 2, 2), 1, source={"range": stored})
        x_CHW = _artifact.read_image(str(path), info)
        assert x_CHW.flatten().tolist() == pytest.approx([0.0, white, white, 0.0])
    for damaged in ([1, 0], "wide", {"uint8": [0]}, {"uint8": [float("nan"), 1]}, 3):
        with pytest.raises(InputError, match="range of values stored"):
            _artifact.read_image(str(path), DataInfo("masks", (1, 2, 2), 1, source={"range": damaged}))

"""encode, decode and interpolate: what goes in comes out, by value, alone and as a pipe."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, Result
from PIL import Image

from vaecli import data
from vaecli.analysis import codes
from vaecli.commands import _artifact, interpolate
from vaecli.commands.interpolate import angle_between, great_circle, straight
from vaecli.data.base import SplitView
from vaecli.errors import ConfigError
from vaecli.report import figures
from vaecli.training import checkpoint
from vaecli.training.checkpoint import Loaded

Vae = Callable[..., Result]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def loaded(tiny_run: Path) -> Loaded:
    return checkpoint.load(tiny_run, torch.device("cpu"))


@pytest.fixture
def view(loaded: Loaded) -> SplitView:
    return data.load(loaded.config.data).split("test")


def posterior(loaded: Loaded, x_BCHW: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        q = loaded.model.posterior(x_BCHW)
    assert q.logvar_BD is not None
    return q.mean_BD.numpy(), q.logvar_BD.numpy()


def decoded(loaded: Loaded, z_ND: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return loaded.model.decode(torch.from_numpy(z_ND).float()).numpy()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ------------------------------------------------------------------------------------------------------------- encode


def test_encode_npz(vae: Vae, tiny_run: Path, loaded: Loaded, view: SplitView) -> None:
    done = vae("encode", tiny_run, "-n", 5, "-q", "--batch-size", 2)
    assert (done.code, done.out, done.err) == (0, "codes.npz\n", "")
    batch = view.take(5)
    mean, logvar = posterior(loaded, batch.x_BCHW)
    with np.load("codes.npz") as stored:
        assert stored["codes"].dtype == np.float32
        np.testing.assert_allclose(stored["codes"], mean, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(stored["logvar"], logvar, rtol=1e-5, atol=1e-7)
        assert stored["index"].tolist() == batch.index_B.tolist() == view.indices[:5].tolist()
        assert stored["factors"].tolist() == batch.labels_BK.tolist()  # type: ignore[union-attr]
        assert stored["factor_names"].tolist() == ["size", "posX", "posY"]
        assert stored["latent_names"].tolist() == ["z0", "z1", "z2"]


def test_encode_csv_to_file_and_stdout(vae: Vae, tiny_run: Path, loaded: Loaded, view: SplitView) -> None:
    assert vae("encode", tiny_run, "-n", 5, "-o", "c.csv").out == "c.csv\n"
    done = vae("encode", tiny_run, "-n", 5, "-o", "-")
    assert done.out == Path("c.csv").read_text()
    assert done.out.splitlines()[0] == "index,z0,z1,z2,z0_logvar,z1_logvar,z2_logvar,size,posX,posY"
    batch = view.take(5)
    mean, logvar = posterior(loaded, batch.x_BCHW)
    for i, row in enumerate(rows_of(done.out)):
        assert [int(row[k]) for k in ("index", "size", "posX", "posY")] == [
            int(batch.index_B[i]),
            *batch.labels_BK[i].tolist(),  # type: ignore[index]
        ]
        assert [float(row[f"z{d}"]) for d in range(3)] == pytest.approx(mean[i].tolist(), rel=1e-5, abs=1e-7)
        assert [float(row[f"z{d}_logvar"]) for d in range(3)] == pytest.approx(logvar[i].tolist(), rel=1e-5, abs=1e-7)


def test_encode_whole_split_and_json(vae: Vae, tiny_run: Path) -> None:
    record = json.loads(vae("encode", tiny_run, "--split", "all", "-o", "a.npz", "--json").out)
    assert (record["schema"], record["path"], record["n"], record["source"]) == (1, "a.npz", 507, "squares all")
    assert record["latents"] == ["z0", "z1", "z2"] and record["factors"] == ["size", "posX", "posY"]
    with np.load("a.npz") as stored:
        assert stored["index"].tolist() == list(range(507))
        assert stored["factors"][-1].tolist() == [2, 12, 12]
    done = vae("encode", tiny_run, "-n", 10**6, "-o", "b.npz")
    assert "no split test: using val" in done.err and "only 51 images" in done.err


def test_encode_image_files(vae: Vae, tiny_run: Path, loaded: Loaded, view: SplitView) -> None:
    x_BCHW = view.take(2).x_BCHW
    for i in range(2):
        Path(f"{i}.png").write_bytes(figures.single(x_BCHW[i].numpy()))
    rows = rows_of(vae("encode", tiny_run, "1.png", "0.png", "-o", "-").out)
    mean, _ = posterior(loaded, x_BCHW)
    assert [row["index"] for row in rows] == ["0", "1"] and "size" not in rows[0]
    for row, i in zip(rows, (1, 0), strict=True):
        assert [float(row[f"z{d}"]) for d in range(3)] == pytest.approx(mean[i].tolist(), rel=1e-5, abs=1e-7)


def test_encode_names_files_and_values(vae: Vae) -> None:
    """Codes of a folder can be joined with its files by name, whatever was skipped; decode passes over the names."""
    shades = {"a, b/img10.png": 200, "a, b/img2.png": 20, "z/img1.png": 90}
    for name, shade in shades.items():
        Path("d", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), shade, np.uint8)).save(Path("d", name))
    Path("d/a, b/img3.png").write_bytes(b"damaged")
    train = ("train", "--model", "vae", *TINY[2:], "--data", "folder:d", "--set", "data.on_bad_image=skip")
    run = vae(*train, "--steps", 2, "--runs-dir", "runs", "-q").out.strip()
    text = vae("encode", run, "--split", "all", "-o", "-").out
    rows = rows_of(text)
    assert [row["file"] for row in rows] == ["a, b/img10.png", "a, b/img2.png", "z/img1.png"]
    assert [(row["class"], row["class_name"]) for row in rows] == [("0", "a, b"), ("0", "a, b"), ("1", "z")]
    found = checkpoint.load(Path(run), torch.device("cpu"))
    for row in rows:
        x_BCHW = torch.full((1, 1, 8, 8), shades[row["file"]] / 255)
        mean, _ = posterior(found, x_BCHW)
        assert [float(row[f"z{d}"]) for d in range(3)] == pytest.approx(mean[0].tolist(), rel=1e-4, abs=1e-6)
    vae("encode", run, "--split", "all", "-o", "c.npz")
    with np.load("c.npz") as stored:
        assert stored["files"].tolist() == [row["file"] for row in rows]
        assert stored["class_name"].tolist() == ["a, b", "a, b", "z"]
    one = rows_of(vae("encode", run, "d/z/img1.png", "-o", "-").out)
    assert [(row["index"], row["file"]) for row in one] == [("0", "d/z/img1.png")]
    wanted = codes.read_table("c.npz").latents(["z0", "z1", "z2"])
    for lines in (text.splitlines(), text.splitlines()[1:]):
        Path("c.csv").write_text("\n".join(lines))
        np.testing.assert_allclose(codes.read_table("c.csv").latents(["z0", "z1", "z2"], ["class"]), wanted, rtol=1e-6)


def test_encode_leaves_out_factors_that_are_not_known(vae: Vae) -> None:
    labels = np.array([[7, 0], [3, -1], [7, 1], [5, 0], [3, 1], [6, 1]])
    np.savez("d.npz", images=np.random.default_rng(0).random((6, 4, 4)), labels=labels, factor_names=["shape", "side"])
    train = ("train", "--model", "vae", *TINY[2:], "--data", "array:d.npz", "--steps", 2, "--runs-dir", "runs", "-q")
    run = vae(*train).out.strip()
    done = vae("encode", run, "--split", "all", "-o", "-")
    rows = rows_of(done.out)
    assert [row["shape"] for row in rows] == ["7", "3", "7", "5", "3", "6"] and "side" not in rows[0]
    assert "not known for all images: side" in done.err


def test_encode_refusals(vae: Vae, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, code, words in (
        (("-o", "c.txt"), 2, "written as .npz or .csv"),
        (("-o", "-", "--json"), 2, "both want stdout"),
        (("a.png", "-n", 3), 2, "-n counts images of a split"),
        (("absent.png",), 3, "absent.png: no such image"),
        (("--split", "nowhere"), 2, "nowhere"),
        (("-o", "no/c.csv"), 3, "does not exist"),
    ):
        done = vae("encode", tiny_run, *arguments)
        assert (done.code, done.out) == (code, "") and words in done.err
    Path("codes.npz").write_text("mine")
    assert vae("encode", tiny_run).code == 2 and Path("codes.npz").read_text() == "mine"
    assert vae("encode", tiny_run, "-n", 2, "--force").code == 0 and Path("codes.npz").read_bytes().startswith(b"PK")
    # Text is fit for a terminal, where a picture is not.
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    assert _artifact.check("-", "", False, text=True) == "-"
    with pytest.raises(ConfigError, match="terminal"):
        _artifact.check("-", "", False)


def test_encode_an_autoencoder_has_no_logvar(vae: Vae, tmp_path: Path) -> None:
    run = vae("train", "--model", "autoencoder", *TINY, "--steps", 5, "--runs-dir", "runs", "-q").out.strip()
    done = vae("encode", run, "-n", 2, "-o", "-")
    assert done.out.splitlines()[0] == "index,z0,z1,z2,size,posX,posY"
    Path("c.csv").write_text(done.out)
    assert vae("decode", run, "c.csv").code == 0


# ------------------------------------------------------------------------------------------------------------- decode


@pytest.mark.parametrize("name", ["c.npz", "c.csv", "c.npy"])
def test_decode_of_encode_is_the_reconstruction(
    vae: Vae, tiny_run: Path, loaded: Loaded, view: SplitView, name: str
) -> None:
    if name == "c.npy":
        vae("encode", tiny_run, "-n", 6, "-o", "c.npz")
        with np.load("c.npz") as stored:
            np.save(name, stored["codes"])
    else:
        vae("encode", tiny_run, "-n", 6, "-o", name)
    done = vae("decode", tiny_run, name, "-o", "x.npz", "--batch-size", 4, "--json")
    record = json.loads(done.out)
    assert (record["n"], record["shape"], record["path"], record["codes"]) == (6, [1, 16, 16], "x.npz", name)
    with np.load("x.npz") as stored:
        y, z = stored["images"], stored["z"]
    x = view.take(6).x_BCHW
    mean, _ = posterior(loaded, x)
    np.testing.assert_allclose(z, mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(y, decoded(loaded, mean), atol=1e-6)
    assert np.ptp(y, axis=0).max() > 1e-4  # the codes do tell the images apart
    numbers = json.loads(vae("reconstruct", tiny_run, "-n", 6, "--json").out)["images"]
    mse = np.square(x.numpy().astype(np.float64) - y).mean(axis=(1, 2, 3))
    assert [n["mse"] for n in numbers] == pytest.approx(mse.tolist(), rel=1e-6)


def test_encode_edit_with_numpy_decode(vae: Vae, tiny_run: Path, loaded: Loaded) -> None:
    vae("encode", tiny_run, "-n", 3, "-o", "c.npz")
    with np.load("c.npz") as stored:
        z = stored["codes"]
    z[:, 1] = [-2.0, 0.0, 2.0]
    np.savez("edited.npz", codes=z)
    assert vae("decode", tiny_run, "edited.npz", "-o", "x.npz").out == "x.npz\n"
    with np.load("x.npz") as stored:
        np.testing.assert_allclose(stored["images"], decoded(loaded, z), atol=1e-6)
    assert vae("decode", tiny_run, "x.npz", "-o", "again.npz").code == 0  # its `z`, as that of `vae sample`
    with np.load("x.npz") as x, np.load("again.npz") as again:
        assert np.array_equal(x["images"], again["images"])


def test_decode_writes_grid_folder_and_bytes(vae: Vae, tiny_run: Path, loaded: Loaded) -> None:
    z = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.save("z.npy", z)
    y = np.rint(decoded(loaded, z) * 255)
    assert vae("decode", tiny_run, "z.npy").out == "decoded.png\n"
    shown = Image.open("decoded.png")
    wanted = Image.open(io.BytesIO(figures.grid(decoded(loaded, z))))
    assert np.array_equal(np.asarray(shown), np.asarray(wanted))
    assert "vae run" in shown.text and shown.text["vae step"] == "30"  # type: ignore[attr-defined]
    assert vae("decode", tiny_run, "z.npy", "-o", "many/").out == "many\n"
    assert sorted(os.listdir("many")) == [f"{i:05d}.png" for i in range(5)]
    for i in range(5):
        assert np.abs(np.asarray(Image.open(f"many/{i:05d}.png")).astype(float) - y[i, 0]).max() <= 1
    assert vae("decode", tiny_run, "z.npy", "-o", "many").code == 2
    assert vae("decode", tiny_run, "z.npy", "-o", "many", "--force").code == 0
    piped = Image.open(io.BytesIO(vae("decode", tiny_run, "z.npy", "-o", "-").raw))
    assert np.array_equal(np.asarray(piped), np.asarray(shown))


@pytest.mark.parametrize("name", ["a.npy", "a.jpg", "a.csv"])
def test_endings_that_are_not_written_are_refused_before_the_work(vae: Vae, tiny_run: Path, name: str) -> None:
    vae("encode", tiny_run, "-n", 2, "-q")
    for command in (("sample", tiny_run, "-n", 2), ("decode", tiny_run, "codes.npz"), ("reconstruct", tiny_run)):
        done = vae(*command, "-o", name)
        assert done.code == 2 and "no such kind of file" in done.err and not Path(name).exists()
    assert vae("report", tiny_run, "-o", "r.pdf").code == 2
    assert vae("sample", tiny_run, "-n", 2, "-o", "a.NPZ").code == 0
    with np.load("a.NPZ") as stored:
        assert stored["images"].shape[0] == 2


def test_decode_refusals(vae: Vae, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("wide.npy", np.zeros((2, 5)))
    np.save("nan.npy", np.array([[0.0, 0, 0], [0, np.nan, 0]]))
    Path("text.csv").write_text("1,2,three\n4,5,6\n")
    Path("png.csv").write_bytes(figures.single(np.zeros((1, 2, 2))))
    for name, words in (
        ("wide.npy", "wide.npy: has codes of 5 latents, the model has 3"),
        ("nan.npy", "nan.npy: codes of row 1 are not finite"),
        ("absent.npz", "absent.npz: no such file"),
        ("png.csv", "png.csv: not a file of codes"),
        ("text.csv", "text.csv: "),
    ):
        done = vae("decode", tiny_run, name, "-o", "x.png")
        assert (done.code, done.out) == (3, "") and words in done.err, done.err
    assert not Path("x.png").exists()
    # What exists is kept, and that is found out before a model is loaded.
    Path("x.png").write_text("mine")
    np.save("good.npy", np.zeros((2, 3)))
    monkeypatch.setattr(checkpoint, "load", lambda path, device: pytest.fail("loaded in vain"))
    assert vae("decode", tiny_run, "good.npy", "-o", "x.png").code == 2


def test_pipe_of_encode_and_decode(vae_process: Vae, tiny_run: Path, loaded: Loaded, view: SplitView) -> None:
    sent = vae_process("encode", tiny_run, "-n", 4, "-o", "-", "-q")
    assert sent.code == 0 and sent.err == "" and len(sent.out.splitlines()) == 5
    done = vae_process("decode", tiny_run, "-", "-o", "out.npz", "-q", stdin=sent.raw)
    assert (done.code, done.out, done.err) == (0, "out.npz\n", "")
    mean, _ = posterior(loaded, view.take(4).x_BCHW)
    with np.load("out.npz") as stored:
        np.testing.assert_allclose(stored["images"], decoded(loaded, mean), atol=1e-6)


@pytest.mark.slow
def test_pipe_of_the_shell(tiny_run: Path) -> None:
    me = f"{sys.executable} -m vaecli"
    script = f"set -o pipefail; {me} encode {tiny_run} -n 4 -o - -q | {me} decode {tiny_run} - -o out.png -q"
    assert subprocess.run(["bash", "-c", script], capture_output=True).stdout == b"out.png\n"
    script = f"{me} encode {tiny_run} -n 4 -o - -q | cut -d, -f1,2 | head -1"
    assert subprocess.run(["bash", "-c", script], capture_output=True).stdout == b"index,z0\n"
    assert Image.open("out.png").size == (2 * 64 + 3 * 4, 2 * 64 + 3 * 4)


# -------------------------------------------------------------------------------------------------------- interpolate

T = np.linspace(0, 1, 5)


def test_straight_way() -> None:
    way = straight(np.array([0.0, 4.0]), np.array([2.0, 0.0]), T)
    assert way.tolist() == [[0, 4], [0.5, 3], [1, 2], [1.5, 1], [2, 0]]


def test_great_circle_turns_and_grows_evenly() -> None:
    a, b = np.array([2.0, 0.0, 0.0]), np.array([0.0, 6.0, 0.0])
    way = great_circle(a, b, T)
    norm, angle = np.array([2, 3, 4, 5, 6]), np.pi / 2 * T
    expected = np.stack([norm * np.cos(angle), norm * np.sin(angle), 0 * T], axis=1)
    np.testing.assert_allclose(way, expected, atol=1e-12)
    assert way[0].tolist() == a.tolist() and way[-1].tolist() == b.tolist()


def test_great_circle_is_slerp_in_many_dimensions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.normal(size=(2, 10))
        u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
        omega = np.arccos(u @ v)
        norm = (1 - T) * np.linalg.norm(a) + T * np.linalg.norm(b)
        slerp = (np.sin((1 - T) * omega)[:, None] * u + np.sin(T * omega)[:, None] * v) / np.sin(omega)
        np.testing.assert_allclose(great_circle(a, b, T), norm[:, None] * slerp, rtol=1e-9, atol=1e-12)
        assert angle_between(a, b) == pytest.approx(omega, rel=1e-9)


def test_great_circle_of_parallel_codes_is_straight() -> None:
    a = np.array([3.0, 4.0])
    np.testing.assert_allclose(great_circle(a, 2 * a, T), straight(a, 2 * a, T), rtol=1e-12)
    assert great_circle(a, a, T).tolist() == [a.tolist()] * 5
    near = a + np.array([1e-9, 0])
    way = great_circle(a, near, T)
    assert np.isfinite(way).all()
    np.testing.assert_allclose(way - a, straight(a, near, T) - a, atol=1e-15 * 10)
    assert angle_between(a, 2 * a) == pytest.approx(0, abs=1e-15)
    assert angle_between(a, near) == pytest.approx(1e-9 * 4 / 25, rel=1e-5)  # where the arc cosine says 0


def test_great_circle_between_opposites_goes_round_by_the_axis_least_in_a() -> None:
    a = np.array([3.0, 0.0, 4.0])
    way = great_circle(a, -2 * a, T)
    # Halfway the direction is the second axis, which a does not have, and the norm 7.5.
    np.testing.assert_allclose(way[2], [0, 7.5, 0], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), [5, 6.25, 7.5, 8.75, 10], rtol=1e-12)
    assert way[0].tolist() == a.tolist() and way[-1].tolist() == (-2 * a).tolist()
    assert angle_between(a, -2 * a) == pytest.approx(np.pi)
    # Not quite opposite: the shortest way is theirs, not the axis'.
    almost = np.array([-3.0, 0.0, -4.0]) + 1e-3 * np.array([4.0, 0.0, -3.0])
    assert great_circle(a, almost, T)[2] == pytest.approx([4, 0, -3], abs=2e-3)


def test_great_circle_without_a_direction_is_straight() -> None:
    a, zero = np.array([3.0, 4.0]), np.zeros(2)
    for ends in ((a, zero), (zero, a), (zero, zero)):
        assert great_circle(*ends, T).tolist() == straight(*ends, T).tolist()
        assert np.isnan(angle_between(*ends))
    one, other = np.array([1.0]), np.array([-3.0])
    assert great_circle(one, other, T).ravel().tolist() == [1, 0, -1, -2, -3]


@pytest.mark.parametrize("way", ["--linear", "--spherical"])
def test_interpolate_by_value(vae: Vae, tiny_run: Path, loaded: Loaded, way: str) -> None:
    dataset = data.load(loaded.config.data)
    done = vae("interpolate", tiny_run, 3, 500, "--steps", 5, way, "--json")
    record = json.loads(done.out)
    x = dataset.images.gather(torch.tensor([3, 500]))
    (a, b), _ = posterior(loaded, x)
    z = (great_circle if way == "--spherical" else straight)(a.astype(np.float64), b.astype(np.float64), T)
    assert record["path"] == "interpolation.png" and record["values"] == T.tolist()
    np.testing.assert_allclose(record["codes"], z, rtol=1e-5, atol=1e-7)
    assert record["distance"] == pytest.approx(np.linalg.norm(b - a), rel=1e-5)
    assert record["angle"] == pytest.approx(angle_between(a, b), rel=1e-4)
    assert record["spherical"] is (way == "--spherical")


def test_interpolate_strip_shows_inputs_beside_their_reconstructions(
    vae: Vae, tiny_run: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = data.load(loaded.config.data).images.gather(torch.tensor([3]))
    Path("b.png").write_bytes(figures.single(x[0].numpy()))
    drawn = []
    sheet = figures.sheet

    def spy(rows: list[figures.Row], headings: list[str], title: str, footer: str) -> Image.Image:
        drawn.append((rows[0].images_NCHW, headings, title, footer))
        return sheet(rows, headings, title, footer)

    monkeypatch.setattr(figures, "sheet", spy)
    assert vae("interpolate", tiny_run, 400, "b.png", "--steps", 3, "-o", "way.png").out == "way.png\n"
    assert Path("way.png").read_bytes().startswith(b"\x89PNG")
    ((shown, headings, title, footer),) = drawn
    ends = torch.cat([data.load(loaded.config.data).images.gather(torch.tensor([400])), x])
    mean, _ = posterior(loaded, ends)
    y = decoded(loaded, np.stack([mean[0], mean.mean(axis=0), mean[1]]))
    np.testing.assert_allclose(shown, np.concatenate([ends[:1], y, ends[1:]]), atol=1e-6)
    assert headings == ["input", "0.0", "0.5", "1.0", "input"]
    assert "beta-vae" in title and "step 30" in title and "from image 400 of squares to b.png, straight" in footer
    drawn.clear()
    assert vae("interpolate", tiny_run, 400, "b.png", "--steps", 4, "-o", "way.gif").code == 0
    assert Image.open("way.gif").n_frames == 2 * 4 - 2  # type: ignore[attr-defined]
    for (shown, *_), want in zip(drawn, decoded(loaded, straight(mean[0], mean[1], np.linspace(0, 1, 4))), strict=True):
        np.testing.assert_allclose(shown, np.stack([ends[0], want, ends[1]]), atol=1e-6)


def test_interpolate_needs_no_data_set_between_files(vae: Vae, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(figures.single(np.full((1, 16, 16), 0.2 if name == "a.png" else 0.9)))
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("loaded in vain"))
    assert vae("interpolate", tiny_run, "a.png", "b.png", "--steps", 2).code == 0


def test_interpolate_refusals(vae: Vae, tiny_run: Path) -> None:
    for ends, code, words in (
        ((3, 507), 2, "images 0 to 506"),
        ((3, "9" * 40), 2, "images 0 to 506"),
        ((3, "absent.png"), 3, "absent.png: no such image"),
    ):
        done = vae("interpolate", tiny_run, *ends)
        assert (done.code, done.out) == (code, "") and words in done.err
    with pytest.raises(ConfigError, match="at least 2"):
        interpolate.run(str(tiny_run), "1", "2", 1, False, None, "cpu", False, False)
    assert os.listdir() == ["runs"]

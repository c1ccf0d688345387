"""Codes: what is refused, the cache, and the files they are kept in."""

import io
import math
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Result
from safetensors.torch import save_file

from vaecli import data, output
from vaecli.analysis import analyze, codes
from vaecli.analysis.codes import Table, make
from vaecli.data.base import Dataset, Floats, SplitView
from vaecli.errors import InputError, MachineError
from vaecli.training import checkpoint
from vaecli.training.checkpoint import Loaded

CPU = torch.device("cpu")
MEAN = np.array([[0.1, -2.0], [3.0, 1e-9], [-0.5, 7.25]])
LOGVAR = np.array([[-4.0, 0.0], [-4.5, 0.5], [-1.0, -2.0]])


# --------------------------------------------------------------------------------------------------------------- make


def test_statistics_of_codes_by_hand() -> None:
    made = make(np.array([[1.0, 0.05], [-1.0, -0.05]]), np.log(np.array([[0.5, 1.0], [0.25, 1.0]])))
    assert made.active_D.tolist() == [True, False]  # variances 1 and 0.0025
    expected = 0.5 * np.array([1 + 0.375 - (np.log(0.5) + np.log(0.25)) / 2 - 1, 0.0025])
    assert made.kl_D is not None
    np.testing.assert_allclose(made.kl_D, expected, rtol=1e-12)
    # Without log-variances: against the largest variance. 0.0025 of 1 is above 1e-4 of it, 4e-5 below.
    assert make(np.array([[1.0, 0.05], [-1.0, -0.05]])).active_D.tolist() == [True, True]
    assert make(np.array([[1.0, 0.006], [-1.0, -0.006]])).active_D.tolist() == [True, False]
    assert make(np.zeros((3, 2))).active_D.tolist() == [False, False]


def test_factors_are_numbered_from_0_in_order() -> None:
    made = make(MEAN, factors_NK=np.array([[7, -1], [-3, -1], [7, -1]], dtype=np.int8))
    assert made.factors_NK is not None and made.factors_NK.tolist() == [[1, 0], [0, 0], [1, 0]]
    assert made.factor_names == ("factor0", "factor1") and made.latent_names == ("z0", "z1") and made.varying == [0]


def test_selections() -> None:
    made = make(MEAN, LOGVAR, np.array([[0, 1], [1, 1], [2, 1]]), ["a", "b"])
    rows = made.rows(np.array([2, 0]))
    assert rows.mean_ND.tolist() == MEAN[[2, 0]].tolist() and rows.factors_NK.tolist() == [[2, 0], [0, 0]]  # type: ignore[union-attr]
    latent = made.latents_only(np.array([False, True]))
    assert latent.latent_names == ("z1",) and latent.logvar_ND.tolist() == LOGVAR[:, 1:].tolist()  # type: ignore[union-attr]
    assert made.factors_only([1]).factor_names == ("b",)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_its_row(bad: float) -> None:
    mean_ND = MEAN.copy()
    mean_ND[1, 1] = bad
    with pytest.raises(InputError, match=r"^f: codes of row 1 are not finite$"):
        make(mean_ND, source="f")
    mean_ND[2, 0] = bad
    with pytest.raises(InputError, match="codes of row 1 and 1 more are not finite"):
        make(mean_ND)
    with pytest.raises(InputError, match="logvar of row 1 and 1 more"):
        make(MEAN, mean_ND)


@pytest.mark.parametrize(
    "mean_ND", [np.zeros(3), np.zeros((0, 2)), np.zeros((2, 0)), MEAN * 1j, MEAN > 0, np.array([["1", "2"]])]
)
def test_codes_of_other_shapes_and_types_are_refused(mean_ND: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"codes must be numbers of shape \(N, D\)"):
        make(mean_ND)


def test_parts_that_do_not_fit_are_refused() -> None:
    for kept in (
        {"logvar_ND": LOGVAR[:2]},
        {"logvar_ND": LOGVAR + 0j},
        {"factors_NK": np.zeros((2, 1), dtype=int)},
        {"factors_NK": np.zeros((3, 0), dtype=int)},
        {"factors_NK": np.zeros(3, dtype=int)},
        {"factors_NK": np.zeros((3, 1))},
        {"factors_NK": np.zeros((3, 1), dtype=int), "factor_names": ["a", "b"]},
        {"latent_names": ["only one"]},
    ):
        with pytest.raises(InputError):
            make(MEAN, **kept)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "codes"


@pytest.fixture
def loaded(tiny_run: Path, cache: Path) -> Loaded:
    return checkpoint.load(tiny_run, CPU)


@pytest.fixture
def view(loaded: Loaded) -> SplitView:
    return data.load(loaded.config.data).split("test")


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(output, "notice", said.append)
    return said


def no_encoder(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.model, "posterior", lambda x: pytest.fail("encoded once more"))


def test_encode_is_the_posterior_of_the_first_images(loaded: Loaded, view: SplitView) -> None:
    batch = view.take(7)
    with torch.inference_mode():
        q = loaded.model.posterior(batch.x_BCHW)
    counted: list[int] = []
    made = codes.encode(loaded, view, 7, batch_size=3, advance=counted.append)
    assert counted == [3, 3, 1]
    np.testing.assert_allclose(made.mean_ND, q.mean_BD.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(made.logvar_ND, q.logvar_BD.numpy(), rtol=1e-5, atol=1e-7)  # type: ignore[arg-type, union-attr]
    assert made.factor_names == ("size", "posX", "posY") and made.latent_names == ("z0", "z1", "z2")
    raw = batch.labels_BK.numpy()  # type: ignore[union-attr]
    anew = np.stack([np.unique(column, return_inverse=True)[1] for column in raw.T], axis=1)
    assert np.array_equal(made.factors_NK, anew) and not np.array_equal(anew, raw)  # type: ignore[arg-type]
    labels, names = codes.known_factors(view, 7)
    assert np.array_equal(labels, raw) and names == ["size", "posX", "posY"]  # type: ignore[arg-type]
    assert len(codes.encode(loaded, view, 10**6)) == len(view)


def test_second_time_comes_from_the_cache(
    loaded: Loaded, view: SplitView, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = codes.encode(loaded, view, 7)
    assert [p.suffix for p in cache.iterdir()] == [".safetensors"]  # no temporary file left
    no_encoder(loaded, monkeypatch)
    counted: list[int] = []
    again = codes.encode(loaded, view, 7, advance=counted.append)
    assert np.array_equal(first.mean_ND, again.mean_ND) and np.array_equal(first.logvar_ND, again.logvar_ND)  # type: ignore[arg-type]
    assert np.array_equal(first.factors_NK, again.factors_NK) and counted == [7]  # type: ignore[arg-type]


def test_cache_tells_apart_what_gives_other_codes(
    loaded: Loaded, view: SplitView, cache: Path, tmp_path: Path, vae: Callable[..., Result]
) -> None:
    codes.encode(loaded, view, 7)
    codes.encode(loaded, view, 8)
    codes.encode(loaded, view.dataset.split("train"), 7)
    assert len(list(cache.iterdir())) == 3
    # Other images under the same configuration and indices: what counts is what they are, not what they were.
    store = Floats(1 - view.dataset.images.gather(torch.arange(len(view.dataset.images))))
    changed = replace(view.dataset.info, source={"kind": "drawn", "sha256": "another"})
    inverted = Dataset(changed, store, view.dataset.labels, view.dataset.splits).split("test")
    with torch.inference_mode():
        expected = loaded.model.posterior(inverted.take(7).x_BCHW).mean_BD.numpy()
    np.testing.assert_allclose(codes.encode(loaded, inverted, 7).mean_ND, expected, rtol=1e-5, atol=1e-7)
    assert len(list(cache.iterdir())) == 4
    # Other weights in a file of the same name.
    tiny = loaded.path.read_bytes()
    loaded.path.write_bytes(tiny[:-4] + bytes(4))
    codes.encode(loaded, view, 7)
    assert len(list(cache.iterdir())) == 5


def test_data_without_checksum_or_file_gone_are_not_cached(loaded: Loaded, view: SplitView, cache: Path) -> None:
    nameless = replace(view.dataset, info=replace(view.dataset.info, source={"kind": "drawn"}))
    codes.encode(loaded, nameless.split("test"), 3)
    codes.encode(replace(loaded, path=Path("gone.safetensors")), view, 3)
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["cut", "text", "rows", "latents", "names", "type", "logvar"])
def test_damaged_cache_is_made_anew(loaded: Loaded, view: SplitView, cache: Path, damage: str) -> None:
    first = codes.encode(loaded, view, 7)
    (file,) = cache.iterdir()
    mean, logvar = torch.zeros(7, 3), torch.zeros(7, 3)
    hostile = {
        "rows": {"mean": mean[:6], "logvar": logvar[:6]},
        "latents": {"mean": mean[:, :2].clone(), "logvar": logvar[:, :2].clone()},
        "names": {"mean": mean, "logvar": logvar, "more": mean.clone()},
        "type": {"mean": mean.double(), "logvar": logvar.double()},
        "logvar": {"mean": mean, "logvar": logvar[:, :1].clone()},
    }
    if damage in hostile:
        save_file(hostile[damage], file, metadata={"sha256": codes._digest(hostile[damage])})
    else:
        file.write_bytes(file.read_bytes()[:-9] if damage == "cut" else b"text")
    again = codes.encode(loaded, view, 7)
    assert np.array_equal(first.mean_ND, again.mean_ND) and np.array_equal(first.logvar_ND, again.logvar_ND)  # type: ignore[arg-type]


def test_cache_that_cannot_be_written_costs_only_time(
    loaded: Loaded, view: SplitView, monkeypatch: pytest.MonkeyPatch, notices: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/dev/null"), Path("/proc/none")):
        monkeypatch.setenv("VAE_CACHE_DIR", str(place))
        assert len(codes.encode(loaded, view, 3)) == 3
        assert "codes not cached" in notices.pop()


def test_cache_keeps_what_was_used_last(
    loaded: Loaded, view: SplitView, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in (5, 6, 7):
        codes.encode(loaded, view, n)
    of = {n: codes._cache_file(loaded, view, n) for n in (5, 6, 7, 8)}
    for age, n in enumerate((7, 6, 5)):
        os.utime(of[n], (1000 - age, 1000 - age))  # type: ignore[arg-type]
    codes.encode(loaded, view, 5)  # used: now the newest
    monkeypatch.setattr(codes, "CACHE_BYTES", 3 * of[7].stat().st_size)  # type: ignore[union-attr]
    codes.encode(loaded, view, 8)
    assert set(cache.iterdir()) == {of[8], of[5], of[7]}
    monkeypatch.setattr(codes, "CACHE_BYTES", 1)
    codes.encode(loaded, view, 6)
    assert list(cache.iterdir()) == [of[6]]  # the newest stays, however large


def test_factors_not_known_are_left_out(loaded: Loaded, view: SplitView, notices: list[str]) -> None:
    labels_NK = view.dataset.labels.clone()  # type: ignore[union-attr]
    labels_NK[view.indices[4], 1] = -1
    made = codes.encode(loaded, replace(view.dataset, labels=labels_NK).split("test"), 7)
    assert made.factor_names == ("size", "posY") and notices == ["left out, because not known for all images: posX"]
    assert codes.encode(loaded, replace(view.dataset, labels=labels_NK).split("test"), 4).factor_names[1] == "posX"
    partly = replace(view.dataset, labels=labels_NK).split("test")
    known = codes.fully_known(made, partly, 7)
    assert known.factor_names == ("size", "posX", "posY") and notices[-1].startswith(
        "metrics are over the 6 of 7 images"
    )
    rows = [0, 1, 2, 3, 5, 6]
    assert (known.mean_ND == made.mean_ND[rows]).all() and known.factors_NK is not None
    assert (
        known.factors_NK[:, 0]
        == codes.make(made.mean_ND, None, view.take(7).labels_BK.numpy()[:, :1]).factors_NK[rows, 0]
    ).all()  # type: ignore
    labels_NK[1:] = -1
    assert codes.fully_known(made, replace(view.dataset, labels=labels_NK).split("test"), 7) is made
    labels_NK[:] = -1
    assert codes.encode(loaded, replace(view.dataset, labels=labels_NK).split("test"), 7).factors_NK is None
    bare = replace(view.dataset, labels=None, info=replace(view.dataset.info, factor_names=(), factor_sizes=()))
    assert codes.encode(loaded, bare.split("test"), 7).factors_NK is None  # though the model was trained with labels


def test_encoder_that_gives_nan_is_named_with_the_row(
    loaded: Loaded, view: SplitView, monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior = loaded.model.posterior

    def broken(x_BCHW: torch.Tensor) -> object:
        q = posterior(x_BCHW)
        return SimpleNamespace(mean_BD=q.mean_BD.clone().index_fill_(0, torch.tensor([2]), torch.nan), logvar_BD=None)

    monkeypatch.setattr(loaded.model, "posterior", broken)
    with pytest.raises(InputError, match=r"model\.safetensors over 5 images \(val\): codes of row 2 are not finite"):
        codes.encode(loaded, view, 5)


# -------------------------------------------------------------------------------------------------------------- files


def test_npz_there_and_back(tmp_path: Path) -> None:
    made = make(MEAN, LOGVAR, np.array([[0, 1], [1, 0], [2, 0]]), ["a", "b"], ["top.0", "low.0"])
    (tmp_path / "c.npz").write_bytes(codes.to_npz(made, np.array([5, 9, 2])))
    back = codes.read(tmp_path / "c.npz")
    assert back.mean_ND.dtype == np.float64 and np.array_equal(back.mean_ND, MEAN.astype(np.float32))
    assert np.array_equal(back.logvar_ND, LOGVAR.astype(np.float32))  # type: ignore[arg-type]
    assert np.array_equal(back.factors_NK, made.factors_NK)  # type: ignore[arg-type]
    assert (back.factor_names, back.latent_names) == (("a", "b"), ("top.0", "low.0"))
    with np.load(tmp_path / "c.npz") as arrays:
        assert arrays["index"].tolist() == [5, 9, 2]
    (tmp_path / "d.npz").write_bytes(codes.to_npz(make(MEAN), np.arange(3)))
    assert codes.read(tmp_path / "d.npz").logvar_ND is None
    with np.load(tmp_path / "d.npz") as arrays:
        assert sorted(arrays.files) == ["codes", "index", "latent_names"]


def test_csv_by_the_letter() -> None:
    made = make(MEAN, LOGVAR, np.array([[0], [1], [2]]), ['a, "b"'])
    assert b"".join(codes.to_csv(made, np.array([5, 9, 2]), rows=2)).decode() == (
        'index,z0,z1,z0_logvar,z1_logvar,"a, ""b"""\n5,0.1,-2,-4,0,0\n9,3,1e-09,-4.5,0.5,1\n2,-0.5,7.25,-1,-2,2\n'
    )
    assert b"".join(codes.to_csv(make(MEAN[:1]), np.array([5]))) == b"index,z0,z1\n5,0.1,-2\n"


def test_csv_keeps_every_bit_of_single_precision() -> None:
    rng = np.random.default_rng(0)
    mean_ND = np.ldexp(rng.normal(size=(999, 3)), rng.integers(-120, 120, (999, 3))).astype(np.float32)
    text = b"".join(codes.to_csv(make(mean_ND), np.arange(999), rows=100))
    Path("c.csv").write_bytes(text)
    read = codes.read_table("c.csv").latents(["z0", "z1", "z2"])
    assert np.array_equal(read.astype(np.float32), mean_ND)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_hostile_and_damaged_npz() -> None:
    np.savez("good.npz", codes=MEAN, factors=np.zeros((3, 1), dtype=int))
    good = Path("good.npz").read_bytes()
    Path("text.npz").write_text("not an archive")
    Path("empty.npz").write_bytes(b"")
    Path("cut.npz").write_bytes(good[:-30])
    Path("flipped.npz").write_bytes(good[:100] + bytes([good[100] ^ 255]) + good[101:])
    np.savez("objects.npz", codes=np.array([[Bomb()]], dtype=object))
    np.savez("other.npz", x=MEAN)
    np.savez("names.npz", codes=MEAN, factor_names=np.array(["a"]))
    np.savez("words.npz", codes=np.array([["a", "b"]]))
    np.save("plain.npy", MEAN)
    Path("folder.npz").mkdir()
    for name in (
        *("text.npz", "empty.npz", "cut.npz", "flipped.npz", "objects.npz", "other.npz", "names.npz", "words.npz"),
        *("plain.npy", "folder.npz", "absent.npz"),
    ):
        with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
            codes.read(name)
        assert "\n" not in str(caught.value) and "allow_pickle" not in str(caught.value)
    assert not Path("exploded").exists()
    np.save("objects.npy", np.array([[Bomb()]], dtype=object))
    for name in (
        "text.npz",
        "cut.npz",
        "flipped.npz",
        "objects.npz",
        "other.npz",
        "words.npz",
        "folder.npz",
        "objects.npy",
    ):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            codes.read_table(name)
    assert not Path("exploded").exists()


def test_archive_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {"descr": "<f8", "fortran_order": False, "shape": (10**11, 100)},  # type: ignore[arg-type]
    )
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("codes.npy", header.getvalue())
    raw = bytearray(Path("bomb.npz").read_bytes())
    where = raw.index(b"PK\x01\x02") + 24  # the size after unpacking, in the central directory
    raw[where : where + 4] = (0xFFFFFFFE).to_bytes(4, "little")
    Path("bomb.npz").write_bytes(raw)
    monkeypatch.setattr(codes, "require_memory", lambda nbytes, *_: (_ for _ in ()).throw(MachineError(str(nbytes))))
    for read in (codes.read, codes.read_table):
        with pytest.raises(MachineError, match=str(0xFFFFFFFE)):
            read("bomb.npz")


NAMES = ["z0", "z1"]


def table(text: str | bytes) -> Table:
    Path("t").write_bytes(text if isinstance(text, bytes) else text.encode())
    return codes.read_table("t")


@pytest.mark.parametrize(
    "text",
    [
        "1,2\n3,4\n",
        "z0,z1\n1,2\n3,4\n",
        "z1,z0\n2,1\n4,3\n",
        "\ufeffz0,z1\r\n1,2\r\n3,4",
        "# z0,z1\n1,2\n\n3,4\n",
        "a,b\n1,2\n3,4\n",
        "z0,z1,5\n1,2,0\n3,4,0\n",
        ",z0,z1\n0,1,2\n1,3,4\n",
        '"index","z0","z1"\n9,1,2\n7,"3",4\n',
        "index,z0,z1,z0_logvar,z1_logvar,shape\n9,1,2,-4,-5,0\n7,3,4,-4,-5,1\n",
        "z0_logvar,shape,z1,cluster,z0,index\n-4,0,2,8,1,9\n-4,0,4,8,3,7\n",
        "9,1,2,-4,-5,0\n7,3,4,-4,-5,1\n",  # no header: index, 2 latents, 2 log-variances, 1 factor
        "9,1,2,-4,-5\n7,3,4,-4,-5\n",
        "9,1,2,0\n7,3,4,1\n",
        " 1 , 2.0 \n 3e0 , 4 \n",
    ],
)
def test_csv_of_many_kinds(text: str) -> None:
    assert table(text).latents(NAMES, ["shape"]).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,2,3\n4,5,6\n", 3),
        ("0,0,0\n1,0,0\n", 3),  # might be an index and two latents, might be three latents: not guessed
        ("1\n2\n", 1),
        ("z0,z1,z2\n1,2,3\n", 3),
        ("index,z0,z0_logvar,shape\n1,2,3,4\n", 1),
        ("a,b,c\n1,2,3\n", 3),
        ("0.5,1,2,-4,-5,0\n7,3,4,-4,-5,1\n", 6),  # the first column is no index
        ("7,1,2,-4,-5,0\n7,3,4,-4,-5,1\n", 6),
    ],
)
def test_another_number_of_latents_is_refused_with_both_numbers(text: str, found: int) -> None:
    with pytest.raises(InputError, match=f"^t: has codes of {found} latents, the model has 2$"):
        table(text).latents(NAMES, ["shape"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no codes"),
        ("\n\n", "holds no codes"),
        ("z0,z1\n", "only the header"),
        ("1,2\n3\n", "columns changed from 2 to 1"),
        ("1,2\n3,x\n", "'x'"),
        ("1,x\n3,4\n", "'x'"),  # no header: it has a number
        ("1.5,2.O\n3,4\n", "'2.O'"),
        ("1,2\n3,\n", "not CSV of numbers"),
        ("z0,z1\n1,2,3\n", "2 names in the header for 3 columns"),
        (b"\xff\xfe\x00\x01", "not a file of codes"),
        (b"\x89PNG\r\n\x1a\n", "not a file of codes"),
    ],
)
def test_what_is_no_csv(text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        table(text)


def test_groups_of_latents_by_name() -> None:
    read = table("low.0,5,top.1,top.0\n1,9,2,3\n")
    assert read.latents(["top.0", "top.1", "low.0"]).tolist() == [[3, 2, 1]]
    with pytest.raises(InputError, match="3 latents, the model has 2"):
        read.latents(["z0", "z1"])


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="same name"):
        table("z0,z0\n1,2\n").latents(NAMES)


@pytest.mark.parametrize("cell", ["nan", "NaN", "inf", "-inf", "1e999"])
def test_csv_with_a_code_not_finite_is_refused_by_its_row(cell: str) -> None:
    with pytest.raises(InputError, match=r"^t: codes of row 1 are not finite$"):
        table(f"z0,z1\n1,2\n3,{cell}\n").latents(NAMES)
    # In columns that are passed over it does not matter.
    assert table(f"z0,z1,shape\n1,2,{cell}\n").latents(NAMES, ["shape"]).tolist() == [[1, 2]]


def test_tables_from_numpy_files(monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("a.npy", MEAN.astype(np.float16))
    np.savez("a.npz", codes=MEAN, z=MEAN + 1)
    np.savez("b.npz", z=MEAN, images=np.zeros(3))
    np.savez_compressed("c", codes=np.asfortranarray(MEAN))
    assert np.array_equal(codes.read_table("a.npy").latents(NAMES), MEAN.astype(np.float16))
    for name in ("a.npz", "b.npz", "c.npz"):
        assert np.array_equal(codes.read_table(name).latents(NAMES), MEAN)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match=f"{name}: has codes of 2 latents, the model has 6"):
            codes.read_table(name).latents([f"z{i}" for i in range(6)])
    np.save("n.npy", np.where(MEAN == 7.25, np.nan, MEAN))
    with pytest.raises(InputError, match=r"n\.npy: codes of row 2 are not finite"):
        codes.read_table("n.npy").latents(NAMES)
    np.save("flat.npy", MEAN[0])
    with pytest.raises(InputError, match=r"shape \(N, D\), not float64 \(2,\)"):
        codes.read_table("flat.npy")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"1,2\n")))
    assert codes.read_table("-").latents(NAMES).tolist() == [[1, 2]]


def test_a_logvar_that_is_none_is_refused() -> None:
    logvar_ND = np.zeros((5, 2))
    logvar_ND[3, 1] = 800.0
    with pytest.raises(InputError, match="row 3"):
        codes.make(np.zeros((5, 2)), logvar_ND)


def test_codes_that_do_not_fit_are_refused_before_they_are_made(
    vae: Callable[..., Result], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaecli.data import base

    monkeypatch.setattr(base, "free_memory", lambda: 1000)
    loaded = checkpoint.load(tiny_run, torch.device("cpu"))
    with pytest.raises(MachineError, match="51 codes needs"):
        codes.encode(loaded, data.load(loaded.config.data, loaded.info).split("val"))


# ---- latents without a log-variance


def test_labels_are_seen_by_metrics_alone() -> None:
    rng = np.random.default_rng(0)
    factor_N = rng.integers(0, 3, 3000)
    label_N3 = np.eye(3)[factor_N]
    z_N2 = rng.standard_normal((3000, 2)) * [0.8, 0.0]
    logvar_N2 = np.log(np.broadcast_to([0.36, 1.0], (3000, 2)))
    nothing = np.full((3000, 3), np.nan)
    both = codes.make(np.hstack([label_N3, z_N2]), np.hstack([nothing, logvar_N2]), factor_N[:, None], ["f"])
    assert both.gaussian_D.tolist() == [False] * 3 + [True] * 2
    found = analyze.analyze_codes(both, metric_names=["mig", "mig-exact"], diagnose=True)
    totals = found.record()["totals"]
    assert (totals["latents"], totals["active_units"]) == (2, 1)
    expected = 0.5 * (np.square(z_N2[:, 0]).mean() + 0.36 - math.log(0.36) - 1)
    assert totals["kl"] == pytest.approx(expected, rel=1e-9)
    mig, exact = found.results
    assert mig.score is not None and mig.score.settings["latents"] == 5
    assert exact.score is not None and exact.score.settings["latents"] == 2 and exact.score.values["mig_exact"] < 0.05
    again = codes.read(io.BytesIO(codes.to_npz(both, np.arange(3000))))  # type: ignore[arg-type]
    assert again.logvar_ND is not None and np.array_equal(again.gaussian_D, both.gaussian_D)
    header = next(codes.to_csv(both, np.arange(3000))).decode().strip()
    assert header == "index,z0,z1,z2,z3,z4,z3_logvar,z4_logvar,f"
    table = codes._read_csv(b"".join(codes.to_csv(both, np.arange(3000))), "c.csv")
    assert np.allclose(table.latents(both.latent_names, ["f"]), both.mean_ND, rtol=1e-8)


def test_a_hole_in_a_log_variance_is_refused() -> None:
    logvar = np.zeros((4, 2))
    logvar[2, 1] = np.nan
    with pytest.raises(InputError, match="row 2"):
        codes.make(np.zeros((4, 2)), logvar)
    assert codes.make(np.zeros((4, 2)), np.full((4, 2), np.nan)).logvar_ND is None

"""`vae encode -o codes.parquet`: the table of the CSV, as its own library reads it, and back through `vae decode`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Result
from PIL import Image

from vaecli.analysis import codes as code_files
from vaecli.errors import InputError


def test_identity_stands_beside_the_codes(vae: Callable[..., Result]) -> None:
    """Files and classes of a folder, joined by name; numbers equal those of the .npz bit for bit."""
    parquet = pytest.importorskip("pyarrow.parquet")
    for i, name in enumerate(["a, b/1.png", "a, b/2.png", "ü/3.png"]):
        Path("set", name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(Path("set", name))
    train = ("train", "--model", "vae", *TINY[2:], "--data", "folder:set", "--steps", 2, "--batch-size", 2)
    assert vae(*train, "--runs-dir", "runs", "--name", "f", "-q").code == 0
    assert vae("encode", "runs/f", "--split", "all", "-o", "c.npz").code == 0
    done = vae("encode", "runs/f", "--split", "all", "-o", "c.parquet")
    assert (done.code, done.out) == (0, "c.parquet\n"), done.err
    table = parquet.read_table("c.parquet")
    logvars = [f"z{i}_logvar" for i in range(3)]
    assert table.column_names == ["index", "z0", "z1", "z2", *logvars, "class", "file", "class_name"]
    with np.load("c.npz") as stored:
        assert np.array_equal(np.stack([table[f"z{i}"].to_numpy() for i in range(3)], axis=1), stored["codes"])
        assert np.array_equal(np.stack([table[name].to_numpy() for name in logvars], axis=1), stored["logvar"])
        for column, array in (("index", "index"), ("file", "files"), ("class_name", "class_name")):
            assert table[column].to_pylist() == stored[array].tolist()
        assert table["class"].to_pylist() == stored["factors"][:, 0].tolist()
    rows = dict(zip(table["file"].to_pylist(), table["class_name"].to_pylist(), strict=True))
    assert rows == {"a, b/1.png": "a, b", "a, b/2.png": "a, b", "ü/3.png": "ü"}
    for kind in ("npz", "parquet"):
        assert vae("decode", "runs/f", f"c.{kind}", "-o", f"{kind}.npz", "-q").code == 0
    with np.load("npz.npz") as a, np.load("parquet.npz") as b:
        assert np.array_equal(a["images"], b["images"])


def test_bad_files(tiny_run: Path, vae: Callable[..., Result]) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    Path("cut.parquet").write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(InputError, match="not a Parquet file"):
        code_files.read_table("cut.parquet")
    parquet.write_table(pyarrow.table({"z0": ["a", "b"]}), "words.parquet")
    with pytest.raises(InputError, match="of numbers"):
        code_files.read_table("words.parquet")
    parquet.write_table(pyarrow.table({"z0": [1.0], "z1": [2.0]}), "two.parquet")
    done = vae("decode", tiny_run, "two.parquet")
    assert done.code == 3 and "codes of 2 latents, the model has 3" in done.err


def test_without_the_library(tiny_run: Path, vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = vae("encode", tiny_run, "-o", "c.parquet")
    assert done.code == 2 and 'pip install "vaecli[parquet]"' in done.err and not Path("c.parquet").exists()

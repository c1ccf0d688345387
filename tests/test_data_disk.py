"""Sets that stay on disk give what those in memory give, bit for bit; HDF5; many channels."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaecli import data
from vaecli.data import _disk, array, folder
from vaecli.errors import InputError, MachineError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))


def load(path, **options):
    return array.load(array.Config(name="array", path=path, **{"holdout": 0.2, **options}))


def numbers(*shape, dtype=np.uint8, high=256, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def same(one, other):
    """Both sets: images in any order, splits, labels, source."""
    assert one.info == other.info
    n = len(one.images)
    assert n == len(other.images)
    for index in (torch.arange(n), torch.tensor([n - 1, 0, 1, 2, 0, n // 2]), torch.tensor([3])):
        assert torch.equal(one.images.gather(index), other.images.gather(index))
    assert one.splits.keys() == other.splits.keys()
    assert all(torch.equal(one.splits[name], other.splits[name]) for name in one.splits)
    assert (one.labels is None) == (other.labels is None)
    assert one.labels is None or torch.equal(one.labels, other.labels)


IMAGES = {
    "grey": numbers(70, 6, 5),
    "last": numbers(70, 6, 5, 3),
    "first": numbers(70, 3, 6, 5),
    "counts": numbers(70, 6, 5, dtype=np.uint16, high=4000),
    "signed": numbers(70, 6, 5, dtype=np.int32, high=1000),
    "big-endian": numbers(70, 6, 5, dtype=">u2", high=60000),
    "floats": np.random.default_rng(0).random((70, 6, 5)),
    "bools": numbers(70, 6, 5, high=2).astype(bool),
    "binary": numbers(70, 6, 5, high=2) * np.uint8(255),
    "masks": numbers(70, 6, 5, high=2),
    "fortran": np.asfortranarray(numbers(70, 6, 5, 3)),
}


@pytest.mark.parametrize("case", IMAGES)
@pytest.mark.parametrize("how", ["npy", "npz", "packed"])
def test_on_disk_is_as_in_memory(case, how):
    images, labels = IMAGES[case], np.arange(70) % 3
    if how == "npy":
        np.save("d.npy", images)
    else:
        (np.savez if how == "npz" else np.savez_compressed)("d.npz", images=images, labels=labels)
    path = "d.npy" if how == "npy" else "d.npz"
    on_disk = load(path, store="disk")
    assert isinstance(on_disk.images, _disk.OnDisk)
    same(on_disk, load(path, store="memory"))
    kept = sorted(p.name.partition("-")[0] for p in Path("cache").iterdir())
    assert kept == (["set"] if how != "packed" and case != "fortran" else ["array", "set"])
    same(load(path, store="disk"), on_disk)  # from what is remembered


def test_parts_on_disk():
    np.savez("d.npz", x_train=numbers(40, 4, 4), x_test=numbers(9, 4, 4, seed=1), y_train=np.arange(40) % 2,
             y_test=np.arange(9) % 2)  # fmt: skip
    on_disk = load("d.npz", store="disk")
    same(on_disk, load("d.npz", store="memory"))
    across = torch.tensor([48, 0, 39, 40, 41, 7])
    assert torch.equal(on_disk.images.gather(across), load("d.npz", store="memory").images.gather(across))


def test_what_is_remembered_goes_with_the_file(capsys):
    np.save("d.npy", numbers(30, 4, 4))
    first = load("d.npy", store="disk").info.source
    np.save("d.npy", numbers(30, 4, 4, seed=1))
    os.utime("d.npy", ns=(1, 1))
    second = load("d.npy", store="disk")
    assert second.info.source["sha256"] != first["sha256"]
    same(second, load("d.npy", store="memory"))
    (kept,) = [p for p in Path("cache").iterdir() if p.stat().st_mtime_ns == max(
        q.stat().st_mtime_ns for q in Path("cache").iterdir())]  # fmt: skip
    content = bytearray(kept.read_bytes())
    content[content.index(b"sha256") + 12] ^= 1
    kept.write_bytes(content)
    same(load("d.npy", store="disk"), second)
    assert "made again" in capsys.readouterr().err


def test_an_unpacked_array_that_is_damaged_is_unpacked_again():
    np.savez_compressed("d.npz", images=numbers(30, 4, 4))
    load("d.npz", store="disk")
    (kept,) = Path("cache").glob("array-*.npy")
    os.truncate(kept, 200)
    same(load("d.npz", store="disk"), load("d.npz", store="memory"))


def test_a_full_disk_is_told_before_anything_is_written(monkeypatch):
    np.savez_compressed("d.npz", images=numbers(30, 4, 4))
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and type("U", (), {"free": 100}))
    with pytest.raises(MachineError, match="GB free, and the images take"):
        load("d.npz", store="disk")
    assert not list(Path("cache").glob("*"))


def test_which_way_is_taken(monkeypatch, capsys):
    np.save("d.npy", numbers(30, 4, 4))
    assert not isinstance(load("d.npy").images, _disk.OnDisk)
    assert "disk" not in capsys.readouterr().err
    monkeypatch.setattr(_disk, "LARGE", 100)
    assert isinstance(load("d.npy").images, _disk.OnDisk)
    assert "stay on disk, as they lie in the file" in capsys.readouterr().err
    assert not isinstance(load("d.npy", store="memory").images, _disk.OnDisk)


def test_bad_values_are_found_on_disk_too():
    images = np.random.default_rng(0).random((600, 4, 4))
    images[555, 1, 1] = np.nan
    np.save("d.npy", images)
    with pytest.raises(InputError, match="image 555 has values that are no numbers"):
        load("d.npy", store="disk")
    np.save("d.npy", images[:9])
    content = Path("d.npy").read_bytes()
    Path("d.npy").write_bytes(content[:-8])
    with pytest.raises(InputError, match="damaged"):
        load("d.npy", store="disk")


def test_a_trained_run_is_the_same_and_resumes(vae):
    np.save("d.npy", numbers(90, 8, 8, 3))
    common = ("--data", "array:d.npy", "--latent-dim", 2, "--runs-dir", "r", "-q", "-S",
              "model.net={name: mlp, hidden: [8]}", "--batch-size", 16)  # fmt: skip
    for name, more in {"m": ("memory", 12), "d": ("disk", 12), "e": ("disk", 5)}.items():
        done = vae("train", *common, "-S", f"data.store={more[0]}", "--steps", more[1], "--name", name)
        assert done.code == 0, done.err
    assert vae("train", "--resume", "r/e", "--steps", 12, "-q").code == 0
    weights = [(Path("r") / name / "checkpoints/latest/model.safetensors").read_bytes() for name in "mde"]
    tail = [content[8 + int.from_bytes(content[:8], "little") :] for content in weights]
    assert tail[0] == tail[1] == tail[2] and len(tail[0]) > 1000
    loud = vae("train", "--data", "array:d.npy", "-S", "data.store=disk", "--latent-dim", 2, "--dry-run")
    assert "stay on disk" in loud.err


# ---- channels


@pytest.mark.parametrize("channels", [2, 4, 5, 16])
@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_many_channels(channels, layout, capsys):
    images = numbers(9, channels, 20, 18)
    np.save("d.npy", images.transpose(0, 2, 3, 1) if layout == "hwc" else images)
    dataset = load("d.npy", holdout=0)
    assert dataset.info.shape == (channels, 20, 18)
    assert torch.equal(dataset.images.gather(torch.arange(9)), torch.from_numpy(images).float() / 255)
    where = {"hwc": "last", "chw": "first"}[layout]
    assert f"is taken for {channels} channels, which come {where}" in capsys.readouterr().err


def test_channels_that_the_shape_does_not_tell():
    np.save("d.npy", numbers(9, 4, 8, 4))
    with pytest.raises(InputError, match=r"images of shape \(9, 4, 8, 4\)") as caught:
        load("d.npy")
    assert "data.layout" in caught.value.hint
    assert load("d.npy", layout="hwc").info.shape == (4, 4, 8)
    assert load("d.npy", layout="chw").info.shape == (4, 8, 4)
    np.save("d.npy", numbers(9, 17, 20, 20))
    with pytest.raises(InputError, match="shape"):
        load("d.npy")


# ---- HDF5


def test_hdf5_in_the_layout_of_3dshapes():
    h5py = pytest.importorskip("h5py")
    images = numbers(48, 8, 8, 3)
    hue, shape, angle = np.meshgrid(np.linspace(0, 0.9, 3), np.arange(4.0), np.linspace(-30, 30, 4), indexing="ij")
    labels = np.stack([hue.ravel(), shape.ravel(), angle.ravel()], 1)
    for options in ({}, {"compression": "gzip", "chunks": (5, 8, 8, 3)}):
        with h5py.File("d.h5", "w") as file:
            file.create_dataset("images", data=images, **options)
            file.create_dataset("labels", data=labels)
            file.create_dataset("factor_names", data=np.array(["hue", "shape", "angle"], dtype=object))
        dataset = load("d.h5", store="memory")
        assert torch.equal(
            dataset.images.gather(torch.arange(48)) * 255, torch.from_numpy(images).movedim(3, 1).float()
        )
        assert dataset.info.factor_names == ("hue", "shape", "angle") and dataset.info.factor_sizes == (3, 4, 4)
        assert dataset.info.value_names == (("0", "0.45", "0.9"), (), ("-30", "-10", "10", "30"))
        assert dataset.labels.tolist() == [list(i) for i in np.ndindex(3, 4, 4)]
        same(load("d.h5", store="disk"), dataset)


def test_hdf5_that_refers_elsewhere():
    h5py = pytest.importorskip("h5py")
    Path("secret").write_bytes(bytes(range(64)))
    with h5py.File("d.h5", "w") as file:
        file.create_dataset("images", shape=(4, 4, 4), dtype=np.uint8, external=[("secret", 0, 64)])
    with pytest.raises(InputError, match="refers to other files"):
        load("d.h5")
    with h5py.File("d.h5", "w") as file:
        file["images"] = h5py.ExternalLink("other.h5", "images")
    with pytest.raises(InputError, match="has no array `images`"):
        load("d.h5")


def test_hdf5_without_its_reader(monkeypatch):
    Path("d.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(data.ConfigError, match="h5py") as caught:
        load("d.h5")
    assert caught.value.hint == 'pip install "vaecli[hdf5]"'


def test_pictures_of_chosen_channels(vae):
    images = np.zeros((200, 5, 8, 8), np.uint8)
    images[:] = (np.arange(5, dtype=np.uint8) * 50)[None, :, None, None]
    images[:, :, 0, 0] = np.arange(200)[:, None]
    np.save("d.npy", images)
    common = ("--data", "array:d.npy", "--latent-dim", 2, "--runs-dir", "r", "-q", "-S", "data.layout=chw")
    net = ("-S", "model.net={name: mlp, hidden: [8]}", "--steps", 2, "--name", "a", "-S", "model.likelihood=gaussian")
    done = vae("train", *common, *net)
    assert done.code == 0, done.err

    def shown(*more):
        done = vae("reconstruct", "r/a", "--split", "all", "-n", 2, "-o", "p.png", "--force", *more)
        assert done.code == 0, done.err
        with Image.open("p.png") as picture:
            return done.err, set(map(tuple, np.array(picture.convert("RGB")).reshape(-1, 3).tolist()))

    said, colours = shown()
    assert "pictures show channel 0 of 5" in said and (0, 0, 0) in colours
    said, colours = shown("--channels", "3")
    assert "pictures show" not in said and (150, 150, 150) in colours
    assert (200, 50, 100) in shown("--channels", "4,1,2")[1]
    for command in (("sample", "r/a", "-n", 2), ("traverse", "r/a", "--center", "0"), ("report", "r/a")):
        done = vae(*command, "--channels", "0,1,2", "-o", f"o.{'html' if 'report' in command else 'png'}", "--force")
        assert done.code == 0, done.err
    for wrong in ("1,2", "a", "-1", "5"):
        assert vae("sample", "r/a", "-n", 2, "-o", "q.png", "--channels", wrong).code == 2
    assert not Path("q.png").exists()


# ---- folders


def pictures(n, *shape, where="d", ending="png", seed=0, **options):
    images = numbers(n, *shape, seed=seed, **options)
    Path(where).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(f"{where}/{i:03d}.{ending}")


def load_folder(store, **options):
    return folder.load(folder.Config(name="folder", path="d", store=store, **{"holdout": 0.3, **options}))


FOLDERS = {
    "grey": lambda: pictures(20, 6, 5),
    "classes": lambda: (pictures(9, 6, 5, 3, where="d/a"), pictures(9, 6, 5, 3, where="d/b", seed=1)),
    "parts": lambda: (pictures(9, 6, 5, where="d/train"), pictures(4, 6, 5, where="d/test", seed=1)),
    "counts": lambda: pictures(20, 6, 5, dtype=np.uint16, high=4000),
    "binary": lambda: pictures(20, 6, 5, high=2),
    "one alone": lambda: pictures(1, 6, 5),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_on_disk_is_as_in_memory(case, monkeypatch):
    FOLDERS[case]()
    in_memory = load_folder("memory")
    on_disk = load_folder("disk")
    assert isinstance(on_disk.images, _disk.OnDisk) and not isinstance(in_memory.images, _disk.OnDisk)
    if len(on_disk.images) > 3:
        same(on_disk, in_memory)
    assert on_disk.files == in_memory.files
    monkeypatch.setattr(folder, "_decode", None)  # nothing is decoded again
    again = load_folder("disk")
    assert again.info == in_memory.info and again.files == in_memory.files


def test_frames_and_bad_images_on_disk(capsys):
    pictures(5, 6, 5)
    first, *others = map(Image.fromarray, numbers(7, 6, 5, seed=3))
    first.save("d/s.tif", save_all=True, append_images=others)
    Path("d/002.png").write_bytes(b"no image")
    options = {"frames": "all", "on_bad_image": "skip", "image_size": [6, 5]}
    on_disk = load_folder("disk", **options)
    assert len(on_disk.images) == 11 and on_disk.files[-1] == "s.tif[6]"
    same(on_disk, load_folder("memory", **options))
    capsys.readouterr()
    load_folder("disk", **options)
    assert "all of which are taken: 11 images from 5 files" in capsys.readouterr().err


def test_a_folder_is_decoded_again_when_it_has_changed():
    pictures(6, 6, 5)
    first = load_folder("disk")
    pictures(1, 6, 5, seed=9)
    os.utime("d/000.png", ns=(5, 5))
    changed = load_folder("disk")
    assert changed.info.source["sha256"] != first.info.source["sha256"]
    same(changed, load_folder("memory"))
    for kept in Path("cache").glob("folder-*.npy"):
        content = bytearray(kept.read_bytes())
        content[-1] ^= 255
        kept.write_bytes(content)
        os.utime(kept, ns=(7, 7))
    same(load_folder("disk"), load_folder("memory"))


def test_images_that_cannot_be_kept_leave_nothing():
    pictures(6, 6, 5)
    Path("d/003.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"003\.png"):
        load_folder("disk", image_size=[6, 5])
    assert not list(Path("cache").glob("*"))

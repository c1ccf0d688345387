"""Named sets read from files that people have: tiny files in the published layouts, read back with exact factors."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaecli import data, registry
from vaecli.data import _disk, celeba, dsprites, dsprites_color, dsprites_noisy, mpi3d, shapes3d, smallnorb
from vaecli.data.base import Bits, assemble, grid_labels
from vaecli.errors import InputError

NAMES = ("smallnorb", "cars3d", "shapes3d", "mpi3d", "celeba")


@pytest.fixture(autouse=True)
def _places(monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("VAE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()


def load(name, **options):
    module = registry.load("dataset", name)
    return module.load(module.Config(name=name, **{"holdout": 0, **options}))


def everything(dataset):
    return dataset.images.gather(torch.arange(len(dataset.images)))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_says_where_from_and_where_to(name, tmp_path):
    if name == "cars3d":
        pytest.importorskip("scipy")
    with pytest.raises(InputError) as caught:
        load(name)
    said = f"{caught.value} {caught.value.hint}"
    assert str(tmp_path / "data" / name) in said and "http" in said and "data.path" in said
    with pytest.raises(InputError, match="elsewhere"):
        load(name, path="elsewhere")
    if name != "cars3d":
        assert data.parse(f"{name}:x") == {"name": name, "path": "x"}


# ---- small NORB


def matrix(path, values, kind):
    sizes = [*values.shape, *([1] * (3 - values.ndim))]
    content = struct.pack(f"<Ii{len(sizes)}i", {"u1": 0x1E3D4C55, "<i4": 0x1E3D4C54}[kind], values.ndim, *sizes)
    content += values.astype(kind).tobytes()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(gzip.compress(content) if str(path).endswith(".gz") else content)


def norb(monkeypatch, ending=".mat"):
    monkeypatch.setattr(smallnorb, "IMAGES", 12)
    written = []
    for part, stem in enumerate(smallnorb.STEMS):
        r = np.random.default_rng(part)
        images = numbers(12, 2, 96, 96, seed=part)
        category = r.integers(0, 5, 12)
        info = np.stack(
            [r.integers(0, 10, 12), r.integers(0, 9, 12), 2 * r.integers(0, 18, 12), r.integers(0, 6, 12)], 1
        )
        for kind, values, dtype in (("dat", images, "u1"), ("cat", category, "<i4"), ("info", info, "<i4")):
            matrix(f"data/smallnorb/{stem}-{kind}{ending}", values, dtype)
        written.append((images, np.column_stack([category, info // [1, 1, 2, 1]])))
    return written


@pytest.mark.parametrize("ending", [".mat", ".mat.gz"])
def test_small_norb(monkeypatch, ending):
    (first, labels), (second, more) = norb(monkeypatch, ending)
    dataset = load("smallnorb", image_size=96)
    expected = torch.from_numpy(np.concatenate([first, second])[:, :1]).float() / 255
    assert torch.equal(everything(dataset), expected)
    assert dataset.info.factor_names == ("category", "instance", "elevation", "azimuth", "lighting")
    assert dataset.labels.tolist() == np.concatenate([labels, more]).tolist()
    assert dataset.info.value_names[0] == ("animal", "human", "airplane", "truck", "car")
    assert dataset.splits["test"].tolist() == list(range(12, 24)) and dataset.info.size == 12
    assert load("smallnorb", camera="right", image_size=96).images.gather(torch.tensor([3]))[0, 0, 5, 5] == first[
        3, 1, 5, 5] / np.float32(255)  # fmt: skip
    both = load("smallnorb", camera="both", join=True)
    assert both.info.shape == (2, 64, 64) and both.info.size == 24 and "test" not in both.splits


def test_small_norb_that_is_not_published(monkeypatch):
    norb(monkeypatch)
    stem = smallnorb.STEMS[1]
    matrix(f"data/smallnorb/{stem}-cat.mat", np.full(12, 7), "<i4")
    with pytest.raises(InputError, match="not the published"):
        load("smallnorb")
    for content in (b"", b"\x55\x4c\x3d\x1e\x04\0\0\0" + b"\xff" * 16, b"<html>" * 20):
        Path(f"data/smallnorb/{stem}-dat.mat").write_bytes(content)
        with pytest.raises(InputError, match=r"dat\.mat"):
            load("smallnorb")


# ---- 3D cars


def test_cars3d(monkeypatch):
    io = pytest.importorskip("scipy.io")
    from vaecli.data import cars3d

    monkeypatch.setattr(cars3d, "FACTORS", {"elevation": 4, "azimuth": 3, "object_type": 2})
    Path("data/cars3d/cars").mkdir(parents=True)
    cars = [numbers(128, 128, 3, 3, 4, seed=i) for i in range(2)]
    for name, car in zip(("car_002_mesh", "car_001_mesh"), cars, strict=True):
        io.savemat(f"data/cars3d/cars/{name}.mat", {"im": car, "mask": np.zeros((2, 2))}, do_compression=True)
    Path("data/cars3d/cars/list.txt").write_text("car_002_mesh\ncar_001_mesh\n")
    dataset = load("cars3d", image_size=128)
    assert len(dataset.images) == 24 and dataset.info.factor_names == ("elevation", "azimuth", "object_type")
    for i, (e, a, c) in enumerate(dataset.labels.tolist()):
        expected = torch.from_numpy(cars[c][:, :, :, a, e].copy()).movedim(2, 0).float() / 255
        assert torch.equal(dataset.images.gather(torch.tensor([i]))[0], expected)
    assert load("cars3d", path="data/cars3d/cars").info.shape == (3, 64, 64)
    Path("data/cars3d/cars/car_001_mesh.mat").write_bytes(b"x" * 200)
    with pytest.raises(InputError, match="car_001_mesh"):
        load("cars3d")
    Path("data/cars3d/cars/list.txt").write_text("car_001_mesh\n")
    with pytest.raises(InputError, match="1 files of cars, 2 were published"):
        load("cars3d")


# ---- 3D shapes


def test_shapes3d(monkeypatch):
    h5py = pytest.importorskip("h5py")
    sizes = {"floor_hue": 2, "wall_hue": 2, "object_hue": 1, "scale": 3, "shape": 4, "orientation": 2}
    monkeypatch.setattr(shapes3d, "FACTORS", sizes)
    images = numbers(96, 64, 64, 3)
    values = [np.linspace(0, 0.9, n) if "hue" in k else np.arange(float(n)) - 30 * (k == "orientation")
              for k, n in sizes.items()]  # fmt: skip
    labels = np.stack([axis.ravel() for axis in np.meshgrid(*values, indexing="ij")], 1)
    with h5py.File("data/3dshapes.h5", "w") as file:
        file.create_dataset("images", data=images, compression="gzip", chunks=(7, 64, 64, 3))
        file.create_dataset("labels", data=labels)
    for store in ("memory", "disk"):
        dataset = load("shapes3d", store=store)
        assert isinstance(dataset.images, _disk.OnDisk) == (store == "disk")
        assert torch.equal(everything(dataset), torch.from_numpy(images).movedim(3, 1).float() / 255)
        assert dataset.info.factor_names == tuple(sizes) and dataset.info.factor_sizes == tuple(sizes.values())
        assert torch.equal(dataset.labels, grid_labels(tuple(sizes.values()))) and dataset.varying_factors == 5
        assert dataset.info.value_names[5] == ("-30", "-29")
    with h5py.File("data/3dshapes.h5", "a") as file:
        file["labels"][...] = labels[::-1]
    with pytest.raises(InputError, match="labels are not those"):
        load("shapes3d")
    with h5py.File("data/3dshapes.h5", "w") as file:
        file.create_dataset("images", data=images[:5])
        file.create_dataset("labels", data=labels[:5])
    with pytest.raises(InputError, match="the published ones are uint8"):
        load("shapes3d")


# ---- MPI3D


@pytest.mark.parametrize("variant", ["toy", "complex"])
def test_mpi3d(monkeypatch, variant):
    few = {name: names[:3] for name, names in mpi3d.FACTORS.items() if not name.endswith("_axis")}
    axes = {"horizontal_axis": ("0", "1"), "vertical_axis": ("0", "1")}
    monkeypatch.setattr(mpi3d, "FACTORS", {**few, **axes})
    values = mpi3d.FACTORS | (mpi3d.COMPLEX if variant == "complex" else {})
    sizes = [len(names) for names in values.values()]
    images = numbers(int(np.prod(sizes)), 64, 64, 3)
    Path("data/mpi3d").mkdir()
    np.savez(f"data/mpi3d/{mpi3d.FILES[variant][0]}", images=images)
    dataset = load("mpi3d", variant=variant, store="disk")
    index = torch.randint(len(images), (30,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(dataset.images.gather(index), torch.from_numpy(images).movedim(3, 1)[index].float() / 255)
    assert torch.equal(dataset.labels, grid_labels(sizes))
    first = {"toy": ("white", "green", "red"), "complex": ("yellow", "green", "olive", "red")}[variant]
    assert dataset.info.value_names[0] == first and dataset.info.value_names[6] == ()
    with pytest.raises(InputError, match=r"mpi3d_real\.npz or real\.npz"):
        load("mpi3d", variant="real")
    np.savez(f"data/mpi3d/{mpi3d.FILES[variant][0]}", images=images[1:])
    with pytest.raises(InputError, match="published ones are"):
        load("mpi3d", variant=variant)


def test_the_published_sizes():
    count = np.prod([len(names) for names in mpi3d.FACTORS.values()])
    assert count == 1_036_800
    assert np.prod([len(names) for names in (mpi3d.FACTORS | mpi3d.COMPLEX).values()]) == 460_800
    assert np.prod(list(shapes3d.FACTORS.values())) == 480_000
    assert np.prod(list(smallnorb.FACTORS.values())) == 2 * smallnorb.IMAGES == 48_600


# ---- CelebA


def faces(monkeypatch, folder="data/celeba", ending="txt"):
    rows = [("000001.jpg", "-1", "1", 0), ("000002.jpg", "1", "1", 2), ("000003.jpg", "-1", "-1", 0),
            ("000004.jpg", "1", "-1", 1)]  # fmt: skip
    Path(folder, "img_align_celeba").mkdir(parents=True)
    pictures = []
    for i, (name, *_) in enumerate(rows):
        picture = np.full((218, 178, 3), 40 * i, np.uint8)
        picture[35:183, 15:163] = 200, 10 * i, 90  # the square of 148 in the middle
        Image.fromarray(picture).save(f"{folder}/img_align_celeba/{name}", "PNG")
        pictures.append((200, 10 * i, 90))
    if ending == "txt":
        attributes = ["4", "Male Smiling", *(f"{n}  {a} {b}" for n, a, b, _ in rows)]
        parts = [f"{n} {p}" for n, _, _, p in rows]
    else:
        attributes = ["image_id,Male,Smiling", *(f"{n},{a},{b}" for n, a, b, _ in rows)]
        parts = ["image_id,partition", *(f"{n},{p}" for n, _, _, p in rows)]
    for stem, lines in (("list_attr_celeba", attributes), ("list_eval_partition", parts)):
        path = Path(f"{folder}/{stem}.{ending}")
        path.write_text("\n".join(lines) + "\n")
        monkeypatch.setitem(celeba.MD5, f"{stem}.txt", hashlib.md5(path.read_bytes()).hexdigest())
    return pictures


@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_celeba(monkeypatch, ending):
    pictures = faces(monkeypatch, ending=ending)
    dataset = load("celeba", image_size=8)
    assert dataset.info.shape == (3, 8, 8) and dataset.info.factor_names == ("Male", "Smiling")
    assert dataset.files == ["000001.jpg", "000003.jpg", "000004.jpg", "000002.jpg"]
    expected = torch.tensor([pictures[i] for i in (0, 2, 3, 1)])
    assert torch.equal((everything(dataset) * 255).round().amax(dim=(2, 3)), expected.float())
    assert torch.equal((everything(dataset) * 255).round().amin(dim=(2, 3)), expected.float())  # nothing around it
    assert dataset.labels.tolist() == [[0, 1], [0, 0], [1, 0], [1, 1]]
    assert dataset.info.value_names == (("-1", "1"),) * 2
    assert dataset.splits["val"].tolist() == [2] and dataset.splits["test"].tolist() == [3] and dataset.info.size == 2
    wide = load("celeba", image_size=8, crop=178)
    assert everything(wide).amin(dim=(1, 2, 3))[0] == 0


def test_celeba_that_is_not_whole(monkeypatch):
    faces(monkeypatch)
    Path("data/celeba/img_align_celeba/000003.jpg").unlink()
    with pytest.raises(InputError, match="1 of 4 images are missing"):
        load("celeba")
    Path("data/celeba/list_attr_celeba.txt").write_text("other")
    with pytest.raises(InputError, match=r"list_attr_celeba\.txt is not the published file"):
        load("celeba")


# ---- dSprites in colour and in noise


@pytest.fixture
def sprites(monkeypatch):
    white = numbers(20, 1, 64, 64) > 127

    def few(config):
        return assemble(
            config,
            Bits.pack(white),
            labels_NK=grid_labels((4, 5)),
            factor_names=("a", "b"),
            factor_sizes=(4, 5),
            binary=True,
            source={"kind": "rendered", "sha256": "x"},
        )

    monkeypatch.setattr(dsprites, "load", few)
    return torch.from_numpy(white).float()


def test_colour_dsprites(sprites):
    dataset = load("dsprites-color")
    assert dataset.info.shape == (3, 64, 64) and not dataset.info.binary and dataset.info.factor_names == ("a", "b")
    x = everything(dataset)
    colour = x.amax(dim=(2, 3))
    assert torch.equal(x, sprites * colour[:, :, None, None])
    assert float(colour.min()) >= 0.5 and float(colour.max()) < 1 and len(colour.unique()) == 60
    many = dsprites_color.Coloured(dataset.images.images).uniform(torch.arange(20_000), 3)
    assert float(many.mean()) == pytest.approx(0.5, abs=0.005) and float(many.var()) == pytest.approx(1 / 12, abs=0.002)
    assert torch.corrcoef(many.T).fill_diagonal_(0).abs().max() < 0.03


def test_noisy_dsprites(sprites):
    dataset = load("dsprites-noisy")
    x = everything(dataset)
    assert torch.equal(x == 1, (sprites == 1).expand(-1, 3, -1, -1))
    background = x[(sprites == 0).expand(-1, 3, -1, -1)]
    assert float(background.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(background.var()) == pytest.approx(1 / 12, abs=0.002)
    assert isinstance(dataset.images, dsprites_noisy.Noisy)


@pytest.mark.parametrize("name", ["dsprites-color", "dsprites-noisy"])
def test_throws_are_new_in_training_alone(sprites, name):
    dataset = load(name, holdout=5)
    stream = dataset.stream(0, 15)
    one, two = stream.batch(0), stream.batch(1)
    assert sorted(one.index_B.tolist()) == sorted(two.index_B.tolist())
    order = [one.x_BCHW[one.index_B.argsort()], two.x_BCHW[two.index_B.argsort()]]
    assert not torch.equal(*order)
    assert torch.equal(dataset.stream(0, 15).batch(1).x_BCHW, two.x_BCHW)  # pure in seed and step
    assert torch.equal(dataset.split("val").take(5).x_BCHW, dataset.split("val").take(5).x_BCHW)
    truth = grid_labels((4, 5))[two.index_B]
    assert torch.equal(two.labels_BK, truth)


def test_configurations_refuse_what_they_do_not_know():
    for name in NAMES:
        with pytest.raises(ValueError, match="extra"):
            registry.load("dataset", name).Config(name=name, colour=1)

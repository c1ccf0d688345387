"""`data.frames`: stacks and animations as images of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaecli.data import folder
from vaecli.errors import InputError


def load(**options):
    return folder.load(folder.Config(name="folder", path="d", **{"holdout": 0, **options}))


def everything(dataset):
    return dataset.split("all").take(len(dataset.images)).x_BCHW


def stack(path, frames, **options):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    first, *others = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=others, **options)


def moving(n, *shape, dtype=np.uint8, high=256, seed=0):
    return np.random.default_rng(seed).integers(0, high, (n, *shape), dtype=dtype)


@pytest.mark.parametrize(("ending", "options"), [("tif", {}), ("png", {}), ("webp", {"lossless": True})])
def test_every_frame_is_an_image(ending, options, capsys):
    grey = ending != "webp"  # which Pillow opens as colour
    first, second = moving(5, 4, 6), moving(3, 4, 6, seed=1)
    stack(f"d/a.{ending}", first, **options)
    stack(f"d/b.{ending}", second, **options)
    one = moving(1, 4, 6, seed=2)[0]
    Image.fromarray(one).save("d/c.bmp")
    dataset = load(frames="all", channels=1)
    expected = np.concatenate([first, second, one[None]])
    assert np.abs(everything(dataset)[:, 0].numpy() - expected / np.float32(255)).max() <= (0 if grey else 1 / 254)
    assert dataset.files == [*(f"a.{ending}[{i}]" for i in range(5)), *(f"b.{ending}[{i}]" for i in range(3)), "c.bmp"]
    assert "2 files hold several frames, all of which are taken: 9 images from 3 files" in capsys.readouterr().err
    assert torch.equal(everything(load(channels=1)), everything(dataset)[[0, 5, 8]])
    assert "6 are left out" in (said := capsys.readouterr().err) and "data.frames=all takes them" in said


def test_frames_of_an_animation_are_whole_pictures():
    # As GIF stores them, later frames are the parts that change.
    frames = np.zeros((6, 8, 8, 3), np.uint8)
    for t in range(6):
        frames[t, :, :, 1] = 90
        frames[t, t, t] = 255, 40 * t, 0
    stack("d/a.gif", frames)
    dataset = load(frames="all")
    assert torch.equal(everything(dataset), torch.from_numpy(frames.transpose(0, 3, 1, 2)).float() / 255)


def test_a_stack_of_counts_is_read_by_the_range_of_all():
    frames = moving(4, 5, 5, dtype=np.uint16, high=4000)
    frames[2, 0, 0] = 4095
    stack("d/a.tif", frames[:2])
    stack("d/b.tif", frames[2:])
    dataset = load(frames="all")
    expected = np.rint(frames / 4095 * 255)
    assert torch.equal(everything(dataset)[:, 0], torch.from_numpy(expected).float() / 255)
    assert dataset.info.source["range"] == {"uint16": [0.0, 4095.0]}


def test_labels_go_with_the_frames():
    stack("d/x/a.tif", moving(3, 4, 4))
    stack("d/y/a.tif", moving(2, 4, 4, seed=1))
    assert load(frames="all").labels[:, 0].tolist() == [0, 0, 0, 1, 1]


def test_frames_of_several_sizes():
    Path("d").mkdir()
    pages = [Image.fromarray(moving(1, 4, 4)[0]), Image.fromarray(moving(1, 6, 4)[0])]
    pages[0].save("d/a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="frame 1 has another size"):
        load(frames="all")
    assert len(load(frames="first").images) == 1

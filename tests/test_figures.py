"""Pictures: exact pixels at known places, sizes, frames."""

import base64
import io
import re
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vaecli.errors import ConfigError
from vaecli.report import figures


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def flat(values: list[float], channels: int = 1, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Images of one value each."""
    return np.array(values, dtype=np.float32)[:, None, None, None] * np.ones((1, channels, *size), dtype=np.float32)


def test_to_uint8_rounds_clips_and_survives_nan() -> None:
    values = np.array([0.0, 0.5, 1.0, -3.0, 9.0, np.nan, 100.4 / 255, 100.6 / 255])
    assert figures.to_uint8(values.reshape(1, 1, 1, 8))[0, 0, :, 1].tolist() == [0, 128, 255, 0, 255, 0, 100, 101]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        huge = np.array([3e38, -3e38, np.inf, -np.inf], dtype=np.float32)
        assert figures.to_uint8(huge.reshape(1, 1, 2, 2))[0, :, :, 0].tolist() == [[255, 0], [255, 0]]


@pytest.mark.parametrize(
    ("channels", "expected"), [(1, (51, 51, 51)), (2, (51, 51, 51)), (3, (51, 102, 153)), (5, (51, 51, 51))]
)
def test_channels(channels: int, expected: tuple[int, int, int]) -> None:
    image = (np.arange(1, channels + 1) * 0.2)[None, :, None, None] * np.ones((1, channels, 2, 2))
    assert tuple(figures.to_uint8(image)[0, 1, 1]) == expected


def test_grid_places_every_image_in_reading_order() -> None:
    picture = pixels(opened(figures.grid(flat([0.0, 0.2, 0.4, 0.6, 0.8]))))
    gap, step = figures.GAP, 64 + figures.GAP
    assert picture.shape == (gap + 2 * step, gap + 3 * step, 3)
    for i, level in enumerate([0, 51, 102, 153, 204]):
        top, left = gap + i // 3 * step, gap + i % 3 * step
        assert (picture[top : top + 64, left : left + 64] == level).all()
        assert (picture[top - gap : top, left : left + 64] == 255).all()
    assert (picture[gap + step :, gap + 2 * step :] == 255).all()  # the sixth place is empty


def test_small_images_grow_by_whole_factors_without_smoothing() -> None:
    image = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=np.float32)[None, None]  # 2 high, 3 wide
    picture = pixels(opened(figures.grid(image)))[..., 0]
    scale = 22  # ceil(64 / 3)
    inner = picture[figures.GAP : -figures.GAP, figures.GAP : -figures.GAP]
    assert np.array_equal(inner, np.kron(image[0, 0] * 255, np.ones((scale, scale))))
    assert figures.scale_of(64, 64) == 1 and figures.scale_of(63, 10) == 2 and figures.scale_of(300, 20) == 1


def test_grid_is_about_square_whatever_the_shape() -> None:
    assert figures.columns_for(64) == 8 and figures.columns_for(1) == 1 and figures.columns_for(10) == 4
    assert figures.columns_for(16, height=1, width=4) == 2  # wide images: fewer columns


def test_labelled_sheet_keeps_pixels_and_greys_inactive_rows() -> None:
    rows = [figures.Row(flat([0.2, 0.4]), "z3", "KL 2.71"), figures.Row(flat([0.6, 0.8]), "z1", "inactive", muted=True)]
    picture = pixels(figures.sheet(rows, ["-3", "3"], "title", "footer"))[..., 0]
    tops, lefts = [], []
    for level in (51, 102, 153, 204):
        ys, xs = np.nonzero(picture == level)
        solid = [(y, x) for y, x in zip(ys, xs, strict=True) if (picture[y : y + 64, x : x + 64] == level).all()]
        solid = [(y, x) for y, x in solid if picture[y : y + 64, x : x + 64].shape == (64, 64)]
        assert len(solid) == 1
        tops.append(solid[0][0]), lefts.append(solid[0][1])
    assert tops[0] == tops[1] < tops[2] == tops[3] and lefts[0] == lefts[2] < lefts[1] == lefts[3]
    labels = [picture[top : top + 64, : lefts[0]] for top in (tops[0], tops[2])]
    assert labels[0].min() < 60  # ink
    assert labels[1].min() >= figures.MUTED[0]  # pale
    above = picture[tops[0] - 16 : tops[0], lefts[0] : lefts[0] + 64]
    assert (above < 200).any()  # the heading of the first column


def test_captions_stand_under_their_image() -> None:
    row = figures.Row(flat([1.0, 1.0]), captions=["NLL 1\nKL 2", ""])
    picture = pixels(figures.sheet([row]))[..., 0]
    dark_x = np.nonzero(picture < 128)[1]
    assert dark_x.size and dark_x.max() < picture.shape[1] / 2


def test_png_of_one_image_has_its_own_size() -> None:
    image = np.linspace(0, 1, 3 * 5 * 7).reshape(3, 5, 7)
    picture = opened(figures.single(image))
    assert picture.size == (7, 5) and picture.mode == "RGB"
    assert np.array_equal(pixels(picture), np.rint(image * 255).transpose(1, 2, 0))
    assert opened(figures.single(np.full((1, 4, 4), 0.2))).mode == "L"


def test_gif_goes_forth_and_back_forever() -> None:
    levels = [0.0, 0.2, 0.4, 0.6]
    frames = [figures.sheet([figures.Row(flat([v]))]) for v in levels]
    animation = opened(figures.gif(frames, milliseconds=80, hold=300))
    assert animation.n_frames == 6 and animation.info["loop"] == 0
    seen, durations = [], []
    for i in range(6):
        animation.seek(i)
        seen.append(int(pixels(animation)[30, 30, 0]))
        durations.append(animation.info["duration"])
    assert seen == [0, 51, 102, 153, 102, 51]
    assert durations == [300, 80, 80, 300, 80, 80]


def test_too_large_a_sheet_is_refused() -> None:
    with pytest.raises(ConfigError, match="200 x 200 images"):
        figures.check_size(200, 200, 64, 64)
    figures.check_size(100, 100, 64, 64)


def test_pictures_tell_where_they_are_from() -> None:
    facts = {"Software": "vae 1", "vae command": "vae traverse RUN ü", "vae step": "7"}
    plain = figures.grid(flat([0.25, 0.5]))
    told = figures.signed(plain, facts)
    assert opened(told).text == facts  # type: ignore[attr-defined]
    np.testing.assert_array_equal(pixels(opened(told)), pixels(opened(plain)))
    moving = figures.gif([figures.sheet([figures.Row(flat([v]))]) for v in (0.0, 0.5, 1.0)])
    long = {"vae command": "x" * 600}
    assert opened(figures.signed(moving, long)).info["comment"] == b"vae command: " + b"x" * 600
    assert opened(figures.signed(moving, long)).n_frames == 4  # type: ignore[attr-defined]
    assert figures.signed(b"x,y\n", facts) == b"x,y\n"


def test_sides_are_even_and_marks_stand_where_they_say() -> None:
    row = figures.Row(flat([1.0, 1.0, 1.0], size=(65, 65)), mark=1.5)
    picture = figures.sheet([row], ["a", "b", "c"], "title")
    assert picture.size[0] % 2 == picture.size[1] % 2 == 0
    plain = figures.sheet([replace(row, mark=0.5)], ["a", "b", "c"], "title")
    moved = np.argwhere((pixels(picture) != pixels(plain)).any(axis=-1))
    right = [x for _, x in moved if x > moved[:, 1].mean()]
    left = [x for _, x in moved if x < moved[:, 1].mean()]
    assert np.mean(right) - np.mean(left) == pytest.approx(65 + figures.GAP, abs=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_svg_and_pdf_hold_the_pixels_as_they_are(channels: int) -> None:
    image = np.random.default_rng(0).random((3, channels, 9, 7), dtype=np.float32)
    picture = figures.grid(image)
    wanted = opened(picture)
    inside = re.search(rb'href="data:image/png;base64,([^"]+)"', figures.as_named("x.svg", picture))
    assert inside is not None and base64.b64decode(inside[1]) == picture
    page = figures.as_named("x.PDF", picture)
    objects = {int(number): body for number, body in re.findall(rb"(\d) 0 obj\n(.*?)\nendobj", page, re.DOTALL)}
    about, _, stream = objects[5].partition(b"\nstream\n")
    assert f"/Width {wanted.width} /Height {wanted.height}".encode() in about
    assert zlib.decompress(stream.removesuffix(b"\nendstream")) == wanted.tobytes()
    # Where the table at the end says that objects begin, they do.
    start = int(re.findall(rb"startxref\n(\d+)", page)[0])
    places = [int(place) for place in re.findall(rb"(\d{10}) 00000 n", page[start:])]
    assert [page[place : place + 7] for place in places] == [b"%d 0 obj" % n for n in range(1, 6)]

"""Boxes are right for any size, and pixels equal those of the methods they are named after."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transforms.images import resize
from transforms.images.crops import FILTERS, Geometry, View, count_views, views, wanted_side
from transforms.images.resize import render
from vqgan.config_json import from_dict, to_dict
from vqgan.errors import UserError

PHOTOS = sorted((Path(__file__).parents[2] / "testdata" / "photos").glob("*.jpg"))
KINDS = [
    *(
        {"resize": resize, "views": view}
        for resize in ("center-crop", "resize-crop")
        for view in ("none", "hflip")
    ),
    *({"resize": resize, "views": view} for resize in ("stretch", "pad") for view in ("none", "hflip")),
    *({"resize": resize, "filter": "adm"} for resize in ("center-crop", "resize-crop")),
    *({"resize": resize, "views": "ten-crop"} for resize in ("center-crop", "resize-crop")),
    {"views": "ten-crop", "filter": "adm"},
    {"views": "random-crops"},
    {"views": "random-crops", "filter": "box", "min_crop": 0.1, "random_crops": 7},
]
SIZES = [(1, 1), (1, 2), (2, 1), (1, 10000), (10000, 1), (7, 5), (640, 961), (31, 3000), (3000, 31)]
GOLDEN = [
    View(view=0, left=271, top=32, right=762, bottom=523, mirrored=False),
    View(view=1, left=200, top=62, right=689, bottom=551, mirrored=True),
]
sides = st.one_of(st.integers(1, 40), st.integers(1, 5000), st.integers(1, 200_000))
geometries = st.builds(
    lambda kind, size, extra: Geometry(image_size=size, crop_range=extra, **kind),
    st.sampled_from(KINDS),
    st.integers(1, 600) | st.tuples(st.integers(1, 600), st.integers(1, 600)),
    st.floats(1, 3),
)


def image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(index: int) -> Image.Image:
    with Image.open(PHOTOS[index]) as image:
        return image.convert("RGB")


def rendered(image: Image.Image, geometry: Geometry, key: str = "key") -> np.ndarray:
    return render(image, image.size, geometry, views(*image.size, geometry, key))


# -- boxes ---------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(sides, sides, geometries)
def test_boxes(width: int, height: int, geometry: Geometry) -> None:
    found = views(width, height, geometry, "key")
    assert len(found) == count_views(geometry)
    assert [view.view for view in found] == list(range(len(found)))
    for view in found:
        assert 0 <= view.left < view.right <= width
        assert 0 <= view.top < view.bottom <= height
        assert all(type(value) is int for value in view[:5])
        assert type(view.mirrored) is bool
    assert found == views(width, height, geometry, "key")


@given(sides, sides)
def test_center_crop_is_the_largest_centred_square(width: int, height: int) -> None:
    _, left, top, right, bottom, _ = views(width, height, Geometry(), "")[0]
    assert right - left == bottom - top == min(width, height)
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1


@given(
    sides, sides, st.sampled_from([kind for kind in KINDS if kind.get("views") in (None, "none", "hflip")])
)
def test_boxes_are_centred(width: int, height: int, kind: dict[str, str]) -> None:
    # Offsets are whole pixels after resizing, which may be several pixels of the source: most along the
    # longer side, whose length after resizing is cut off to whole pixels.
    long = max(width, height)
    tolerance = 2 + long // (64 * long // min(width, height))
    for view in views(width, height, Geometry(image_size=64, **kind), ""):
        assert abs(view.left - (width - view.right)) <= tolerance
        assert abs(view.top - (height - view.bottom)) <= tolerance


@settings(deadline=None)
@given(sides, sides, st.floats(0.01, 1), st.text(max_size=20), st.integers(-5, 5))
def test_random_crops(width: int, height: int, min_crop: float, key: str, seed: int) -> None:
    geometry = Geometry(views="random-crops", random_crops=6, min_crop=min_crop, seed=seed)
    shorter = min(width, height)
    for view in views(width, height, geometry, key):
        side = view.right - view.left
        assert side == view.bottom - view.top
        assert min(shorter, max(1, round(shorter * min_crop))) <= side <= shorter


def test_random_crops_depend_on_seed_key_and_number() -> None:
    def crops(seed: int, key: str, count: int = 4) -> list[View]:
        return views(900, 700, Geometry(views="random-crops", random_crops=count, seed=seed), key)

    assert crops(0, "a") == crops(0, "a", 9)[:4]
    boxes = [view[1:] for seed, key in [(0, "a"), (1, "a"), (0, "b")] for view in crops(seed, key)]
    assert len(set(boxes)) == 12
    assert crops(0, "\udc80")  # a key from a file name that is not valid Unicode


def test_random_crops_are_the_same_in_every_release() -> None:
    geometry = Geometry(views="random-crops", random_crops=2, seed=3)
    assert views(1000, 600, geometry, "n01440764/18.jpg") == GOLDEN


def test_random_crops_are_uniform() -> None:
    geometry = Geometry(views="random-crops", random_crops=250, min_crop=0.5)
    found = [view for key in "abcdefgh" for view in views(1000, 1000, geometry, key)]
    side = np.array([view.right - view.left for view in found])
    place = np.array([view.left / max(1, 1000 - (view.right - view.left)) for view in found])
    assert side.mean() == pytest.approx(750, abs=15)
    assert place.mean() == pytest.approx(0.5, abs=0.03)
    assert np.mean([view.mirrored for view in found]) == pytest.approx(0.5, abs=0.05)
    assert abs(np.corrcoef(side, [view.mirrored for view in found])[0, 1]) < 0.08


def test_threads_give_the_same_views() -> None:
    geometry = Geometry(views="random-crops")
    keys = [str(number) for number in range(300)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda key: views(500, 400, geometry, key), keys))
    assert together == [views(500, 400, geometry, key) for key in keys]


def test_counts() -> None:
    counts = [count_views(Geometry(views=name)) for name in ("none", "hflip", "ten-crop", "random-crops")]
    assert counts == [1, 2, 10, 4]


def test_wanted_side() -> None:
    assert wanted_side(Geometry(image_size=100)) == 100
    assert wanted_side(Geometry(image_size=256, views="ten-crop")) == 281
    assert wanted_side(Geometry(image_size=100, views="random-crops", min_crop=0.3)) == 334
    assert wanted_side(Geometry(image_size=100, filter="adm")) is None


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"resize": "crop"}, "choose one of center-crop, resize-crop, stretch, pad"),
        ({"filter": "nearest"}, "choose one of lanczos"),
        ({"views": "five-crop"}, "choose one of none"),
        ({"image_size": 0}, "image_size is 0"),
        ({"crop_range": 0.9}, "crop_range is 0.9"),
        ({"crop_range": float("nan")}, "crop_range is nan"),
        ({"random_crops": 257}, r"\[1, 256\]"),
        ({"min_crop": 0.0}, r"\(0, 1\]"),
        ({"min_crop": 1.5}, r"\(0, 1\]"),
        ({"filter": "adm", "resize": "pad"}, "does not go with resize 'pad'"),
        ({"views": "ten-crop", "resize": "stretch"}, "does not go with resize 'stretch'"),
        ({"views": "random-crops", "resize": "pad"}, "replaces the resize"),
        ({"views": "random-crops", "filter": "adm"}, "other than 'adm'"),
    ],
)
def test_configuration_error_is_one_line(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        Geometry(**wrong)
    assert "\n" not in str(caught.value)


def test_configuration_survives_json() -> None:
    geometry = Geometry(views="ten-crop", crop_range=1.25)
    assert from_dict(Geometry, to_dict(geometry)) == geometry


# -- pixels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_any_shape_is_rendered(size: tuple[int, int], kind: dict[str, str]) -> None:
    geometry = Geometry(image_size=24, **kind)
    found = rendered(image(*size), geometry)
    assert found.shape == (count_views(geometry), 24, 24, 3)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_a_uniform_image_stays_uniform(kind: dict[str, str]) -> None:
    found = rendered(Image.new("RGB", (90, 90), (10, 200, 30)), Geometry(image_size=32, **kind))
    assert (found == np.array([10, 200, 30], np.uint8)).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_some_views_alone_are_the_same(kind: dict[str, str]) -> None:
    geometry, image = Geometry(image_size=32, **kind), photo(0)
    chosen = views(*image.size, geometry, "key")
    every = render(image, image.size, geometry, chosen)
    np.testing.assert_array_equal(render(image, image.size, geometry, chosen[::-2]), every[::-2])


@pytest.mark.parametrize(
    "kind",
    [{}, {"filter": "bicubic"}, {"filter": "box"}, {"resize": "stretch"}, {"views": "random-crops"}],
    ids=str,
)
def test_pixels_follow_from_the_stored_box(kind: dict[str, str]) -> None:
    geometry, image = Geometry(image_size=64, **kind), photo(1)
    chosen = views(*image.size, geometry, "key")
    for view, found in zip(chosen, render(image, image.size, geometry, chosen), strict=True):
        expected = np.asarray(image.resize((64, 64), FILTERS[geometry.filter], view[1:5]))
        np.testing.assert_array_equal(found, expected[:, ::-1] if view.mirrored else expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.get("views") == "hflip"], ids=str)
def test_hflip(kind: dict[str, str]) -> None:
    plain, mirrored = rendered(photo(2), Geometry(image_size=48, **kind))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    boxes = views(961, 640, Geometry(image_size=48, **kind), "")
    assert boxes[0][1:5] == boxes[1][1:5]
    assert [view.mirrored for view in boxes] == [False, True]


def torchvision_resize(image: Image.Image, size: int) -> Image.Image:
    """Resize(size): the shorter side becomes size, the longer is truncated."""
    width, height = image.size
    if width <= height:
        return image.resize((size, int(size * height / width)), Image.Resampling.LANCZOS)
    return image.resize((int(size * width / height), size), Image.Resampling.LANCZOS)


def torchvision_center(array: np.ndarray, size: int) -> np.ndarray:
    top, left = round((array.shape[0] - size) / 2.0), round((array.shape[1] - size) / 2.0)
    return array[top : top + size, left : left + size]


def torchvision_ten_crop(array: np.ndarray, size: int) -> list[np.ndarray]:
    crops = []
    for side in (array, array[:, ::-1]):
        crops += [side[:size, :size], side[:size, -size:], side[-size:, :size], side[-size:, -size:]]
        crops.append(torchvision_center(side, size))
    return crops


def guided_diffusion_crop(image: Image.Image, size: int) -> np.ndarray:
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [33, 64, 128, 256, 700])
@pytest.mark.parametrize("index", [0, 1, 9])
def test_resize_crop_is_torchvision(size: int, index: int) -> None:
    found = rendered(photo(index), Geometry(image_size=size, resize="resize-crop"))
    expected = torchvision_center(np.asarray(torchvision_resize(photo(index), size)), size)
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("size", [33, 64, 128, 256, 700])
@pytest.mark.parametrize("resize", ["center-crop", "resize-crop"])
def test_adm_is_guided_diffusion(size: int, resize: str) -> None:
    for index in (0, 1, 9):
        found = rendered(photo(index), Geometry(image_size=size, filter="adm", resize=resize))
        np.testing.assert_array_equal(found[0], guided_diffusion_crop(photo(index), size))


@pytest.mark.parametrize(("size", "crop_range"), [(64, 1.1), (256, 1.1), (50, 1.25)])
def test_ten_crop_is_torchvision(size: int, crop_range: float) -> None:
    geometry = Geometry(image_size=size, resize="resize-crop", views="ten-crop", crop_range=crop_range)
    resized = torchvision_resize(photo(3), int(size * crop_range))
    expected = torchvision_ten_crop(np.asarray(resized), size)
    np.testing.assert_array_equal(rendered(photo(3), geometry), expected)


@pytest.mark.parametrize(("size", "crop_range"), [(64, 1.1), (256, 1.1), (256, 1.05)])
def test_adm_ten_crop_is_llamagen(size: int, crop_range: float) -> None:
    geometry = Geometry(image_size=size, views="ten-crop", crop_range=crop_range, filter="adm")
    square = guided_diffusion_crop(photo(4), int(size * crop_range))
    np.testing.assert_array_equal(rendered(photo(4), geometry), torchvision_ten_crop(square, size))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (1, 500), (500, 1), (20, 10)], ids=str)
def test_pad_is_white_and_centred(size: tuple[int, int]) -> None:
    found = rendered(Image.new("RGB", size, (0, 0, 0)), Geometry(image_size=64, resize="pad"))[0, ..., 0]
    assert set(np.unique(found)) <= {0, 255}
    rows, columns = np.flatnonzero((found == 0).any(1)), np.flatnonzero((found == 0).any(0))
    expected = [max(1, round(64 * side / max(size))) for side in size]
    assert [len(columns), len(rows)] == expected
    assert (found[np.ix_(rows, columns)] == 0).all()
    for line in (rows, columns):
        assert abs(line[0] - (63 - line[-1])) <= 1


def test_box_of_a_cut_crop_shows_the_crop() -> None:
    geometry, image = Geometry(image_size=64, resize="resize-crop", views="ten-crop"), photo(5)
    chosen = views(*image.size, geometry, "")
    for view, found in zip(chosen, render(image, image.size, geometry, chosen), strict=True):
        again = np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS, view[1:5])).astype(float)
        again = again[:, ::-1] if view.mirrored else again
        assert np.mean(np.abs(again - found)) < 3  # up to half a pixel of the source apart


@pytest.mark.parametrize(
    "kind", [{"resize": "resize-crop"}, {"views": "ten-crop"}, {"filter": "adm", "views": "hflip"}], ids=str
)
def test_crops_of_a_long_image_are_the_same_pixels(
    kind: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry, image = Geometry(image_size=64, **kind), photo(6)
    whole = rendered(image, geometry)
    monkeypatch.setattr(resize, "_WHOLE", 0)
    assert np.abs(rendered(image, geometry).astype(int) - whole).max() <= 1


def test_long_image_is_cropped_before_it_is_resized() -> None:
    stripes = np.repeat(np.arange(100_000, dtype=np.int64)[:, None, None] % 7 * 30, 3, -1).astype(np.uint8)
    found = rendered(Image.fromarray(stripes), Geometry(resize="resize-crop", filter="box"))
    assert found.shape == (1, 256, 256, 3)
    # The square shows the two halves of the two middle pixels.
    assert (found[0, :127] == stripes[49_999, 0]).all()
    assert (found[0, 129:] == stripes[50_000, 0]).all()


def test_long_images_take_no_memory() -> None:
    code = """
import resource
from PIL import Image
from transforms.images.crops import Geometry, views
from transforms.images.resize import render
kinds = [dict(resize="resize-crop"), dict(filter="adm"), dict(views="ten-crop"), dict(resize="stretch")]
kinds += [dict(resize="resize-crop", views="ten-crop"), dict(resize="pad"), dict(views="random-crops"), {}]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for size in (1, 100_000), (100_000, 1):
    image = Image.new("RGB", size)
    for kind in kinds:
        geometry = Geometry(**kind)
        render(image, size, geometry, views(*size, geometry, ""))
print((peak() - before) / 1024)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert float(result.stdout) < 40

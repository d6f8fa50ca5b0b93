"""``vqgan complete``: what its image shows, that seeds decide it, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vqgan.codec import Codec
from vqgan.image_grid import GREY, MARGIN
from vqgan.prior.inference import Prior

from .conftest import Vqgan
from .test_sample_prior import save_random_prior

pytestmark = pytest.mark.usefixtures("few_optimizations")

SIDE, TIMES = 8, 16  # of the picture that the prior sees, and how much larger a tile is


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory, codec_path: str) -> Path:
    return save_random_prior(tmp_path_factory.mktemp("prior") / "prior", codec_path)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory, codec_path: str) -> Path:
    return save_random_prior(tmp_path_factory.mktemp("prior") / "masked", codec_path, "masked", classes=0)


@pytest.fixture
def complete(vqgan: Vqgan, photos: Path, prior: Path, tmp_path: Path) -> Vqgan:
    """Completes the first photograph; later flags override."""

    def complete(*flags: Any, image: Any = None) -> Any:
        where = [image or min(photos.iterdir()), "--prior", prior, "--output", tmp_path / "out.png"]
        return vqgan("complete", *where, *flags)

    return complete


def tiles(path: Path) -> np.ndarray:
    """The images of a sheet of one row, at the size that the prior sees: uint8 ``[N, 8, 8, 3]``."""
    with Image.open(path) as opened:
        sheet = np.asarray(opened)
    width = SIDE * TIMES
    starts = range(0, sheet.shape[1], width + MARGIN)
    return np.stack([sheet[::TIMES, start : start + width : TIMES] for start in starts])


def test_original_what_was_given_and_draws(complete: Vqgan, tmp_path: Path, prior: Path) -> None:
    result = complete("--draws", 3, "--seed", 5, "--temperature", 0.7)
    assert result.code == 0, result.err
    assert "out.png: the original, what was given of it, 3 draws; 8 of 16 tokens given" in result.out
    original, given, *drawn = tiles(tmp_path / "out.png")
    np.testing.assert_array_equal(given[:4], original[:4])
    assert (given[4:] == GREY).all()
    assert original.std() > 1
    loaded = Prior.load(prior, batch_size=3)
    tokens = loaded.codec.encode(original[None])
    known = tokens.copy()
    known[:, 2:] = -1
    expected = loaded.sample(3, labels=None, seed=5, temperature=0.7, given=known)
    np.testing.assert_array_equal(expected[:, :2], tokens.repeat(3, axis=0)[:, :2])
    np.testing.assert_array_equal(drawn, loaded.images(expected))


def test_a_region_by_a_masked_prior(complete: Vqgan, tmp_path: Path, masked: Path) -> None:
    output = tmp_path / "region.jpg"
    flags = ["--prior", masked, "--inpaint", "1,1,3,4", "--draws", 1, "--output", output]
    result = complete(*flags)
    assert result.code == 0, result.err
    assert "1 draw; 10 of 16 tokens given" in result.out
    with Image.open(output) as opened:
        assert opened.format == "JPEG"
    given = tiles(output)[1].astype(int)
    region = np.zeros((SIDE, SIDE), bool)
    region[2:6, 2:8] = True
    assert np.abs(given[region] - GREY).max() < 6


def test_classes_and_seeds_decide(complete: Vqgan, tmp_path: Path, prior: Path) -> None:
    assert complete("--draws", 2).code == 0
    first = tiles(tmp_path / "out.png")
    assert complete("--draws", 2).code == 0
    np.testing.assert_array_equal(tiles(tmp_path / "out.png"), first)
    assert complete("--draws", 2, "--class", "dog", "--guidance", 3).code == 0
    assert (tiles(tmp_path / "out.png")[2:] != first[2:]).any()
    assert complete("--draws", 2, "--seed", 1).code == 0
    np.testing.assert_array_equal(tiles(tmp_path / "out.png")[2], first[3])


def test_a_text_decides(complete: Vqgan, tmp_path: Path, codec_path: str) -> None:
    card = {"training": {"objective": {"class_dropout": 0}}}
    worded = save_random_prior(tmp_path / "worded", codec_path, classes=0, words=("red", "car"))
    always = save_random_prior(tmp_path / "always", codec_path, classes=0, words=("red", "car"), card=card)
    found = []
    for prompt in ("red car", "car"):
        result = complete("--prior", worded, "--draws", 1, "--prompt", prompt)
        assert result.code == 0, result.err
        found.append(tiles(tmp_path / "out.png"))
    assert (found[0][2:] != found[1][2:]).any()
    np.testing.assert_array_equal(found[0][:2], found[1][:2])
    for prior, flags, said in [
        (worded, ["--prompt", "blue"], "without the word 'blue'"),
        (worded, ["--guidance", 2], "--guidance 2: there is no text to lead to; give --prompt"),
        (always, ["--prompt", ""], "without a text (class_dropout=0): give --prompt"),
    ]:
        result = complete("--prior", prior, *flags)
        assert (result.code, said in result.line) == (2, True), result.err


def test_many_draws_take_several_rows(complete: Vqgan, tmp_path: Path) -> None:
    assert complete("--draws", 17, "--keep-rows", 3).code == 0
    with Image.open(tmp_path / "out.png") as opened:
        assert opened.size == (8 * 128 + 7 * MARGIN, 3 * 128 + 2 * MARGIN)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--keep-rows", 4], "the grid has 4 rows; give 1 to 3"),
        (["--keep-rows", 2, "--inpaint", "0,0,1,1"], "leave one out"),
        (["--inpaint", "0,0,1,1"], "only continues from the top"),
        (["--output", "out.gif"], "give the name of a file in .png, .webp, .jpg"),
        (["--output", "out.jpg", "--draws", 4100], "images of 1038x66688: jpeg ends at 65500 a side"),
        (["--draws", 0], "--draws 0: it must be at least 1"),
        (["--class", "bird"], "bird"),
        (["--choice-temperature", 1], "autoregressive"),
    ],
)
def test_mistakes(complete: Vqgan, flags: list[Any], said: str) -> None:
    result = complete(*flags)
    assert result.code == 2
    assert said in result.line


def test_places_where_no_file_can_be_written(complete: Vqgan, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for name, said in [
        ("folder.png", "folder.png: is a folder; give the name of a file"),
        ("none/out.png", "there is no folder"),
        ("file/out.png", "there is no folder"),
    ]:
        result = complete("--prior", tmp_path / "none", "--output", tmp_path / name)
        assert (result.code, said in result.line) == (2, True), result.err
    assert not any((tmp_path / "folder.png").iterdir())


def test_unusable_pictures(complete: Vqgan, tmp_path: Path, masked: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    result = complete(image=tmp_path / "text.jpg")
    assert (result.code, "text.jpg: cannot be used" in result.line) == (2, True)
    result = complete(image=tmp_path / "none.jpg")
    assert (result.code, "none.jpg: cannot be read" in result.line) == (2, True)
    result = complete(image=tmp_path)
    assert (result.code, "give one picture" in result.line) == (2, True)
    result = complete("--prior", masked, "--inpaint", "2,2,2,3")
    assert (result.code, "top above bottom" in result.line) == (2, True)
    assert not (tmp_path / "out.png").exists()


def test_another_codec_is_refused(complete: Vqgan, other_codec: str, codec_path: str) -> None:
    assert Codec.load(other_codec).fingerprint != Codec.load(codec_path).fingerprint
    result = complete("--codec", other_codec)
    assert result.code == 2
    assert "was trained on tokens of codec" in result.line

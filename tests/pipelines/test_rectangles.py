"""Rectangles and buckets of them, by the command line: tokens, images, priors, codecs, refusals."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import tokenize
from pipelines.data_sets import additions
from tests.faulty import KILLS, MORTAL_PROGRAM, contents
from transforms.tokenizing.buckets import describe_buckets
from vqgan import Codec, open_tokens
from vqgan.config_json import RUN_FILE
from vqgan.dataset_card import CARD_FILE
from vqgan.prior.checkpoint import read_prior

from . import test_training_codec, test_training_prior

Vqgan = Callable[..., Any]
ROOT = Path(__file__).parents[2]
BUCKETS = ["--buckets", "24x24,24x36,36x24"]


@pytest.fixture(scope="module")
def images(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of three aspects, one of them on its side by its EXIF alone, and a file that is none."""
    folder = tmp_path_factory.mktemp("rectangles") / "in"
    folder.mkdir()
    for number, path in enumerate(sorted(photos.iterdir())[:9]):
        exif = Image.Exif()
        with Image.open(path) as image:
            if number == 0:  # stored lying, seen upright
                exif[0x0112] = 6
            size = [(60, 40), (40, 60), (50, 50)][number % 3]
            image.resize(size).save(folder / f"{number}.jpg", exif=exif)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def tokens(images: Path, codec_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data set of a rectangle."""
    output = tmp_path_factory.mktemp("rectangles") / "tokens"
    made = tokenize(
        input=images, output=output, codec=codec_path, image_size="12x18", views="hflip", quiet=True
    )
    assert made.manifest["identity"]["preprocessing"]["geometry"]["image_size"] == [12, 18]
    assert list(made.manifest["grid"]) == [6, 9]
    return output


@pytest.fixture(scope="module")
def bucketed(images: Path, codec_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished data sets of three buckets."""
    output = tmp_path_factory.mktemp("rectangles") / "buckets"
    tokenize(
        input=images,
        output=output,
        codec=codec_path,
        buckets=BUCKETS[1],
        slice_size=2,
        quiet=True,
        report=False,
    )
    return output


def bucket_command(images: Path, codec_path: str, output: Path) -> list[Any]:
    more = ["--slice-size", 2, "--quiet", "--no-report"]
    return ["tokenize", "--input", images, "--codec", codec_path, "--output", output, *BUCKETS, *more]


def buckets_of(output: Path) -> Any:
    return json.loads((output / "buckets.json").read_text())


def test_rectangles_become_tokens_and_images(
    tokens: Path, images: Path, codec_path: str, vqgan: Vqgan, tmp_path: Path
) -> None:
    assert vqgan("verify", tokens, "--codec", codec_path, "--input", images).code == 0
    shown = vqgan("inspect", tokens).out
    assert "[6, 9]" in shown
    assert "[12, 18]" in shown
    assert (
        "12 × 18 pixels (height × width): the largest centred part of that"
        in (tokens / CARD_FILE).read_text()
    )
    assert "image_size:\n- 12\n- 18\n" in (tokens / "plan" / RUN_FILE).read_text()
    assert (
        vqgan("decode", "--tokens", tokens, "--output", tmp_path / "out", "--limit", 2, "--quiet").code == 0
    )
    (found, _) = sorted((tmp_path / "out" / "images").glob("*.png"))
    rows = open_tokens(str(tokens))
    grid = rows.take(np.arange(1)).tokens.reshape(1, *rows.grid)
    with Image.open(found) as image:
        assert image.size == (18, 12)
        np.testing.assert_array_equal(np.asarray(image), Codec.load(codec_path).decode(grid)[0])


def test_squares_are_written_as_one_number(images: Path, codec_path: str, tmp_path: Path) -> None:
    made = [
        tokenize(
            input=images,
            output=tmp_path / str(n),
            codec=codec_path,
            image_size=size,
            quiet=True,
            report=False,
        )
        for n, size in enumerate([12, "12x12", (12, 12)])
    ]
    assert [each.manifest["identity"]["preprocessing"]["geometry"]["image_size"] for each in made] == [12] * 3
    assert len({each.manifest["plan_hash"] for each in made}) == 1
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--image-size", "13x18"),
            r"13x18 pixels \(height x width\) .* multiples of 2 pixels, such as 12x18 or 14x18",
        ),
        (("--image-size", "13"), "13x13 pixels do not fit .* such as 12 or 14"),
        (
            ("--image-size", "12by18"),
            "give the side of a square such as 256, or HEIGHTxWIDTH such as 256x384",
        ),
        (("--buckets", "12,18x12,13x12"), "13x12 pixels .* such as 12 or 14x12"),
        (("--buckets", "12,24"), "12x12 and 24x24 have one aspect ratio"),
        (("--buckets", "12,12x18", "--image-size", "12"), "--buckets and --image-size do not go together"),
    ],
)
def test_what_is_refused(
    flags: tuple[str, ...],
    says: str,
    images: Path,
    codec_path: str,
    vqgan: Vqgan,
    tmp_path: Path,
    refused: Any,
) -> None:
    with refused(says):
        line = vqgan(
            "tokenize", "--input", images, "--codec", codec_path, "--output", tmp_path / "x", *flags
        ).line
        raise additions.UserError(line)
    assert not (tmp_path / "x").exists()


def test_codecs_of_one_size_take_no_rectangle(refused: Any) -> None:
    from vqgan.config import ModelConfig
    from vqgan.token_layouts import ScalesConfig

    model = ModelConfig(quantizer="scales", scales=ScalesConfig((1, 2, 4)))
    with refused(r"64x96 pixels \(height x width\) do not fit this codec: it takes 64x64 alone"):
        model.grid(64, 96)


def test_a_prior_of_rectangles(tokens: Path, codec_path: str, vqgan: Vqgan, tmp_path: Path) -> None:
    """Trains, samples, completes, samples a larger grid, and decodes."""
    run = tmp_path / "run"
    short = [
        "--set",
        "train.steps=2",
        "--set",
        "train.evaluate_every=2",
        "--set",
        "data.samples=0",
        "--quiet",
    ]
    assert vqgan(*test_training_prior.command(tokens, run, *short)).code == 0
    info = read_prior(run)
    assert (info.config.grid, info.codec.image_size) == ((6, 9), (12, 18))
    sample = ["sample", "--prior", run, "--count", 2, "--quiet"]
    assert vqgan(*sample, "--given", tokens, "--keep-rows", 4, "--output", tmp_path / "more").code == 0
    start, found = (open_tokens(str(path)).take(np.arange(2)).tokens for path in (tokens, tmp_path / "more"))
    np.testing.assert_array_equal(found[:, : 4 * 9], start[:, : 4 * 9])
    (first, _) = sorted((tmp_path / "more" / "images").glob("*.png"))
    with Image.open(first) as image:
        assert image.size == (18, 12)
    larger = tmp_path / "larger"
    assert vqgan(*sample, "--grid", "8x10", "--output", larger, "--no-images").code == 0
    assert open_tokens(str(larger)).grid == (8, 10)


def test_a_codec_is_trained_and_measured_on_rectangles(photos: Path, vqgan: Vqgan, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = [
        "data.crop_size=12x18", "data.validation_size=[12,18]", "train.steps=2", "train.evaluate_every=2",
        "adversarial.weight=0", "codebook.autoencoder_steps=0", "data.validation_limit=4",
    ]  # fmt: skip
    flags = [part for setting in changes for part in ("--set", setting)]
    assert vqgan(*test_training_codec.command(photos, run, *flags, "--quiet")).code == 0
    config = json.loads((run / "config.json").read_text())
    assert "[12, 18]" in json.dumps(config)
    measured = vqgan(
        "evaluate", "--codec", run, "--input", photos, "--image-size", "12x18", "--metrics", "psnr",
        "--limit", 4, "--output", tmp_path / "measured", "--quiet",
    )  # fmt: skip
    assert measured.code == 0, measured.err
    found = json.loads((tmp_path / "measured" / "evaluation.json").read_text())
    assert found["reference"]["image_size"] == [12, 18]
    assert "12x18 px" in found["codecs"][0]["metrics"]["psnr"]["reference_set"]


def test_each_image_is_in_the_bucket_nearest_to_it(
    bucketed: Path, images: Path, codec_path: str, vqgan: Vqgan
) -> None:
    keys: dict[str, list[str]] = {}
    for name in ("24x24", "24x36", "36x24"):
        rows = open_tokens(str(bucketed / name), columns=["key"])
        keys[name] = sorted(rows.take(np.arange(len(rows))).columns["key"])
        assert rows.grid == tuple(int(side) // 2 for side in name.split("x"))
    assert keys == {
        "24x24": ["2.jpg", "5.jpg", "8.jpg"],
        "24x36": ["3.jpg", "6.jpg"],
        "36x24": ["0.jpg", "1.jpg", "4.jpg", "7.jpg"],  # the first as it is seen
    }
    document = describe_buckets(str(bucketed))
    assert document["counts"] == {
        "planned": 10,
        "images": 9,
        "rejects": 1,
        "rows": 9,
        "tokens": 3 * 144 + 6 * 216,
    }
    assert document["data_sets"]["24x24"]["rejects"] == 1
    checked = vqgan("verify", bucketed, "--codec", codec_path, "--input", images)
    assert checked.code == 0
    assert checked.out.count("ok\n") == 3
    assert "data sets of buckets" in vqgan("inspect", bucketed).out
    with pytest.raises(
        additions.UserError, match=r"holds a data set for each size; give one of them, such as .*/24x24"
    ):
        open_tokens(str(bucketed))


@pytest.mark.parametrize(
    "command",
    [
        ("decode", "--output", "out", "--tokens"),
        ("merge", "other", "--output", "out"),
        ("push", "owner/name"),
        ("browse",),
        ("train-prior", "--output", "out", "--tokens"),
    ],
)
def test_where_one_data_set_is_meant_a_bucket_is_named(
    bucketed: Path, vqgan: Vqgan, command: tuple[str, ...]
) -> None:
    first = command[0] in ("merge", "push")
    result = vqgan(command[0], *([bucketed, *command[1:]] if first else [*command[1:], bucketed]))
    assert result.code == 2
    assert f"{bucketed}: holds a data set for each size; give one of them, such as" in result.line


def test_a_killed_run_is_continued_to_the_same_bytes(
    bucketed: Path, images: Path, codec_path: str, vqgan: Vqgan, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = bucket_command(images, codec_path, output)
    for files in (8, 12):  # in the first bucket, and in a later one
        died = [sys.executable, "-c", MORTAL_PROGRAM, str(files), "0", *map(str, command)]
        assert subprocess.run(died, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
        KILLS["launchers"] += 1
        assert "data_sets" not in buckets_of(output)
    assert (output / "24x36").is_dir()
    assert vqgan(*command).code == 0
    assert contents(output) == contents(bucketed)


def test_finished_buckets_stay(
    bucketed: Path, images: Path, codec_path: str, vqgan: Vqgan, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(bucketed, output)
    before = contents(output)
    command = bucket_command(images, codec_path, output)
    assert vqgan(*command).code == 0
    assert contents(output) == before
    others = [*command, "--buckets", "24x24,24x36"]
    assert "was made with --buckets 24x24,24x36,36x24" in vqgan(*others).line
    grown = tmp_path / "grown"
    shutil.copytree(images, grown)
    shutil.copy(grown / "1.jpg", grown / "new.jpg")
    command[2] = grown
    assert "36x24: belongs to another run" in vqgan(*command).line
    one = [
        *command[: command.index("--buckets")],
        "--image-size",
        "36x24",
        "--append",
        "--output",
        output / "36x24",
    ]
    assert "other settings than it was made with (buckets" in vqgan(*one).line

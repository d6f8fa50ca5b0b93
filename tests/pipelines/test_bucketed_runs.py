"""Buckets that grow, are mended and checked: estimated, killed, continued, by the command line."""

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

from pipelines.commands import data_sets
from pipelines.options.tool_options import VerifyOptions
from tests.faulty import MORTAL_PROGRAM, contents
from vqgan import UserError, open_tokens

Vqgan = Callable[..., Any]
ROOT = Path(__file__).parents[2]
SQUARE, WIDE, TALL = "24x24", "24x36", "36x24"
SIZES = {SQUARE: (50, 50), WIDE: (60, 40), TALL: (40, 60)}


def add_images(folder: Path, photos: Path, **counts: int) -> None:
    """Adds so many images, named by their bucket and the number of those that are there."""
    folder.mkdir(exist_ok=True)
    found = sorted(photos.iterdir())
    for name, count in counts.items():
        for _ in range(count):
            number = len(list(folder.iterdir()))
            with Image.open(found[number % len(found)]) as image:
                size = {"square": SQUARE, "wide": WIDE, "tall": TALL}[name]
                image.resize(SIZES[size]).save(folder / f"{name}-{number:02d}.jpg")


def command(images: Path, codec: str, output: Path, *more: Any) -> list[Any]:
    flags = ["--buckets", ",".join(SIZES), "--slice-size", 2, "--quiet", "--no-report", *more]
    return ["tokenize", "--input", images, "--codec", codec, "--output", output, *flags]


def killed(files: int, argv: list[Any]) -> None:
    """Runs a command that SIGKILL ends when so many files were written."""
    died = [sys.executable, "-c", MORTAL_PROGRAM, str(files), "0", *map(str, argv)]
    done = subprocess.run(died, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def keys(path: Path) -> list[str]:
    rows = open_tokens(str(path), columns=["key"])
    return sorted(rows.take(np.arange(len(rows))).columns["key"])


def listed(output: Path) -> Any:
    return json.loads((output / "buckets.json").read_text())


@pytest.fixture(scope="module")
def images(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three squares, two landscapes, a file that is no image, and no portrait."""
    folder = tmp_path_factory.mktemp("buckets") / "in"
    add_images(folder, photos, square=3, wide=2)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def grown(images: Path, photos: Path) -> Path:
    """The same, and two landscapes and three portraits more."""
    folder = images.parent / "grown"
    shutil.copytree(images, folder)
    add_images(folder, photos, wide=2, tall=3)
    return folder


@pytest.fixture(scope="module")
def made(images: Path, codec_path: str) -> Path:
    """Of the first images."""
    from pipelines import cli

    assert cli.main(list(map(str, command(images, codec_path, images.parent / "made")))) == 0
    return images.parent / "made"


@pytest.fixture(scope="module")
def appended(made: Path, grown: Path, codec_path: str) -> Path:
    """What an append makes of the grown images that nothing interrupts."""
    from pipelines import cli

    output = made.parent / "appended"
    shutil.copytree(made, output)
    assert cli.main(list(map(str, command(grown, codec_path, output, "--append")))) == 0
    return output


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    """A copy of what was made, to be changed at will."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def test_an_estimate_writes_nothing(
    images: Path, grown: Path, output: Path, codec_path: str, vqgan: Vqgan, tmp_path: Path
) -> None:
    first = vqgan(*command(images, codec_path, tmp_path / "new", "--dry-run"))
    assert first.code == 0
    assert not (tmp_path / "new").exists()
    assert blocks(first.out) == {SQUARE: (4, 2), WIDE: (2, 1), TALL: (0, 0), "all": (6, 3)}
    before = contents(output)
    more = vqgan(*command(grown, codec_path, output, "--dry-run", "--append"))
    assert more.code == 0
    assert contents(output) == before
    assert blocks(more.out) == {SQUARE: (0, 0), WIDE: (2, 1), TALL: (3, 2), "all": (5, 3)}


def blocks(text: str) -> dict[str, tuple[float, float]]:
    """Returns images and slices of each block of an estimate."""
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if line.startswith("  "):
            name, value = line.rsplit(maxsplit=1)
            list(found.values())[-1][name.strip()] = float(value)
        else:
            found[line.removesuffix(":")] = {}
    return {block: (each["images"], each.get("slices", 0)) for block, each in found.items()}


def test_each_new_image_goes_to_its_bucket(
    made: Path, appended: Path, grown: Path, codec_path: str, vqgan: Vqgan
) -> None:
    assert listed(made)["data_sets"] == [SQUARE, WIDE]
    assert listed(appended)["data_sets"] == [SQUARE, WIDE, TALL]
    for name, start in ((SQUARE, "square"), (WIDE, "wide"), (TALL, "tall")):
        assert keys(appended / name) == sorted(path.name for path in grown.glob(f"{start}-*"))
    before, after = contents(made), contents(appended)
    kept = [name for name in before if name.startswith(f"{WIDE}/data/")]
    assert kept
    assert all(after[name] == before[name] for name in kept)
    checked = vqgan("verify", appended, "--codec", codec_path, "--input", grown)
    assert checked.code == 0
    assert [line.split(":")[0] for line in checked.out.splitlines()] == [SQUARE, WIDE, TALL]
    assert "2 parts of 2 shards" in checked.out
    shown = json.loads(vqgan("inspect", "--json", appended).out)
    assert shown["counts"] == {
        "planned": 11, "images": 10, "rejects": 1, "rows": 10, "tokens": 3 * 144 + 7 * 216,
    }  # fmt: skip


def test_nothing_is_added_twice(appended: Path, grown: Path, codec_path: str, vqgan: Vqgan) -> None:
    before = contents(appended)
    assert vqgan(*command(grown, codec_path, appended, "--append")).code == 0
    assert contents(appended) == before


def test_a_killed_append_is_continued_to_the_same_bytes(
    appended: Path, grown: Path, output: Path, codec_path: str, vqgan: Vqgan, tmp_path: Path
) -> None:
    argv = command(grown, codec_path, output, "--append")
    for files in (2, 12):  # in the part of a data set, and in a new data set
        killed(files, argv)
    assert (output / TALL).is_dir()
    assert listed(output)["data_sets"] == [SQUARE, WIDE]
    checked = vqgan("verify", output)
    assert checked.code == 1
    assert f"{TALL}: problem: not finished" in checked.out
    assert checked.out.count("ok\n") == 2
    assert vqgan(*argv).code == 0
    assert contents(output) == contents(appended)


def test_what_was_begun_comes_first(
    grown: Path, output: Path, codec_path: str, photos: Path, vqgan: Vqgan, tmp_path: Path
) -> None:
    """A bucket's first data set is killed, and the input grows once more."""
    later = tmp_path / "later"
    shutil.copytree(grown, later)
    killed(12, command(later, codec_path, output, "--append"))
    assert not (output / TALL / "manifest.json").exists()
    add_images(later, photos, wide=1, tall=2)
    assert vqgan(*command(later, codec_path, output, "--append")).code == 0
    assert keys(output / TALL) == sorted(path.name for path in later.glob("tall-*"))
    assert keys(output / WIDE) == sorted(path.name for path in later.glob("wide-*"))
    assert vqgan("verify", output).code == 0
    assert "2 parts of" in vqgan("verify", output / TALL).out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--views", "hflip"), "other settings than it was made with"),
        (("--dedupe",), "other settings than it was made with"),
        (("--buckets", "24x24,24x36"), "was made with --buckets 24x24,24x36,36x24"),
    ],
)
def test_other_settings_are_refused(
    grown: Path, output: Path, codec_path: str, vqgan: Vqgan, more: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    """Also where the only new image would begin a data set."""
    before = contents(output)
    only_tall = tmp_path / "tall"
    only_tall.mkdir()
    shutil.copy(next(grown.glob("tall-*")), only_tall)
    for source in (grown, only_tall):
        result = vqgan(*command(source, codec_path, output, "--append", *more))
        assert (result.code, says in result.line) == (2, True)
    assert contents(output) == before


def test_an_unfinished_run_is_finished_first(
    grown: Path, images: Path, codec_path: str, vqgan: Vqgan, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    killed(8, command(images, codec_path, output))
    for argv in (command(grown, codec_path, output, "--append"), ["retry", output]):
        assert f"{output}: no finished data sets of buckets there" in vqgan(*argv).line
    checked = vqgan("verify", output)
    assert checked.code == 1
    assert checked.out.splitlines() == [
        "24x24: problem: not finished (no manifest.json); run the command that makes it again",
        "24x36: not begun, or no image is nearest to it",
        "36x24: not begun, or no image is nearest to it",
        "buckets.json: not finished; run the command that makes it again",
    ]
    assert "unfinished data sets of buckets" in vqgan("inspect", output).out


def test_rejects_of_all_buckets_are_tried_again(
    images: Path, codec_path: str, vqgan: Vqgan, tmp_path: Path
) -> None:
    """One of a bucket that is not the first; the counts are those of now."""
    source, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(images, source)
    torn = next(source.glob("wide-*"))
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-100])  # its size can still be read
    assert vqgan(*command(source, codec_path, output)).code == 0
    shown = json.loads(vqgan("inspect", "--json", output).out)
    assert (shown["data_sets"][WIDE]["rejects"], shown["counts"]["rejects"]) == (1, 2)
    torn.write_bytes(whole)
    before = (output / "buckets.json").read_bytes()
    assert vqgan("retry", output, "--quiet").code == 0
    shown = json.loads(vqgan("inspect", "--json", output).out)
    assert (shown["data_sets"][WIDE]["images"], shown["counts"]["rejects"]) == (2, 1)
    assert shown["reject_reasons"] == {"decode: UnidentifiedImageError": 1}
    assert (output / "buckets.json").read_bytes() == before
    assert vqgan("verify", output).code == 0


def test_all_buckets_are_repaired(
    appended: Path, grown: Path, codec_path: str, vqgan: Vqgan, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(appended, output)
    for name in (SQUARE, WIDE, TALL):
        next((output / name / "data").iterdir()).unlink()
    checked = vqgan("verify", output)
    assert checked.code == 1
    assert checked.out.count("is missing\n") == 3
    assert vqgan("verify", output, "--repair", "--input", grown, "--codec", codec_path).code == 0
    assert contents(output) == contents(appended)
    shutil.rmtree(output / WIDE)
    checked = vqgan("verify", output)
    assert checked.code == 1
    assert f"{WIDE}: problem: it is gone" in checked.out
    assert checked.out.count("ok\n") == 2


def test_a_duplicate_of_another_bucket_stays_one(
    images: Path, codec_path: str, vqgan: Vqgan, tmp_path: Path
) -> None:
    """Of two new files of the same bytes one is kept, also where a kill came between them."""
    source, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(images, source)
    assert vqgan(*command(source, codec_path, output, "--dedupe")).code == 0
    for name in ("new-1.jpg", "new-2.jpg"):  # the second ends in the first bucket, as a reject
        with Image.open(next(source.glob("wide-*"))) as image:
            image.rotate(180).save(source / name)
    reference = Path(shutil.copytree(output, tmp_path / "reference"))
    argv = ["--append", "--dedupe"]
    assert vqgan(*command(source, codec_path, reference, *argv)).code == 0
    assert "new-1.jpg" in keys(reference / WIDE)
    assert "new-2.jpg" not in keys(reference / WIDE)
    killed(5, command(source, codec_path, output, *argv))
    assert vqgan(*command(source, codec_path, output, *argv)).code == 0
    assert contents(output) == contents(reference)


def test_a_problem_is_one_whatever_its_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(options: VerifyOptions) -> None:
        raise UserError(f"{options.path}: there is no book")

    monkeypatch.setattr(data_sets, "_verify_one", refuse)
    assert data_sets._state(VerifyOptions(path="root"), "root/16x16") == (False, "problem: there is no book")

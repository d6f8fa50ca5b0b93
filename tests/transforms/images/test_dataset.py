"""Images of any source by number: the right pixels, no silent loss, and no needless reading."""

import csv
import hashlib
import io
import itertools
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from transforms.images import dataset as module
from transforms.images.dataset import ImageDataset, split
from transforms.images.decode import DecodeConfig
from transforms.sources import Entry, Loader, SourceConfig
from vqgan.data.image_crops import CropConfig, crop_batches
from vqgan.data.shuffle import BLOCKS_MIXED, epoch_order

TESTDATA = Path(__file__).parents[2] / "testdata"
PHOTOS = TESTDATA / "photos"
COUNT = 40


def images_of(
    path: Any, max_short_side: int | None = None, least_size: int = 1, cache_bytes: int = 0
) -> ImageDataset:
    return ImageDataset(SourceConfig(str(path)), DecodeConfig(), max_short_side, least_size, cache_bytes)


def encoded(number: int) -> bytes:
    """A small image whose pixels are all its number; size and format vary."""
    stream = io.BytesIO()
    image = Image.new("RGB", (8 + number % 3, 9), (number, number, number))
    image.save(stream, ("PNG", "BMP", "WEBP")[number % 3], **({"lossless": True} if number % 3 == 2 else {}))
    return stream.getvalue()


def write_folder(path: Path) -> Path:
    path.mkdir()
    for number in range(COUNT):
        (path / f"{number:03}.img").write_bytes(encoded(number))
    return path


def write_tar(path: Path, mode: str = "w", count: int = COUNT) -> Path:
    with tarfile.open(path, mode) as archive:
        for number in range(count):
            info = tarfile.TarInfo(f"{number:03}.png")
            info.size = len(encoded(number))
            archive.addfile(info, io.BytesIO(encoded(number)))
    return path


def write_parquet(path: Path) -> Path:
    rows = [{"bytes": encoded(number), "path": None} for number in range(COUNT)]
    pq.write_table(pa.table({"image": rows}), path, row_group_size=15)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "folder": write_folder,
    "a.tar": write_tar,
    "a.tar.gz": lambda path: write_tar(path, "w:gz"),
    "a.parquet": write_parquet,
}


@pytest.fixture(params=WRITERS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same images in a source of each kind."""
    return WRITERS[request.param](tmp_path / request.param)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 2)


class Counting:
    """A source that remembers which entries were asked for together."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.shuffles = source.shuffles
        self.reads: list[int] = []

    def read(self, entries: Sequence[Entry]) -> Iterator[Loader]:
        self.reads.append(len(entries))
        return self.source.read(entries)


def counted(images: ImageDataset) -> list[int]:
    counting = Counting(images._source)
    images._source = counting  # type: ignore[assignment]
    return counting.reads


def shown(images: ImageDataset) -> list[int]:
    return [int(image[0, 0, 0]) for image in images if image is not None]


def test_photos_as_an_independent_decoder_has_them() -> None:
    images = images_of(PHOTOS)
    files = sorted(path.name for path in PHOTOS.iterdir())
    assert images.keys == files
    assert len(images) == len(files) == 11
    for number, name in enumerate(files):
        found = images[number]
        if name == "ATTRIBUTION.md":
            assert found is None
            continue
        with Image.open(PHOTOS / name) as image:
            np.testing.assert_array_equal(found, np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
        assert found.dtype == np.uint8
    assert images.rejects == {"ATTRIBUTION.md": "UnidentifiedImageError: not an image in any known format"}


@pytest.mark.parametrize("limit", [64, 200, 100_000])
def test_large_images_are_reduced(limit: int) -> None:
    images = images_of(PHOTOS, max_short_side=limit)
    for number, name in enumerate(images.keys[1:4], 1):
        with Image.open(PHOTOS / name) as image:
            full = image.convert("RGB")
        scale = min(1, limit / min(full.size))
        size = (round(full.width * scale), round(full.height * scale))
        image = images[number]
        assert image.shape == (size[1], size[0], 3)
        assert min(size) <= limit
        expected = np.asarray(full.resize(size, Image.Resampling.LANCZOS)).astype(int)
        # The JPEG decoder may reduce before; shifted by one pixel the difference is several times as large.
        assert np.abs(image.astype(int) - expected).mean() < 1.5


def test_orientation_alpha_and_rejects_of_hostile_files() -> None:
    with (TESTDATA / "hostile" / "outcomes.tsv").open() as file:
        outcomes = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    images = images_of(TESTDATA / "hostile")
    sizes = {key: image.shape for key, image in zip(images.keys, images, strict=True) if image is not None}
    rows = {name: row for name, row in outcomes.items() if row["outcome"] == "row"}
    assert sizes == {
        name: (int(row["height or class"]), int(row["width or stage"]), 3) for name, row in rows.items()
    }
    rejects = images.rejects
    assert set(rejects) | set(rows) == set(images.keys)
    for name in outcomes.keys() - rows.keys():
        assert rejects[name].startswith(outcomes[name]["height or class"] + ": ")


def test_small_images_are_rejects(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    images = images_of(folder, least_size=9)
    assert shown(images) == [number for number in range(COUNT) if number % 3]  # 8 pixels wide
    assert images.rejects["000.img"] == "TooSmall: 8x9 pixels; min_side is 9"
    assert len(images.rejects) == 14


def test_every_kind_of_source(made: Path) -> None:
    images = images_of(made)
    assert shown(images) == list(range(COUNT))
    assert [int(images[number][0, 0, 0]) for number in (39, 0, 17, -2)] == [39, 0, 17, 38]
    assert not images[3].flags.writeable
    assert images.rejects == {}
    with pytest.raises(IndexError):
        images[COUNT]


def test_blocks_of_containers(made: Path, small_blocks: None) -> None:
    blocks = images_of(made).blocks
    assert blocks == (None if made.is_dir() else [range(start, start + 2) for start in range(0, COUNT, 2)])


def test_blocks_end_with_their_file_and_at_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", count=5)
    write_tar(tmp_path / "b.tar", count=3)
    assert images_of(tmp_path).blocks == [range(5), range(5, 8)]
    monkeypatch.setattr(module, "BLOCK_BYTES", len(encoded(0)) + len(encoded(1)))
    blocks = images_of(tmp_path).blocks
    assert blocks[0] == range(2)
    assert list(itertools.chain(*blocks)) == list(range(8))
    largest = max(len(encoded(number)) for number in range(4))  # stands for all where no size is known
    monkeypatch.setattr(module, "BLOCK_BYTES", 10 * largest)
    assert images_of(write_parquet(tmp_path / "c.parquet")).blocks == [
        range(start, start + 10) for start in range(0, COUNT, 10)
    ]


def test_a_block_is_read_once_for_all_threads(made: Path, small_blocks: None) -> None:
    images = images_of(made)
    blocks = images.blocks
    reads = counted(images)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: int(images[number][0, 0, 0]), range(COUNT)))
    assert found == list(range(COUNT))
    assert reads == ([1] * COUNT if blocks is None else [2] * len(blocks))


def test_order_of_the_loader_reads_a_block_about_once_in_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 4)
    images = images_of(write_tar(tmp_path / "a.tar", count=240))
    assert images.blocks is not None
    starts = np.array([block.start for block in images.blocks])
    reads = counted(images)
    for number in epoch_order(starts, np.full(60, 4), (0,), 0).tolist():
        assert int(images[number][0, 0, 0]) == number
    assert reads == [4] * len(reads)
    # 60 blocks; those that reach round the end are read again.
    assert 60 <= len(reads) <= 60 + BLOCKS_MIXED + 5


def test_decoded_images_are_kept(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    images = images_of(folder, cache_bytes=1 << 20)
    before = list(images)
    part = images.subset(lambda key: key > "020")
    shutil.rmtree(folder)
    assert all(a is b for a, b in zip(before, images, strict=True))
    assert shown(part) == list(range(20, COUNT))  # subsets share the memory


def test_cache_is_bounded_and_keeps_what_it_has(tmp_path: Path) -> None:
    images = images_of(write_folder(tmp_path / "folder"), cache_bytes=2 * 9 * 9 * 3)
    first = [images[number] for number in (1, 4, 7)]  # 9 by 9 pixels
    again = [images[number] for number in (1, 4, 7)]
    assert [a is b for a, b in zip(first, again, strict=True)] == [True, True, False]


def test_failure_to_read_may_pass_and_others_are_final(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    images = images_of(folder)
    (folder / "001.img").rename(tmp_path / "away")
    (folder / "002.img").write_bytes(b"no image")
    assert images[1] is images[2] is None
    assert images.rejects["001.img"].startswith("FileNotFoundError: ")
    assert images.rejects["002.img"].startswith("UnidentifiedImageError: ")
    (tmp_path / "away").rename(folder / "001.img")
    (folder / "002.img").write_bytes(encoded(2))
    assert int(images[1][0, 0, 0]) == 1
    assert images[2] is None
    assert set(images.rejects) == {"002.img"}


def test_damage_found_while_listing_is_a_reject(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes()[:5000])
    images = images_of(path)
    usable = shown(images)
    assert usable == list(range(len(usable)))
    assert 0 < len(usable) == len(images) - 1
    assert [reason.split(":")[0] for reason in images.rejects.values()] == ["Damaged"]


def test_pickled_without_caches(made: Path) -> None:
    images = images_of(made, cache_bytes=1 << 20)
    bare = len(pickle.dumps(images))
    before = shown(images)
    data = pickle.dumps(images)
    assert len(data) < bare + 1000  # the ranges of blocks at most
    again = pickle.loads(data)
    assert again.keys == images.keys
    assert shown(again) == before


def test_split_by_image_is_complete_and_depends_on_the_key_alone() -> None:
    images = images_of(PHOTOS)
    training, validation = split(images, 3)
    held = [key for key in images.keys if int.from_bytes(hashlib.sha1(key.encode()).digest()) % 3 == 0]
    assert validation.keys == held
    assert 0 < len(held) < 11
    assert training.keys == [key for key in images.keys if key not in held]
    everything, nothing = split(images, 0)
    assert everything.keys == images.keys
    assert len(nothing) == 0
    number = training.keys.index("wine.jpg") if "wine.jpg" in training.keys else 0
    np.testing.assert_array_equal(training[number], images[images.keys.index(training.keys[number])])


def test_split_of_a_container_keeps_blocks(made: Path, small_blocks: None) -> None:
    images = images_of(made)
    assert images.blocks is None or len(images.blocks) == 20
    training, validation = split(images, 4)
    assert sorted(shown(training) + shown(validation)) == list(range(COUNT))
    assert sum(map(len, training.blocks or [range(len(training))])) == len(training)


def test_rejects_of_subsets_are_their_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    (folder / "000.img").write_bytes(b"")
    images = images_of(folder)
    assert images[0] is None
    part = images.subset(lambda key: key < "002")
    assert part.rejects == {}
    assert part[0] is None
    assert part.rejects == {"000.img": "EmptyFile: the file is empty"}


def test_mistakes_are_one_line(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "empty").mkdir()
    with refused("empty: there are no images here"):
        images_of(tmp_path / "empty")
    with refused("missing: cannot be read"):
        images_of(tmp_path / "missing")
    with refused("reduced to 32 pixels are too small for 64"):
        images_of(PHOTOS, max_short_side=32, least_size=64)
    with refused("one in 1 images for validation none of 11 is left"):
        split(images_of(PHOTOS), 1)


def test_training_crops_of_each_source_resume(made: Path) -> None:
    crop = CropConfig(size=8)

    def stream(images: ImageDataset, threads: int) -> Any:
        return crop_batches(images, crop, 16, 5, threads=threads, blocks=images.blocks)

    whole = stream(images_of(made, cache_bytes=1 << 20), 2)
    expected = [next(whole) for _ in range(5)]
    stopped = stream(images_of(made), 3)
    for _ in range(2):
        next(stopped)
    resumed = stream(pickle.loads(pickle.dumps(images_of(made))), 1)
    resumed.set_state(json.loads(json.dumps(stopped.get_state())))
    for batch in expected[2:]:
        np.testing.assert_array_equal(next(resumed), batch)
    first = np.concatenate(expected)[:COUNT, 0, 0, 0]
    assert sorted(first.tolist()) == list(range(COUNT))
    for opened in (whole, stopped, resumed):
        opened.close()


def test_training_on_rejects_alone_ends(tmp_path: Path, refused: Any) -> None:
    images = images_of(write_folder(tmp_path / "folder"), least_size=64)
    stream = crop_batches(images, CropConfig(64), 4, 0, threads=2, name=images.config.input)
    with refused(f"not one of {COUNT} images can be used"):
        next(stream)
    stream.close()
    assert len(images.rejects) == COUNT

"""One slice becomes one shard: batches, order, bounds, rejects and what is kept."""

import dataclasses
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.tokenize_images import PlannedTokenize, TokenizeConfig
from transforms.images.crops import Geometry
from transforms.sharded import rejects
from transforms.sharded.job import make_slice
from transforms.sharded.plan import read_slice
from transforms.sources import Entry, SourceConfig, open_source
from transforms.tokenizing import shard as slices
from transforms.tokenizing.shard import Item, batches, encode, load_item, read_and_decode
from vqgan.codec import Codec
from vqgan.errors import UserError
from vqgan.shards import Shard, rejects_name, shard_name

Configure = Callable[..., TokenizeConfig]
Planned = Callable[[TokenizeConfig], PlannedTokenize]


def ignore(images: int, rejected: int) -> None:
    """Progress that nobody watches."""


def digests(folder: str) -> dict[str, str]:
    found = [path for name in ("data", "rejects") for path in (Path(folder) / name).glob("*.parquet")]
    return {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in found
    }


def make_all(prepared: PlannedTokenize, codec: Codec) -> None:
    for number in range(prepared.plan.slices):
        make_slice(prepared.job, number, codec, ignore)


def item(key: str, count: int = 1) -> Item:
    view = slices.View(0, 0, 0, 8, 8, False)
    rows = [slices.Row(key, view._replace(view=n), 8, 8, None, {}) for n in range(count)]
    return Item(rows, np.full((count, 8, 8, 3), ord(key), np.uint8))


def test_batches_are_of_one_size_and_in_order() -> None:
    made = list(batches(iter([item("a", 2), item("b", 3), item("c", 2)]), 4))
    assert [batch.pixels.shape for batch in made] == [(4, 8, 8, 3), (4, 8, 8, 3)]
    assert [[row.key for row in batch.rows] for batch in made] == [["a", "a", "b", "b"], ["b", "c", "c"]]
    assert made[1].pixels[:, 0, 0, 0].tolist() == [ord("b"), ord("c"), ord("c"), 0]


def test_batches_of_nothing() -> None:
    assert list(batches(iter([]), 4)) == []


def test_batches_never_share_memory() -> None:
    first, second = batches(iter([item("a", 2), item("b", 2)]), 2)
    assert not np.shares_memory(first.pixels, second.pixels)


class Pending:
    """A result on the device, which takes until ``ready``."""

    def __init__(self, tokens: np.ndarray, fetch: Callable[[], None]):
        self._tokens, self._fetch = tokens, fetch

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self._fetch()
        return self._tokens


class SlowCodec:
    """Encodes to zeros; fetching the first result waits until later batches are being decoded."""

    batch_size = 4

    def __init__(self, later: threading.Event):
        self.events: list[str] = []
        self._later = later

    def encode_batch(self, pixels: np.ndarray, count: int) -> Pending:
        number = sum(event.startswith("encode") for event in self.events)
        self.events.append(f"encode {number}")
        return Pending(np.zeros((4, 16, 16), np.int32), lambda: self._fetched(number))

    def _fetched(self, number: int) -> None:
        assert self._later.wait(60), "nothing was decoded while the device was at work"
        self.events.append(f"fetch {number}")


def test_host_works_while_the_device_does(
    configure: Configure, planned: Planned, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = planned(configure(photos, slice_size=20))
    entries = read_slice(prepared.config.output, 0)
    later = threading.Event()

    def watched(images: slices.SourceImages, entry: Entry, load: Any) -> Any:
        if entry.key == entries[16].key:  # of the fifth batch
            later.set()
        return load_item(images, entry, load)

    monkeypatch.setattr(slices, "load_item", watched)
    codec: Any = SlowCodec(later)
    items = read_and_decode(prepared.task, open_source(prepared.config.source), entries)
    done = list(encode(batches(items, 4), codec))
    assert [len(rows) for rows, *_ in done] == [4, 4, 4, 4, 4]
    assert codec.events[:4] == ["encode 0", "encode 1", "encode 2", "fetch 0"]
    assert sorted(codec.events) == sorted(f"{what} {n}" for what in ("encode", "fetch") for n in range(5))


@pytest.mark.parametrize(("views", "per_image"), [("none", 1), ("hflip", 2), ("ten-crop", 10)])
def test_memory_is_bounded(
    configure: Configure,
    planned: Planned,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    views: str,
    per_image: int,
) -> None:
    geometry = Geometry(image_size=32, views=views)
    prepared = planned(configure(photos, slice_size=20, geometry=geometry))
    job = prepared.task
    started, lock = [], threading.Lock()

    def counted(images: slices.SourceImages, entry: Entry, load: Any) -> Any:
        with lock:
            started.append(entry.key)
        return load_item(images, entry, load)

    monkeypatch.setattr(slices, "load_item", counted)
    items = read_and_decode(job, open_source(job.source), read_slice(job.output, 0))
    window = job.threads + slices.BATCHES_DECODED_AHEAD * max(1, job.batch_size // per_image)
    ahead = []
    for taken, _ in enumerate(items):
        threading.Event().wait(0.02)  # time in which the pool could run away
        ahead.append(len(started) - taken)
    assert len(ahead) == 20
    assert 1 < max(ahead) <= window < 20


def test_abandoned_reading_stops(configure: Configure, planned: Planned, photos: Path) -> None:
    prepared = planned(configure(photos, slice_size=20))
    entries = read_slice(prepared.config.output, 0)
    items = read_and_decode(prepared.task, open_source(prepared.config.source), entries)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_one_compilation(
    codec_path: str, configure: Configure, planned: Planned, photos: Path, tmp_path: Path
) -> None:
    codec = Codec.load(codec_path, batch_size=4)
    make_all(planned(configure(photos, slice_size=7)), codec)
    assert codec.compilations == 1
    compiled: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if "compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for size, views in ((3, "none"), (20, "hflip"), (1, "none")):
            geometry = Geometry(image_size=32, views=views)
            output = str(tmp_path / f"{size}-{views}")
            make_all(planned(configure(photos, slice_size=size, geometry=geometry, output=output)), codec)
        assert codec.compilations == 1
        assert compiled == []
        jax.jit(lambda x: x * 3 + 1)(np.arange(7.0))  # the listener does hear compilations
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_matter(
    configure: Configure, planned: Planned, photos: Path, codec: Codec, tmp_path: Path, threads: int
) -> None:
    reference = planned(configure(photos, output=str(tmp_path / "a"), threads=3))
    make_all(reference, codec)
    other = planned(configure(photos, output=str(tmp_path / "b"), threads=threads))
    make_all(other, codec)
    assert digests(other.config.output) == digests(reference.config.output)
    assert len(digests(other.config.output)) == 4


def test_other_slices_do_not_matter(
    configure: Configure, planned: Planned, photos: Path, codec: Codec, tmp_path: Path
) -> None:
    reference = planned(configure(photos, output=str(tmp_path / "a")))
    make_all(reference, codec)
    other = planned(configure(photos, output=str(tmp_path / "b")))
    make_slice(other.job, 2, codec, ignore)
    (found,) = digests(other.config.output).items()
    assert found == ("data/tokens-00002-of-00004.parquet", digests(reference.config.output)[found[0]])


def test_rows_keep_the_order_of_the_plan(
    configure: Configure, planned: Planned, photos: Path, codec: Codec
) -> None:
    prepared = planned(configure(photos, slice_size=20, geometry=Geometry(image_size=32, views="hflip")))
    make_all(prepared, codec)
    table = pq.read_table(f"{prepared.config.output}/{shard_name(0, 1)}")
    keys = [entry.key for entry in read_slice(prepared.config.output, 0)]
    assert table.column("key").to_pylist() == [key for key in keys for _ in range(2)]
    assert table.column("view").to_pylist() == [0, 1] * 20
    assert table.column("mirrored").to_pylist() == [False, True] * 20


def test_tokens_are_those_of_the_codec(
    configure: Configure, planned: Planned, photos: Path, codec: Codec
) -> None:
    """No row may get another row's tokens, nor padding: each is encoded alone and compared."""
    prepared = planned(configure(photos, slice_size=20))
    make_all(prepared, codec)
    job, entries = prepared.task, read_slice(prepared.config.output, 0)
    decoded = {
        item.rows[0].key: item.pixels
        for item in read_and_decode(job, open_source(job.source), entries)
        if isinstance(item, Item)
    }
    with Shard(f"{job.output}/{shard_name(0, 1)}", "shard") as shard:
        (batch,) = shard.batches()
        tokens = dict(zip(batch.column("key").to_pylist(), shard.tokens(batch), strict=True))
    assert len({grid.tobytes() for grid in tokens.values()}) == 20
    for key, grid in tokens.items():
        np.testing.assert_array_equal(codec.encode(decoded[key])[0], grid)


def test_footer_counts(configure: Configure, planned: Planned, photos: Path, codec: Codec) -> None:
    (photos / "zero.jpg").write_bytes(b"")
    try:
        prepared = planned(configure(photos, slice_size=30))
        summary = make_slice(prepared.job, 0, codec, ignore)
    finally:
        (photos / "zero.jpg").unlink()
    with Shard(f"{prepared.config.output}/{shard_name(0, 1)}", "shard") as shard:
        metadata = shard.metadata
    assert (metadata.planned, metadata.images, metadata.rejects) == (21, 20, 1)
    assert (summary.planned, summary.images, summary.rejects) == (21, 20, 1)
    assert summary.histogram.sum() == 20 * 256
    assert metadata.plan_hash == prepared.plan.hash


def folder_of(tmp_path: Path, count: int, contents: bytes) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:02}.jpg").write_bytes(contents)
    return folder


@pytest.mark.parametrize("contents", [b"", b"garbage"])
def test_a_slice_of_rejects_alone_is_a_shard(
    configure: Configure, planned: Planned, codec: Codec, tmp_path: Path, contents: bytes
) -> None:
    prepared = planned(configure(folder_of(tmp_path, 12, contents), slice_size=12))
    summary = make_slice(prepared.job, 0, codec, ignore)
    assert (summary.images, summary.rejects, summary.shard.rows) == (0, 12, 0)
    assert pq.read_table(f"{prepared.config.output}/{shard_name(0, 1)}").num_rows == 0


def test_vanished_input_stops_the_run(
    configure: Configure, planned: Planned, photos: Path, codec: Codec, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    shutil.copytree(photos, source)
    prepared = planned(configure(source, slice_size=10))
    shutil.rmtree(source)
    source.mkdir()
    with pytest.raises(
        UserError, match=r"^'.*' cannot be read \(No such file.*restore it, then run the same"
    ):
        make_slice(prepared.job, 0, codec, ignore)
    assert digests(prepared.config.output) == {}
    shutil.rmtree(source)
    shutil.copytree(photos, source)
    assert make_slice(prepared.job, 0, codec, ignore).images == 10


def test_a_list_of_what_is_not_there_stops_the_run(
    configure: Configure, planned: Planned, codec: Codec, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("\n".join(f"{number}.jpg" for number in range(10)))
    prepared = planned(configure(tmp_path / "list.txt", slice_size=10))
    with pytest.raises(UserError, match=r"not one of its 10 images can be read.*No such file.*still there"):
        make_slice(prepared.job, 0, codec, ignore)
    assert digests(prepared.config.output) == {}


def test_messages_do_not_depend_on_the_mount_point(
    configure: Configure, planned: Planned, photos: Path, codec: Codec, tmp_path: Path
) -> None:
    """An image that a list names and nobody has seen is rejected with the same bytes anywhere."""
    found = []
    for name in ("here", "somewhere/else"):
        source = tmp_path / name
        shutil.copytree(photos, source)
        names = sorted(path.name for path in source.iterdir())
        (source / "list.txt").write_text("\n".join([*names[1:], "none.jpg"]))
        output = str(tmp_path / f"out-{len(found)}")
        prepared = planned(configure(source / "list.txt", slice_size=20, output=output))
        make_slice(prepared.job, 0, codec, ignore)
        found.append(digests(prepared.config.output))
        (row,) = rejects.read_rejects(f"{prepared.config.output}/{rejects_name(0, 1)}")
        assert (row.stage, row.error) == ("read", "FileNotFoundError")
        assert str(tmp_path) not in row.message
    assert len(found[0]) == 2
    assert found[0] == found[1]


@pytest.mark.parametrize(("limit", "passes"), [(0.1, False), (0.25, True), (0.0, False), (1.0, True)])
def test_reject_rate(
    configure: Configure,
    planned: Planned,
    photos: Path,
    codec: Codec,
    tmp_path: Path,
    limit: float,
    passes: bool,
) -> None:
    source = tmp_path / "in"
    shutil.copytree(photos, source)
    for path in sorted(source.iterdir())[:5]:
        path.write_bytes(b"garbage")
    prepared = planned(configure(source, slice_size=20, max_reject_rate=limit))
    if passes:
        assert make_slice(prepared.job, 0, codec, ignore).rejects == 5
        return
    with pytest.raises(UserError, match=r"slice 0: 5 of 20 images were rejected.*--max-reject-rate"):
        make_slice(prepared.job, 0, codec, ignore)
    assert digests(prepared.config.output) == {}


def test_a_finished_shard_is_kept(configure: Configure, planned: Planned, photos: Path, codec: Codec) -> None:
    prepared = planned(configure(photos))
    new = make_slice(prepared.job, 0, codec, ignore)
    path = Path(prepared.config.output) / shard_name(0, 4)
    before = path.stat()
    seen: list[tuple[int, int]] = []
    unused: Any = None
    kept = make_slice(prepared.job, 0, unused, lambda *counts: seen.append(counts))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert kept.seconds is None
    assert new.seconds is not None
    assert dataclasses.replace(kept, seconds=None, histogram=None) == dataclasses.replace(
        new, seconds=None, histogram=None
    )
    np.testing.assert_array_equal(kept.histogram, new.histogram)
    assert seen == [(5, 0)]


def damage_footer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_footer, damage_pages, empty])
@pytest.mark.parametrize("name", [shard_name(0, 1), rejects_name(0, 1)])
def test_a_damaged_file_is_made_again(
    configure: Configure,
    planned: Planned,
    photos: Path,
    codec: Codec,
    tmp_path: Path,
    damage: Callable[[Path], None],
    name: str,
) -> None:
    prepared = planned(configure(with_reject(photos, tmp_path), slice_size=30))
    make_slice(prepared.job, 0, codec, ignore)
    good = digests(prepared.config.output)
    damage(Path(prepared.config.output) / name)
    assert make_slice(prepared.job, 0, codec, ignore).seconds is not None
    assert digests(prepared.config.output) == good


def test_lost_rejects_are_made_again(
    configure: Configure, planned: Planned, photos: Path, codec: Codec, tmp_path: Path
) -> None:
    prepared = planned(configure(with_reject(photos, tmp_path), slice_size=30))
    make_slice(prepared.job, 0, codec, ignore)
    good = digests(prepared.config.output)
    (Path(prepared.config.output) / rejects_name(0, 1)).unlink()
    make_slice(prepared.job, 0, codec, ignore)
    assert digests(prepared.config.output) == good


def test_rejects_of_a_killed_run_do_not_stay(
    configure: Configure, planned: Planned, photos: Path, codec: Codec
) -> None:
    """A run found rejects and was killed before its shard; now every image can be read."""
    prepared = planned(configure(photos, slice_size=20))
    row = rejects.reject_of_error("a", "read", "OSError", "Stale file handle", None)
    rejects.publish_rejects(prepared.config.output, 0, 1, [row])
    make_slice(prepared.job, 0, codec, ignore)
    assert list(digests(prepared.config.output)) == [shard_name(0, 1)]


def test_a_shard_of_another_plan_is_made_again(
    configure: Configure, planned: Planned, photos: Path, codec: Codec, tmp_path: Path
) -> None:
    prepared = planned(configure(photos))
    make_all(prepared, codec)
    padded = Geometry(image_size=32, resize="pad")
    other = planned(configure(photos, geometry=padded, output=str(tmp_path / "b")))
    make_slice(other.job, 1, codec, ignore)
    good = digests(prepared.config.output)
    shutil.copy(Path(other.config.output) / shard_name(1, 4), Path(prepared.config.output) / "data")
    assert digests(prepared.config.output) != good
    make_all(prepared, codec)
    assert digests(prepared.config.output) == good


def test_extra_columns_are_looked_up_once(
    configure: Configure, planned: Planned, photos: Path, codec: Codec, tmp_path: Path, monkeypatch: Any
) -> None:
    lines = ["path,caption", *(f"{path},of {path.stem}" for path in sorted(photos.iterdir()))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    source = SourceConfig(input=str(tmp_path / "list.csv"), columns=("caption",))
    prepared = planned(configure(source, slice_size=20))
    calls = count_calls(monkeypatch, type(open_source(prepared.config.source)), "fields")
    make_slice(prepared.job, 0, codec, ignore)
    assert len(calls) == 1
    table = pq.read_table(f"{prepared.config.output}/{shard_name(0, 1)}")
    for row in table.select(["key", "caption"]).to_pylist():
        assert row["caption"] == f"of {Path(row['key']).stem}"


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    calls: list[None] = []
    original = getattr(owner, name)

    def counted(*args: Any) -> Any:
        calls.append(None)
        return original(*args)

    monkeypatch.setattr(owner, name, counted)
    return calls


def with_reject(photos: Path, tmp_path: Path) -> Path:
    """The photographs and one file that is no image."""
    source = tmp_path / "in"
    shutil.copytree(photos, source)
    (source / "broken.jpg").write_bytes(b"garbage" * 50)
    return source


def test_any_error_of_a_loader_is_a_reject(configure: Configure, planned: Planned, photos: Path) -> None:
    job = planned(configure(photos)).task

    def failing() -> Any:
        raise RuntimeError("two\nlines <object at 0x7f>")

    row = load_item(job, Entry("k", "f"), failing)
    assert row == rejects.RejectRow("k", "read", "RuntimeError", "two lines <object at 0x7f>", None, None)


def test_planned_errors_are_rejects_in_their_place(
    configure: Configure, planned: Planned, photos: Path
) -> None:
    job = planned(configure(photos)).task
    good = read_slice(job.output, 0)[:2]
    duplicate = Entry("b2", "x", error="same bytes as a")
    entries = [Entry("bad", "x", size=7, error="it is cut off"), *good, duplicate]

    def outcomes() -> Iterator[str]:
        for found in read_and_decode(job, open_source(job.source), entries):
            reject = "" if isinstance(found, Item) else f"{found.stage} {found.error} {found.size}"
            yield reject or found.rows[0].key

    assert list(outcomes()) == ["plan Damaged 7", good[0].key, good[1].key, "plan Duplicate None"]

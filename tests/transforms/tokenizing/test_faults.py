"""Faults in mid-run: what passes leaves no trace, what stays stops the run; no file passes for another."""

import errno
import io
import os
import shutil
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from pipelines import tokenize_images
from pipelines.tokenize_images import TokenizeConfig
from tests.conftest import Refused
from tests.pipelines.test_resume import contents
from transforms.images import decode
from transforms.sharded import job, rejects
from transforms.sources import Entry, folder, locations, reading
from transforms.tokenizing import shard
from vqgan import filesystems
from vqgan.errors import UserError

Configure = Callable[..., TokenizeConfig]
Run = Callable[[TokenizeConfig], dict[str, Any]]
FAULTS = [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ETIMEDOUT]


@pytest.fixture
def source(photos: Path, tmp_path: Path) -> Path:
    """Twelve photographs of which one is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted(photos.iterdir())[:11]:
        shutil.copy2(path, folder)
    (folder / "broken.jpg").write_bytes(b"garbage")
    return folder


@pytest.fixture
def reference(configure: Configure, run: Run, source: Path, tmp_path: Path) -> dict[str, str]:
    """What a run leaves that nothing has befallen."""
    run(configure(source, output=str(tmp_path / "reference")))
    return contents(tmp_path / "reference")


def tar_of(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            info = tarfile.TarInfo(file.name)
            info.size = file.stat().st_size
            archive.addfile(info, io.BytesIO(file.read_bytes()))
    return path


def failing(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Callable[[], BaseException], calls: range
) -> None:
    """Has a function fail at some of its calls, counted over all threads."""
    original, numbers, lock = getattr(owner, name), iter(range(10**9)), threading.Lock()

    def call(*arguments: Any, **named: Any) -> Any:
        with lock:
            number = next(numbers)
        if number in calls:
            raise error()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


def system(number: int) -> Callable[[], Exception]:
    return lambda: OSError(number, os.strerror(number))


ALWAYS = range(3, 10**9)
ONCE = range(3, 4)


@pytest.mark.parametrize("number", FAULTS)
def test_a_fault_that_passes_leaves_no_trace(
    configure: Configure,
    run: Run,
    source: Path,
    tmp_path: Path,
    reference: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    failing(monkeypatch, reading, "open_file", system(number), ONCE)
    assert run(configure(source))["counts"]["rejects"] == 1
    assert contents(tmp_path / "out") == reference


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("reading.open_file", system(errno.EIO)),
        ("reading.open_file", system(errno.EMFILE)),
        ("folder.read_exact", MemoryError),
        ("reading.open_file", lambda: TimeoutError("timed out")),
        ("reading.open_file", lambda: OSError("AWS Error NETWORK_CONNECTION during GetObject")),
        ("decode.render", system(errno.ENOMEM)),
        ("thread.start", lambda: RuntimeError("can't start new thread")),
    ],
)
def test_a_fault_that_stays_stops_the_run(
    configure: Configure,
    run: Run,
    source: Path,
    tmp_path: Path,
    reference: dict[str, str],
    refused: Refused,
    name: str,
    error: Callable[[], Exception],
) -> None:
    """Finished slices are kept, nothing is rejected for it, and the same command goes on."""
    module, _, function = name.partition(".")
    owner: Any = {"reading": reading, "folder": folder, "decode": decode, "thread": threading.Thread}[module]
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, owner, function, error, ALWAYS)
        with refused(r"; .*then run the same command again, which keeps what is finished \(tried 4 times\)$"):
            run(configure(source))
    left = contents(tmp_path / "out")
    assert "manifest.json" not in left
    assert {name: reference[name] for name in left} == left  # what is there is as it should be
    run(configure(source))
    assert contents(tmp_path / "out") == reference


def test_progress_of_an_attempt_that_failed_does_not_count(
    configure: Configure, planned: Any, source: Path, codec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = planned(configure(source, slice_size=12))
    failing(monkeypatch, reading, "open_file", system(errno.EIO), range(7, 8))
    told: list[tuple[int, int]] = []
    job.make_slice(prepared.job, 0, codec, lambda *counts: told.append(counts))
    assert (sum(images for images, _ in told), sum(rejected for _, rejected in told)) == (11, 1)


def test_a_listing_that_fails_is_no_plan(
    configure: Configure, run: Run, source: Path, tmp_path: Path, refused: Refused
) -> None:
    """What cannot be listed would be a reject for good."""
    archive = tar_of(source, tmp_path / "a.tar")
    for owner, name in ((os, "scandir"), (reading, "open_file")):
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, owner, name, system(errno.EIO), range(10**9))
            with refused("Input/output error.*then run the same command again"):
                run(configure(source if name == "scandir" else archive))
    assert not (tmp_path / "out").exists()


def test_a_finished_slice_that_cannot_be_read_now_is_kept(
    configure: Configure, planned: Any, source: Path, codec: Any, refused: Refused
) -> None:
    prepared = planned(configure(source, slice_size=12))
    job.make_slice(prepared.job, 0, codec, lambda *_: None)
    before = contents(Path(prepared.output))
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, rejects, "read_rejects", system(errno.EIO), range(10**9))
        with refused("slice 0 cannot be read .Input/output error"):
            job.make_slice(prepared.job, 0, codec, lambda *_: None)
    assert contents(Path(prepared.output)) == before


# Files that change, or go.


@pytest.fixture(params=["folder", "list", "tar"])
def given(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An input, and the file in it that is to change."""
    victim = sorted(source.iterdir())[4]
    if request.param == "folder":
        return source, victim
    if request.param == "list":
        (source / "list.txt").write_text("\n".join(path.name for path in sorted(source.iterdir())))
        return source / "list.txt", victim
    (tmp_path / "tars").mkdir()
    tar_of(source, tmp_path / "tars" / "b.tar")
    return tmp_path / "tars", tar_of(source, tmp_path / "tars" / "a.tar")


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 512)


def alter(path: Path) -> None:
    """Changes a byte, not the size."""
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    os.utime(path, ns=(10**18, 10**18))


@pytest.mark.parametrize("change", [grow, alter])
def test_a_file_that_changes_in_mid_run_is_refused_by_name(
    configure: Configure,
    planned: Any,
    given: tuple[Path, Path],
    codec: Any,
    refused: Refused,
    change: Callable[[Path], None],
) -> None:
    prepared = planned(configure(given[0], slice_size=12))
    change(given[1])
    with refused(f"^{given[1].name}: has changed since the input was listed .*now.*restore it, or choose"):
        for number in range(prepared.plan.slices):
            job.make_slice(prepared.job, number, codec, lambda *_: None)


@pytest.mark.parametrize("change", [grow, alter])
def test_a_file_that_changed_is_refused_by_name_on_resume(
    configure: Configure, run: Run, given: tuple[Path, Path], refused: Refused, change: Callable[[Path], None]
) -> None:
    run(configure(given[0]))
    change(given[1])
    with refused(f"{given[1].name} has changed since it was planned: .*now.* choose another output"):
        run(configure(given[0]))


def test_files_that_are_gone_or_new_are_named(
    configure: Configure, run: Run, source: Path, refused: Refused
) -> None:
    run(configure(source))
    victim, *others = sorted(source.iterdir())
    victim.rename(source / "zzz.jpg")
    with refused(
        rf"belongs to another run \({victim.name} is not there any more; zzz.jpg is new; input.sha256"
    ):
        run(configure(source))
    for number, path in enumerate(others[:5]):
        path.rename(source / f"zz-{number}.jpg")
    with refused("is not there any more; and 9 more files; input.sha256"):
        run(configure(source))


def test_a_file_that_vanishes_in_mid_run_is_no_reject(
    configure: Configure, planned: Any, given: tuple[Path, Path], codec: Any, refused: Refused
) -> None:
    prepared = planned(configure(given[0], slice_size=12))
    away = given[1].with_suffix(".away")
    given[1].rename(away)
    with refused("cannot be read .No such file or directory.; restore it, then run the same command again"):
        for number in range(prepared.plan.slices):
            job.make_slice(prepared.job, number, codec, lambda *_: None)
    assert not (Path(prepared.output) / "rejects").exists()
    away.rename(given[1])
    made = [
        job.make_slice(prepared.job, number, codec, lambda *_: None) for number in range(prepared.plan.slices)
    ]
    assert sum(each.images for each in made) in (11, 22)


def test_a_corpus_that_was_copied_is_the_same(
    configure: Configure,
    run: Run,
    given: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All times differ, no size does: it is said, and the run goes on to the same bytes."""
    root = given[0] if given[0].is_dir() else given[0].parent
    config = configure(given[0], output=str(tmp_path / "one"))
    run(config)
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, job, "finished_slice", KeyboardInterrupt, range(1, 2))
        with pytest.raises(KeyboardInterrupt):
            run(configure(given[0]))
    for path in root.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    run(configure(given[0], quiet=False))
    assert "every file of the input has another time, as a copy has; sizes alone" in capsys.readouterr().err
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_a_file_that_changed_on_a_store_is_refused_by_name(
    configure: Configure, run: Run, source: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    """A launcher has its time from the listing. Workers, which would have to ask for each, compare sizes."""
    store, resolve = fs.SubTreeFileSystem(str(source.parent), fs.LocalFileSystem()), locations.resolve
    monkeypatch.setattr(
        locations,
        "resolve",
        lambda path: (store, path[6:].rstrip("/")) if path.startswith("mem://") else resolve(path),
    )
    config = configure("mem://in")
    run(config)
    alter(sorted(source.iterdir())[4])
    with refused(rf"{sorted(source.iterdir())[4].name} has changed since it was planned: its time was"):
        run(config)


def test_a_single_container_is_never_taken_for_a_copy(
    configure: Configure, run: Run, source: Path, tmp_path: Path, refused: Refused
) -> None:
    archive = tar_of(source, tmp_path / "a.tar")
    run(configure(archive))
    alter(archive)
    with refused(r"a\.tar has changed since it was planned: its time was .*Z, now 2001-09-09T01:46:40"):
        run(configure(archive))


# Rejects of reading.


@pytest.fixture
def denied(source: Path) -> Callable[[], Any]:
    """A context in which two files cannot be opened, as without permission."""
    names = {path.name for path in sorted(source.iterdir())[5:7]}
    original = reading.open_file

    def opened(location: Any, file: str) -> Any:
        if file in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(location, file)

    def context() -> Any:
        patch = pytest.MonkeyPatch()
        patch.setattr(reading, "open_file", opened)
        return patch

    return context


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    shards = sorted((folder / "data").iterdir())
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}


def test_rejects_of_reading_are_tried_again(
    configure: Configure,
    run: Run,
    source: Path,
    tmp_path: Path,
    reference: dict[str, str],
    denied: Callable[[], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The set becomes what it would have been, and slices without such rejects are not touched."""
    output = tmp_path / "out"
    config = configure(source, slice_size=3, quiet=False)
    run(configure(source, slice_size=3, output=str(tmp_path / "good")))
    patch = denied()
    manifest = run(config)
    assert manifest["reject_reasons"] == {"read: PermissionError": 2, "decode: UnidentifiedImageError": 1}
    before, bytes_before = stamps(output), contents(output)
    assert run(config)["counts"]["rejects"] == 3
    assert "nothing to do" in capsys.readouterr().err
    assert (stamps(output), contents(output)) == (before, bytes_before)  # still denied: nothing is touched
    patch.undo()
    assert run(config)["counts"]["rejects"] == 1
    assert "images that could not be read now can, as in data/tokens-" in capsys.readouterr().err
    assert contents(output) == contents(tmp_path / "good")
    after = stamps(output)
    kept = {name for name in before if before[name] == after[name]}
    assert kept == {
        name for name in before if bytes_before[f"data/{name}"] == contents(output)[f"data/{name}"]
    }
    assert 2 <= len(kept) < 4
    run(config)
    assert stamps(output) == after


def test_rejects_of_an_interrupted_run_are_tried_again(
    configure: Configure,
    run: Run,
    source: Path,
    tmp_path: Path,
    reference: dict[str, str],
    denied: Callable[[], Any],
) -> None:
    patch = denied()
    run(configure(source))
    patch.undo()
    (tmp_path / "out" / "manifest.json").unlink()
    run(configure(source))
    assert contents(tmp_path / "out") == reference


@pytest.mark.parametrize(
    ("stage", "error", "data"), [("decode", "MemoryError", b"data"), ("read", "OSError", None)]
)
def test_what_an_older_release_took_for_a_reject_is_tried_again(
    configure: Configure,
    run: Run,
    source: Path,
    tmp_path: Path,
    reference: dict[str, str],
    stage: str,
    error: str,
    data: bytes | None,
) -> None:
    """Memory that had run out, and a disk that failed, were rejects once."""
    victims = {path.name for path in sorted(source.iterdir())[6:8]}

    def load(task: Any, entry: Entry, loader: Any) -> Any:
        if entry.key in victims:
            return rejects.reject_of_error(entry.key, stage, error, "no", data)
        return shard.load_item(task, entry, loader)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard, "_item", load)
        assert run(configure(source))["counts"]["rejects"] == 3
    run(configure(source))
    assert contents(tmp_path / "out") == reference


def test_final_rejects_of_reading_are_not_read_again(
    configure: Configure, run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "empty.jpg").write_bytes(b"")
    config = configure(source)
    assert run(config)["reject_reasons"]["read: EmptyFile"] == 1
    failing(monkeypatch, reading, "open_file", AssertionError, range(10**9))
    run(config)


# Launchers.


def leftover(folder: Path, name: str, age: float = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{name}.{'0' * 32}.tmp"
    path.write_bytes(b"half")
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return path


def test_leftovers_are_swept_from_finished_sets(
    configure: Configure, run: Run, source: Path, tmp_path: Path, reference: dict[str, str]
) -> None:
    run(configure(source))
    for below in ("", "data", "plan", "rejects", "images/deep/er"):
        leftover(tmp_path / "out" / below, "x.parquet")
    run(configure(source))
    assert contents(tmp_path / "out") == reference


@pytest.mark.parametrize("remote", ["a store", "no locks"])
def test_without_a_lock_only_old_leftovers_are_swept(
    configure: Configure,
    run: Run,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    remote: str,
) -> None:
    run(configure(source))
    young = leftover(tmp_path / "out" / "data", "young")
    old = leftover(tmp_path / "out" / "data", "old", age=100_000)
    if remote == "a store":
        store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
        resolve = filesystems.resolve

        def resolved(path: Any) -> Any:
            return (store, path[6:]) if str(path).startswith("mem://") else resolve(path)

        monkeypatch.setattr(filesystems, "resolve", resolved)
        monkeypatch.setattr(locations, "resolve", resolved)
        run(configure(source, output="mem://out"))
    else:
        monkeypatch.setattr("transforms.sharded.ownership._lock", lambda *_: None)
        run(configure(source))
    assert young.exists()
    assert not old.exists()


def launch_two(config: TokenizeConfig, refused: threading.Event | None = None) -> list[str]:
    """Has two threads run the same command at once; returns what each ends with, and tells of a refusal."""
    barrier = threading.Barrier(2)

    def launch(_: int) -> str:
        barrier.wait(60)
        try:
            tokenize_images.run_tokenize(config, [])
        except UserError as error:
            if refused is not None:
                refused.set()
            return str(error)
        return "done"

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(launch, range(2)))


@pytest.mark.parametrize("pair", range(20))
def test_twenty_pairs_of_launchers(
    configure: Configure,
    run: Run,
    source: Path,
    tmp_path: Path,
    reference: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    pair: int,
) -> None:
    """One does the work. The other is told who owns the output, or finds that nothing is left to do.

    In every other pair the owner works until the other one was told.
    """
    refused, work, output = threading.Event(), tokenize_images._run_pipeline, tmp_path / "out"
    if pair % 2:
        monkeypatch.setattr(tokenize_images, "_run_pipeline", lambda *job: [refused.wait(60), work(*job)][1])
    if pair % 3 == 0:
        leftover(output / "plan", "keys-00000.parquet")
    both = sorted(launch_two(configure(source), refused))
    told = f"{output}: another run owns this output ("  # a process, or one that has just started
    assert both[-1] == "done"
    assert both[0].startswith(told) or (both[0] == "done" and pair % 2 == 0)
    assert contents(output) == reference
    assert not [path for path in output.rglob(".*") if path.is_file()]


def test_two_launchers_on_a_store_harm_nobody(
    configure: Configure,
    run: Run,
    source: Path,
    tmp_path: Path,
    reference: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no lock: both do the work, and publish the same bytes."""
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    resolve = filesystems.resolve
    monkeypatch.setattr(
        filesystems,
        "resolve",
        lambda path: (store, path[6:]) if str(path).startswith("mem://") else resolve(path),
    )
    for pair in range(5):
        assert launch_two(configure(source, output=f"mem://pair-{pair}")) == ["done", "done"]
        assert contents(tmp_path / f"pair-{pair}") == reference
        assert not [path for path in (tmp_path / f"pair-{pair}").rglob(".*") if path.is_file()]

"""A local file system that fails on purpose at its n-th operation, and runs that have to bear with it."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pyarrow import fs

from vqgan import faults, filesystems
from vqgan.errors import UserError

KILLS = Counter[str]()
"""How many processes the running test has ended with SIGKILL, or has seen ended so, by what they were."""

KILL = "kill"
EIO = "EIO"
FULL = "ENOSPC once"
FULL_FOR_EVER = "ENOSPC for ever"
INTERRUPT = "Ctrl-C"
KINDS = (KILL, EIO, FULL, FULL_FOR_EVER, INTERRUPT)
PASSING = ("throughput", "finished", "versions")
"""Parts of a manifest that say when and how fast it was made."""


class KilledError(BaseException):
    """The process is gone: nothing that would run after this may have an effect."""


_ERRORS: dict[str, Callable[[], BaseException]] = {
    KILL: KilledError,
    EIO: lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    FULL: lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    FULL_FOR_EVER: lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    INTERRUPT: KeyboardInterrupt,
}


class Fault(NamedTuple):
    """What fails, once or, with some kinds, from then on.

    Attributes:
      kind: one of :data:`KINDS`.
      step: number of the operation, from 0.
      writes: one in so many writes is counted as an operation; of a Parquet file there are many.
    """

    kind: str
    step: int
    writes: int = 1


class FaultyFileSystem(fs.LocalFileSystem):
    """Fails at one operation: open, write, close, fsync, move, create_dir or delete.

    A killed one is dead from then on, to readers as well. What fails while it writes has written half of its
    bytes. A killed move may have been done or not; any other that fails was not done.

    Attributes:
      struck: the name of the operation that failed, or None.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        super().__init__()
        self.struck: str | None = None
        self._fault = fault
        self._steps = self._writes = 0
        self._lock = threading.Lock()  # decode writes from several threads

    @property
    def is_dead(self) -> bool:
        """Whether a killed process would not be here any more."""
        return self.struck is not None and self._fault is not None and self._fault.kind == KILL

    def step(self, name: str) -> None:
        """Counts an operation, and fails where it is this one's turn."""
        if self._fault is None:
            return
        kind = self._fault.kind
        again = kind == KILL or (kind == FULL_FOR_EVER and name not in ("delete", "move"))
        with self._lock:
            if not (self.struck and again) and not self._is_due(name, self._fault):
                return
            self.struck = self.struck or name
        raise _ERRORS[kind]()

    def _is_due(self, name: str, fault: Fault) -> bool:
        if name == "write":
            self._writes += 1
            if self._writes % fault.writes:
                return False
        self._steps += 1
        return self._steps == fault.step + 1

    def open_output_stream(self, path: Any, **options: Any) -> "FaultyStream":
        self.step("open")
        return FaultyStream(self, super().open_output_stream(path, **options))

    def move(self, source: Any, target: Any) -> None:
        self.step("move")
        super().move(source, target)
        if self._fault is not None and self._fault.kind == KILL:
            self.step("move")

    def create_dir(self, path: Any, *, recursive: bool = True) -> None:
        self.step("create_dir")
        super().create_dir(path, recursive=recursive)

    def delete_file(self, path: Any) -> None:
        self.step("delete")
        super().delete_file(path)

    def get_file_info(self, paths_or_selector: Any) -> Any:
        self._live()
        return super().get_file_info(paths_or_selector)

    def open_input_file(self, path: Any) -> Any:
        self._live()
        return super().open_input_file(path)

    def open_input_stream(self, path: Any, **options: Any) -> Any:
        self._live()
        return super().open_input_stream(path, **options)

    def _live(self) -> None:
        if self.is_dead:
            raise KilledError


class LateFileSystem(fs.LocalFileSystem):
    """Shows a file that was renamed into place only when it was looked for so many times in vain."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks
        self._hidden: dict[str, int] = {}
        self._lock = threading.Lock()

    def move(self, source: Any, target: Any) -> None:
        super().move(source, target)
        with self._lock:
            self._hidden[_text(target)] = self._looks

    def get_file_info(self, paths_or_selector: Any) -> Any:
        found = super().get_file_info(paths_or_selector)
        if isinstance(paths_or_selector, fs.FileSelector):
            return [info for info in found if not self._is_hidden(info.path)]
        if not isinstance(found, list):
            return self._shown(found)
        return [self._shown(info) for info in found]

    def open_input_file(self, path: Any) -> Any:
        self._check(path)
        return super().open_input_file(path)

    def open_input_stream(self, path: Any, **options: Any) -> Any:
        self._check(path)
        return super().open_input_stream(path, **options)

    def _shown(self, info: fs.FileInfo) -> fs.FileInfo:
        return fs.FileInfo(info.path, fs.FileType.NotFound) if self._is_hidden(info.path) else info

    def _check(self, path: Any) -> None:
        if self._is_hidden(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _text(path))

    def _is_hidden(self, path: Any) -> bool:
        with self._lock:
            left = self._hidden.get(_text(path), 0)
            self._hidden[_text(path)] = left - 1
        return left > 0


def _text(path: Any) -> str:
    return path.decode(errors="surrogateescape") if isinstance(path, bytes) else str(path)


class FaultyStream:
    """A stream into such a file system."""

    closed = False

    def __init__(self, disk: FaultyFileSystem, stream: Any) -> None:
        self._disk, self._stream = disk, stream

    def write(self, data: Any) -> int:
        data, was_dead = bytes(data), self._disk.is_dead
        try:
            self._disk.step("write")
        except BaseException:
            if not was_dead:
                self._stream.write(data[: len(data) // 2])
                self._stream.flush()
            raise
        self._stream.write(data)
        return len(data)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._stream.close()
        self._disk.step("close")

    def __enter__(self) -> "FaultyStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def put_in_place(disk: FaultyFileSystem) -> Iterator[FaultyFileSystem]:
    """Leads all of the product's paths to ``disk``, and its calls of ``os.fsync``, while the block lasts."""
    with leading_to(disk), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: disk.step("fsync"))
        patch.setattr(faults, "PAUSES", (0.0,) * len(faults.PAUSES))
        yield disk


@contextlib.contextmanager
def leading_to(disk: fs.FileSystem) -> Iterator[None]:
    """Leads all of the product's paths to ``disk`` while the block lasts."""
    resolve = filesystems.resolve
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystems, "resolve", lambda path: (disk, resolve(path)[1]))
        yield


MORTAL_PROGRAM = """
import os, signal, sys, threading
from pipelines import cli
from vqgan import filesystems, publishing

left, delay, sync = int(sys.argv[1]), float(sys.argv[2]), publishing._sync

def dying(filesystem, path):
    global left
    sync(filesystem, path)
    if os.path.isdir(path):  # whose names are synced: no file
        return
    left -= 1
    if left == 0 and delay:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

publishing._sync = dying
sys.exit(cli.main(sys.argv[3:]))
"""
"""The product in a process that kills itself when its n-th file was written, but not yet renamed, or some
seconds later; both numbers come before the command."""


# Runs.


class Injected(NamedTuple):
    """Faults that a sweep has injected.

    Attributes:
      counts: by kind and operation, such as ``("EIO", "write")``.
      borne: how many the run went on after, without the command being given once more.
      kept: shards that were finished before a fault, and that no later life made again.
      littered: kills that left files behind, which the next life removed.
    """

    counts: Counter[tuple[str, str]]
    borne: int
    kept: int
    littered: int

    def __str__(self) -> str:
        kinds, operations = Counter[str](), Counter[str]()
        for (kind, name), number in self.counts.items():
            kinds[kind] += number
            operations[name] += number
        shown = "; ".join(
            ", ".join(f"{name} {n}" for name, n in each.items()) for each in (kinds, operations)
        )
        return f"{self.counts.total()} faults ({shown}), {self.borne} borne without a new start"


Command = Callable[[], Any]


def sweep(run: Command, output: Path, writes: Mapping[str, int]) -> Injected:
    """Fails a run at each operation in turn; after each fault the same command must end with the same bytes.

    How many operations there are may differ from life to life, as threads do: a sweep ends with the first
    life in which nothing fails.

    Args:
      run: the command, which writes to ``output``.
      output: folder; it is removed after each life.
      writes: kinds of faults, and of each how many writes lie between two that fail.
    """
    reference = healthy(run, output)
    shutil.rmtree(output)
    injected = Injected(Counter(), 0, 0, 0)
    for kind, distance in writes.items():
        for step in itertools.count():
            with put_in_place(FaultyFileSystem(Fault(kind, step, distance))) as disk:
                stopped = is_stopped(run, kind)
            if disk.struck is not None:
                where = f"{kind} at operation {step}, {disk.struck}"
                left, finished = leftovers(output), shards(output)
                assert stopped or kind not in (KILL, INTERRUPT), where
                assert not left or kind == KILL or disk.struck == "delete", where
                assert healthy(run, output) == reference, where
                assert finished.items() <= shards(output).items(), f"{where}: a finished shard was made again"
                injected.counts[kind, disk.struck] += 1
                injected = injected._replace(
                    borne=injected.borne + (not stopped),
                    kept=injected.kept + len(finished),
                    littered=injected.littered + bool(left),
                )
            assert contents(output) == reference
            assert leftovers(output) == []
            shutil.rmtree(output)
            if disk.struck is None:
                break
    return injected


def healthy(run: Command, output: Path) -> dict[str, str]:
    """Runs a command to its end, and returns the contents of its output."""
    with put_in_place(FaultyFileSystem()):
        run()
    return contents(output)


def is_stopped(run: Command, kind: str) -> bool:
    """Runs a life; it ends well, or by what its kind of fault may end it with, and that is a line of ours."""
    try:
        run()
    except KilledError:
        return True
    except KeyboardInterrupt:
        return True
    except UserError as error:
        message = str(error)
    else:
        return False
    assert kind in (EIO, FULL, FULL_FOR_EVER)
    assert "\n" not in message
    assert kind == EIO or "no space left to write it; free some and run the same command" in message
    return True


def shards(folder: Path) -> dict[str, int]:
    """When each file was written that says that a slice is finished: by indices, where there are some."""
    indexed = (folder / "index").is_dir()
    found = folder.glob("index/[!.]*.parquet" if indexed else "data/[!.]*.parquet")
    return {path.name: path.stat().st_mtime_ns for path in found}


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file; of the manifest, without what a clock has to do with; no ``report.html``."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "report.html":  # shows the time, too
            data = path.read_bytes()
            if path.name == "manifest.json":
                manifest = {name: value for name, value in json.loads(data).items() if name not in PASSING}
                data = json.dumps(manifest).encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def leftovers(folder: Path) -> list[str]:
    """Hidden files below a folder, such as temporaries of writers that were killed."""
    return sorted(path.name for path in folder.rglob(".*") if path.is_file())

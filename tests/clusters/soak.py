"""A long run that is killed all the while: broken images, a failing disk, dead workers and launchers.

    python -m tests.clusters.soak --images 200000    # make soak; prints what it has found as JSON

Two Dask workers are at work. Each time that a share of the shards is there, one of them or the launcher
gets a SIGKILL and is started again; one shard in twenty fails with EIO when it was written. Every tar of the
input holds the same thousand images under names of its own, so that their tokens have to be the same, too.
Linux only, as memory is read from ``/proc``.
"""

import argparse
import dataclasses
import io
import json
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
from PIL import Image
from pyarrow import dataset

from tests.clusters.conftest import (
    PATIENCE,
    Processes,
    Source,
    start_dask_scheduler,
    start_dask_worker,
    tokenize_command,
)
from tests.toy_codec import TOY, toy_weights
from vqgan.codec_checkpoint import save_codec

BROKEN_EVERY = 50
"""Of so many images one is broken: 2 %."""
BROKEN_AT = 7
A_TAR = 1000
"""Images in each container, and different ones in all."""
LAUNCHER_EVERY = 3
"""Of so many kills one is the launcher's."""


@dataclasses.dataclass(frozen=True)
class SoakReport:
    """What a soak has found.

    Attributes:
      images: of the input.
      broken: of those, that are no images.
      rows, rejects: in the manifest.
      different: rows whose tokens are not those of the same image elsewhere.
      worker_kills, launcher_kills: how often one was killed at work.
      failed_writes: shards that failed with EIO when they were written.
      early_bytes, late_bytes: most memory of a worker in the first and the second half of the run.
      left: files that a finished data set does not have, below the output.
      seconds: that it took.
    """

    images: int
    broken: int
    rows: int
    rejects: int
    different: int
    worker_kills: int
    launcher_kills: int
    failed_writes: int
    early_bytes: int
    late_bytes: int
    left: tuple[str, ...]
    seconds: float

    @property
    def growth(self) -> float:
        """Memory of workers, late to early."""
        return self.late_bytes / self.early_bytes


def write_corpus(folder: Path, images: int) -> int:
    """Writes tars of a thousand small images; returns how many of all are broken."""
    folder.mkdir(parents=True)
    pictures = _pictures()
    for first in range(0, images, A_TAR):
        with tarfile.open(folder / f"{first // A_TAR:04d}.tar", "w") as tar:
            for number in range(first, min(images, first + A_TAR)):
                member = tarfile.TarInfo(f"{number:07d}.png")
                data = pictures[number % A_TAR]
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return sum(number % BROKEN_EVERY == BROKEN_AT for number in range(images))


def _pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(A_TAR):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(stream, "PNG")
        whole = stream.getvalue()
        broken = (b"", b"no image", whole[: len(whole) // 2])[number // BROKEN_EVERY % 3]
        made.append(broken if number % BROKEN_EVERY == BROKEN_AT else whole)
    return made


def count_different(tokens: Path) -> int:
    """Returns how many images have other tokens than the same image has elsewhere in the data set."""
    table = dataset.dataset(tokens / "data").to_table(["key", "tokens"])
    pictures = [int(PurePath(key).stem) % A_TAR for key in table.column("key").to_pylist()]
    rows = table.column("tokens").combine_chunks().values.to_numpy().reshape(len(pictures), -1)
    of_each = np.empty((A_TAR, rows.shape[1]), rows.dtype)
    of_each[pictures] = rows
    return int((of_each[pictures] != rows).any(axis=1).sum())


class Soak:
    """One run, its processes, and what becomes of them.

    Args:
      folder: everything goes below it.
      images: to tokenize.
      slice_size: images per shard.
      kills: of workers and launchers, spread over the run.
    """

    def __init__(self, folder: Path, images: int, slice_size: int, kills: int) -> None:
        self.output = folder / "out"
        self._images, self._slices = images, -(-images // slice_size)
        self._source = Source(folder / "in", folder / "codec")
        self._faults = folder / "faults"
        self._processes = Processes(folder)
        self._thresholds = [self._slices * (kill + 1) // (kills + 1) for kill in range(kills)]
        self._kills = {"worker": 0, "launcher": 0}
        self._peaks = [0, 0]
        flags = ("--slice-size", str(slice_size), "--batch-size", "16", "--image-size", "16", "--quiet")
        self._flags = flags

    def run(self) -> SoakReport:
        """Writes the corpus, runs and kills until the data set is finished, and looks at what is there."""
        broken = write_corpus(self._source.images, self._images)
        save_codec(self._source.codec, TOY, toy_weights(0))
        began = time.monotonic()
        try:
            self._tokenize()
            verified = self._processes.start("-m", "pipelines.cli", "verify", self.output)
            self._processes.finish(verified)
        finally:
            self._processes.end()
        counts = json.loads((self.output / "manifest.json").read_text())["counts"]
        different = count_different(self.output)
        failed = self._faults.stat().st_size if self._faults.exists() else 0
        made = (counts["rows"], counts["rejects"], different, *self._kills.values(), failed, *self._peaks)
        return SoakReport(self._images, broken, *made, self._left(), round(time.monotonic() - began, 1))

    def _tokenize(self) -> None:
        address = start_dask_scheduler(self._processes)
        self._command = tokenize_command(
            self._source,
            self.output,
            (*self._flags, "--runner=DaskRunner", f"--dask_client_address={address}"),
        )
        self._start_worker: Callable[[], subprocess.Popen[bytes]] = lambda: start_dask_worker(
            self._processes, address, VQGAN_TEST_FAULTS=str(self._faults)
        )
        self._workers = [self._start_worker(), self._start_worker()]
        self._launcher = self._processes.start(*self._command)
        progress, shards = time.monotonic(), 0
        while self._launcher.poll() is None:
            time.sleep(0.1)
            if (now := self._shards()) > shards:
                progress, shards = time.monotonic(), now
            assert time.monotonic() - progress < PATIENCE, "".join(map(self._processes.log, self._all()))
            self._measure(shards)
            if self._thresholds and shards >= self._thresholds[0]:
                self._thresholds.pop(0)
                self._kill()
        self._processes.finish(self._launcher)

    def _all(self) -> list[subprocess.Popen[bytes]]:
        return [self._launcher, *self._workers]

    def _shards(self) -> int:
        return sum(1 for _ in self.output.glob("data/tokens-*"))

    def _kill(self) -> None:
        done = sum(self._kills.values())
        if done % LAUNCHER_EVERY == LAUNCHER_EVERY - 1:
            self._processes.kill(self._launcher)
            self._launcher = self._processes.start(*self._command)
            self._kills["launcher"] += 1
        else:
            self._processes.kill(self._workers.pop(0), "workers")
            self._workers.append(self._start_worker())
            self._kills["worker"] += 1

    def _measure(self, shards: int) -> None:
        half = int(2 * shards > self._slices)
        for worker in self._workers:
            pages = Path(f"/proc/{worker.pid}/statm").read_text().split()[1]
            self._peaks[half] = max(self._peaks[half], int(pages) * 4096)

    def _left(self) -> tuple[str, ...]:
        found = [path.relative_to(self.output) for path in self.output.rglob("*") if path.is_file()]
        strange = (
            path for path in found if path.name.startswith(".") or path.parts[0].startswith("progress")
        )
        return tuple(sorted(map(str, strange)))


def main() -> None:
    """Runs a soak, prints what it has found, and fails where something is lost, left or growing."""
    parser = argparse.ArgumentParser(description="Tokenizes small images while workers and launchers die.")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--slice-size", type=int, default=500)
    parser.add_argument("--kills", type=int, default=45)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Soak(Path(folder), args.images, args.slice_size, args.kills).run()
    print(json.dumps(dataclasses.asdict(report) | {"growth": round(report.growth, 3)}, indent=1))
    assert report.rows + report.rejects == report.images
    assert report.rejects == report.broken
    assert not report.different
    assert not report.left
    assert report.growth < 1.2


if __name__ == "__main__":
    main()

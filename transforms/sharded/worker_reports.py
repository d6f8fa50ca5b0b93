"""What workers say of themselves, wherever they run: small files in the output that a launcher reads.

Counters of runners do not serve for this: some give them at a job's end only, some not at all, and none
knows which attempt or host they are of. A process rewrites its report when a slice begins or ends and, while
it works, now and then. Reports outlive the attempt, so that the manifest counts the work of all of them;
the launcher removes them, and the :data:`PROGRESS_FILE` that it makes of them, once the manifest is there.

That a report cannot be written stops nobody.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid

from transforms.sharded.summary import FinishedSlice, SliceTotals
from vqgan import filesystems, publishing
from vqgan.documents import parse_document
from vqgan.errors import UserError

REPORTS_FOLDER = "progress"
PROGRESS_FILE = "progress.json"
REPORT_SECONDS = 10.0
"""Between two reports of one process in the midst of a slice."""
STALLED_SECONDS = 60.0
"""Without a sign of life a worker is taken for dead, and a run in which none has any for stalled."""


@dataclasses.dataclass(frozen=True)
class WorkerReport:
    """What one process has done in one attempt.

    Attributes:
      attempt: of the launcher.
      host, process: where it runs.
      slices: finished by it; those that it found finished are among them.
      images, rejects: of those slices.
      current_images, current_rejects: of the slice that it works on.
      made: images and rejects of slices that it has made itself.
      seconds: that those took.
      seen: when it was written, in seconds since 1970.
    """

    attempt: str
    host: str
    process: int
    slices: int = 0
    images: int = 0
    rejects: int = 0
    current_images: int = 0
    current_rejects: int = 0
    made: int = 0
    seconds: float = 0.0
    seen: float = 0.0


class Reporter:
    """Counts for one process, and writes its report. Safe from many threads.

    Args:
      output: folder of the data set.
      attempt: of the launcher.
    """

    def __init__(self, output: str, attempt: str) -> None:
        self._report = WorkerReport(attempt, socket.gethostname(), os.getpid())
        self._folder = filesystems.join(output, REPORTS_FOLDER)
        self._path = filesystems.join(
            self._folder, f"{self._report.host}-{self._report.process}-{uuid.uuid4().hex[:8]}.json"
        )
        self._lock = threading.Lock()
        self._written = 0.0

    def __call__(self, images: int, rejects: int) -> None:
        """Counts what is done of slices under way; the report is written now and then."""
        with self._lock:
            self._add(current_images=images, current_rejects=rejects)
            if time.monotonic() - self._written >= REPORT_SECONDS:
                self._write()

    def begun(self) -> None:
        """Reports that a slice has begun."""
        with self._lock:
            self._write()

    def finished(self, done: FinishedSlice, images: int, rejects: int) -> None:
        """Counts and reports a slice that is finished, of which so much was counted under way."""
        made = done.seconds is not None
        with self._lock:
            self._add(
                slices=1,
                images=done.images,
                rejects=done.rejects,
                current_images=-images,
                current_rejects=-rejects,
                made=done.images * made,
                seconds=done.seconds or 0.0,
            )
            self._write()

    def _add(self, **changes: float) -> None:
        new = {name: getattr(self._report, name) + change for name, change in changes.items()}
        self._report = dataclasses.replace(self._report, **new)

    def _write(self) -> None:
        self._written = time.monotonic()
        self._report = dataclasses.replace(self._report, seen=time.time())
        with contextlib.suppress(UserError, OSError):  # such as: the run is over, and its folder gone
            data = json.dumps(dataclasses.asdict(self._report)).encode()
            publishing.write_bytes(self._path, data, one_of_many=True)


_reporters: dict[tuple[str, str], Reporter] = {}
_lock = threading.Lock()


def reporter_of(output: str, attempt: str) -> Reporter:
    """Returns this process's reporter for an attempt; many calls give the same one."""
    with _lock:
        key = (output, attempt)
        if key not in _reporters:
            _reporters[key] = Reporter(output, attempt)
        return _reporters[key]


def read_reports(output: str) -> list[WorkerReport]:
    """Returns the reports in an output, but for those that cannot be read."""
    reports = []
    folder = filesystems.join(output, REPORTS_FOLDER)
    with contextlib.suppress(UserError, OSError):
        for name in filesystems.list_names(folder):
            if name.endswith(".json") and not name.startswith("."):
                with contextlib.suppress(UserError, OSError, TypeError):
                    data = filesystems.read_bytes(filesystems.join(folder, name))
                    reports.append(WorkerReport(**parse_document(data, UserError).data))
    return reports


def count_all_attempts(totals: SliceTotals, output: str) -> None:
    """Has totals say what the slices took that former attempts have made, as far as it was reported."""
    reports = read_reports(output)
    made, seconds = sum(each.made for each in reports), sum(each.seconds for each in reports)
    if totals.new_images < made <= totals.images:
        totals.new_images, totals.seconds = made, seconds


def open_reports(output: str) -> None:
    """Makes the folder of reports, without which no worker reports.

    Raises:
      UserError: it cannot be made.
    """
    publishing.make_folder(filesystems.join(output, REPORTS_FOLDER))


def remove_reports(output: str) -> None:
    """Removes what was said of the progress of a run, once it is finished."""
    with contextlib.suppress(UserError, OSError):
        folder = filesystems.join(output, REPORTS_FOLDER)
        for name in filesystems.list_names(folder):
            publishing.delete(filesystems.join(folder, name))
        filesystem, inner = filesystems.resolve(folder)
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(inner)
        publishing.delete(filesystems.join(output, PROGRESS_FILE))

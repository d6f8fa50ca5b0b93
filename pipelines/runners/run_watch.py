"""Watching a run whose workers may be anywhere: progress for people and, as a file, for other tools.

All that is known comes from the reports that workers leave in the output
(:mod:`transforms.sharded.worker_reports`), so it is the same for every runner.
"""

import contextlib
import dataclasses
import datetime
import json
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from transforms.sharded import progress
from transforms.sharded.plan import Plan
from transforms.sharded.progress import Progress
from transforms.sharded.worker_reports import (
    PROGRESS_FILE,
    REPORT_SECONDS,
    STALLED_SECONDS,
    WorkerReport,
    open_reports,
    read_reports,
)
from vqgan import filesystems, publishing
from vqgan.errors import UserError

FIRST_SIGN_SECONDS = 30.0
"""After which it is said that no worker has begun."""
SHARE_OF_TIME = 0.05
"""Of the launcher's time that reading reports may take, where there are thousands."""


class RunWatch:
    """Reads the workers' reports now and then, in a thread, and tells what they say.

    Args:
      output: folder of the data set.
      plan: that is carried out.
      shown: what people look at.
      quiet: say nothing of stalls; the file does.

    Attributes:
      attempt: id that this launcher's workers report under.
    """

    def __init__(self, output: str, plan: Plan, shown: Progress, quiet: bool) -> None:
        self.attempt = uuid.uuid4().hex[:12]
        self._output, self._plan, self._shown, self._quiet = output, plan, shown, quiet
        self._started, self._began = time.time(), time.monotonic()
        self._changed: dict[tuple[str, int], tuple[WorkerReport, float]] = {}
        self._ended = threading.Event()
        self._silence_told = 0.0
        self._thread = threading.Thread(target=self._watch, name="run-watch", daemon=True)

    def start(self) -> None:
        """Begins to watch.

        Raises:
          UserError: the output cannot be written.
        """
        open_reports(self._output)
        self._thread.start()

    def stop(self, error: BaseException | None) -> None:
        """Ends watching, and leaves in the file how the run ended, unless it ended well."""
        self._ended.set()
        self._thread.join()
        if error is not None:
            self._look("stopped", str(error) or type(error).__name__)

    def _watch(self) -> None:
        pause = REPORT_SECONDS
        while not self._ended.wait(pause):
            began = time.monotonic()
            self._look("running")
            pause = max(REPORT_SECONDS, (time.monotonic() - began) / SHARE_OF_TIME)

    def _look(self, state: str, error: str | None = None) -> None:
        now = self._started + time.monotonic() - self._began
        own = [each for each in read_reports(self._output) if each.attempt == self.attempt]
        reports = [self._seen_here(each, now) for each in own]
        document = describe_progress(self._plan, reports, self._started, now)
        document |= {"state": state, "error": error}
        with contextlib.suppress(UserError, OSError):
            data = json.dumps(document, indent=2) + "\n"
            publishing.write_bytes(filesystems.join(self._output, PROGRESS_FILE), data.encode())
        self._show(document)
        if state == "running":
            seen = max((each.seen for each in reports), default=self._started)
            self._tell_silence(document, now - seen)

    def _seen_here(self, report: WorkerReport, now: float) -> WorkerReport:
        """Returns a report with the time by this clock at which it was first there; theirs may be wrong."""
        key = (report.host, report.process)
        known, seen = self._changed.get(key, (None, now))
        self._changed[key] = (report, seen if report == known else now)
        return dataclasses.replace(report, seen=self._changed[key][1])

    def _show(self, document: dict[str, Any]) -> None:
        """Shows what is done in other processes; those in this one have shown theirs themselves."""
        images = document["images"]["done"] - self._shown.images
        rejects = document["rejects"] - self._shown.rejects
        if images + rejects > 0:
            self._shown(images, rejects)

    def _tell_silence(self, document: dict[str, Any], silence: float) -> None:
        """Says that workers are silent: after a while, and again after twice as long."""
        if silence < FIRST_SIGN_SECONDS:
            self._silence_told = 0.0
        elif silence >= max(2 * self._silence_told, self._patience(document)) and not self._quiet:
            self._silence_told = silence
            print(f"{self._output}: {silence_line(document, silence)}", file=sys.stderr, flush=True)

    def _patience(self, document: dict[str, Any]) -> float:
        return STALLED_SECONDS if document["hosts"] else FIRST_SIGN_SECONDS


def silence_line(document: dict[str, Any], silence: float) -> str:
    """Returns what to say of workers that are silent.

    Args:
      document: as :func:`describe_progress` gives it.
      silence: in seconds.
    """
    if not document["hosts"]:
        return (
            f"no worker has begun for {silence:.0f} s; are there workers, with vqgan-pipelines installed, "
            "that see this output? Ctrl-C ends the run, and the same command continues it"
        )
    hosts = ", ".join(host["host"] for host in document["hosts"])
    return (
        f"no sign of life from {hosts} for {silence:.0f} s: a worker was lost, or the input is very slow; "
        "Ctrl-C ends the run, and the same command continues it"
    )


def describe_progress(
    plan: Plan, reports: Sequence[WorkerReport], started: float, now: float
) -> dict[str, Any]:
    """Returns what reports say of a run, as the JSON data of :data:`PROGRESS_FILE`.

    Args:
      plan: that is carried out.
      reports: of this attempt.
      started: when it began, in seconds since 1970.
      now: the time.
    """
    alive = [each for each in reports if now - each.seen < STALLED_SECONDS]
    images = sum(each.images for each in reports) + sum(each.current_images for each in alive)
    rejects = sum(each.rejects for each in reports) + sum(each.current_rejects for each in alive)
    seen = max((each.seen for each in reports), default=None)
    made = sum(each.made for each in reports) + sum(each.current_images for each in alive)
    rate = made / max(now - started, 1e-9)
    left = max(plan.entries - images - rejects, 0)
    return {
        "slices": {"done": min(sum(each.slices for each in reports), plan.slices), "planned": plan.slices},
        "images": {"done": min(images, plan.entries), "planned": plan.entries},
        "rejects": rejects,
        "images_per_second": round(rate, 3),
        "seconds_left": round(left / rate) if rate else None,
        "started": _moment(started),
        "updated": _moment(now),
        "last_sign_of_life": None if seen is None else _moment(seen),
        "stalled": now - (seen or started) >= STALLED_SECONDS,
        "hosts": _by_host(reports, now),
    }


def _by_host(reports: Sequence[WorkerReport], now: float) -> list[dict[str, Any]]:
    hosts: dict[str, list[WorkerReport]] = defaultdict(list)
    for report in reports:
        hosts[report.host].append(report)
    return [
        {
            "host": host,
            "processes": len(those),
            "slices": sum(each.slices for each in those),
            "images": sum(each.images + each.current_images for each in those),
            "last_sign_of_life": _moment(max(each.seen for each in those)),
            "stalled": all(now - each.seen >= STALLED_SECONDS for each in those),
        }
        for host, those in sorted(hosts.items())
    ]


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def watching(output: str, plan: Plan, quiet: bool) -> Iterator[RunWatch]:
    """Watches a run while the block lasts; workers in this process report to what is shown, too.

    Raises:
      UserError: the output cannot be written.
    """
    shown = Progress(plan.entries, quiet=quiet)
    watch = RunWatch(output, plan, shown, quiet)
    progress.show(shown)
    try:
        watch.start()
        try:
            yield watch
        except BaseException as error:
            watch.stop(error)
            raise
        watch.stop(None)
    finally:
        progress.show(None)
        shown.close()

"""progress.json, and what is said of workers that are silent."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.runners import run_watch
from pipelines.runners.run_watch import RunWatch, describe_progress, silence_line, watching
from transforms.sharded import worker_reports
from transforms.sharded.plan import Plan
from transforms.sharded.progress import Progress
from transforms.sharded.summary import FileSummary, FinishedSlice, SliceTotals
from transforms.sharded.worker_reports import (
    Reporter,
    WorkerReport,
    count_all_attempts,
    open_reports,
    read_reports,
    remove_reports,
)

PLAN = Plan({}, slices=10, entries=100)


def finished(images: int, seconds: float | None) -> FinishedSlice:
    shard = FileSummary("data/x", images, 1, "")
    return FinishedSlice(0, images, images, shard, None, {}, seconds)  # type: ignore[arg-type]


def report(**fields: Any) -> WorkerReport:
    return WorkerReport(**{"attempt": "a", "host": "h", "process": 1, "seen": 1000.0, **fields})


def test_document() -> None:
    reports = [
        report(slices=2, images=18, rejects=2, current_images=5, made=18, seconds=4.0, seen=1090.0),
        report(process=2, slices=1, images=10, made=10, seen=1095.0),
        report(host="lost", slices=1, images=10, current_images=7, made=0, seen=1000.0),
    ]
    found = describe_progress(PLAN, reports, started=1000.0, now=1100.0)
    assert found["slices"] == {"done": 4, "planned": 10}
    assert found["images"] == {"done": 43, "planned": 100}  # but for what a lost worker had begun
    assert found["rejects"] == 2
    assert found["images_per_second"] == 0.33  # kept slices of a former attempt are not of this rate
    assert found["seconds_left"] == round(55 / 0.33)
    assert found["last_sign_of_life"] == "1970-01-01T00:18:15+00:00"
    assert not found["stalled"]
    assert [(host["host"], host["processes"], host["stalled"]) for host in found["hosts"]] == [
        ("h", 2, False),
        ("lost", 1, True),
    ]
    json.dumps(found)


def test_stalls() -> None:
    nobody = describe_progress(PLAN, [], started=0.0, now=61.0)
    assert nobody["stalled"]
    assert nobody["seconds_left"] is None
    assert "no worker has begun for 61 s" in silence_line(nobody, 61.0)
    silent = describe_progress(PLAN, [report(seen=0.0)], started=0.0, now=61.0)
    assert silent["stalled"]
    assert "no sign of life from h for 61 s" in silence_line(silent, 61.0)


def test_reports_are_written_and_summed(tmp_path: Path) -> None:
    output = str(tmp_path)
    Reporter(output, "a").begun()  # without the folder nobody reports
    assert os.listdir(tmp_path) == []
    open_reports(output)
    one, two = Reporter(output, "a"), Reporter(output, "b")
    one.begun()
    one(3, 1)
    one.finished(finished(3, 2.0), 3, 1)
    two(4, 0)
    two.finished(finished(4, None), 4, 0)
    two.finished(finished(5, 1.0), 0, 0)
    (tmp_path / "progress" / "torn.json").write_text("{")
    by_attempt = {each.attempt: each for each in read_reports(output)}
    assert (by_attempt["a"].images, by_attempt["a"].current_images, by_attempt["a"].made) == (3, 0, 3)
    assert (by_attempt["b"].slices, by_attempt["b"].images, by_attempt["b"].made) == (2, 9, 5)
    totals = SliceTotals(images=12, new_images=5, seconds=1.0)
    count_all_attempts(totals, output)
    assert (totals.new_images, totals.seconds) == (8, 3.0)
    remove_reports(output)
    assert os.listdir(tmp_path) == []


def test_a_report_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "progress").write_text("a file in the way")
    Reporter(str(tmp_path), "a").begun()


def test_watching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_watch, "REPORT_SECONDS", 0.01)
    monkeypatch.setattr(run_watch, "FIRST_SIGN_SECONDS", 0.0)
    monkeypatch.setattr(worker_reports, "REPORT_SECONDS", 0.0)
    path = tmp_path / "progress.json"
    with pytest.raises(ZeroDivisionError):  # noqa: PT012, SIM117 - a run that fails
        with watching(str(tmp_path), PLAN, quiet=False) as watch:
            for _ in until(lambda: path.exists() and "no worker has begun" in capsys.readouterr().err):
                pass
            Reporter(str(tmp_path), "former")(50, 0)
            Reporter(str(tmp_path), watch.attempt)(7, 2)
            for _ in until(lambda: json.loads(path.read_text())["images"]["done"] == 7):
                pass
            assert json.loads(path.read_text())["state"] == "running"
            raise ZeroDivisionError("x")
    last = json.loads(path.read_text())
    assert (last["state"], last["error"], last["rejects"]) == ("stopped", "x", 2)


@pytest.mark.parametrize("hours", [-5, 0, 5])
def test_clocks_of_workers_may_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """A worker lives as long as its report changes, whatever time stands in it."""
    now = [1000.0]
    monkeypatch.setattr(run_watch.time, "monotonic", lambda: now[0])
    open_reports(str(tmp_path))
    watch = RunWatch(str(tmp_path), PLAN, Progress(PLAN.entries, quiet=True), quiet=True)
    path = tmp_path / "progress" / "h-1-0.json"

    def look(images: int, clock: float) -> dict[str, Any]:
        fields = report(attempt=watch.attempt, current_images=images, seen=clock + 3600 * hours)
        path.write_text(json.dumps(dataclasses.asdict(fields)))
        watch._look("running")
        found: dict[str, Any] = json.loads((tmp_path / "progress.json").read_text())
        return found

    assert not look(3, 1.0)["hosts"][0]["stalled"]
    now[0] += 50
    assert look(4, 2.0)["images"]["done"] == 4
    now[0] += 59
    assert not look(4, 2.0)["stalled"]
    now[0] += 2
    late = look(4, 2.0)
    assert late["stalled"]
    assert late["hosts"][0]["stalled"]
    assert not look(4, 3.0)["stalled"]


def until(condition: Any) -> Any:
    """Yields until a condition holds, however long that takes."""
    while not condition():
        yield

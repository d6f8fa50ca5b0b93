"""Launching a sharded job: the same command continues it, another is refused, a finished one is kept."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from transforms.sharded.input_changes import InputChanges
from transforms.sharded.ownership import owning
from transforms.sharded.plan import (
    PLAN_FOLDER,
    Plan,
    check_plan_tables,
    differences,
    read_plan,
)
from transforms.sharded.worker_reports import remove_reports
from transforms.sources.reading import RESTORE
from vqgan import filesystems, publishing
from vqgan.engines.agreement import read_agreement
from vqgan.errors import UserError, counted
from vqgan.faults import has_come
from vqgan.manifest import MANIFEST_FILE, check_parts, read_manifest

Say = Callable[[str], None]
REASONS_SHOWN = 3
LEFTOVER_SECONDS = 86_400.0
"""What is older was left by a killed run, where no lock tells that no other launcher is at work."""


class PlannedRun(Protocol):
    """A run that is planned but not yet begun: nothing has been written.

    Attributes:
      output: folder or URI.
      plan: to be carried out.
      folders: names of those, below the output, that files will be written to.
      quiet: print errors only.
    """

    @property
    def output(self) -> str: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def folders(self) -> Sequence[str]: ...
    @property
    def quiet(self) -> bool: ...

    def write_plan(self) -> None:
        """Writes the plan, ``plan.json`` last."""

    def missing(self, manifest: Mapping[str, Any]) -> list[str]:
        """Returns the names of files that a finished run has lost."""

    def changes(self) -> InputChanges:
        """Returns what has become of the input since the plan in the output was written."""

    def outdated(self, manifest: Mapping[str, Any]) -> list[str]:
        """Returns names of a finished run's shards that are to be made anew, as their rejects have passed."""

    def counts(self, manifest: Mapping[str, Any]) -> str:
        """Returns what a finished run has made, in a few words."""


def run_planned(run: PlannedRun, execute: Callable[[], None]) -> dict[str, Any]:
    """Carries out a planned run, or continues one that was interrupted.

    Args:
      run: what to do.
      execute: makes the slices that are missing and writes the manifest.

    Returns:
      The manifest.

    Raises:
      UserError: another run's output, or whatever ``execute`` raises.
    """
    check_same_plan(run)
    publishing.make_folder(run.output)
    with owning(run.output) as alone:
        leftovers = 0.0 if alone else LEFTOVER_SECONDS
        publishing.delete_temporaries(run.output, leftovers, below=True)
        manifest = _run_owned(run, execute, speaker(run.quiet))
        if alone:  # of workers that died, where others took over; what stays goes with the next command
            with contextlib.suppress(UserError):
                publishing.delete_temporaries(run.output, below=True)
        return manifest


def _run_owned(run: PlannedRun, execute: Callable[[], None], say: Say) -> dict[str, Any]:
    existing = check_same_plan(run)  # once more: another run may have been here since
    if existing is None:
        run.write_plan()
    else:
        check_plan_tables(run.output)
        _check_input(run, say)
        if (manifest := _finished_manifest(run, say)) is not None:
            remove_reports(run.output)  # of a launcher that was killed just before it did
            return manifest
    for name in run.folders:
        publishing.make_folder(filesystems.join(run.output, name))
    execute()
    has_come(lambda: filesystems.exists(filesystems.join(run.output, MANIFEST_FILE)))  # from another host
    manifest = read_manifest(run.output)
    if manifest is None:
        raise UserError(f"{run.output}: the pipeline ended without a manifest; see its log")
    remove_reports(run.output)
    say(f"{run.output}: {run.counts(manifest)}")
    for reason, count in manifest["reject_reasons"].items():
        say(f"  rejected, {reason}: {count}")
    if agreement := manifest.get("agreement_with_jax"):
        say(f"  engine: {read_agreement(agreement)}")
    return manifest


def speaker(quiet: bool) -> Say:
    """Prints lines for people to standard error, or nothing."""
    return _silent if quiet else _say


def exit_code(output: str, manifest: Mapping[str, Any], made: str) -> int:
    """Returns the exit code of a finished run: 1, and a line that says why, where it has made nothing.

    Args:
      output: folder.
      manifest: of it.
      made: ``rows`` or ``images``, which the run was to make.
    """
    counts = manifest["counts"]
    if counts[made]:
        return 0
    reasons = sorted(manifest["reject_reasons"].items(), key=lambda item: -item[1])
    shown = [f"{reason} ({count})" for reason, count in reasons[:REASONS_SHOWN]]
    if len(reasons) > len(shown):
        shown.append(counted(len(reasons) - len(shown), "other reason"))
    why = f"all {counts['rejects']} were rejected, {', '.join(shown)}" if shown else "there was nothing to do"
    _say(f"{output}: no {made} were made: {why}")
    return 1


def missing_files(
    output: str, manifest: Mapping[str, Any], lists: Sequence[str] = ("shards", "rejects")
) -> list[str]:
    """Finds files that these lists of a manifest name and that the output lacks, or has in another size."""
    entries = [entry for name in lists for entry in manifest[name]]
    there = filesystems.file_sizes(output, filesystems.parents(entry["name"] for entry in entries))
    return [entry["name"] for entry in entries if there.get(entry["name"]) != entry["bytes"]]


def check_same_plan(run: PlannedRun) -> Plan | None:
    """Refuses to mix two plans, or a plan's results and other things, in one output.

    Returns:
      The plan that lies there.

    Raises:
      UserError: another plan lies there, or anything else.
    """
    output = run.output
    # Before the plan is looked for: what another run makes meanwhile is there after its plan only.
    # A run that was killed while it wrote its plan leaves a folder of that name.
    strangers = [name for name in filesystems.list_entries(output) if name != PLAN_FOLDER]
    existing = read_plan(output)
    if existing is None:
        if strangers:
            raise UserError(
                f"{output}: there is something else in it, such as {strangers[0]}, and no plan; choose an "
                "empty or new folder"
            )
    elif existing.hash != run.plan.hash:
        before, now = ({"engine": "jax", **plan.identity} for plan in (existing, run.plan))
        what = differences(before, now)
        with contextlib.suppress(UserError):  # a table of another format, or a damaged one
            what = [*_shortened(run.changes().lines), *what]
        raise UserError(f"{output}: belongs to another run ({'; '.join(what)}); choose another output")
    return existing


def _check_input(run: PlannedRun, say: Say) -> None:
    """Refuses an input of the same names and sizes in which single files have changed.

    Raises:
      UserError: names them.
    """
    changes = run.changes()
    if changes.lines:
        raise UserError(f"{run.output}: {'; '.join(_shortened(changes.lines))}; {RESTORE}")
    if changes.copied:
        say(
            f"{run.output}: every file of the input has another time, as a copy has; sizes alone are compared"
        )


def _shortened(lines: Sequence[str]) -> list[str]:
    more = len(lines) - REASONS_SHOWN
    return [*lines[:REASONS_SHOWN], *([f"and {more} more files"] if more > 0 else [])]


def _finished_manifest(run: PlannedRun, say: Say) -> dict[str, Any] | None:
    """Returns the manifest of an output in which nothing is left to do; None where there is.

    A manifest whose files are not all there, or whose rejects have passed, is deleted: it will be made again.
    """
    manifest = read_manifest(run.output)
    if manifest is None:
        return None
    check_parts(run.output, manifest)
    missing = run.missing(manifest)
    if missing and "parts" in manifest:
        raise UserError(
            f"{run.output}: {counted(len(missing), 'file')} missing or damaged, such as {missing[0]}; "
            "it has parts that were added later: run vqgan verify --repair"
        )
    outdated = [] if missing or "parts" in manifest else run.outdated(manifest)
    if not missing and not outdated:
        say(f"{run.output} is complete ({run.counts(manifest)}); nothing to do")
        return manifest
    if missing:
        files = counted(len(missing), "file")
        say(f"{run.output}: {files} missing or damaged, such as {missing[0]}; made again")
    else:
        say(f"{run.output}: images that could not be read now can, as in {outdated[0]}; made again")
    for name in missing:  # or what is left of one could be taken for whole
        publishing.delete(filesystems.join(run.output, name))
    publishing.delete(filesystems.join(run.output, MANIFEST_FILE))
    return None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    """Says nothing."""

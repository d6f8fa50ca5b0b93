"""Launching a sharded job: the same command continues it, another is refused, a finished one is kept."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from transforms.sharded.ownership import owning
from transforms.sharded.plan import PLAN_FOLDER, Plan, check_plan_table, differences, read_plan
from vqgan import filesystems
from vqgan.errors import UserError, counted
from vqgan.manifest import MANIFEST_FILE, check_parts, read_manifest
from vqgan.shards import REJECTS_FOLDER

Say = Callable[[str], None]
REASONS_SHOWN = 3


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
    _check_same_plan(run.output, read_plan(run.output), run.plan)
    filesystems.make_folder(run.output)
    with owning(run.output):
        return _run_owned(run, execute, speaker(run.quiet))


def _run_owned(run: PlannedRun, execute: Callable[[], None], say: Say) -> dict[str, Any]:
    existing = read_plan(run.output)
    _check_same_plan(run.output, existing, run.plan)  # once more: another run may have been here since
    if existing is None:
        run.write_plan()
    else:
        check_plan_table(run.output)
        if (manifest := _finished_manifest(run, say)) is not None:
            return manifest
    _make_folders(run.output, run.folders)
    execute()
    manifest = read_manifest(run.output)
    if manifest is None:
        raise UserError(f"{run.output}: the pipeline ended without a manifest; see its log")
    say(f"{run.output}: {run.counts(manifest)}")
    for reason, count in manifest["reject_reasons"].items():
        say(f"  rejected, {reason}: {count}")
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


def _check_same_plan(output: str, existing: Plan | None, plan: Plan) -> None:
    """Refuses to mix two plans, or a plan's results and other things, in one output.

    Args:
      output: folder.
      existing: the plan that lies there.
      plan: the one to be carried out.

    Raises:
      UserError: another plan lies there, or anything else.
    """
    if existing is None:
        # A run that was killed while it wrote its plan leaves a folder of that name.
        strangers = [name for name in filesystems.list_entries(output) if name != PLAN_FOLDER]
        if strangers:
            raise UserError(
                f"{output}: there is something else in it, such as {strangers[0]}, and no plan; choose an "
                "empty or new folder"
            )
        return
    if existing.hash != plan.hash:
        what = "; ".join(differences(existing.identity, plan.identity))
        raise UserError(f"{output}: belongs to another run ({what}); choose another output")


def _finished_manifest(run: PlannedRun, say: Say) -> dict[str, Any] | None:
    """Returns the manifest of an output in which nothing is left to do; None where there is.

    A manifest whose files are not all there is deleted: what is missing will be made again.
    """
    manifest = read_manifest(run.output)
    if manifest is None:
        return None
    check_parts(run.output, manifest)
    missing = run.missing(manifest)
    if not missing:
        say(f"{run.output} is complete ({run.counts(manifest)}); nothing to do")
        return manifest
    say(f"{run.output}: {len(missing)} files are missing or damaged, such as {missing[0]}; made again")
    filesystems.delete(filesystems.join(run.output, MANIFEST_FILE))
    return None


def _make_folders(output: str, folders: Sequence[str]) -> None:
    """Creates folders of an output, once its plan is written, and clears what killed writers left in it."""
    for name in folders:
        filesystems.make_folder(filesystems.join(output, name))
    filesystems.delete_temporaries(output)
    for name in {PLAN_FOLDER, REJECTS_FOLDER, *folders}:
        filesystems.delete_temporaries(filesystems.join(output, name))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    """Says nothing."""

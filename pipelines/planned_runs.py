"""What runs have in common: lines for people; and where they carry out a plan, the same command continues it
and another is refused."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transforms.plan import PLAN_FOLDER, Plan, differences
from vqgan import filesystems
from vqgan.errors import UserError
from vqgan.manifest import MANIFEST_FILE, check_parts, read_manifest
from vqgan.shards import REJECTS_FOLDER

Say = Callable[[str], None]
REASONS_SHOWN = 3


def speaker(quiet: bool) -> Say:
    """Prints lines for people to standard error, or nothing."""
    return _silent if quiet else _say


def check_same_plan(output: str, existing: Plan | None, plan: Plan) -> None:
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


def finished_manifest(
    output: str,
    find_missing: Callable[[Mapping[str, Any]], Sequence[str]],
    counts: Callable[[Mapping[str, Any]], str],
    say: Say,
) -> dict[str, Any] | None:
    """The manifest of an output in which nothing is left to do; None where there is.

    A manifest whose files are not all there is deleted: what is missing will be made again.
    """
    manifest = read_manifest(output)
    if manifest is None:
        return None
    check_parts(output, manifest)
    missing = find_missing(manifest)
    if not missing:
        say(f"{output} is complete ({counts(manifest)}); nothing to do")
        return manifest
    say(f"{output}: {len(missing)} files are missing or damaged, such as {missing[0]}; made again")
    filesystems.delete(filesystems.join(output, MANIFEST_FILE))
    return None


def make_folders(output: str, *folders: str) -> None:
    """Creates folders of an output, once its plan is written, and clears what killed writers left in it.

    Args:
      output: folder.
      folders: names of those that files will be written to.
    """
    for name in folders:
        filesystems.make_folder(filesystems.join(output, name))
    filesystems.delete_temporaries(output)
    for name in {PLAN_FOLDER, REJECTS_FOLDER, *folders}:
        filesystems.delete_temporaries(filesystems.join(output, name))


def result(output: str) -> dict[str, Any]:
    """The manifest that a pipeline has written.

    Raises:
      UserError: it has not.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise UserError(f"{output}: the pipeline ended without a manifest; see its log")
    return manifest


def code_of(output: str, manifest: Mapping[str, Any], made: str) -> int:
    """The exit code of a finished run: 1, and a line that says why, where it has made nothing.

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
        shown.append(f"{len(reasons) - len(shown)} other reasons")
    why = f"all {counts['rejects']} were rejected, {', '.join(shown)}" if shown else "there was nothing to do"
    _say(f"{output}: no {made} were made: {why}")
    return 1


def missing_files(
    output: str, manifest: Mapping[str, Any], lists: Sequence[str] = ("shards", "rejects")
) -> list[str]:
    """Files that these lists of a manifest name and that are not in the output, or not of their size."""
    entries = [entry for name in lists for entry in manifest[name]]
    there = filesystems.file_sizes(output, filesystems.parents(entry["name"] for entry in entries))
    return [entry["name"] for entry in entries if there.get(entry["name"]) != entry["bytes"]]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    """Says nothing."""

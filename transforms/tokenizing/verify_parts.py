"""Checking a token data set of several parts: each against its plan, then the whole against its manifest."""

from collections.abc import Mapping, Sequence
from typing import Any

from transforms.sharded.plan import differences, plan_file, plan_folder, read_plan, read_slice
from transforms.sharded.rejects import RejectRow
from transforms.sharded.summary import FileSummary
from transforms.sharded.verify import CIRCUMSTANCES, contradictions
from transforms.tokenizing.manifest import build_token_manifest
from transforms.tokenizing.parts import (
    join_manifests,
    part_number,
    read_rejects_file,
    read_retried,
    retried_file,
    retried_sum,
    shared_settings,
)
from transforms.tokenizing.verify import TokenVerifier, key_problems
from vqgan import filesystems
from vqgan.errors import UserError, counted, printable
from vqgan.manifest import DataSetPart, chain_hash, manifest_fields, parts_of, superseded_parts

NOTHING_ELSE = "nothing else was checked"


class PartVerifier(TokenVerifier):
    """One part of a data set: its plan and its shards.

    Attributes:
      retried: keys that later parts have tried again, if the rejects of this one do not count any more.
    """

    retried: frozenset[str] = frozenset()

    def check_rejects(
        self, number: int, shard: str, expected: int
    ) -> tuple[FileSummary | None, list[RejectRow]]:
        """Checks a slice's rejects; where later parts have tried them again, that they have tried all."""
        if not self.retried or not expected:
            return super().check_rejects(number, shard, expected)
        keys = {entry.key for entry in read_slice(self.output, number, self.part)}
        self.expect(shard, "number of rejects that were tried again", len(self.retried & keys), expected)
        return None, []


def verify_parts(output: str, manifest: Mapping[str, Any]) -> tuple[list[str], str]:
    """Checks plans, their chain, files, footers, counts, keys and token range of all parts.

    Returns:
      Problems, one line each, and one line that says what was checked.

    Raises:
      UserError: a plan is damaged, or a table of rejects that were tried again.
    """
    parts = parts_of(manifest_fields(output, manifest))
    verifiers: list[PartVerifier] = []
    for number, part in enumerate(parts):
        plan = read_plan(output, number)
        if plan is None:
            return [f"{plan_file(number)} is missing"], NOTHING_ELSE
        verifiers.append(PartVerifier(output, _of_part(manifest, number, part), plan, number))
        try:
            verifiers[-1].check_plan()
        except UserError as error:
            return [str(error)], NOTHING_ELSE
    problems = _chain_problems(output, manifest, parts, verifiers)
    for number in superseded_parts(parts):
        verifiers[number].retried = frozenset(read_retried(output, parts[number + 1 :], number + 1))
    problems += _listing_problems(verifiers, manifest)
    for verifier in verifiers:
        verifier.check_slices()
        problems += verifier.problems
    if not any(verifier.broken for verifier in verifiers):
        keys = [table for verifier in verifiers for table in verifier.keys]
        problems += key_problems(output, keys, [n for n, part in enumerate(parts) if not part.retries])
        problems += _manifest_problems(manifest, parts, verifiers)
    counts = manifest["counts"]
    summary = (
        f"{counted(len(parts), 'part')} of {counted(len(manifest['shards']), 'shard')}, "
        f"{counted(len(manifest['rejects']), 'rejects file')}: {counts['planned']} planned, "
        f"{counted(counts['images'], 'image')}, {counted(counts['rows'], 'row')}, "
        f"{counted(counts['rejects'], 'reject')}"
    )
    return [printable(problem) for problem in problems], summary


def unfinished_part(output: str, manifest: Mapping[str, Any]) -> list[str]:
    """Returns a line if a further part was begun and is not finished."""
    folder = plan_folder(len(parts_of(manifest_fields(output, manifest))))
    if not filesystems.exists(filesystems.join(output, folder)):
        return []
    return [f"{folder} was begun and is not finished; run the command that began it again"]


def _of_part(manifest: Mapping[str, Any], number: int, part: DataSetPart) -> dict[str, Any]:
    """Returns what a manifest says of one part."""
    files = {
        name: [entry for entry in manifest[name] if part_number(entry["name"]) == number]
        for name in ("shards", "rejects")
    }
    return {**manifest, "plan_hash": part.plan_hash, **files}


def _chain_problems(
    output: str,
    manifest: Mapping[str, Any],
    parts: Sequence[DataSetPart],
    verifiers: Sequence[TokenVerifier],
) -> list[str]:
    """Checks that each plan is the one of its part, of the same settings, and follows those before it."""
    hashes = [part.plan_hash for part in parts]
    found = []
    if chain_hash(hashes) != manifest["plan_hash"]:
        found.append("manifest.json: its plan hash is not that of its parts")
    found += contradictions(manifest["identity"], verifiers[0].plan.identity, "manifest.json: identity")
    first = shared_settings(verifiers[0].plan.identity)
    for number, (part, verifier) in enumerate(zip(parts, verifiers, strict=True)):
        identity, name = verifier.plan.identity, plan_file(number)
        if verifier.plan.hash != part.plan_hash or verifier.plan.slices != part.slices:
            found.append(f"{name} is not the plan of the manifest's part {number}")
        found += [f"{name}: {line}" for line in differences(first, shared_settings(identity))]
        if not _follows(identity.get("parent"), hashes[:number], part):
            found.append(f"{name} does not follow the plans before it")
        if part.retries:
            rows = read_rejects_file(output, retried_file(number))
            if identity.get("retried") != retried_sum(rows):
                found.append(f"{retried_file(number)}: its rows are not those of the plan")
    return found


def _follows(parent: object, before: Sequence[str], part: DataSetPart) -> bool:
    """Tells whether a plan was made after some of those before it; the first of a merged set was not."""
    if parent is None:
        return part.made in ("tokenize", "sample")
    ends = range(1, len(before) + 1)
    return any(chain_hash(before[start:end]) == parent for end in ends for start in range(end))


def _listing_problems(verifiers: Sequence[PartVerifier], manifest: Mapping[str, Any]) -> list[str]:
    """Compares the names of all parts' files with the manifest and with what is there."""
    first = verifiers[0]
    whole = PartVerifier(first.output, manifest, first.plan)
    whole.check_listing(
        [name for verifier in verifiers for name in verifier.expected_files()],
        [name for verifier in verifiers for name in verifier.rejects_files()],
    )
    return whole.problems


def _manifest_problems(
    manifest: Mapping[str, Any], parts: Sequence[DataSetPart], verifiers: Sequence[TokenVerifier]
) -> list[str]:
    """Compares the manifest with the one that the files make."""
    try:
        made = [
            build_token_manifest(each.plan, each.totals, each.codec(), manifest["grid"]) for each in verifiers
        ]
    except UserError as error:
        return [f"manifest.json: {error}"]
    again = {number for number, part in enumerate(parts) if part.retries}
    joined = join_manifests(made, parts, superseded_parts(parts), again)
    found, expected = (
        {name: part for name, part in document.items() if name not in CIRCUMSTANCES}
        for document in (manifest, joined)
    )
    if found["codebook"]["histogram"] != expected["codebook"]["histogram"]:
        return ["manifest.json: the codebook's histogram is not that of the tokens"]
    return [f"manifest.json: {line}" for line in contradictions(found, expected)]

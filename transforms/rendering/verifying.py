"""Checking decoded pictures against their indexes, their manifest and their plan."""

import hashlib
from collections.abc import Mapping
from typing import Any

from pyarrow import fs

from transforms import rejects
from transforms.checking import check_file, check_listing, expect
from transforms.plan import Plan
from transforms.rendering.index import IndexMetadata, open_index
from transforms.rendering.layout import IMAGES_FOLDER, METADATA_FILE, archive_name, index_name
from transforms.rendering.metadata import metadata_lines
from transforms.rendering.reading import stored_pictures
from vqgan import filesystems
from vqgan.errors import UserError
from vqgan.shards import rejects_name


def verify_images(output: str, manifest: Mapping[str, Any], plan: Plan) -> tuple[list[str], str]:
    """Checks files, footers, counts and the sum of every picture.

    Args:
      output: folder of the pictures.
      manifest: of it.
      plan: of it.

    Returns:
      Problems, one line each, and one line that says what was checked.
    """
    container = plan.identity["form"]["container"]
    slices = range(plan.slices)
    indices = [index_name(number, plan.slices, container) for number in slices]
    expected = [*indices, *([METADATA_FILE] if container == "files" else [])]
    if container == "tar":
        expected += [archive_name(number, plan.slices) for number in slices]
    entries = [*manifest["shards"], *manifest["archives"], *manifest["metadata"], *manifest["rejects"]]
    listed = {entry["name"]: entry for entry in entries}
    problems = check_listing(output, expected, listed, (".parquet", ".tar"))
    broken = {name for name, entry in listed.items() if not check_file(output, entry, problems)}
    for number, name in enumerate(indices):
        names = {name, archive_name(number, plan.slices), rejects_name(number, plan.slices)}
        if name in listed and not names & broken:
            _check_slice(output, name, number, plan.slices, manifest, listed, problems)
    if container == "files":
        if not broken.intersection(expected) and listed.keys() >= set(expected):
            _check_metadata(output, indices, listed[METADATA_FILE], problems)
        _check_strays(output, manifest["counts"]["images"], problems)
    _check_counts(manifest, plan, problems)
    counts = manifest["counts"]
    summary = (
        f"{plan.slices} slices of pictures ({container}), {len(manifest['rejects'])} rejects files: "
        f"{counts['planned']} planned, {counts['images']} pictures, {counts['rejects']} rejects"
    )
    return problems, summary


def _check_slice(
    output: str,
    name: str,
    number: int,
    slices: int,
    manifest: Mapping[str, Any],
    listed: Mapping[str, Any],
    problems: list[str],
) -> None:
    try:
        with open_index(output, name) as index:
            metadata, rows = index.metadata, index.rows
        _check_footer(name, metadata, rows, number, manifest, listed, problems)
        _check_pictures(output, name, problems)
    except UserError as error:
        problems.append(str(error))
        return
    rejected = listed.get(rejects_name(number, slices))
    if rejected is not None:
        found = len(rejects.read(filesystems.join(output, rejected["name"])))
        expect(problems, rejected["name"], "rows", found, metadata.rejects)
    elif metadata.rejects:
        problems.append(f"{name}: {metadata.rejects} rejects, but no rejects file in the manifest")


def _check_footer(
    name: str,
    metadata: IndexMetadata,
    rows: int,
    number: int,
    manifest: Mapping[str, Any],
    listed: Mapping[str, Any],
    problems: list[str],
) -> None:
    expect(problems, name, "plan hash", metadata.plan_hash, manifest["plan_hash"])
    expect(problems, name, "codec", metadata.fingerprint, manifest["codec"]["fingerprint"])
    expect(problems, name, "decoder", metadata.decoder_sha256, manifest["codec"]["decoder_sha256"])
    expect(problems, name, "slice number", metadata.slice_number, number)
    expect(problems, name, "rows", rows, listed[name]["rows"])
    expect(problems, name, "rows", rows, metadata.images)
    expect(problems, name, "pictures + rejects", metadata.images + metadata.rejects, metadata.planned)
    if metadata.archive is not None:
        archive = listed.get(metadata.archive["name"], {})
        expect(problems, name, "sha256 of its tar", archive.get("sha256"), metadata.archive["sha256"])


def _check_pictures(output: str, name: str, problems: list[str]) -> None:
    """Every picture has the sum that the index tells, and none is named twice."""
    changed = [
        row.file
        for row, data in stored_pictures(output, name)
        if hashlib.sha256(data).hexdigest() != row.sha256
    ]
    if changed:
        problems.append(f"{name}: {len(changed)} pictures have changed, such as {changed[0]}")
    with open_index(output, name) as index:
        rows = [(row.key, row.view) for row, _ in index.read()]
    if len(set(rows)) < len(rows):
        problems.append(f"{name}: {len(rows) - len(set(rows))} rows occur more than once")


def _check_metadata(output: str, indices: list[str], entry: Mapping[str, Any], problems: list[str]) -> None:
    """Checks that ``metadata.jsonl`` says what the indices say."""
    digest = hashlib.sha256()
    try:
        for line in metadata_lines(output, indices):
            digest.update(line)
    except UserError:
        return  # a damaged index, which has been told already
    if digest.hexdigest() != entry["sha256"]:
        problems.append(f"{METADATA_FILE}: does not say what the indices say")


def _check_strays(output: str, images: int, problems: list[str]) -> None:
    filesystem, inner = filesystems.resolve(filesystems.join(output, IMAGES_FOLDER))
    selector = fs.FileSelector(inner, recursive=True, allow_not_found=True)
    metadata = 1
    found = sum(info.is_file for info in filesystem.get_file_info(selector)) - metadata
    if found > images:
        problems.append(f"{IMAGES_FOLDER}/: {found - images} files belong to no index")


def _check_counts(manifest: Mapping[str, Any], plan: Plan, problems: list[str]) -> None:
    """The manifest's sums are those of its files."""
    counts, where = manifest["counts"], "manifest.json"
    rows = sum(entry["rows"] for entry in manifest["shards"])
    rejected = sum(entry["rows"] for entry in manifest["rejects"])
    expect(problems, where, "number of planned rows", counts["planned"], plan.entries)
    expect(problems, where, "number of pictures and rejects", counts["images"] + rejected, plan.entries)
    expect(problems, where, "number of rejects", counts["rejects"], rejected)
    expect(problems, where, "number of pictures", counts["images"], rows)

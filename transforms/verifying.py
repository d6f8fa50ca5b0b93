"""Checking a finished data set against its manifest, its plan and, where wanted, its images."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms import rejects
from transforms.checking import check_file, check_listing, expect
from transforms.images.crops import Geometry, count_views
from transforms.images.decode import DecodeConfig
from transforms.inference import load_codec
from transforms.plan import Plan, all_keys, read_plan, read_slice
from transforms.rendering.verifying import verify_images
from transforms.slices import Item, Job, read_and_decode
from transforms.sources import SourceConfig, open_source
from vqgan import filesystems
from vqgan.config import from_dict
from vqgan.errors import UserError
from vqgan.hub import resolve_dataset
from vqgan.manifest import IMAGES_KIND, MANIFEST_FILE, check_parts, manifest_fields, read_manifest
from vqgan.shards import open_shard, rejects_name, shard_name

if TYPE_CHECKING:
    from vqgan.codec import Codec

MAX_VIEWS = 256
_KEYS = pa.schema([pa.field("key", pa.string()), pa.field("view", pa.uint8())])


class Agreement(NamedTuple):
    """How far re-encoding gives the tokens that the shards hold.

    Attributes:
      images: how many were re-encoded.
      share: of tokens that are equal, 0 to 1.
    """

    images: int
    share: float


def verify(output: str) -> tuple[list[str], str]:
    """Checks files, footers, counts, keys and token range of a data set.

    Args:
      output: its folder or URI, or ``hf://datasets/owner/name[@revision]``.

    Returns:
      Problems, one line each, and one line that says what was checked.

    Raises:
      UserError: there is no data set, or it is not finished.
    """
    output = resolve_dataset(output)
    manifest = require_manifest(output)
    plan = read_plan(output)
    if plan is None:
        raise UserError(f"{output}: plan/plan.json is missing; nothing can be checked against it")
    kind = manifest.get("kind")
    if (kind == IMAGES_KIND) != (plan.identity.get("kind") == IMAGES_KIND):
        return ["manifest.json and plan/plan.json are of different kinds"], "nothing else was checked"
    check = verify_images if kind == IMAGES_KIND else verify_tokens
    problems, summary = check(output, manifest, plan)
    if plan.hash != manifest["plan_hash"]:
        problems.insert(0, "manifest.json and plan/plan.json are of different plans")
    return problems, summary


def verify_tokens(output: str, manifest: dict[str, Any], plan: Plan) -> tuple[list[str], str]:
    """Checks a data set of tokens; the result is that of :func:`verify`."""
    slices = plan.slices
    expected = [shard_name(number, slices) for number in range(slices)]
    listed = {entry["name"]: entry for entry in [*manifest["shards"], *manifest["rejects"]]}
    problems = check_listing(output, expected, listed, (".parquet",))
    broken = {name for name, entry in listed.items() if not check_file(output, entry, problems)}
    keys = [_KEYS.empty_table()]
    histogram = np.zeros(manifest["codebook"]["size"], np.int64)
    for number, name in enumerate(expected):
        if name in listed and not {name, rejects_name(number, slices)} & broken:
            keys.append(_check_slice(output, number, slices, listed, manifest, histogram, problems))
    if not broken:
        _check_keys(output, pa.concat_tables(keys), problems)
        _check_counts(manifest, plan, histogram, problems)
    counts = manifest["counts"]
    summary = (
        f"{len(expected)} shards, {len(manifest['rejects'])} rejects files: {counts['planned']} planned, "
        f"{counts['images']} images, {counts['rows']} rows, {counts['rejects']} rejects"
    )
    return problems, summary


def check_agreement(output: str, source: SourceConfig, codec_name: str, sample: int) -> Agreement:
    """Encodes some of the images again and compares with the tokens in the shards.

    Args:
      output: a verified data set.
      source: where its images came from.
      codec_name: path or name of its codec.
      sample: images to encode, taken evenly from all slices.

    Raises:
      UserError: another codec, or another source.
    """
    output = resolve_dataset(output)
    manifest = require_manifest(output)
    if manifest["identity"].get("source", {}).get("kind") in (None, "prior"):
        raise UserError(f"{output}: its tokens were not made of images; leave out --codec and --input")
    # The batch size is that of the data set's slices only by chance; agreement does not need it.
    dtype = manifest_fields(output, manifest).fields("identity").text("dtype")
    codec = load_codec(codec_name, 16, dtype)
    if codec.fingerprint != manifest["codec"]["fingerprint"]:
        raise UserError(
            f"{output}: its tokens were made by codec {manifest['codec']['fingerprint'][:12]}, "
            f"{codec_name} is {codec.fingerprint[:12]}; give the codec that made them"
        )
    agreement = measure_agreement(replay_job(output, manifest, source, codec_name), codec, sample)
    if not agreement.images:
        raise UserError(f"{output}: none of its images could be read from {source.input}")
    return agreement


def measure_agreement(job: Job, codec: "Codec", sample: int) -> Agreement:
    """Encodes ``sample`` images, taken evenly from all slices, and compares with their shards."""
    equal = total = images = 0
    for number, wanted in spread(sample, job.slices):
        rows = list(stored_rows(job, number, wanted))
        if rows:
            fresh = codec.encode(np.stack([row.pixels for row in rows]))
            equal += int(np.sum(fresh == np.stack([row.tokens for row in rows])))
            total += fresh.size
            images += sum(row.view == 0 for row in rows)
    return Agreement(images, equal / total if total else 0.0)


def spread(sample: int, slices: int) -> Iterator[tuple[int, int]]:
    """Slice numbers with how many of ``sample`` images to take from each."""
    for number in range(min(slices, sample)):
        yield number, sample // slices + (number < sample % slices)


class StoredRow(NamedTuple):
    """A row as a shard holds it, with its pixels made again from the source.

    Attributes:
      key, view: which row.
      tokens: int32 ``[h, w]``.
      pixels: uint8 ``[S, S, 3]``.
    """

    key: str
    view: int
    tokens: np.ndarray
    pixels: np.ndarray


def stored_rows(job: Job, number: int, images: int) -> Iterator[StoredRow]:
    """Rows of the first ``images`` images of a slice that give rows, with pixels from the source."""
    path = filesystems.join(job.output, shard_name(number, job.slices))
    tokens: dict[tuple[str, int], np.ndarray] = {}
    with open_shard(path) as shard:
        first = next(shard.batches(["key", "view", "tokens"], rows=images * MAX_VIEWS), None)
        if first is None:
            return
        grids = shard.tokens(first)
        for key, view, grid in zip(*(first.column(i).to_pylist() for i in (0, 1)), grids, strict=True):
            tokens[key, view] = grid
    keys = list(dict.fromkeys(key for key, _ in tokens))[:images]
    entries = [entry for entry in read_slice(job.output, number) if entry.key in set(keys)]
    for item in read_and_decode(job, open_source(job.source), entries):
        if isinstance(item, Item):
            for row, pixels in zip(item.rows, item.pixels, strict=True):
                if (row.key, row.view.view) in tokens:
                    yield StoredRow(row.key, row.view.view, tokens[row.key, row.view.view], pixels)


def replay_job(output: str, manifest: dict[str, Any], source: SourceConfig, codec: str) -> Job:
    """A job that makes the pixels of a finished data set again."""
    identity = manifest_fields(output, manifest).fields("identity")
    preprocessing = identity.fields("preprocessing")
    kept = identity.fields("source")
    return Job(
        output=output,
        source=dataclasses.replace(
            source,
            kind=kept.text("kind"),
            image_column=source.image_column or kept.text_or_none("image_column"),
            label_column=source.label_column or kept.text_or_none("label_column"),
        ),
        decode=from_dict(DecodeConfig, preprocessing.value("decode"), where=f"{output}/{MANIFEST_FILE}"),
        geometry=from_dict(Geometry, preprocessing.value("geometry"), where=f"{output}/{MANIFEST_FILE}"),
        codec=codec,
        batch_size=16,
        dtype=identity.text("dtype"),
        threads=2,
        plan_hash=manifest["plan_hash"],
        slices=len(manifest["shards"]),
    )


def require_manifest(output: str) -> dict[str, Any]:
    """The manifest of a finished data set.

    Raises:
      UserError: there is none.
    """
    manifest = read_manifest(output)
    if manifest is not None:
        check_parts(output, manifest)
        return manifest
    if read_plan(output) is not None:
        raise UserError(f"{output}: not finished (no manifest.json); run the command that makes it again")
    raise UserError(
        f"{output}: no data set there (no manifest.json); give the output of vqgan tokenize or decode"
    )


def _check_slice(
    output: str,
    number: int,
    slices: int,
    listed: dict[str, Any],
    manifest: dict[str, Any],
    histogram: np.ndarray,
    problems: list[str],
) -> pa.Table:
    """Checks one shard's footer, counts and tokens, which are added to ``histogram``.

    Gives the keys of its images and rejects.
    """
    name = shard_name(number, slices)
    seen: list[pa.Table] = []
    with open_shard(filesystems.join(output, name), name) as shard:
        metadata = shard.metadata
        expect(problems, name, "plan hash", metadata.plan_hash, manifest["plan_hash"])
        expect(problems, name, "codec", metadata.fingerprint, manifest["codec"]["fingerprint"])
        expect(problems, name, "slice number", metadata.slice_number, number)
        expect(problems, name, "rows", shard.rows, listed[name]["rows"])
        expect(problems, name, "images + rejects", metadata.images + metadata.rejects, metadata.planned)
        expect(problems, name, "codebook size", metadata.codebook_size, len(histogram))
        expect(problems, name, "rows", shard.rows, metadata.images * _views(manifest))
        for batch in shard.batches(["key", "view", "tokens"]):
            tokens = shard.tokens(batch)
            valid = tokens[(tokens >= 0) & (tokens < len(histogram))]
            if valid.size < tokens.size:
                problems.append(f"{name}: tokens outside of [0, {len(histogram)})")
            histogram += np.bincount(valid, minlength=len(histogram))
            seen.append(pa.table([batch.column("key"), batch.column("view")], schema=_KEYS))
    rejected = listed.get(rejects_name(number, slices))
    if rejected is not None:
        rows = rejects.read(filesystems.join(output, rejected["name"]))
        expect(problems, rejected["name"], "rows", len(rows), metadata.rejects)
        seen.append(pa.table({"key": [row.key for row in rows], "view": [None] * len(rows)}, schema=_KEYS))
    elif metadata.rejects:
        problems.append(f"{name}: {metadata.rejects} rejects, but no rejects file in the manifest")
    return pa.concat_tables([_KEYS.empty_table(), *seen])


def _views(manifest: Mapping[str, Any]) -> int:
    """Rows of each image; tokens drawn from a prior have one."""
    geometry = manifest["identity"]["preprocessing"].get("geometry")
    return 1 if geometry is None else count_views(from_dict(Geometry, geometry))


def _check_keys(output: str, found: pa.Table, problems: list[str]) -> None:
    """Every planned key is an image or a reject, and no row occurs twice."""
    rows = found.group_by(["key", "view"]).aggregate([([], "count_all")])
    repeated = rows.filter(pc.greater(rows.column("count_all"), 1)).num_rows
    if repeated:
        problems.append(f"{repeated} rows occur more than once")
    digests = {hashlib.sha256(key.encode()).digest() for key in found.column("key").to_pylist()}
    planned = {
        hashlib.sha256(key.encode()).digest()
        for batch in all_keys(output)
        for key in batch.column("key").to_pylist()
    }
    if lost := len(planned - digests):
        problems.append(f"{lost} planned images are neither rows nor rejects")
    if extra := len(digests - planned):
        problems.append(f"{extra} keys were never planned")


def _check_counts(manifest: dict[str, Any], plan: Plan, histogram: np.ndarray, problems: list[str]) -> None:
    """The manifest's sums are those of its files."""
    counts, where = manifest["counts"], "manifest.json"
    rows = sum(entry["rows"] for entry in manifest["shards"])
    rejected = sum(entry["rows"] for entry in manifest["rejects"])
    expect(problems, where, "number of planned images", counts["planned"], plan.entries)
    expect(problems, where, "number of images and rejects", counts["images"] + rejected, plan.entries)
    expect(problems, where, "number of rejects", counts["rejects"], rejected)
    expect(problems, where, "number of rows", counts["rows"], rows)
    expect(problems, where, "number of tokens", counts["tokens"], rows * int(np.prod(manifest["grid"])))
    if manifest["codebook"]["histogram"] != histogram.tolist():
        problems.append(f"{where}: the codebook's histogram is not that of the tokens")

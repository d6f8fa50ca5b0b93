"""What to decode: the shards of a finished token data set, checked and written down before any work.

``plan/shards.parquet`` holds a row for each slice, ``plan/plan.json``, written after it, what identifies
the plan. A worker reads its own row, and hashes the shard before it trusts it.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.sharded.batching import in_order
from transforms.sharded.plan import Plan, read_plan, write_plan_file
from vqgan import filesystems, publishing
from vqgan.data.token_shards import check_footer, check_shard_size
from vqgan.errors import UserError, first_line
from vqgan.manifest import (
    FORMAT_VERSION,
    check_entries,
    check_tokens,
    manifest_fields,
    parts_of,
    read_manifest,
    refuse_buckets,
    resolve_dataset,
)
from vqgan.shards import open_shard

PARTS_FILE = "plan/shards.parquet"
PARTS_SCHEMA = pa.schema(
    [("name", pa.string()), ("sha256", pa.string()), ("rows", pa.int64()), ("planned", pa.int64())]
)
_READERS = 8
_ROWS_PER_GROUP = 1024  # a worker reads its own row group alone


class Part(NamedTuple):
    """The slice of one shard.

    Attributes:
      name: of the shard in the token data set.
      sha256: of its bytes, as the manifest has it.
      rows: that it holds.
      planned: rows to decode, the first ones of the chosen views.
    """

    name: str
    sha256: str
    rows: int
    planned: int


class TokenInput(NamedTuple):
    """A finished token data set.

    Attributes:
      path: its folder or URI, or ``hf://datasets/owner/name``.
      plan_hash: of its plan.
      grid: ``(h, w)`` of every row.
      codec: path or name of the codec that made its tokens.
      fingerprint: of that codec.
      slices: how many shards it has.
      parts: slices of each of its parts, by the hash of its plan.
    """

    path: str
    plan_hash: str
    grid: tuple[int, int]
    codec: str
    fingerprint: str
    slices: int
    parts: Mapping[str, int]

    @property
    def folder(self) -> str:
        """Where its files lie; a worker that has none of what lies on the Hub fetches it."""
        return resolve_dataset(self.path)


def read_token_manifest(path: str) -> dict[str, Any]:
    """Returns the manifest of a finished token data set.

    Raises:
      UserError: there is none, it is not finished, or it holds something else.
    """
    folder = resolve_dataset(path)
    manifest = read_manifest(folder)
    if manifest is None and read_plan(folder) is not None:
        raise UserError(f"{path}: not finished (no manifest.json); run the command that makes it again")
    if manifest is None:
        refuse_buckets(path)
        raise UserError(f"{path}: no token data set there (no manifest.json); give a finished one")
    check_tokens(path, manifest)
    return manifest


def token_input(path: str, manifest: Mapping[str, Any]) -> TokenInput:
    """Returns what a manifest says of its tokens.

    Raises:
      UserError: it lacks something, or there are no shards.
    """
    fields = manifest_fields(path, manifest)
    height, width = fields.integers("grid", 2, least=1)
    codec = fields.fields("codec")
    check_entries(fields, "shards")
    fields.fields("identity", {}).mapping("preprocessing", {})
    shards = len(manifest["shards"])
    if not shards:
        raise UserError(f"{path}: there are no shards in it")
    return TokenInput(
        path=path,
        plan_hash=fields.text("plan_hash"),
        grid=(height, width),
        codec=codec.text("name"),
        fingerprint=codec.text("fingerprint"),
        slices=shards,
        parts={part.plan_hash: part.slices for part in parts_of(fields)},
    )


def plan_parts(
    tokens: TokenInput, shards: Iterable[Mapping[str, Any]], views: str, limit: int | None
) -> list[Part]:
    """Checks the shards against the manifest, and says what of each is to be decoded.

    Args:
      tokens: the data set.
      shards: its shards, as its manifest lists them.
      views: ``all`` rows, or the ``first`` view of each image.
      limit: decode no more rows than this, in the order of the shards; None for all.

    Returns:
      One part for each shard, or for as many of the first as the limit takes.

    Raises:
      UserError: a shard is missing, or is not the one of the manifest.
    """
    entries = sorted(shards, key=lambda entry: entry["name"])
    _check_sizes(tokens.folder, entries)
    parts: list[Part] = []
    left = sum(entry["rows"] for entry in entries) if limit is None else limit
    counts = in_order(lambda entry: _count(tokens, entry, views), entries, _READERS, 2 * _READERS, "footers")
    for entry, chosen in zip(entries, counts, strict=False):  # the rest is not wanted beyond the limit
        parts.append(Part(entry["name"], entry["sha256"], entry["rows"], min(chosen, left)))
        left -= parts[-1].planned
        if limit is not None and not left:
            break
    return parts


def make_decode_plan(parts: list[Part], settings: Mapping[str, Any], plan_hash: str) -> Plan:
    """Returns the plan of these parts.

    Args:
      parts: of each slice.
      settings: everything else that determines the images.
      plan_hash: of the token data set's plan.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update("\0".join(map(str, part)).encode() + b"\n")
    identity = {
        "version": FORMAT_VERSION,
        **settings,
        "tokens": {"plan_hash": plan_hash, "shards_sha256": digest.hexdigest()},
    }
    return Plan(identity=identity, slices=len(parts), entries=sum(part.planned for part in parts))


def write_decode_plan(output: str, plan: Plan, parts: list[Part]) -> None:
    """Writes the parts, then ``plan.json``; the latter's presence means that both are complete."""
    publishing.make_folder(filesystems.join(output, "plan"))
    with publishing.publish(filesystems.join(output, PARTS_FILE)) as stream:
        table = pa.Table.from_pylist([part._asdict() for part in parts], PARTS_SCHEMA)
        pq.write_table(table, stream, row_group_size=_ROWS_PER_GROUP)
    write_plan_file(output, plan, [PARTS_FILE])


def read_part(output: str, number: int) -> Part:
    """Returns the part of one slice. Raises as :func:`read_parts` does."""

    def read(file: pq.ParquetFile) -> pa.Table:
        whole = file.num_row_groups == 1  # as earlier releases wrote any number of rows
        return file.read() if whole else file.read_row_group(number // _ROWS_PER_GROUP)

    parts = _read_parts(output, read)
    return parts[number if len(parts) > _ROWS_PER_GROUP else number % _ROWS_PER_GROUP]


def read_parts(output: str) -> list[Part]:
    """Returns the parts of all slices.

    Raises:
      UserError: their table is gone or damaged.
    """
    return _read_parts(output, lambda file: file.read())


def _read_parts(output: str, read: Callable[[pq.ParquetFile], pa.Table]) -> list[Part]:
    path = filesystems.join(output, PARTS_FILE)
    filesystem, inner = filesystems.resolve(path)
    try:
        with filesystem.open_input_file(inner) as file:
            table = read(pq.ParquetFile(file, page_checksum_verification=True))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); restore it") from error
    if not table.schema.equals(PARTS_SCHEMA) or any(column.null_count for column in table.columns):
        raise UserError(f"{path}: is not the table of a plan's slices; restore it")
    return [Part(**row) for row in table.to_pylist()]


def _count(tokens: TokenInput, entry: Mapping[str, Any], views: str) -> int:
    """Returns rows of the chosen views in a shard whose footer agrees with the manifest."""
    path = filesystems.join(tokens.folder, entry["name"])
    with open_shard(path) as shard:
        check_footer(path, shard.metadata, shard.rows, tokens, entry["rows"])
        if views == "all":
            return shard.rows
        return sum(
            pc.sum(pc.equal(batch.column(0), 0)).as_py() or 0 for batch in shard.batches(["view"], 1 << 16)
        )


def _check_sizes(path: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Finds shards that are missing or of another size by one listing of their folder."""
    sizes = filesystems.file_sizes(path, filesystems.parents(entry["name"] for entry in entries))
    for entry in entries:
        check_shard_size(filesystems.join(path, entry["name"]), sizes.get(entry["name"]), entry["bytes"])

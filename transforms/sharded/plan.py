"""The plan: which examples go into which shard, written down before any work.

``plan/keys.parquet`` holds every entry of the source, one row group per slice; ``plan/plan.json``,
written after it, holds what identifies the plan and its hash. A pipeline's graph carries slice
numbers only; workers read their slice's entries from here.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.sharded.summary import describe_file
from transforms.sources.base import Entry
from transforms.sources.reading import change
from vqgan import filesystems
from vqgan.documents import parse_document
from vqgan.errors import UserError, first_line, printable
from vqgan.manifest import FORMAT_VERSION, check_version

PLAN_FOLDER = "plan"
PLAN_FILE = f"{PLAN_FOLDER}/plan.json"
KEYS_FILE = f"{PLAN_FOLDER}/keys.parquet"
ORDER_SALT = b"vqgan-order-1"  # changing it reorders every folder: a new format version
CHUNK = 1 << 16
_ADVICE = "restore it, or choose another output"

ENTRY_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("members", pa.string()),
        pa.field("error", pa.string()),
        pa.field("file_size", pa.int64(), nullable=False),
        pa.field("modified", pa.int64()),
    ]
)
HASHED = tuple(name for name in ENTRY_SCHEMA.names if name != "modified")
"""Columns that make a plan what it is. Times of files do not: a copied corpus is the same one."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan as it is written down.

    Attributes:
      identity: all that determines the shards' contents, as JSON data.
      slices: number of slices.
      entries: number of entries.
      hash: sha256 over the identity.
    """

    identity: Mapping[str, Any]
    slices: int
    entries: int

    @property
    def hash(self) -> str:
        text = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def collect(entries: Iterable[Entry]) -> pa.Table:
    """Returns all entries as a table of :data:`ENTRY_SCHEMA`; compact, since a corpus may have millions."""
    batches, chunk = [], []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == CHUNK:
            batches.append(_to_batch(chunk))
            chunk = []
    batches.append(_to_batch(chunk))
    return pa.Table.from_batches(batches, ENTRY_SCHEMA).combine_chunks()


def check_keys(table: pa.Table, kind: str | None = None) -> None:
    """Refuses duplicate keys.

    Args:
      table: entries.
      kind: of the source, on which it depends what to do about them.

    Raises:
      UserError: names the first few keys that occur more than once.
    """
    counts = pc.value_counts(table.column("key"))
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        names = ", ".join(repr(key) for key in sorted(repeated.slice(0, 3).to_pylist()))
        raise UserError(
            f"input: {len(repeated)} keys occur more than once, such as {names}; "
            + _advice(table.filter(pc.is_in(table.column("key"), repeated)), kind)
        )


def _advice(repeated: pa.Table, kind: str | None) -> str:
    """Returns what to do about entries whose keys are not unique."""
    if kind not in ("tar", "zip"):
        return "name a unique column with --key-column or remove the duplicates"
    if kind == "tar" and repeated.column("error").null_count < repeated.num_rows:
        return (
            "members of one sample must be neighbours in the archive: write it as tar --sort=name does, "
            "or give --whole-names if it is names with dots that look alike"
        )
    again = "the archive has members of one name twice (one was appended?): write it anew"
    return again if kind == "zip" else f"{again}, or give --whole-names if names only agree up to a dot"


def cut(table: pa.Table, slice_size: int, shuffles: bool) -> list[pa.Table]:
    """Orders and cuts the entries into slices of at most ``slice_size``.

    Single examples are ordered by a salted hash of their key: shards come out shuffled, and the
    order in which a file system lists does not matter. Containers keep their order, and a slice
    never spans two files.
    """
    if not shuffles:
        return [part for file in _by_file(table) for part in _split(file, slice_size)]
    # Stable order by key first, so that equal hashes do not depend on the listing's order either.
    by_key = table.take(pc.sort_indices(table, sort_keys=[("key", "ascending")]))
    order = np.argsort(_order_hashes(by_key.column("key")), kind="stable")
    return _split(by_key.take(pa.array(order)), slice_size)


def make_plan(slices: Iterable[pa.Table], settings: Mapping[str, Any]) -> Plan:
    """Returns the plan of these slices.

    Args:
      slices: entries of each slice.
      settings: everything else that determines the shards: codec, preprocessing, and so on.
    """
    counts: list[int] = []
    digest = hashlib.sha256()
    for part in slices:
        counts.append(part.num_rows)
        for start in range(0, part.num_rows, CHUNK):
            chunk = part.slice(start, CHUNK)
            for name in HASHED:  # and no two rows or columns run into one another
                values = json.dumps([name, chunk.column(name).to_pylist()], separators=(",", ":"))
                digest.update(values.encode() + b"\n")
    identity = {
        "version": FORMAT_VERSION,
        **settings,
        "input": {"entries": sum(counts), "sha256": digest.hexdigest()},
        "cut": hashlib.sha256(str(counts).encode()).hexdigest(),
    }
    return Plan(identity=identity, slices=len(counts), entries=sum(counts))


def write_plan(output: str, plan: Plan, slices: list[pa.Table]) -> None:
    """Writes keys, then ``plan.json``; the latter's presence means that both are complete."""
    filesystems.make_folder(filesystems.join(output, PLAN_FOLDER))
    with (
        filesystems.publish(filesystems.join(output, KEYS_FILE)) as stream,
        pq.ParquetWriter(stream, ENTRY_SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        for part in slices:
            writer.write_table(part, row_group_size=max(1, part.num_rows))
    write_plan_file(output, plan, KEYS_FILE)


def write_plan_file(output: str, plan: Plan, table: str) -> None:
    """Publishes ``plan.json``, with the sum of the table of slices, which has to be in place before."""
    text = json.dumps(plan_document(output, plan, table), indent=2, sort_keys=True) + "\n"
    filesystems.write_bytes(filesystems.join(output, PLAN_FILE), text.encode())


def plan_document(output: str, plan: Plan, table: str) -> dict[str, Any]:
    """Returns what ``plan.json`` says of a plan and of the table of its slices, which is there.

    Raises:
      OSError: the table cannot be read.
    """
    described = dataclasses.asdict(describe_file(output, table, plan.entries))
    return {**dataclasses.asdict(plan), "hash": plan.hash, "table": described}


def read_plan(output: str) -> Plan | None:
    """Returns the plan in an output folder, or None where there is none.

    Raises:
      UserError: it is damaged.
    """
    path = filesystems.join(output, PLAN_FILE)
    if not filesystems.exists(path):
        return None

    def refuse(reason: str) -> UserError:
        return UserError(f"{path}: damaged ({reason}); choose another output")

    try:
        data = filesystems.read_bytes(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); check its permissions") from error
    fields = parse_document(data, refuse)
    plan = Plan(fields.mapping("identity"), fields.integer("slices"), fields.integer("entries"))
    if plan.hash != fields.text("hash"):
        raise refuse("its hash does not agree with its contents")
    check_version(path, fields.fields("identity").integer("version"))
    return plan


def check_plan_table(output: str) -> None:
    """Compares the table of slices with its sum in ``plan.json``, as launchers do before they trust it.

    Workers, which read one slice of it, have its pages' checksums.

    Raises:
      UserError: it is gone, or not as it was written.
    """
    path = filesystems.join(output, PLAN_FILE)
    fields = parse_document(
        filesystems.read_bytes(path), lambda reason: UserError(f"{path}: damaged ({reason}); {_ADVICE}")
    ).fields("table")
    name, recorded = fields.text("name"), fields.text("sha256")
    try:
        found = describe_file(output, name, 0).sha256
    except OSError as error:
        table = filesystems.join(output, name)
        raise UserError(f"{table}: cannot be read ({first_line(error)}); {_ADVICE}") from error
    if found != recorded:
        raise UserError(
            f"{filesystems.join(output, name)}: has changed since it was written (sha256 {found[:12]}, "
            f"recorded {recorded[:12]}); {_ADVICE}"
        )


def read_slice(output: str, number: int) -> list[Entry]:
    """Returns the entries of one slice.

    Raises:
      UserError: the file of keys is gone or damaged.
    """
    with _open_keys(output) as keys:
        if number >= keys.metadata.num_row_groups:
            raise UserError(f"{filesystems.join(output, KEYS_FILE)}: has no slice {number}; restore it")
        table = keys.read_row_group(number)
    return [Entry(**row) for row in table.to_pylist()]


def read_slices(output: str) -> Iterator[pa.Table]:
    """Yields the entries of every slice in turn, as tables of :data:`ENTRY_SCHEMA`.

    Raises:
      UserError: the file of keys is gone or damaged.
    """
    with _open_keys(output) as keys:
        for number in range(keys.metadata.num_row_groups):
            yield keys.read_row_group(number)


def all_keys(output: str) -> Iterator[pa.RecordBatch]:
    """Yields key and error columns of the plan, slice by slice.

    Raises:
      UserError: the file of keys is gone or damaged.
    """
    with _open_keys(output) as keys:
        yield from keys.iter_batches(CHUNK, columns=["key", "error"])


class InputChanges(NamedTuple):
    """What has become of the files of an input since a plan was written.

    Attributes:
      lines: one for each file that is another now, or gone, or new.
      copied: the files are the same, but every one of several has another time, as after copying a corpus.
    """

    lines: list[str]
    copied: bool


def input_changes(output: str, slices: list[pa.Table]) -> InputChanges:
    """Compares the files that a plan was made of with those that are there now, by size and time.

    One file of several that has another time has changed, and so has the only one. That all have another
    time, but the sizes that they had, is what copying does.

    Args:
      output: folder with a plan.
      slices: of the plan of the input as it is now.

    Raises:
      UserError: the file of keys is gone or damaged.
    """
    with _open_keys(output) as keys:
        old = keys.read(columns=["file", "file_size", "modified"])
    both = _files(old).join(
        _files(pa.concat_tables(slices)), "file", join_type="full outer", right_suffix="_2"
    )
    sizes = pc.fill_null(pc.not_equal(both.column(_SIZE), both.column(f"{_SIZE}_2")), True)
    times = pc.fill_null(pc.not_equal(both.column(_TIME), both.column(f"{_TIME}_2")), False)
    copied = both.num_rows > 1 and not pc.any(sizes).as_py() and bool(pc.all(times).as_py())
    changed = both.filter(sizes if copied else pc.or_(sizes, times)).sort_by("file")
    return InputChanges([_change(**row) for row in changed.to_pylist()], copied)


_SIZE, _TIME = "file_size_max", "modified_max"


def _files(entries: pa.Table) -> pa.Table:
    """Returns each file that was seen, once."""
    there = entries.filter(pc.greater_equal(entries.column("file_size"), 0))
    return there.group_by("file").aggregate([("file_size", "max"), ("modified", "max")])


def _change(
    file: str,
    file_size_max: int | None,
    modified_max: int | None,
    file_size_max_2: int | None,
    modified_max_2: int | None,
) -> str:
    if file_size_max is None or file_size_max_2 is None:
        return f"{file} is {'new' if file_size_max is None else 'not there any more'}"
    seen = Entry("", file, file_size=file_size_max, modified=modified_max)
    return f"{file} has changed since it was planned: {change(seen, file_size_max_2, modified_max_2)}"


@contextlib.contextmanager
def _open_keys(output: str) -> Iterator[pq.ParquetFile]:
    path = filesystems.join(output, KEYS_FILE)
    filesystem, inner = filesystems.resolve(path)
    try:
        with filesystem.open_input_file(inner) as file:
            keys = pq.ParquetFile(file, page_checksum_verification=True)
            if not keys.schema_arrow.equals(ENTRY_SCHEMA):
                raise UserError(f"{path}: is not the file of a plan's keys; restore it")
            yield keys
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); {_ADVICE}") from error


def spread(sample: int, slices: int) -> Iterator[tuple[int, int]]:
    """Yields slice numbers with how many of ``sample`` images to take from each."""
    for number in range(min(slices, sample)):
        yield number, sample // slices + (number < sample % slices)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns what differs between two identities, one line each: ``codec.fingerprint: a, now b``."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {_short(before)}, now {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = printable(value) if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text


def _to_batch(entries: list[Entry]) -> pa.RecordBatch:
    columns = list(zip(*entries, strict=True)) or [()] * len(ENTRY_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ENTRY_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=ENTRY_SCHEMA)


def _order_hashes(keys: pa.ChunkedArray) -> np.ndarray:
    hashes = (
        hashlib.blake2b(key.encode(), digest_size=8, key=ORDER_SALT).digest()
        for chunk in keys.chunks
        for key in chunk.to_pylist()
    )
    return np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64)


def _by_file(table: pa.Table) -> Iterator[pa.Table]:
    """Runs of entries that lie in the same file."""
    if not table.num_rows:
        return
    codes = table.column("file").combine_chunks().dictionary_encode().indices.to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1), len(codes)]
    for start, end in itertools.pairwise(starts):
        yield table.slice(start, end - start)


def _split(table: pa.Table, slice_size: int) -> list[pa.Table]:
    """Cuts as few parts of at most ``slice_size`` rows as possible, as even as possible."""
    parts = -(-table.num_rows // slice_size)
    bounds = [table.num_rows * index // parts for index in range(parts + 1)] if parts else []
    return [table.slice(start, end - start) for start, end in itertools.pairwise(bounds)]

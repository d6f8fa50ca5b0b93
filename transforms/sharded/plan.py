"""The plan: which examples go into which shard, written down before any work.

``plan/keys-00000.parquet`` and its like hold every entry of the source, a row group for each slice and
:data:`SLICES_PER_FILE` slices a file, so that a slice is opened as fast in a plan of any size.
``plan/plan.json``, written after them, holds what identifies the plan and its hash. A pipeline's
graph carries slice numbers only; workers read their slice's entries from here.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.sharded.slices import CHUNK, ENTRY_SCHEMA, PASSED, entries_of, stored_schema
from transforms.sharded.summary import FileSummary, describe_file
from transforms.sources.base import Entry
from vqgan import filesystems, publishing
from vqgan.documents import Fields, parse_document
from vqgan.errors import UserError, first_line, printable
from vqgan.faults import has_come
from vqgan.manifest import FORMAT_VERSION, check_version
from vqgan.shards import part_suffix

PLAN_FOLDER = "plan"
PLAN_FILE = f"{PLAN_FOLDER}/plan.json"
WHOLE_KEYS_FILE = f"{PLAN_FOLDER}/keys.parquet"
"""All slices in plans of earlier releases."""
SLICES_PER_FILE = 64  # a Parquet footer is read whole: a slice costs at most that of so many row groups
_ADVICE = "restore it, or choose another output"

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


def settings_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that :func:`make_plan` was given, of the identity that it has made."""
    of_the_slices = ("version", "input", "cut")
    return {name: part for name, part in identity.items() if name not in of_the_slices}


def plan_folder(part: int) -> str:
    """Returns the folder, below the output, of the plan of a part of a data set; the first is number 0."""
    return f"{PLAN_FOLDER}/{part_suffix(part)[1:]}" if part else PLAN_FOLDER


def plan_file(part: int) -> str:
    """Returns the path, below the output, of a part's ``plan.json``."""
    return f"{plan_folder(part)}/plan.json"


def write_plan(output: str, plan: Plan, slices: Iterable[pa.Table], part: int = 0) -> None:
    """Writes keys, then ``plan.json``; the latter's presence means that all are complete."""
    folder = filesystems.join(output, plan_folder(part))
    publishing.make_folder(folder)
    left = iter(slices)
    names: list[str] = []
    while group := list(itertools.islice(left, SLICES_PER_FILE)):
        names.append(keys_file(len(names) * SLICES_PER_FILE, part))
        _write_keys(filesystems.join(output, names[-1]), group)
    for name in filesystems.list_names(folder):  # of a longer plan that a killed run began to write
        if f"{plan_folder(part)}/{name}" not in names and name.startswith("keys"):
            publishing.delete(filesystems.join(folder, name))
    try:
        publishing.sync_folder(folder)
    except OSError as error:
        raise publishing.output_error(folder, error) from error
    write_plan_file(output, plan, names, part)


def keys_file(number: int, part: int = 0) -> str:
    """Returns the path, below the output, of the file with the entries of a slice."""
    return f"{plan_folder(part)}/keys-{number // SLICES_PER_FILE:05d}.parquet"


def _write_keys(path: str, slices: Sequence[pa.Table]) -> None:
    schema = stored_schema(slices[0])
    options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
    with (
        publishing.publish(path, one_of_many=True) as stream,
        pq.ParquetWriter(stream, schema, **options) as writer,
    ):
        for part in slices:
            writer.write_table(part.cast(schema), row_group_size=max(1, part.num_rows))


def write_plan_file(output: str, plan: Plan, tables: Sequence[str], part: int = 0) -> None:
    """Publishes ``plan.json``, with sums of the tables of slices, which have to be in place before."""
    paths = [filesystems.join(output, name) for name in tables]
    has_come(lambda: all(map(filesystems.exists, paths)))
    try:
        document = plan_document(output, plan, tables)
    except OSError as error:
        raise publishing.output_error(output, error) from error
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    publishing.write_bytes(filesystems.join(output, plan_file(part)), text.encode())


def plan_document(output: str, plan: Plan, tables: Sequence[str]) -> dict[str, Any]:
    """Returns what ``plan.json`` says of a plan and of the tables of its slices, which are there.

    Raises:
      OSError: a table cannot be read.
    """
    described = [dataclasses.asdict(describe_table(output, name)) for name in tables]
    return {**dataclasses.asdict(plan), "hash": plan.hash, "tables": described}


def describe_table(output: str, name: str) -> FileSummary:
    """Returns size, sha256 and rows of a table of slices. Raises OSError where it cannot be read."""
    filesystem, inner = filesystems.resolve(filesystems.join(output, name))
    try:
        with filesystem.open_input_file(inner) as file:
            rows = pq.read_metadata(file).num_rows
    except pa.ArrowException as error:
        raise OSError(first_line(error)) from error
    return describe_file(output, name, rows)


def read_plan(output: str, part: int = 0) -> Plan | None:
    """Returns the plan in an output folder, or None where there is none.

    Raises:
      UserError: it is damaged.
    """
    path = filesystems.join(output, plan_file(part))
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


def plan_tables(output: str, part: int = 0) -> list[str]:
    """Returns the names of the tables of slices that ``plan.json`` lists.

    Raises:
      UserError: it is damaged.
    """
    return [table.inner_path("name") for table in _listed_tables(output, part)]


def _listed_tables(output: str, part: int) -> list[Fields]:
    path = filesystems.join(output, plan_file(part))
    fields = parse_document(
        filesystems.read_bytes(path), lambda reason: UserError(f"{path}: damaged ({reason}); {_ADVICE}")
    )
    # Earlier releases wrote one table, and said so.
    return [fields.fields("table")] if "table" in fields.data else fields.items("tables")


def check_plan_tables(output: str, part: int = 0) -> None:
    """Compares the tables of slices with their sums in ``plan.json``, as launchers do before they trust them.

    Workers, which read one slice, have its pages' checksums.

    Raises:
      UserError: one is gone, or not as it was written.
    """
    for table in _listed_tables(output, part):
        name, recorded = table.inner_path("name"), table.text("sha256")
        path = filesystems.join(output, name)
        try:
            found = describe_file(output, name, 0).sha256
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)}); {_ADVICE}") from error
        if found != recorded:
            raise UserError(
                f"{path}: has changed since it was written (sha256 {found[:12]}, "
                f"recorded {recorded[:12]}); {_ADVICE}"
            )


def read_slice(output: str, number: int, part: int = 0) -> list[Entry]:
    """Returns the entries of one slice, with what listing took from the source for the shards.

    Raises:
      UserError: its file of keys is gone or damaged.
    """
    name, group = keys_file(number, part), number % SLICES_PER_FILE
    here, whole = (filesystems.join(output, each) for each in (name, WHOLE_KEYS_FILE))
    if not part and not filesystems.exists(here) and filesystems.exists(whole):
        name, group = WHOLE_KEYS_FILE, number
    with _open_keys(output, name) as keys:
        if group >= keys.metadata.num_row_groups:
            raise UserError(f"{filesystems.join(output, name)}: has no slice {number}; restore it")
        return entries_of(keys.read_row_group(group))


def read_slices(output: str, columns: Sequence[str] | None = None, part: int = 0) -> Iterator[pa.Table]:
    """Yields these columns of every slice in turn, by default all of them.

    Raises:
      UserError: ``plan.json`` or a file of keys is gone or damaged.
    """
    for name in plan_tables(output, part):
        with _open_keys(output, name) as keys:
            for group in range(keys.metadata.num_row_groups):
                yield keys.read_row_group(group, columns=None if columns is None else list(columns))


@contextlib.contextmanager
def _open_keys(output: str, name: str) -> Iterator[pq.ParquetFile]:
    path = filesystems.join(output, name)
    filesystem, inner = filesystems.resolve(path)
    try:
        with filesystem.open_input_file(inner) as file:
            keys = pq.ParquetFile(file, page_checksum_verification=True)
            _check_columns(path, keys.schema_arrow)
            yield keys
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); {_ADVICE}") from error


def _check_columns(path: str, schema: pa.Schema) -> None:
    own, passed = list(schema)[: len(ENTRY_SCHEMA)], schema.names[len(ENTRY_SCHEMA) :]
    if own != list(ENTRY_SCHEMA) or not all(name.startswith(PASSED) for name in passed):
        raise UserError(f"{path}: is not the file of a plan's keys; restore it")


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

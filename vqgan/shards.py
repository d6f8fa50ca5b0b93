"""The Parquet contract: schema, footer metadata, writer and reader of token shards.

Beside its columns a shard carries, as JSON under the footer key ``vqgan``, what is needed to decode or
refuse it: the codec's fingerprint and configuration, the grid, the preprocessing, and its slice and plan.
"""

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vqgan import filesystems
from vqgan.documents import Fields, parse_document
from vqgan.errors import UserError, first_line
from vqgan.manifest import AGAIN, FORMAT_VERSION, check_version
from vqgan.shard_columns import (
    COMPRESSION,
    LATENTS,
    TOKENS_LEAF,
    fixed_lists,
    latent_lists,
    rows_at_once,
    shard_schema,
    smallest_encoding,
    token_dtype,
)
from vqgan.token_layouts import GRID, read_latent_shape, read_token_layout, token_shape

METADATA_KEY = b"vqgan"
DATA_FOLDER = "data"
REJECTS_FOLDER = "rejects"
TOKENS_PER_ROW_GROUP = 1 << 20  # 4 MiB before compression: bounds a writer's memory
MOST_SIDE = 1 << 15  # of a grid: Arrow counts the tokens of a row in 31 bits


def footer_json(document: Mapping[str, Any]) -> bytes:
    """Writes a footer as canonical JSON, with the format's version: the same fields give the same bytes."""
    return json.dumps({"version": FORMAT_VERSION, **document}, sort_keys=True, separators=(",", ":")).encode()


def footer_fields(data: bytes, where: str, names: Collection[str]) -> Fields:
    """Opens the document that :func:`footer_json` wrote, to be read field by field.

    Args:
      data: the JSON.
      where: the file, for messages.
      names: of the fields that it may have.

    Raises:
      UserError: damaged, another format version, or unknown fields. So does reading a field.
    """
    fields = parse_document(data, lambda reason: UserError(f"{where}: damaged footer metadata ({reason})"))
    check_version(where, fields.integer("version"))
    fields.only({"version", *names})
    return fields


@dataclasses.dataclass(frozen=True)
class ShardMetadata:
    """What a shard's footer says.

    Attributes:
      fingerprint: of the codec that made the tokens.
      codec_config: that codec's configuration, as JSON data.
      codec_origin: where that codec came from, as JSON data.
      grid: ``(h, w)`` of each row's tokens, row-major.
      codebook_size: tokens lie in ``[0, codebook_size)``.
      preprocessing: how pixels were made from the source's bytes, as JSON data.
      plan_hash: of the plan that this shard is a slice of.
      slice_number: which slice, from 0.
      slices: how many slices the plan has.
      planned: entries of the slice; each became an image with rows, or a reject.
      images: images that have rows here.
      rejects: entries in the rejects file of the slice.
      sampling: for tokens drawn from a prior, which one and how, as JSON data; None for real images.
      engine: what ran the codec's networks, by name and version; None for JAX.
      layout: of the tokens; other than ``grid`` they are one row of ``L`` (:mod:`vqgan.token_layouts`).
      latents: shape of one row's latents, where the shard has that column.
    """

    fingerprint: str
    codec_config: Mapping[str, Any]
    codec_origin: Mapping[str, Any]
    grid: tuple[int, int]
    codebook_size: int
    preprocessing: Mapping[str, Any]
    plan_hash: str
    slice_number: int
    slices: int
    planned: int
    images: int = 0
    rejects: int = 0
    sampling: Mapping[str, Any] | None = None
    engine: str | None = None
    layout: str = GRID
    latents: tuple[int, ...] | None = None

    def to_json(self) -> bytes:
        """Writes canonical JSON: the same metadata gives the same bytes."""
        document = dataclasses.asdict(self)
        usual = {"sampling": None, "engine": None, "layout": GRID, "latents": None}
        return footer_json({n: value for n, value in document.items() if n not in usual or value != usual[n]})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Reads the footer's JSON.

        Raises:
          UserError: another format version, or a field is missing or of another type.
        """
        fields = footer_fields(data, where, {field.name for field in dataclasses.fields(cls)})
        height, width = fields.integers("grid", 2, least=1, most=MOST_SIDE)
        return cls(
            fingerprint=fields.text("fingerprint"),
            codec_config=fields.mapping("codec_config"),
            codec_origin=fields.mapping("codec_origin"),
            grid=(height, width),
            codebook_size=fields.integer("codebook_size", least=1, most=1 << 31),
            preprocessing=fields.mapping("preprocessing"),
            plan_hash=fields.text("plan_hash"),
            slice_number=fields.integer("slice_number"),
            slices=fields.integer("slices"),
            planned=fields.integer("planned"),
            images=fields.integer("images", 0),
            rejects=fields.integer("rejects", 0),
            sampling=None if fields.value("sampling", None) is None else fields.mapping("sampling"),
            engine=fields.text_or_none("engine"),
            layout=read_token_layout(fields, fields.mapping("codec_config")),
            latents=read_latent_shape(fields),
        )


def shard_name(number: int, slices: int, part: int = 0) -> str:
    """Returns the path of a shard in its data set: ``data/tokens-00017-of-00128.parquet``."""
    return f"{DATA_FOLDER}/tokens-{number:05d}-of-{slices:05d}{part_suffix(part)}.parquet"


def rejects_name(number: int, slices: int, part: int = 0) -> str:
    """Returns the path of a slice's rejects: ``rejects/rejects-00017-of-00128.parquet``."""
    return f"{REJECTS_FOLDER}/rejects-{number:05d}-of-{slices:05d}{part_suffix(part)}.parquet"


def part_suffix(part: int) -> str:
    """Returns the end of names of what belongs to a part; empty for the first."""
    return f"-part-{part:03d}" if part else ""


class ShardWriter:
    """Writes rows to one shard, a bounded number at a time.

    The caller gives a stream and closes it; use as a context manager.
    """

    def __init__(self, stream: BinaryIO, metadata: ShardMetadata, extra: Sequence[pa.Field] = ()):
        self.schema = shard_schema(metadata.grid, metadata.codebook_size, extra, metadata.latents)
        self._metadata = metadata
        self._dtype = token_dtype(metadata.codebook_size)
        length = metadata.grid[0] * metadata.grid[1]
        self._group_rows = rows_at_once(max(1, TOKENS_PER_ROW_GROUP // length), metadata.latents)
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._stream = stream
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush(self._pending_rows)
            writer = self._open(self.schema.empty_table())
            writer.add_key_value_metadata({METADATA_KEY: self._metadata.to_json()})
            writer.close()
        elif self._writer is not None:
            with contextlib.suppress(OSError):  # the error that ended the block is the one to tell
                self._writer.close()

    def set_counts(self, images: int, rejects: int) -> None:
        """Sets what became of the slice's entries; it goes into the footer."""
        self._metadata = dataclasses.replace(self._metadata, images=images, rejects=rejects)

    def write(
        self, columns: Mapping[str, Any], tokens: np.ndarray, latents: np.ndarray | None = None
    ) -> None:
        """Adds rows.

        Args:
          columns: for every column but ``tokens`` and ``latents``, one value per row.
          tokens: int32 ``[rows, h, w]``, or ``[rows, L]`` where the layout is no grid.
          latents: float32, one row each of the footer's shape, where the shard has them.
        """
        arrays = []
        for field in self.schema:
            if field.name == "tokens":
                arrays.append(fixed_lists(tokens.astype(self._dtype), field.type))
            elif field.name == LATENTS:
                assert latents is not None
                arrays.append(latent_lists(latents, field.type))
            else:
                arrays.append(pa.array(columns[field.name], field.type))
        self._pending.append(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
        self._pending_rows += len(tokens)
        while self._pending_rows >= self._group_rows:
            self._flush(self._group_rows)

    def _flush(self, rows: int) -> None:
        """Writes the first ``rows`` pending rows as one row group."""
        if not rows:
            return
        table = pa.Table.from_batches(self._pending)
        group = table.slice(0, rows).combine_chunks()  # or Parquet's pages would follow the callers' cuts
        self._open(group).write_table(group, row_group_size=rows)
        rest = table.slice(rows)
        self._pending = rest.to_batches()
        self._pending_rows = rest.num_rows

    def _open(self, first_group: pa.Table) -> pq.ParquetWriter:
        """Returns the Parquet writer, opened with the encoding that suits the first rows."""
        if self._writer is None:
            encoding = smallest_encoding(first_group.select(["tokens"]))
            plain = ("tokens", "key", "crop", LATENTS)  # DuckDB reads float16 in no other encoding
            dictionary = [name for name in self.schema.names if name not in plain]
            if "column_encoding" not in encoding:
                dictionary.append(TOKENS_LEAF)
            self._writer = pq.ParquetWriter(
                self._stream,
                self.schema,
                use_dictionary=[*dictionary, "crop.list.element"],
                column_encoding=encoding.get("column_encoding"),
                write_page_checksum=True,
                **COMPRESSION,
            )
        return self._writer


class Shard:
    """One token shard, opened for reading.

    Attributes:
      metadata: the footer's contents.
      name: how errors call it.
    """

    def __init__(self, file: str | BinaryIO | pa.NativeFile, name: str):
        """Opens the file and reads its footer.

        Raises:
          UserError: not a Parquet file, damaged, or not a token shard.
        """
        self.name = name
        try:
            self._file = pq.ParquetFile(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{name}: not a readable Parquet file ({first_line(error)}); {AGAIN}") from error
        footer = {**(self._file.schema_arrow.metadata or {}), **(self._file.metadata.metadata or {})}
        if METADATA_KEY not in footer:
            raise UserError(f"{name}: a Parquet file, but not a token shard (no 'vqgan' in its footer)")
        self.metadata = ShardMetadata.from_json(footer[METADATA_KEY], name)
        metadata = self.metadata
        for field in shard_schema(metadata.grid, metadata.codebook_size, latents=metadata.latents):
            index = self.schema.get_field_index(field.name)
            if index < 0 or self.schema.field(index).type != field.type:
                raise UserError(f"{name}: damaged (column {field.name!r} is not of type {field.type})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def rows(self) -> int:
        """Returns the number of rows."""
        return self.footer.num_rows

    @property
    def footer(self) -> pq.FileMetaData:
        """Returns Parquet's own footer."""
        return self._file.metadata

    @property
    def schema(self) -> pa.Schema:
        """Returns the Arrow schema of the columns."""
        return self._file.schema_arrow

    def token_bytes(self) -> int:
        """Returns the bytes that the token column takes on disk. Call once that column has been read.

        Where the metadata of a chunk is damaged, reading raises, but pyarrow ends the process if it is asked
        for them first.
        """
        leaves = range(len(self.footer.schema))
        tokens = [leaf for leaf in leaves if self.footer.schema.column(leaf).path.startswith("tokens.")]
        groups = map(self.footer.row_group, range(self.footer.num_row_groups))
        return sum(group.column(leaf).total_compressed_size for group in groups for leaf in tokens)

    def require(self, fingerprint: str) -> None:
        """Refuses tokens of another codec.

        Raises:
          UserError: the shard was made by a codec with another fingerprint.
        """
        if self.metadata.fingerprint != fingerprint:
            raise UserError(
                f"{self.name}: its tokens were made by codec {self.metadata.fingerprint[:12]}, not by "
                f"{fingerprint[:12]}; give the codec that made them"
            )

    def batches(self, columns: Sequence[str] | None = None, rows: int = 1024) -> Iterator[pa.RecordBatch]:
        """Reads rows in order, at most ``rows`` at a time, and fewer where they have many latents.

        Raises:
          UserError: a damaged page.
        """
        if columns is None or LATENTS in columns:
            rows = rows_at_once(rows, self.metadata.latents)
        try:
            yield from self._file.iter_batches(batch_size=rows, columns=columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{self.name}: damaged ({first_line(error)})") from error

    def row_group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Reads some columns of one row group.

        Raises:
          UserError: a damaged page.
        """
        try:
            return self._file.read_row_group(number, columns=list(dict.fromkeys(columns)))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{self.name}: damaged ({first_line(error)}); {AGAIN}") from error

    def tokens(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns the tokens of a batch with its ``tokens`` column, int32 ``[rows, h, w]``, ``[rows, L]``."""
        column = batch.column("tokens")
        flat = column.flatten()
        if column.null_count or flat.null_count:  # which no writer of ours leaves
            raise UserError(f"{self.name}: damaged (rows without tokens)")
        shape = token_shape(self.metadata.layout, self.metadata.grid)
        return flat.to_numpy().astype(np.int32).reshape(-1, *shape)

    def latents(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns the latents of a batch with that column, float16 ``[rows, h, w, D]``, ``[rows, L, D]``.

        Raises:
          UserError: the shard has none, or a damaged page.
        """
        if self.metadata.latents is None:
            raise UserError(f"{self.name}: no latents; tokenize with --columns-out latents")
        column = batch.column(LATENTS)
        flat = column.flatten()
        if column.null_count or flat.null_count:
            raise UserError(f"{self.name}: damaged (rows without latents)")
        return flat.to_numpy().reshape(-1, *self.metadata.latents)


@contextlib.contextmanager
def open_shard(path: str, name: str | None = None) -> Iterator[Shard]:
    """Opens the shard at a local path or URI while the block lasts.

    Args:
      path: where it lies.
      name: how errors call it; the path by default.

    Raises:
      UserError: it cannot be opened, is no token shard, or a damaged one.
    """
    filesystem, inner = filesystems.resolve(path)
    try:
        file = filesystem.open_input_file(inner)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({first_line(error)})") from error
    with file, Shard(file, path if name is None else name) as shard:
        yield shard

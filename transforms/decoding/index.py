"""The index of a slice of images: one Parquet row for each, and a footer that says what the slice is.

It is published last, so its presence says that every image of the slice lies where it should. In the
form ``parquet`` it holds the images themselves, in a column as Hugging Face ``datasets`` reads it.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from vqgan import filesystems
from vqgan.documents import Fields
from vqgan.errors import UserError, first_line
from vqgan.manifest import AGAIN
from vqgan.shards import DATA_FOLDER, footer_fields, footer_json

METADATA_KEY = b"vqgan-images"
ROWS_PER_GROUP = 1024
BYTES_PER_GROUP = 32 << 20
IMAGE = "image"
# `datasets` takes a column for the feature that the schema names only if the fields are equal, and its own
# fields are nullable. No image is ever null.
IMAGE_FIELD = pa.field(IMAGE, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("view", pa.uint8(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("file", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)


class IndexRow(NamedTuple):
    """What an index says of one image.

    Attributes:
      key, view: of the row of tokens that it was made of.
      label: its class, where there is one.
      file: path in the output, member of the tar, or in the form ``parquet`` a name to save it by.
      width, height: in pixels.
      bytes: size of the encoded image.
      sha256: of its bytes.
    """

    key: str
    view: int
    label: int | None
    file: str
    width: int
    height: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class IndexMetadata:
    """What an index's footer says.

    Attributes:
      plan_hash: of the plan that this is a slice of.
      slice_number: which slice, from 0.
      slices: how many slices the plan has.
      container: ``files``, ``tar`` or ``parquet``.
      encoding: of the images.
      fingerprint: of the codec that made the tokens.
      decoder_sha256: of the decoder that made the images.
      planned: rows of tokens; each became an image or a reject.
      images: images.
      rejects: rows of the rejects file.
      archive: of the form ``tar``: name, bytes and sha256 of the slice's tar.
    """

    plan_hash: str
    slice_number: int
    slices: int
    container: str
    encoding: str
    fingerprint: str
    decoder_sha256: str
    planned: int
    images: int = 0
    rejects: int = 0
    archive: Mapping[str, Any] | None = None

    def to_json(self) -> bytes:
        """Returns canonical JSON: the same metadata gives the same bytes."""
        return footer_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Reads the footer's JSON.

        Raises:
          UserError: another format version, or a field is missing or of another type.
        """
        fields = footer_fields(data, where, {field.name for field in dataclasses.fields(cls)})
        archive = None if fields.value("archive", None) is None else fields.fields("archive")
        return cls(
            plan_hash=fields.text("plan_hash"),
            slice_number=fields.integer("slice_number"),
            slices=fields.integer("slices"),
            container=fields.text("container"),
            encoding=fields.text("encoding"),
            fingerprint=fields.text("fingerprint"),
            decoder_sha256=fields.text("decoder_sha256"),
            planned=fields.integer("planned"),
            images=fields.integer("images", 0),
            rejects=fields.integer("rejects", 0),
            archive=None if archive is None else _archive(archive),
        )


def _archive(fields: Fields) -> dict[str, Any]:
    return {"name": fields.text("name"), "bytes": fields.integer("bytes"), "sha256": fields.text("sha256")}


def index_schema(with_images: bool) -> pa.Schema:
    """Returns columns of an index, with what Hugging Face ``datasets`` wants to know of them.

    Its ``Image`` feature is a nullable struct of the encoded bytes and a path, and is told from any other
    struct by JSON under the schema's key ``huggingface`` alone.
    """
    fields = [IMAGE_FIELD, *INDEX_SCHEMA] if with_images else list(INDEX_SCHEMA)
    features: dict[str, Any] = {
        field.name: {"dtype": str(field.type), "_type": "Value"} for field in INDEX_SCHEMA
    }
    if with_images:
        features[IMAGE] = {"_type": "Image"}
    described = json.dumps({"info": {"features": features}}, sort_keys=True)
    return pa.schema(fields, metadata={"huggingface": described})


class IndexWriter:
    """Writes an index a bounded number of rows at a time; use as a context manager.

    The caller gives a stream and closes it.
    """

    def __init__(self, stream: BinaryIO, metadata: IndexMetadata, with_images: bool):
        self._metadata = metadata
        self._schema = index_schema(with_images)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        plain = INDEX_SCHEMA.names
        self._writer = pq.ParquetWriter(
            stream,
            self._schema,
            # Images are compressed already; statistics and dictionaries of them would only cost time.
            compression=dict.fromkeys(plain, "zstd") | {"image.bytes": "none", "image.path": "zstd"},
            use_dictionary=["view", "label", "width", "height"],
            write_statistics=plain,
            write_page_checksum=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
            self._writer.add_key_value_metadata({METADATA_KEY: self._metadata.to_json()})
            self._writer.close()
        else:
            with contextlib.suppress(OSError):  # the error that ended the block is the one to tell
                self._writer.close()

    def set_result(self, images: int, rejects: int, archive: Mapping[str, Any] | None) -> None:
        """Takes what became of the slice's rows; it goes into the footer."""
        self._metadata = dataclasses.replace(self._metadata, images=images, rejects=rejects, archive=archive)

    def write(self, row: IndexRow, data: bytes) -> None:
        """Adds an image; its bytes are kept where the schema has a column for them."""
        values = row._asdict()
        if IMAGE in self._schema.names:
            values[IMAGE] = {"bytes": data, "path": row.file}
            self._bytes += len(data)
        self._rows.append(values)
        if len(self._rows) >= ROWS_PER_GROUP or self._bytes >= BYTES_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows, self._bytes = [], 0


class Index:
    """An index, opened for reading.

    Attributes:
      metadata: the footer's contents.
      rows: number of rows.
    """

    def __init__(self, file: pa.NativeFile, name: str):
        """Opens the file and reads its footer.

        Raises:
          UserError: not a Parquet file, damaged, or not an index of images.
        """
        self._name = name
        try:
            self._file = pq.ParquetFile(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{name}: not a readable Parquet file ({first_line(error)}); {AGAIN}") from error
        footer = self._file.metadata.metadata or {}
        if METADATA_KEY not in footer:
            raise UserError(f"{name}: a Parquet file, but not an index of images")
        self.metadata = IndexMetadata.from_json(footer[METADATA_KEY], name)
        self.rows: int = self._file.metadata.num_rows
        schema = self._file.schema_arrow
        places = {column: schema.get_field_index(column) for column in (*INDEX_SCHEMA.names, IMAGE)}
        for field in INDEX_SCHEMA:
            if places[field.name] < 0:  # also where there are two of a name
                raise UserError(f"{name}: damaged (no column {field.name!r})")
        for field in INDEX_SCHEMA:
            if not schema.field(places[field.name]).equals(field):
                raise UserError(f"{name}: damaged (column {field.name!r} is not of type {field.type})")
        place = places[IMAGE]
        if IMAGE in schema.names and (place < 0 or schema.field(place).type != IMAGE_FIELD.type):
            raise UserError(f"{name}: damaged (column {IMAGE!r} is not of type {IMAGE_FIELD.type})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self) -> Iterator[tuple[IndexRow, bytes | None]]:
        """Yields rows in order, each with its image where the index holds them.

        Raises:
          UserError: a damaged page.
        """
        for batch in self._batches():
            rows = [IndexRow(**values) for values in batch.select(INDEX_SCHEMA.names).to_pylist()]
            if IMAGE not in batch.schema.names:
                yield from ((row, None) for row in rows)
                continue
            for row, image in zip(rows, batch.column(IMAGE).to_pylist(), strict=True):
                if image is None or image["bytes"] is None:
                    raise UserError(f"{self._name}: damaged (the row of {row.file} holds no image)")
                yield row, image["bytes"]

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._file.iter_batches(batch_size=64)
        except (pa.ArrowException, OSError, ValueError) as error:  # of reading alone: nobody else's come here
            raise UserError(f"{self._name}: damaged ({first_line(error)})") from error


@contextlib.contextmanager
def open_index(output: str, name: str) -> Iterator[Index]:
    """Returns the index of this name in an output.

    Raises:
      UserError: damaged.
      OSError: it cannot be opened.
    """
    filesystem, inner = filesystems.resolve(filesystems.join(output, name))
    with filesystem.open_input_file(inner) as file, Index(file, name) as index:
        yield index


INDEX_FOLDER = "index"
IMAGES_FOLDER = "images"
METADATA_FILE = f"{IMAGES_FOLDER}/metadata.jsonl"
"""Name that ``imagefolder`` looks for beside the images."""


def index_name(number: int, slices: int, container: str) -> str:
    """Returns the path of a slice's index: ``index/images-00017-of-00128.parquet``.

    In the form ``parquet`` the index holds the images themselves and lies in ``data/``.

    Args:
      number: of the slice, from 0.
      slices: number of slices.
      container: ``files``, ``tar`` or ``parquet``.
    """
    return f"{index_folder(container)}/images-{number:05d}-of-{slices:05d}.parquet"


def index_folder(container: str) -> str:
    """Returns the folder of the indices in this form."""
    return DATA_FOLDER if container == "parquet" else INDEX_FOLDER


def archive_name(number: int, slices: int) -> str:
    """Returns the path of a slice's tar: ``data/images-00017-of-00128.tar``."""
    return f"{DATA_FOLDER}/images-{number:05d}-of-{slices:05d}.tar"


def folders(container: str) -> tuple[str, ...]:
    """Returns the folders that a run of this form writes files to, but for those below ``images/``."""
    if container == "files":
        return INDEX_FOLDER, IMAGES_FOLDER
    return (DATA_FOLDER,) if container == "parquet" else (DATA_FOLDER, INDEX_FOLDER)

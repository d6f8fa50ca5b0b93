"""The manifest's file. It is written last: its presence means that a data set is complete."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vqgan import filesystems, publishing
from vqgan.documents import Fields, parse_document
from vqgan.downloads import fetch_folder, is_dataset
from vqgan.errors import UserError, first_line
from vqgan.token_layouts import read_token_layout

FORMAT_VERSION = 2
"""Of a data set: its layout, manifest, plan, shards and indices."""
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.html"
BUCKETS_FILE = "buckets.json"
"""In a folder of several data sets, one for each size."""
IMAGES_KIND = "images"
"""``kind`` in the manifest of decoded images; that of tokens has none."""
PARTS = (
    "plan_hash", "identity", "codec", "grid", "counts", "shards", "rejects", "reject_reasons", "codebook",
    "storage", "throughput", "versions", "finished",
)  # fmt: skip
"""What every manifest holds, beside its version."""
AGAIN = "restore it, or move it away and run the command that wrote the data set again"
"""What to do about a file that is not as it was written. Nothing is lost by it, whoever reads the file."""
# What reads a token data set looks at; its report and whatever else lies there stay where they are.
_ON_THE_HUB = (MANIFEST_FILE, "README.md", "plan/*", "data/*.parquet", "rejects/*.parquet")


def resolve_dataset(path: str) -> str:
    """Returns where the files of a token data set lie.

    Args:
      path: folder or URI, which is given back as it is; or ``hf://datasets/owner/name[@revision]``, which
        is downloaded where it is not in the library's cache.

    Raises:
      UserError: a malformed address, no ``huggingface_hub``, no token data set there, or it is unavailable.
    """
    if not is_dataset(path):
        return path
    return str(fetch_folder(path, MANIFEST_FILE, _ON_THE_HUB, "finished token data set"))


def write_manifest(output: str, manifest: Mapping[str, Any]) -> None:
    """Publishes the manifest."""
    _write(output, MANIFEST_FILE, manifest)


def write_buckets(output: str, document: Mapping[str, Any]) -> None:
    """Publishes what a folder says that holds a data set for each of several sizes."""
    _write(output, BUCKETS_FILE, document)


def _write(output: str, name: str, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=1) + "\n"
    publishing.write_bytes(filesystems.join(output, name), text.encode())


def read_manifest(output: str) -> dict[str, Any] | None:
    """Reads the manifest of a data set; None where it is not complete.

    Raises:
      UserError: it cannot be read, is damaged, or of another format version.
    """
    path = filesystems.join(output, MANIFEST_FILE)
    if not filesystems.exists(path):
        return None
    try:
        data = filesystems.read_bytes(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); check its permissions") from error
    fields = parse_document(data, lambda reason: damaged_manifest(output, reason))
    check_version(path, fields.integer("version"))
    return dict(fields.data)


def bucket_names(output: str) -> list[str]:
    """Returns the folders of data sets below a folder of buckets; none where it is no such folder.

    They are those that it lists, and what a run has begun that is not finished; of a first run that is not
    finished, those of all buckets. On the Hub there is none: an address there is of one data set.

    Raises:
      UserError: its list of buckets is damaged.
    """
    found = None if is_dataset(output) else read_buckets(output)
    if found is None:
        return []
    listed = found.get("data_sets", found["buckets"])
    return [
        name
        for name in found["buckets"]
        if name in listed or filesystems.exists(filesystems.join(output, name))
    ]


def refuse_buckets(path: str) -> None:
    """Refuses a folder of buckets where one data set is meant.

    Raises:
      UserError: names one of its data sets.
    """
    if names := bucket_names(path):
        one = filesystems.join(path, names[0])
        raise UserError(f"{path}: holds a data set for each size; give one of them, such as {one}")


def read_buckets(output: str) -> dict[str, Any] | None:
    """Reads what a folder says that holds a data set for each of several sizes; None where it is none.

    Raises:
      UserError: it is damaged, or of another format version.
    """
    path = filesystems.join(output, BUCKETS_FILE)
    if not filesystems.exists(path):
        return None
    damaged = lambda reason: UserError(f"{path}: damaged ({reason}); {AGAIN}")  # noqa: E731
    fields = parse_document(filesystems.read_bytes(path), damaged)
    check_version(path, fields.integer("version"))
    buckets, data_sets = fields.texts("buckets"), fields.texts("data_sets", ())
    for name in (*buckets, *data_sets):
        if re.fullmatch(r"\d+x\d+", name, re.ASCII) is None:
            raise damaged(f"{name!r} is no size")
    if strangers := [name for name in data_sets if name not in buckets]:
        raise damaged(f"{strangers[0]} is none of its buckets")
    return dict(fields.data)


def manifest_fields(output: str, manifest: Mapping[str, Any]) -> Fields:
    """Opens a manifest to be read field by field; what it lacks is told as damage of its file."""
    return Fields(manifest, lambda reason: damaged_manifest(output, reason))


@dataclasses.dataclass(frozen=True)
class DataSetPart:
    """What one run has added to a data set.

    Attributes:
      plan_hash: of its plan.
      slices: how many shards it has.
      made: the command: ``tokenize``, ``append``, ``retry``, ``sample``.
      retries: how many parts just before it; it has tried their rejects again, and lists those that are left.
    """

    plan_hash: str
    slices: int
    made: str
    retries: int = 0


def parts_of(fields: Fields) -> list[DataSetPart]:
    """Returns the parts of a token data set in their order; one that was made by one run has one.

    Raises:
      UserError: the manifest is damaged.
    """
    if "parts" not in fields.data:
        sampled = "sampling" in fields.fields("identity", {}).data
        made = "sample" if sampled else "tokenize"
        return [DataSetPart(fields.text("plan_hash"), len(fields.items("shards")), made)]
    return [
        DataSetPart(
            part.text("plan_hash"),
            part.integer("slices"),
            part.text("made"),
            part.integer("retries", 0, most=number),
        )
        for number, part in enumerate(fields.items("parts"))
    ]


def superseded_parts(parts: Sequence[DataSetPart]) -> set[int]:
    """Returns the numbers of parts whose rejects a later one has tried again."""
    return {old for number, part in enumerate(parts) for old in range(number - part.retries, number)}


def chain_hash(hashes: Sequence[str]) -> str:
    """Returns what stands for the plans of parts, as a data set's ``plan_hash``: that of one is its own."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(json.dumps(list(hashes)).encode()).hexdigest()


def check_version(where: str, version: int) -> None:
    """Refuses files of another format version.

    Args:
      where: the file, for the message.
      version: that it says it has.

    Raises:
      UserError: another version, and what to do about it.
    """
    if version == FORMAT_VERSION:
        return
    older = version < FORMAT_VERSION
    advice = "make the data set again, in a new folder" if older else "upgrade vqgan-pipelines"
    said = " ".join(f"{version!s:.40}".split())
    raise UserError(f"{where}: format version {said}, this release reads {FORMAT_VERSION}; {advice}")


def check_tokens(path: str, manifest: Mapping[str, Any]) -> None:
    """Checks that a data set holds tokens.

    Args:
      path: its folder.
      manifest: of it.

    Raises:
      UserError: it holds decoded images.
    """
    if manifest.get("kind") == IMAGES_KIND:
        raise UserError(f"{path}: holds images already; give the token data set that they were made of")


def check_parts(output: str, manifest: Mapping[str, Any]) -> None:
    """Checks that a manifest has all the parts that :func:`write_manifest` was given, each of its type.

    Raises:
      UserError: one is missing or of another type.
    """
    fields = manifest_fields(output, manifest)
    for name in PARTS:
        fields.value(name)
    images = manifest.get("kind") == IMAGES_KIND
    fields.text("plan_hash")
    fields.text("finished")
    identity = fields.fields("identity")
    identity.mapping("preprocessing")
    identity.mapping("source", {})
    codec = fields.fields("codec")
    for name in ("name", "fingerprint", *(("decoder_sha256",) if images else ())):
        codec.text(name)
    fields.integers("grid", 2, least=1)
    read_token_layout(fields, codec.mapping("config", {}))
    for name in ("planned", "images", "rejects", "rows", *(() if images else ("tokens",))):
        fields.fields("counts").integer(name)
    for name in ("shards", "rejects", *(("archives", "metadata") if images else ())):
        check_entries(fields, name)
    fields.sizes("reject_reasons")
    _check_circumstances(fields)
    codebook, storage = fields.fields("codebook"), fields.fields("storage")
    if images:
        identity.fields("form").text("container")
        storage.number("image_bytes")
        tokens = fields.fields("tokens")
        for name in ("path", "plan_hash", "codec", "fingerprint"):
            tokens.text(name)
        tokens.integers("grid", 2, least=1)
        tokens.integer("slices")
        codec.fields("config").integer("codebook_size")
        return
    codebook.integer("used")
    if len(codebook.integers("histogram")) != codebook.integer("size"):
        raise damaged_manifest(output, "its histogram has another length than its codebook")


def _check_circumstances(fields: Fields) -> None:
    """Checks the types of what says when, how fast and by what a data set was made."""
    throughput, versions = fields.fields("throughput"), fields.fields("versions")
    for name in ("images", "worker_seconds", "images_per_second"):
        throughput.number(name, 0.0)
    for name in versions.data:
        versions.text(name)
    fields.fields("codec").mapping("card", {})
    if fields.value("agreement_with_float32", None) is not None:
        agreement = fields.fields("agreement_with_float32")
        agreement.integer("images")
        agreement.number("share")
    if fields.value("agreement_with_jax", None) is not None:
        agreement = fields.fields("agreement_with_jax")
        for name in agreement.data:
            agreement.number(name)


def check_entries(fields: Fields, name: str) -> None:
    """Checks that a list of a manifest tells name, rows, bytes and sha256 of each file.

    Raises:
      UserError: it does not.
    """
    for entry in fields.items(name):
        entry.inner_path("name")
        entry.integer("rows")
        entry.integer("bytes")
        entry.text("sha256")


def damaged_manifest(output: str, reason: str) -> UserError:
    """Returns what is wrong with the manifest of a data set, and what to do about it."""
    return UserError(f"{filesystems.join(output, MANIFEST_FILE)}: damaged ({reason}); {AGAIN}")


@dataclasses.dataclass(frozen=True)
class TokenManifest:
    """The manifest of a token data set: what it declares about every shard.

    Attributes:
      path: of the data set, as it was given.
      folder: where its files lie: the same, or the cache of what lies on the Hub.
      document: the whole of it, as JSON data.
      plan_hash: of the plan that the shards are slices of.
      fingerprint: of the codec.
      codec_name: how that codec was called, or an empty string.
      grid: ``(h, w)``.
      layout: how the tokens of a row lie; other than ``grid`` they are one row of ``L``.
      histogram: int64 ``[K]`` of all rows.
      entries: ``name``, ``rows`` and ``bytes`` of each shard.
      parts: slices of each part, by the hash of its plan.
    """

    path: str
    folder: str
    document: Mapping[str, Any]
    plan_hash: str
    fingerprint: str
    codec_name: str
    grid: tuple[int, int]
    layout: str
    histogram: np.ndarray
    entries: Sequence[Mapping[str, Any]]
    parts: Mapping[str, int]

    @property
    def codebook_size(self) -> int:
        """Returns the number of codes."""
        return len(self.histogram)


def load_token_manifest(path: str) -> TokenManifest:
    """Reads the manifest of a finished token data set, and checks it.

    Args:
      path: folder, URI, or ``hf://datasets/owner/name[@revision]``.

    Raises:
      UserError: there is no data set, it is unavailable on the Hub, it is not finished, it holds images,
        or its manifest is damaged.
    """
    folder = resolve_dataset(path)
    document = read_manifest(folder)
    if document is None:
        if not filesystems.exists(folder):
            raise UserError(f"{path}: nothing there; give a folder that vqgan tokenize or sample has written")
        refuse_buckets(path)
        raise UserError(
            f"{path}: not a finished data set (no {MANIFEST_FILE}); run the command that writes it again"
        )
    check_tokens(path, document)
    return _parse(path, folder, document)


def _parse(path: str, folder: str, document: Mapping[str, Any]) -> TokenManifest:
    fields = manifest_fields(folder, document)
    height, width = fields.integers("grid", 2, least=1)
    codec = fields.fields("codec")
    entries: list[dict[str, Any]] = [
        {"name": entry.inner_path("name"), "rows": entry.integer("rows"), "bytes": entry.integer("bytes")}
        for entry in fields.items("shards")
    ]
    histogram = fields.fields("codebook").integers("histogram")
    rows = sum(entry["rows"] for entry in entries)
    if fields.fields("counts").integer("rows") != rows or sum(histogram) != rows * height * width:
        raise damaged_manifest(folder, "it contradicts itself about the number of rows")
    _check_optional(fields)
    return TokenManifest(
        path=path,
        folder=folder,
        document=document,
        plan_hash=fields.text("plan_hash"),
        fingerprint=codec.text("fingerprint"),
        codec_name=codec.text("name", ""),
        grid=(height, width),
        layout=read_token_layout(fields, codec.mapping("config", {})),
        histogram=np.array(histogram, np.int64),
        entries=entries,
        parts={part.plan_hash: part.slices for part in parts_of(fields)},
    )


def _check_optional(fields: Fields) -> None:
    """Checks that what is told besides, where it is told, is of its type."""
    identity = fields.fields("identity", {})
    identity.mapping("preprocessing", {})
    source = identity.fields("source", {})
    if source.value("class_names", None) is not None:
        source.texts("class_names")

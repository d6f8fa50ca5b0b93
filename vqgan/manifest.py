"""The manifest's file. It is written last: its presence means that a data set is complete."""

import json
from collections.abc import Mapping
from typing import Any

from vqgan import filesystems
from vqgan.documents import Fields, parse_document
from vqgan.errors import UserError, first_line

FORMAT_VERSION = 2
"""Of a data set: its layout, manifest, plan, shards and indices."""
MANIFEST_FILE = "manifest.json"
IMAGES_KIND = "images"
"""``kind`` in the manifest of decoded pictures; that of tokens has none."""
PARTS = (
    "plan_hash", "identity", "codec", "grid", "counts", "shards", "rejects", "reject_reasons", "codebook",
    "storage", "throughput", "versions", "finished",
)  # fmt: skip
"""What every manifest holds, beside its version."""
AGAIN = "restore it, or move it away and run the command that wrote the data set again"
"""What to do about a file that is not as it was written. Nothing is lost by it, whoever reads the file."""


def write_manifest(output: str, manifest: Mapping[str, Any]) -> None:
    """Publishes the manifest."""
    text = json.dumps(manifest, indent=1) + "\n"
    filesystems.write_bytes(filesystems.join(output, MANIFEST_FILE), text.encode())


def read_manifest(output: str) -> dict[str, Any] | None:
    """The manifest of a data set, or None where it is not complete.

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
    fields = parse_document(data, lambda reason: damaged(output, reason))
    check_version(path, fields.integer("version"))
    return dict(fields.data)


def manifest_fields(output: str, manifest: Mapping[str, Any]) -> Fields:
    """A manifest, to be read field by field; what it lacks is told as damage of its file."""
    return Fields(manifest, lambda reason: damaged(output, reason))


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
    """That a data set holds tokens.

    Args:
      path: its folder.
      manifest: of it.

    Raises:
      UserError: it holds decoded pictures.
    """
    if manifest.get("kind") == IMAGES_KIND:
        raise UserError(f"{path}: holds pictures already; give the token data set that they were made of")


def check_parts(output: str, manifest: Mapping[str, Any]) -> None:
    """That a manifest has all the parts that :func:`write_manifest` was given, each of its type.

    Raises:
      UserError: one is missing or of another type.
    """
    fields = manifest_fields(output, manifest)
    for name in PARTS:
        fields.value(name)
    pictures = manifest.get("kind") == IMAGES_KIND
    fields.text("plan_hash")
    fields.text("finished")
    identity = fields.fields("identity")
    identity.mapping("preprocessing")
    identity.mapping("source", {})
    codec = fields.fields("codec")
    for name in ("name", "fingerprint", *(("decoder_sha256",) if pictures else ())):
        codec.text(name)
    fields.integers("grid", 2, least=1)
    for name in ("planned", "images", "rejects", "rows", *(() if pictures else ("tokens",))):
        fields.fields("counts").integer(name)
    for name in ("shards", "rejects", *(("archives", "metadata") if pictures else ())):
        check_entries(fields, name)
    fields.sizes("reject_reasons")
    for name in ("throughput", "versions"):
        fields.mapping(name)
    codebook, storage = fields.fields("codebook"), fields.fields("storage")
    if pictures:
        identity.fields("form").text("container")
        storage.number("image_bytes")
        return
    codebook.integer("used")
    if len(codebook.integers("histogram")) != codebook.integer("size"):
        raise damaged(output, "its histogram has another length than its codebook")


def check_entries(fields: Fields, name: str) -> None:
    """That a list of a manifest tells name, rows, bytes and sha256 of each file.

    Raises:
      UserError: it does not.
    """
    for entry in fields.items(name):
        entry.text("name")
        entry.integer("rows")
        entry.integer("bytes")
        entry.text("sha256")


def damaged(output: str, reason: str) -> UserError:
    """What is wrong with the manifest of a data set, and what to do about it."""
    return UserError(f"{filesystems.join(output, MANIFEST_FILE)}: damaged ({reason}); {AGAIN}")

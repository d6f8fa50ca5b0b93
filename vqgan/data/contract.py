"""What the manifest of a token data set promises about its shards."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vqgan import filesystems
from vqgan.documents import Fields
from vqgan.errors import UserError
from vqgan.hub import resolve_dataset
from vqgan.manifest import AGAIN, MANIFEST_FILE, check_tokens, damaged, manifest_fields, read_manifest
from vqgan.shards import ShardMetadata


class Promised(Protocol):
    """What a manifest says about every shard.

    Attributes:
      plan_hash: of the plan that the shards are slices of.
      fingerprint: of the codec.
      grid: ``(h, w)``.
      slices: how many shards there are.
    """

    @property
    def plan_hash(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def slices(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Contract:
    """What a manifest says about every shard.

    Attributes:
      path: of the data set, as it was given.
      folder: where its files lie: the same, or the cache of what lies on the Hub.
      manifest: the whole of it.
      plan_hash: of the plan that the shards are slices of.
      fingerprint: of the codec.
      codec_name: how that codec was called, or an empty string.
      grid: ``(h, w)``.
      histogram: int64 ``[K]`` of all rows.
      entries: ``name``, ``rows`` and ``bytes`` of each shard.
    """

    path: str
    folder: str
    manifest: Mapping[str, Any]
    plan_hash: str
    fingerprint: str
    codec_name: str
    grid: tuple[int, int]
    histogram: np.ndarray
    entries: Sequence[Mapping[str, Any]]

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return len(self.histogram)

    @property
    def slices(self) -> int:
        """Number of shards."""
        return len(self.entries)


def read_contract(path: str) -> Contract:
    """The manifest of a finished data set.

    Args:
      path: folder, URI, or ``hf://datasets/owner/name[@revision]``.

    Raises:
      UserError: there is no data set, it cannot be had from the Hub, it is not finished, it holds pictures,
        or its manifest is damaged.
    """
    folder = resolve_dataset(path)
    manifest = read_manifest(folder)
    if manifest is None:
        if not filesystems.exists(folder):
            raise UserError(f"{path}: nothing there; give a folder that vqgan tokenize or sample has written")
        raise UserError(
            f"{path}: not a finished data set (no {MANIFEST_FILE}); run the command that writes it again"
        )
    check_tokens(path, manifest)
    return _parse(path, folder, manifest)


def _parse(path: str, folder: str, manifest: Mapping[str, Any]) -> Contract:
    fields = manifest_fields(folder, manifest)
    height, width = fields.integers("grid", 2, least=1)
    codec = fields.fields("codec")
    entries: list[dict[str, Any]] = [
        {"name": entry.text("name"), "rows": entry.integer("rows"), "bytes": entry.integer("bytes")}
        for entry in fields.items("shards")
    ]
    histogram = fields.fields("codebook").integers("histogram")
    rows = sum(entry["rows"] for entry in entries)
    if fields.fields("counts").integer("rows") != rows or sum(histogram) != rows * height * width:
        raise damaged(folder, "it contradicts itself about the number of rows")
    _check_optional(fields)
    return Contract(
        path=path,
        folder=folder,
        manifest=manifest,
        plan_hash=fields.text("plan_hash"),
        fingerprint=codec.text("fingerprint"),
        codec_name=codec.text("name", ""),
        grid=(height, width),
        histogram=np.array(histogram, np.int64),
        entries=entries,
    )


def _check_optional(fields: Fields) -> None:
    """What is told besides, where it is told, is of its type."""
    identity = fields.fields("identity", {})
    identity.mapping("preprocessing", {})
    source = identity.fields("source", {})
    if source.value("class_names", None) is not None:
        source.texts("class_names")


def check_size(path: str, found: int | None, expected: int) -> None:
    """Compares the size of a shard's file in bytes, None for one that is not there, with the manifest.

    Raises:
      UserError: it is missing, or of another size.
    """
    if found is None:
        raise UserError(
            f"{path}: missing, though the manifest names it; restore it, or run the command that wrote the "
            "data set again"
        )
    if found != expected:
        raise UserError(f"{path}: {found} bytes, but the manifest says {expected}; {AGAIN}")


def check_footer(path: str, metadata: ShardMetadata, rows: int, promised: Promised, expected: int) -> None:
    """Compares a shard's footer with the manifest.

    Args:
      path: of the shard, for the message.
      metadata: in its footer.
      rows: that it holds.
      promised: what the manifest says of all shards.
      expected: rows of this one, as the manifest has it.

    Raises:
      UserError: says in what it differs.
    """
    check_fact(path, "plan hash", metadata.plan_hash, promised.plan_hash)
    check_fact(path, "codec", metadata.fingerprint, promised.fingerprint)
    check_fact(path, "grid", tuple(metadata.grid), promised.grid)
    check_fact(path, "number of shards", metadata.slices, promised.slices)
    check_fact(path, "rows", rows, expected)


def check_fact(path: str, what: str, found: object, expected: object) -> None:
    """Refuses a shard that differs from the manifest in one thing."""
    if found != expected:
        raise UserError(
            f"{path}: {what} is {_short(found)}, but the manifest says {_short(expected)}; {AGAIN}"
        )


def _short(value: object) -> str:
    """The first digits of a hash; anything else as it is."""
    return value[:12] if isinstance(value, str) else str(value)

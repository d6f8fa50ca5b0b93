"""What the manifest of a token data set promises about its shards."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vqgan import filesystems
from vqgan.errors import UserError
from vqgan.manifest import MANIFEST_FILE, read_manifest


@dataclasses.dataclass(frozen=True)
class Contract:
    """What a manifest says about every shard.

    Attributes:
      path: of the data set.
      manifest: the whole of it.
      plan_hash: of the plan that the shards are slices of.
      fingerprint: of the codec.
      codec_name: how that codec was called, or an empty string.
      grid: ``(h, w)``.
      histogram: int64 ``[K]`` of all rows.
      entries: ``name``, ``rows`` and ``bytes`` of each shard.
    """

    path: str
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


def read_contract(path: str) -> Contract:
    """The manifest of a finished data set.

    Raises:
      UserError: there is no data set, it is not finished, or its manifest is damaged.
    """
    manifest = read_manifest(path)
    if manifest is None:
        if not filesystems.exists(path):
            raise UserError(f"{path}: nothing there; give a folder that vqgan tokenize or sample has written")
        raise UserError(
            f"{path}: not a finished data set (no {MANIFEST_FILE}); run the command that writes it again"
        )
    try:
        return _parse(path, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        where = filesystems.join(path, MANIFEST_FILE)
        raise UserError(f"{where}: damaged ({what}); delete it and run the same command again") from error


def _parse(path: str, manifest: Mapping[str, Any]) -> Contract:
    height, width = manifest["grid"]
    codec = manifest["codec"]
    entries: list[dict[str, Any]] = [
        {"name": str(entry["name"]), "rows": int(entry["rows"]), "bytes": int(entry["bytes"])}
        for entry in manifest["shards"]
    ]
    histogram = np.array(manifest["codebook"]["histogram"], np.int64)
    rows = sum(entry["rows"] for entry in entries)
    if manifest["counts"]["rows"] != rows or histogram.sum() != rows * int(height) * int(width):
        raise ValueError("it contradicts itself about the number of rows")
    return Contract(
        path=path,
        manifest=manifest,
        plan_hash=manifest["plan_hash"],
        fingerprint=codec["fingerprint"],
        codec_name=str(codec.get("name") or ""),
        grid=(int(height), int(width)),
        histogram=histogram,
        entries=entries,
    )


def disagrees(path: str, what: str) -> UserError:
    """What is wrong with a file, and what to do about it."""
    return UserError(
        f"{path}: {what}; the data set is not what its manifest says: run the command that wrote it again"
    )

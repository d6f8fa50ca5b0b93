"""Finished slices of images, their sum, the manifest of a decoded data set, and its card.

The card is ``README.md`` in the folder: how ``datasets`` finds the images, and what they are.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transforms.decoding.index import IMAGES_FOLDER, METADATA_FILE, Index, IndexRow, index_name, open_index
from transforms.decoding.plan import TokenInput
from transforms.sharded.manifest import by_name, common_parts
from transforms.sharded.plan import Plan
from transforms.sharded.summary import (
    FileSummary,
    FinishedSlice,
    SliceTotals,
    describe_file,
    summarize_rejects,
)
from vqgan import filesystems, publishing
from vqgan.dataset_card import CARD_FILE
from vqgan.manifest import IMAGES_KIND
from vqgan.shards import DATA_FOLDER

STAT_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class ImageSlice(FinishedSlice):
    """One finished slice of images.

    Attributes:
      archive: name, bytes and sha256 of its tar, in the form ``tar``.
      image_bytes: size of all encoded images.
    """

    archive: Mapping[str, Any] | None
    image_bytes: int


@dataclasses.dataclass
class ImageTotals(SliceTotals):
    """Sum of slices of images.

    Attributes:
      archives: JSON entry of each tar.
      image_bytes: size of all encoded images.
    """

    archives: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    image_bytes: int = 0

    def add(self, summary: ImageSlice) -> None:
        """Adds one slice."""
        super().add(summary)
        if summary.archive is not None:
            self.archives.append({**summary.archive, "rows": summary.images})
        self.image_bytes += summary.image_bytes


def summarize_images(
    output: str, number: int, slices: int, container: str, seconds: float | None
) -> ImageSlice:
    """Reads a slice's index, every page of it, and its rejects.

    Raises:
      UserError: the index is damaged.
    """
    name = index_name(number, slices, container)
    with open_index(output, name) as index:
        metadata, rows = index.metadata, index.rows
        image_bytes = sum(row.bytes for row, _ in index.read())
    reject_file, reasons = summarize_rejects(output, number, slices, metadata.rejects)
    return ImageSlice(
        number=number,
        planned=metadata.planned,
        images=metadata.images,
        shard=describe_file(output, name, rows),
        reject_file=reject_file,
        reject_reasons=reasons,
        seconds=seconds,
        archive=metadata.archive,
        image_bytes=image_bytes,
    )


def lost_images(output: str, index: Index) -> list[str]:
    """Finds files of an index that are gone or of another size; of a tar, also of other contents."""
    archive = index.metadata.archive
    if archive is not None:
        path = filesystems.join(output, archive["name"])
        if not filesystems.exists(path):
            return [archive["name"]]
        return (
            [archive["name"]] if describe_file(output, archive["name"], 0).sha256 != archive["sha256"] else []
        )
    if index.metadata.container != "files":
        return []
    return [row.file for rows in _chunks(index) for row in _lost(output, rows)]


def _chunks(index: Index) -> Iterator[list[IndexRow]]:
    rows: list[IndexRow] = []
    for row, _ in index.read():
        rows.append(row)
        if len(rows) == STAT_CHUNK:
            yield rows
            rows = []
    yield rows


def _lost(output: str, rows: list[IndexRow]) -> list[IndexRow]:
    sizes = filesystems.sizes_of(output, [row.file for row in rows])
    return [row for row, size in zip(rows, sizes, strict=True) if size != row.bytes]


def build_image_manifest(
    plan: Plan,
    totals: ImageTotals,
    codec: Mapping[str, Any],
    tokens: TokenInput,
    metadata: FileSummary | None = None,
) -> dict[str, Any]:
    """Returns the manifest as JSON data.

    Args:
      plan: the plan that was carried out.
      totals: of all its slices.
      codec: JSON data about the codec, for readers.
      tokens: what the images were made of.
      metadata: ``metadata.jsonl``, where the images are files.

    Raises:
      UserError: the slices do not add up to the plan.
    """
    described = [] if metadata is None else [dataclasses.asdict(metadata)]
    files = [*totals.shards, *totals.archives, *described]
    separate = totals.image_bytes if plan.identity["form"]["container"] == "files" else 0
    return {
        **common_parts(plan, totals, codec, tokens.grid),
        "kind": IMAGES_KIND,
        "tokens": {name: value for name, value in tokens._asdict().items() if name != "parts"},
        "codebook": {"size": codec["config"]["codebook_size"]},
        "archives": by_name(totals.archives),
        "metadata": described,
        "storage": {
            "bytes": sum(entry["bytes"] for entry in files) + separate,
            "image_bytes": totals.image_bytes,
            "bytes_per_image": totals.image_bytes / totals.images if totals.images else 0.0,
        },
    }


_PATTERNS = {
    "files": f"{IMAGES_FOLDER}/**",
    "tar": f"{DATA_FOLDER}/*.tar",
    "parquet": f"{DATA_FOLDER}/*.parquet",
}


def write_image_card(output: str, manifest: Mapping[str, Any]) -> None:
    """Publishes ``README.md``, whose front matter says which files ``load_dataset(output)`` takes.

    Args:
      output: folder of the images.
      manifest: of it; the same counts, form and codec give the same bytes.
    """
    publishing.write_bytes(filesystems.join(output, CARD_FILE), render_image_card(manifest).encode())


def render_image_card(manifest: Mapping[str, Any]) -> str:
    """Returns the card's text."""
    counts, form, codec = manifest["counts"], manifest["identity"]["form"], manifest["codec"]
    # One split under one pattern: else a folder named train or test would be taken for a split of its own.
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: {_PATTERNS[form["container"]]}
---

# {counts["images"]:,} images from tokens

Decoded by `vqgan decode` ({form["encoding"]}, {form["container"]}). Codec `{codec["fingerprint"][:12]}`,
decoder `{codec["decoder_sha256"][:12]}`; {counts["rejects"]:,} rows could not be decoded.

```python
from datasets import load_dataset

images = load_dataset("path/of/this/folder", split="train")
```
"""


def write_metadata(output: str, indices: Iterable[str]) -> FileSummary:
    """Publishes ``metadata.jsonl``, and returns what the manifest says of it.

    Args:
      output: folder of the images.
      indices: names of the indices in it, in order.

    Raises:
      UserError: an index is damaged, or there is no space left.
    """
    digest, size, rows = hashlib.sha256(), 0, 0
    with publishing.publish(filesystems.join(output, METADATA_FILE)) as stream:
        for line in metadata_lines(output, indices):
            stream.write(line)
            digest.update(line)
            size += len(line)
            rows += 1
    return FileSummary(METADATA_FILE, rows, size, digest.hexdigest())


def metadata_lines(output: str, indices: Iterable[str]) -> Iterator[bytes]:
    """Yields the lines that belong to these indices, each with its line feed; memory does not grow.

    Raises:
      UserError: an index is damaged.
    """
    for name in indices:
        with open_index(output, name) as index:
            for row, _ in index.read():
                yield _line(row)


def _line(row: IndexRow) -> bytes:
    values = row._asdict()
    # Every line has every column, also where it is null: readers take the columns from the first lines.
    described = {"file_name": values.pop("file").removeprefix(f"{IMAGES_FOLDER}/"), **values}
    return json.dumps(described).encode() + b"\n"

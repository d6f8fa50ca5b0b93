"""``README.md`` in the folder of decoded pictures: how ``datasets`` finds them, and what they are."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transforms.decoding.index import IMAGES_FOLDER, METADATA_FILE, IndexRow, open_index
from transforms.sharded.summary import FileSummary
from vqgan import filesystems
from vqgan.dataset_card import CARD_FILE
from vqgan.shards import DATA_FOLDER

_PATTERNS = {
    "files": f"{IMAGES_FOLDER}/**",
    "tar": f"{DATA_FOLDER}/*.tar",
    "parquet": f"{DATA_FOLDER}/*.parquet",
}


def write_image_card(output: str, manifest: Mapping[str, Any]) -> None:
    """Publishes ``README.md``, whose front matter says which files ``load_dataset(output)`` takes.

    Args:
      output: folder of the pictures.
      manifest: of it; the same counts, form and codec give the same bytes.
    """
    filesystems.write_bytes(filesystems.join(output, CARD_FILE), render_image_card(manifest).encode())


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

# {counts["images"]:,} pictures from tokens

Decoded by `vqgan decode` ({form["encoding"]}, {form["container"]}). Codec `{codec["fingerprint"][:12]}`,
decoder `{codec["decoder_sha256"][:12]}`; {counts["rejects"]:,} rows could not be decoded.

```python
from datasets import load_dataset

pictures = load_dataset("path/of/this/folder", split="train")
```
"""


def write_metadata(output: str, indices: Iterable[str]) -> FileSummary:
    """Publishes ``metadata.jsonl``, and returns what the manifest says of it.

    Args:
      output: folder of the pictures.
      indices: names of the indices in it, in order.

    Raises:
      UserError: an index is damaged, or there is no space left.
    """
    digest, size, rows = hashlib.sha256(), 0, 0
    with filesystems.publish(filesystems.join(output, METADATA_FILE)) as stream:
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

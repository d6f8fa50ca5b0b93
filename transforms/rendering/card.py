"""``README.md`` in the folder of decoded pictures: how ``datasets`` finds them, and what they are."""

from collections.abc import Mapping
from typing import Any

from transforms.rendering.layout import IMAGES_FOLDER
from vqgan import filesystems
from vqgan.dataset_card import CARD_FILE
from vqgan.shards import DATA_FOLDER

_PATTERNS = {
    "files": f"{IMAGES_FOLDER}/**",
    "tar": f"{DATA_FOLDER}/*.tar",
    "parquet": f"{DATA_FOLDER}/*.parquet",
}


def write_card(output: str, manifest: Mapping[str, Any]) -> None:
    """Publishes ``README.md``, whose front matter says which files ``load_dataset(output)`` takes.

    Args:
      output: folder of the pictures.
      manifest: of it; the same counts, form and codec give the same bytes.
    """
    filesystems.write_bytes(filesystems.join(output, CARD_FILE), render_card(manifest).encode())


def render_card(manifest: Mapping[str, Any]) -> str:
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

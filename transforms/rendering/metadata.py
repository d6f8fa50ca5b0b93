"""``images/metadata.jsonl``: what Hugging Face's ``imagefolder`` wants to know of pictures in files.

It repeats the indices, one line for each picture in the order of the slices, so it follows from them alone
and can be made again at any time.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator

from transforms.rendering.index import IndexRow, open_index
from transforms.rendering.layout import IMAGES_FOLDER, METADATA_FILE
from transforms.summary import FileSummary
from vqgan import filesystems


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

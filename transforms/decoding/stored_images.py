"""The pictures of a finished slice, whatever form they were written in."""

import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from transforms.decoding.index import IndexRow, open_index
from vqgan import filesystems
from vqgan.errors import UserError, first_line


def stored_images(output: str, name: str) -> Iterator[tuple[IndexRow, bytes]]:
    """Rows of an index in order, each with the bytes of its picture.

    Args:
      output: folder of the data set.
      name: of the index in it.

    Raises:
      UserError: the index or the tar is damaged, or a picture is not there.
    """
    with open_index(output, name) as index:
        rows = index.read()
        if index.metadata.archive is not None:
            yield from _of_tar(output, index.metadata.archive, (row for row, _ in rows))
        elif index.metadata.container == "files":
            yield from ((row, _of_file(output, row)) for row, _ in rows)
        else:
            yield from ((row, data or b"") for row, data in rows)


def _of_file(output: str, row: IndexRow) -> bytes:
    try:
        return filesystems.read_bytes(filesystems.join(output, row.file))
    except OSError as error:
        raise UserError(f"{row.file}: cannot be read ({first_line(error)})") from error


def _of_tar(
    output: str, archive: Mapping[str, Any], rows: Iterator[IndexRow]
) -> Iterator[tuple[IndexRow, bytes]]:
    """Members are read in their order, which is that of the rows; nothing is unpacked to a disk."""
    name = archive["name"]
    try:
        filesystem, inner = filesystems.resolve(filesystems.join(output, name))
        with (
            filesystem.open_input_stream(inner) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            members = iter(tar)  # one for all rows: every new one begins at the first member
            for row in rows:
                member = next((member for member in members if member.name == row.file), None)
                file = None if member is None else tar.extractfile(member)
                if file is None:
                    raise UserError(f"{name}: has no member {row.file}")
                yield row, file.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{name}: cannot be read ({first_line(error)})") from error

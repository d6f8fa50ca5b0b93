"""The framing of TFRecord files: how records lie one after the other.

A record is its length (8 bytes, little-endian), a masked CRC-32C of these 8 bytes (4 bytes), the data,
and a masked CRC-32C of the data (4 bytes).
"""

import struct
from collections.abc import Iterator

import google_crc32c
import pyarrow as pa

from transforms.sources.reading import DamagedError, Window, read_exact

HEADER_BYTES = 12
FOOTER_BYTES = 4
_MASK_DELTA = 0xA282EAD8


def masked_crc(data: bytes) -> int:
    """The checksum that the format stores: a rotated and shifted CRC-32C."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """``data`` as one record."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        (length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data)))
    )


def parse_header(header: bytes) -> int | None:
    """The length that a record's first 12 bytes state, or None if they are not such a header."""
    if len(header) < HEADER_BYTES:
        return None
    length, crc = struct.unpack_from("<QI", header)
    return int(length) if masked_crc(header[:8]) == crc else None


def scan(file: pa.NativeFile) -> Iterator[tuple[int, int]]:
    """Offset and length of each record's data, from the headers alone.

    Raises:
      DamagedError: a header is damaged or missing, or the last record is cut off; what came before has
        been yielded.
    """
    window = Window(file)
    position = 0
    while position < window.size:
        header = window.read(position, HEADER_BYTES)
        length = parse_header(header)
        if length is None:
            raise DamagedError(position, _header_problem(header))
        if length > window.size - position - HEADER_BYTES - FOOTER_BYTES:
            raise DamagedError(position, f"the last record of {length:,} bytes is cut off")
        yield position + HEADER_BYTES, length
        position += HEADER_BYTES + length + FOOTER_BYTES


def read_record(file: pa.NativeFile, offset: int, length: int) -> bytes:
    """The data of the record whose data starts at ``offset``. Safe from several threads.

    Raises:
      ValueError: it is cut off, or its checksum does not match.
    """
    framed = read_exact(file, offset, length + FOOTER_BYTES)
    data = framed[:length]
    if masked_crc(data) != int.from_bytes(framed[length:], "little"):
        raise ValueError(f"the record at byte {offset - HEADER_BYTES:,} is damaged: wrong checksum")
    return data


def _header_problem(header: bytes) -> str:
    if len(header) < HEADER_BYTES:
        return "the file ends within a record's header"
    return "the checksum of a record's length does not match"

import random
import struct

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.sources.reading import DamagedFileError, Window, read_exact
from transforms.sources.records import frame, masked_crc, parse_header, read_record, scan

RECORDS = st.lists(st.binary(max_size=300), max_size=6)


def _file(data: bytes) -> pa.BufferReader:
    return pa.BufferReader(data)


def _scan(data: bytes) -> tuple[list[tuple[int, int]], DamagedFileError | None]:
    found = []
    try:
        for place in scan(_file(data)):
            found.append(place)  # noqa: PERF402 - what came before an error is kept
    except DamagedFileError as error:
        return found, error
    return found, None


def test_checksum_is_that_of_the_format():
    # The length 0 and its checksum as TensorFlow writes them.
    assert frame(b"").hex() == "0000000000000000" + "29039807" + "d8ea82a2"
    assert masked_crc(b"") == 0xA282EAD8


@given(RECORDS)
def test_what_was_framed_is_read_back(records):
    data = b"".join(map(frame, records))
    places, error = _scan(data)
    assert error is None
    assert [read_record(_file(data), *place) for place in places] == records


@given(RECORDS.filter(bool), st.data())
def test_truncation_is_always_noticed(records, draw):
    data = b"".join(map(frame, records))
    ends = {0}
    for record in records:
        ends.add(max(ends) + len(frame(record)))
    length = draw.draw(st.integers(0, len(data) - 1))
    places, error = _scan(data[:length])
    assert (error is None) == (length in ends)
    assert [read_record(_file(data), *place) for place in places] == records[: len(places)]


@given(RECORDS.filter(bool), st.data())
def test_a_flipped_bit_is_always_noticed(records, draw):
    data = bytearray(b"".join(map(frame, records)))
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    data[bit // 8] ^= 1 << bit % 8
    places, error = _scan(bytes(data))
    read = []
    for place in places:
        try:
            read.append(read_record(_file(bytes(data)), *place))
        except ValueError:
            read.append(None)
    assert (error is not None) + read.count(None) == 1
    assert all(got in (None, record) for got, record in zip(read, records, strict=False))


def test_absurd_lengths_are_not_allocated():
    length = struct.pack("<Q", 1 << 60)
    places, error = _scan(frame(b"first") + length + struct.pack("<I", masked_crc(length)) + b"x" * 100)
    assert places == [(12, 5)]
    assert error is not None
    assert error.offset == 21
    assert "cut off" in str(error)


def test_headers():
    assert parse_header(frame(b"abc")) == 3
    assert parse_header(b"abc") is None
    assert parse_header(b"\0" * 12) is None


@pytest.mark.parametrize(("offset", "size"), [(0, 11), (10, 1), (-1, 2), (2, -1), (0, 1 << 60), (1 << 60, 1)])
def test_reads_beyond_the_end_are_errors(offset, size):
    with pytest.raises(ValueError, match=r"cut off|more than"):
        read_exact(_file(b"x" * 10), offset, size)


def test_windows_give_what_is_there():
    data = random.Random(1).randbytes(300_000)
    window = Window(_file(data))
    for offset, size in [
        (0, 10),
        (5, 100),
        (65_530, 12),
        (70_000, 200_000),
        (299_995, 10),
        (300_000, 4),
        (400_000, 4),
    ]:
        assert window.read(offset, size) == data[offset : offset + size]
    assert window.reaches(300_000)
    assert not window.reaches(300_001)

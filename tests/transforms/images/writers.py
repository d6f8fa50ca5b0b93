"""Small writers of TIFF, PNG and PSD in any layout: truth by construction for the tests of the decoder."""

import io
import lzma
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

COMPRESSIONS = {"raw": 1, "lzw": 5, "deflate": 8, "packbits": 32773, "lzma": 34925, "zstd": 50000, "jpeg": 7}
_SHORT, _LONG = 3, 4


def pack(samples: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Rows of samples as a file stores them: ``[H, W, S]`` to bytes, each row padded to whole bytes."""
    if samples.dtype.kind == "f" or bits in (8, 16, 32):
        return samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    values = samples.reshape(samples.shape[0], -1, 1)
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((values >> shifts & 1).astype(np.uint8).reshape(values.shape[0], -1), axis=1).tobytes()


def compress(data: bytes, method: str) -> bytes:
    """One strip or tile."""
    if method == "deflate":
        return zlib.compress(data)
    if method == "packbits":
        return b"".join(
            bytes([len(data[i : i + 128]) - 1]) + data[i : i + 128] for i in range(0, len(data), 128)
        )
    if method == "lzma":
        return lzma.compress(data)
    if method == "zstd":
        return pa.compress(data, "zstd", asbytes=True)
    return lzw(data) if method == "lzw" else data


def jpeg_block(block: np.ndarray, photometric: int, subsampling: int = 0) -> bytes:
    """One strip or tile as a JPEG: grey, or RGB as it is, or converted to YCbCr."""
    out = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(block).squeeze(-1) if block.shape[-1] == 1 else block)
    image.save(out, "JPEG", quality=95, subsampling=subsampling, keep_rgb=photometric == 2)
    return out.getvalue()


def lzw(data: bytes) -> bytes:
    """TIFF's LZW with 9-bit codes only: the table is cleared before it would need more."""
    codes: list[int] = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def write_tiff(
    samples: np.ndarray,
    photometric: int,
    bits: int,
    *,
    order: str = "<",
    planar: bool = False,
    compression: str = "raw",
    rows_per_strip: int | None = None,
    tile: int | None = None,
    fill_order: int = 1,
    predictor: bool = False,
    float_predictor: bool = False,
    big: bool = False,
    subsampling: int = 0,
    extra: Sequence[int] = (),
    colour_map: np.ndarray | None = None,
    tags: Sequence[tuple[int, int, Sequence[int]]] = (),
) -> bytes:
    """A TIFF of one page.

    Args:
      samples: ``[H, W, S]``, of the values that the file stores.
      photometric: value of PhotometricInterpretation.
      bits: per sample.
      order: ``<`` or ``>``, of everything in the file.
      planar: one plane after another, in place of pixel by pixel.
      compression: of each strip or tile.
      rows_per_strip: all by default.
      tile: side of square tiles, in place of strips.
      fill_order: 2 reverses the bits of each byte.
      predictor: store differences of neighbours in a row.
      float_predictor: store differences of the bytes of floats in a row.
      big: write BigTIFF.
      subsampling: of a JPEG's colours, as Pillow counts it.
      extra: values of ExtraSamples.
      colour_map: uint16 ``[3, colours]``.
      tags: further tags: number, type, values.
    """
    height, width, count = samples.shape
    planes = [samples[..., i : i + 1] for i in range(count)] if planar else [samples]
    parts = []
    for plane in planes:
        for block in _blocks(plane, rows_per_strip or height, tile):
            data = pack(_differences(block) if predictor else block, bits, order)
            data = _byte_differences(block) if float_predictor else data
            is_jpeg = compression == "jpeg"
            data = jpeg_block(block, photometric, subsampling) if is_jpeg else compress(data, compression)
            parts.append(data.translate(_REVERSED) if fill_order == 2 else data)
    kind = {"f": 3, "i": 2}.get(samples.dtype.kind, 1)
    entries: list[tuple[int, int, Sequence[int]]] = [
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [bits] * count),
        (259, _SHORT, [COMPRESSIONS[compression]]),
        (262, _SHORT, [photometric]),
        (266, _SHORT, [fill_order]),
        (277, _SHORT, [count]),
        (284, _SHORT, [2 if planar else 1]),
        (339, _SHORT, [kind] * count),
        *tags,
    ]
    entries += [(317, _SHORT, [2])] if predictor else []
    entries += [(317, _SHORT, [3])] if float_predictor else []
    entries += [(338, _SHORT, list(extra))] if extra else []
    entries += [(320, _SHORT, colour_map.ravel().tolist())] if colour_map is not None else []
    offsets, counts = (324, 325) if tile else (273, 279)
    entries += (
        [(322, _SHORT, [tile]), (323, _SHORT, [tile])] if tile else [(278, _LONG, [rows_per_strip or height])]
    )
    places = np.cumsum([16 if big else 8, *(len(part) + len(part) % 2 for part in parts)]).tolist()
    entries += [(offsets, _LONG, places[:-1]), (counts, _LONG, [len(part) for part in parts])]
    body = b"".join(part + b"\0" * (len(part) % 2) for part in parts)
    letters = b"II" if order == "<" else b"MM"
    classic = struct.pack(f"{order}HI", 42, places[-1])
    head = struct.pack(f"{order}HHHQ", 43, 8, 0, places[-1]) if big else classic
    return letters + head + body + _directory(entries, order, places[-1], big)


def _blocks(plane: np.ndarray, rows: int, tile: int | None) -> list[np.ndarray]:
    height, width, count = plane.shape
    if tile is None:
        return [plane[top : top + rows] for top in range(0, height, rows)]
    padded = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile, count), plane.dtype)
    padded[:height, :width] = plane
    return [
        padded[top : top + tile, left : left + tile]
        for top in range(0, height, tile)
        for left in range(0, width, tile)
    ]


def _differences(block: np.ndarray) -> np.ndarray:
    result = block.copy()
    result[:, 1:] -= block[:, :-1]
    return result


def _byte_differences(block: np.ndarray) -> bytes:
    """Predictor 3: the highest bytes of all floats of a row, then the next; of these their differences."""
    rows = []
    for row in block:
        values = row.astype(row.dtype.newbyteorder(">")).ravel()
        planes = values.view(np.uint8).reshape(len(values), -1).T.reshape(-1, row.shape[-1])
        rows.append(np.diff(planes, axis=0, prepend=np.zeros((1, row.shape[-1]), np.uint8)).astype(np.uint8))
    return b"".join(row.tobytes() for row in rows)


def _directory(
    entries: list[tuple[int, int, Sequence[int]]], order: str, start: int, big: bool = False
) -> bytes:
    """The image file directory, with long values behind it."""
    formats = {1: "B", 3: "H", 4: "I"}
    number, inline = ("Q", 8) if big else ("I", 4)
    head, tail = struct.pack(f"{order}{'Q' if big else 'H'}", len(entries)), b""
    beyond = start + len(head) + (20 if big else 12) * len(entries) + inline
    for tag, kind, values in sorted(entries, key=lambda entry: entry[0]):
        data = struct.pack(f"{order}{len(values)}{formats[kind]}", *values)
        if len(data) > inline:
            place = struct.pack(f"{order}{number}", beyond + len(tail))
            tail += data + b"\0" * (len(data) % 2)
        else:
            place = data.ljust(inline, b"\0")
        head += struct.pack(f"{order}HH{number}", tag, kind, len(values)) + place
    return head + bytes(inline) + tail


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def png_chunk(name: bytes, body: bytes, wrong_sum: bool = False) -> bytes:
    """One chunk of a PNG."""
    checksum = zlib.crc32(name + body) ^ wrong_sum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def write_png(
    samples: np.ndarray,
    colour: int,
    bits: int,
    *,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
    wrong_sum: bool = False,
) -> bytes:
    """A PNG of samples ``[H, W, S]``, with more chunks before or after its pixels."""
    height, width, _ = samples.shape
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        ]
    rows = b""
    for top, left, down, across in passes:
        part = samples[top::down, left::across]
        rows += b"".join(b"\0" + pack(part[i : i + 1], bits, ">") for i in range(len(part)) if part.size)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + before
        + png_chunk(b"IDAT", zlib.compress(rows), wrong_sum)
        + after
        + png_chunk(b"IEND", b"")
    )


def write_psd(
    samples: np.ndarray,
    mode: int,
    bits: int,
    *,
    packed: bool = False,
    palette: bytes = b"",
    layers: bytes = b"",
) -> bytes:
    """A PSD of samples ``[H, W, S]``; ``palette`` has 256 reds, then greens, then blues."""
    height, width, count = samples.shape
    header = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", count, height, width, bits, mode)
    sections = struct.pack(">I", len(palette)) + palette + bytes(4) + struct.pack(">I", len(layers)) + layers
    rows = [pack(samples[y : y + 1, :, i : i + 1], bits, ">") for i in range(count) for y in range(height)]
    if not packed:
        return header + sections + b"\0\0" + b"".join(rows)
    rows = [compress(row, "packbits") for row in rows]
    lengths = b"".join(struct.pack(">H", len(row)) for row in rows)
    return header + sections + b"\0\1" + lengths + b"".join(rows)

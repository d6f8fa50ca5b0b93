"""Formats by layouts against truth by construction: right pixels, or a reject that names the layout."""

import functools
import io
import itertools
import struct
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.transforms.images.writers import jpeg_block, pack, png_chunk, write_png, write_psd, write_tiff
from transforms.images.decode import DecodeConfig, Reject
from transforms.images.decode import decode_image as decode

HEIGHT, WIDTH = 21, 37
RNG = np.random.default_rng(11)


class Case(NamedTuple):
    """A file, and the RGB that it shows to within ``tolerance``; None where it must be refused by name."""

    name: str
    data: bytes
    truth: np.ndarray | None
    tolerance: float = 0.5  # the truth is not rounded


def random_samples(count: int, bits: int) -> np.ndarray:
    """Samples ``[H, W, count]``, with the ends of their range among them."""
    samples = RNG.integers(0, 1 << bits, (HEIGHT, WIDTH, count), dtype=np.uint32)
    samples[:2], samples[2:4] = 0, (1 << bits) - 1
    return samples.astype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)


def in_255(samples: np.ndarray, bits: int) -> np.ndarray:
    return samples * (255.0 / ((1 << bits) - 1))


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., :1], 3, -1)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return rgb * (alpha / 255) + 255 - alpha


# -- TIFF ----------------------------------------------------------------------------------------------

ORDERS, STORAGES = "<>", ({}, {"rows_per_strip": 8}, {"tile": 16})
COMPRESSIONS = [("raw", False), ("packbits", False), ("lzw", False), ("lzw", True), ("deflate", True)]


def tiff_truth(samples: np.ndarray, photometric: int, bits: int, extra: tuple[int, ...]) -> np.ndarray:
    values = np.rint(in_255(samples, bits))
    if photometric in (0, 1):
        rgb = as_rgb(255 - values if photometric == 0 else values)
    elif photometric == 5:
        rgb = (255 - values[..., :3]) * (255 - values[..., 3:4]) / 255
    else:
        rgb = values[..., :3]
    colours = {0: 1, 1: 1, 2: 3, 5: 4}[photometric]
    if not extra or extra[0] == 0:
        return rgb
    alpha = values[..., colours, None]
    return np.minimum(rgb + 255 - alpha, 255) if extra[0] == 1 else over_white(rgb, alpha)


TIFF_KINDS = [
    *((photometric, 1, bits, ()) for photometric in (0, 1) for bits in (1, 2, 4, 8, 10, 12, 14, 16)),
    *((1, 2, bits, (extra,)) for bits in (8, 16) for extra in (0, 1, 2)),
    *((0, 2, bits, (extra,)) for bits in (8, 16) for extra in (0, 2)),
    *((2, 3, bits, ()) for bits in (4, 8, 12, 16)),
    *((2, 4, bits, (extra,)) for bits in (8, 16) for extra in (0, 1, 2)),
    *((2, 5, bits, (2, 0)) for bits in (8, 16)),
    *((5, 4, bits, ()) for bits in (8, 16)),
    *((5, 5, bits, (extra,)) for bits in (8, 16) for extra in (0, 2)),
    *((0, 2, bits, (1,)) for bits in (8, 16)),  # to be refused, as are those below
    *((photometric, 1, 32, ()) for photometric in (0, 1)),
    (2, 3, 32, ()),
]


def tiff_cases() -> Iterator[Case]:
    for photometric, count, bits, extra in TIFF_KINDS:
        samples = random_samples(count, bits)
        refused = bits == 32 or (photometric == 0 and extra == (1,))
        truth = None if refused else tiff_truth(samples, photometric, bits, extra)
        for order, storage, (compression, predictor), planar, fill in itertools.product(
            ORDERS, STORAGES, COMPRESSIONS, (False, True), (1, 2)
        ):
            if (planar and count == 1) or (predictor and bits not in (8, 16, 32)):
                continue
            if fill == 2 and (bits > 8 or count > 1):
                continue
            data = write_tiff(
                samples,
                photometric,
                bits,
                order=order,
                compression=compression,
                predictor=predictor,
                planar=planar,
                fill_order=fill,
                extra=extra,
                **storage,
            )
            name = f"tiff {photometric} {count}x{bits} {extra} {order} {compression} {predictor} {planar}"
            yield Case(f"{name} {fill} {storage}", data, truth, 1.5 if photometric == 5 or extra else 0.5)


def tiff_number_cases() -> Iterator[Case]:
    """Signed and floating-point samples, palettes, Lab and YCbCr."""
    signed = RNG.integers(-(1 << 15), 1 << 15, (HEIGHT, WIDTH, 1)).astype(np.int16)
    real = RNG.random((HEIGHT, WIDTH, 3))
    palette = RNG.integers(0, 256, (3, 256), dtype=np.uint16)
    lab = random_samples(3, 8)
    whole = np.asarray(decode(write_tiff(lab, 8, 8), DecodeConfig()).image).astype(float)
    ycbcr = random_samples(3, 8)
    shown = np.asarray(Image.frombytes("YCbCr", (WIDTH, HEIGHT), ycbcr.tobytes()).convert("RGB"))
    for order, (compression, _), storage in itertools.product(ORDERS, COMPRESSIONS[:3], STORAGES):
        options = {"order": order, "compression": compression, **storage}
        clipped = as_rgb(in_255(np.maximum(signed, 0), 16))
        yield Case(f"tiff signed 16 {options}", write_tiff(signed, 1, 16, **options), clipped)
        wide = signed.astype(np.int32) * 4
        yield Case(
            f"tiff signed 32 {options}",
            write_tiff(wide, 1, 32, **options),
            as_rgb(in_255(np.clip(wide, 0, 65535), 16)),
        )
        eight = signed.astype(np.int8)
        yield Case(f"tiff signed 8 {options}", write_tiff(eight, 1, 8, **options), None)
        for bits, planar in itertools.product((32, 64), (False, True)):
            floats = real.astype(f"f{bits // 8}")
            data = write_tiff(floats, 2, bits, planar=planar, **options)
            yield Case(f"tiff float {bits} {planar} {options}", data, real * 255, 0.51)
            data = write_tiff(floats[..., :1], 1, bits, **options)
            yield Case(f"tiff grey float {bits} {options}", data, as_rgb(real * 255), 0.51)
            data = write_tiff(floats[..., :1], 0, bits, **options)
            yield Case(f"tiff negative float {bits} {options}", data, None)
        for bits in (1, 2, 4, 8):
            samples = random_samples(1, bits)
            colours = palette[:, : 1 << bits]
            data = write_tiff(samples, 3, bits, colour_map=colours * 257, **options)
            yield Case(f"tiff palette {bits} {options}", data, colours.T[samples[..., 0]].astype(float))
        yield Case(f"tiff lab {options}", write_tiff(lab, 8, 8, **options), whole)
        flipped = lab ^ np.array([0, 128, 128], np.uint8)
        yield Case(f"tiff icclab {options}", write_tiff(flipped, 9, 8, **options), whole)
        data = write_tiff(ycbcr, 6, 8, tags=[(530, 3, [1, 1])], **options)
        yield Case(f"tiff ycbcr {options}", data, shown.astype(float))
        yield Case(f"tiff ycbcr subsampled {options}", write_tiff(ycbcr, 6, 8, **options), None)
        yield Case(f"tiff mask {options}", write_tiff(random_samples(1, 8), 4, 8, **options), None)
        yield Case(f"tiff raw {options}", write_tiff(random_samples(1, 8), 32803, 8, **options), None)


def tiff_storage_cases() -> Iterator[Case]:
    """Ways of storing the same samples: BigTIFF, LZMA, Zstandard, differences of floats' bytes."""
    real = RNG.random((HEIGHT, WIDTH, 3))
    for big, order, planar, storage, compression in itertools.product(
        (False, True), ORDERS, (False, True), STORAGES, ("raw", "packbits", "lzw", "deflate", "lzma", "zstd")
    ):
        if not big and compression not in ("lzma", "zstd", "deflate"):
            continue
        options = {"big": big, "order": order, "planar": planar, "compression": compression, **storage}
        for bits, predictor in itertools.product((4, 8, 16), (False, True)):
            if predictor and (bits == 4 or compression in ("raw", "packbits")):
                continue
            samples = random_samples(3, bits)
            data = write_tiff(samples, 2, bits, predictor=predictor, **options)
            yield Case(f"tiff storage {bits} {predictor} {options}", data, np.rint(in_255(samples, bits)))
        for bits in (16, 32, 64) if compression not in ("raw", "packbits") else ():
            floats = real.astype(f"f{bits // 8}")
            data = write_tiff(floats, 2, bits, float_predictor=True, **options)
            yield Case(f"tiff float predictor {bits} {options}", data, real * 255, 0.51 if bits > 16 else 0.6)
    whole = write_tiff(random_samples(3, 8), 2, 8, float_predictor=True, compression="deflate")
    yield Case("tiff float predictor of integers", whole, None)


def tiff_jpeg_cases() -> Iterator[Case]:
    """JPEG strips and tiles, the truth of each being the JPEG by itself; and what is refused by name."""
    grid = np.linspace(0, 6, 64)
    waves = 127.5 + 120 * np.sin(grid[:48, None, None] + grid[None, :, None] / 2 + np.arange(3))
    image = waves.astype(np.uint8)
    for order, big, storage, (photometric, count), subsampling in itertools.product(
        ORDERS, (False, True), ({}, {"rows_per_strip": 16}, {"tile": 16}), ((1, 1), (2, 3), (6, 3)), (0, 2)
    ):
        if subsampling and photometric != 6:
            continue
        samples = image[..., :count]
        options = {"order": order, "big": big, "compression": "jpeg", "subsampling": subsampling, **storage}
        tags = [(530, 3, [1 + subsampling // 2] * 2)] if photometric == 6 else []
        data = write_tiff(samples, photometric, 8, tags=tags, **options)
        truth = np.zeros((*samples.shape[:2], 3))
        rows, columns = storage.get("rows_per_strip", storage.get("tile", 48)), storage.get("tile", 64)
        for top, left in itertools.product(range(0, 48, rows), range(0, 64, columns)):
            block = samples[top : top + rows, left : left + columns]
            shown = Image.open(io.BytesIO(jpeg_block(block, photometric, subsampling))).convert("RGB")
            truth[top : top + rows, left : left + columns] = np.asarray(shown)
        refused = big and order == ">"
        yield Case(f"tiff jpeg {photometric} {options}", data, None if refused else truth, 1)
    for photometric in (0, 5):
        samples = np.ascontiguousarray(image[..., [0, 1, 2, 0]] if photometric else image[..., :1])
        data = bytearray(write_tiff(samples, photometric, 8))
        place = data.index(struct.pack("<HHI", 259, 3, 1)) + 8
        for compression in (6, 7, 34712, 34887, 34933, 34934, 50001, 50002):
            data[place : place + 4] = struct.pack("<I", compression)
            yield Case(f"tiff compression {compression} {photometric}", bytes(data), None)
    thumbnail = write_tiff(image, 2, 8, tags=[(254, 4, [1])])
    yield Case("tiff thumbnail first", thumbnail, None)
    yield Case("tiff page of several", write_tiff(image, 2, 8, tags=[(254, 4, [2])]), image.astype(float))


# -- PNG, PSD, PNM, SGI, BMP, JPEG 2000 ----------------------------------------------------------------


def png_cases() -> Iterator[Case]:
    kinds = [(0, 1, bits) for bits in (1, 2, 4, 8, 16)] + [(2, 3, 8), (2, 3, 16), (4, 2, 8), (4, 2, 16)]
    for (colour, count, bits), interlaced in itertools.product(
        [*kinds, (6, 4, 8), (6, 4, 16)], (False, True)
    ):
        samples = random_samples(count, bits)
        # Pillow keeps the upper byte of 16 bits but for grey, so up to a whole step is missing.
        values = samples >> 8 if bits == 16 and colour else np.rint(in_255(samples, bits))
        rgb = values[..., :3] if colour & 2 else as_rgb(values)
        truth = over_white(rgb, values[..., -1:]) if colour & 4 else rgb
        name, tolerance = f"png {colour} {bits} {interlaced}", 1.5 if colour & 4 else 0.5
        yield Case(name, write_png(samples, colour, bits, interlaced=interlaced), truth, tolerance)
        if colour & 4:
            continue
        clear = samples[7, 5]
        body = png_chunk(b"tRNS", struct.pack(f">{count}H", *clear.tolist()))
        data = write_png(samples, colour, bits, interlaced=interlaced, before=body)
        hit = (samples == clear).all(-1, keepdims=True)
        yield Case(f"{name} tRNS", data, None if (colour, bits) == (2, 16) else np.where(hit, 255, truth))
        if (colour, bits) == (2, 16):
            samples[..., 0] |= 0x100  # no pixel has an even upper byte
            unused = png_chunk(b"tRNS", struct.pack(">3H", 0, 0, 0))
            data = write_png(samples, colour, bits, interlaced=interlaced, before=unused)
            yield Case(f"{name} tRNS unused", data, samples >> 8)


def icon_of(png: bytes, side: int) -> bytes:
    """A Windows icon that is a PNG."""
    return struct.pack("<3H4B2H2I", 0, 1, 1, side, side, 0, 0, 1, 32, len(png), 22) + png


def icns_of(png: bytes) -> bytes:
    """An Apple icon of 32 pixels that is a PNG."""
    return struct.pack(">4sI4sI", b"icns", 16 + len(png), b"ic11", 8 + len(png)) + png


def icon_cases() -> Iterator[Case]:
    """PNGs inside icons: grey, RGB, palette; with alpha, with a transparent colour."""
    for colour, count, bits in (
        (0, 1, 8),
        (0, 1, 16),
        (0, 1, 1),
        (0, 1, 2),
        (0, 1, 4),
        (2, 3, 8),
        (4, 2, 8),
        (6, 4, 8),
        (3, 1, 2),
    ):
        samples = RNG.integers(0, 1 << bits, (32, 32, count)).astype(np.uint16 if bits > 8 else np.uint8)
        values = in_255(samples, bits)
        palette = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
        before = png_chunk(b"PLTE", palette.tobytes()) if colour == 3 else b""
        truth = values[..., :3] if colour & 2 else as_rgb(values)
        truth = palette[samples[..., 0]].astype(float) if colour == 3 else truth
        truth = over_white(truth, values[..., -1:]) if colour & 4 else truth
        png = write_png(samples, colour, bits, before=before)
        yield Case(f"ico {colour} {bits}", icon_of(png, 32), truth, 1)
        yield Case(f"icns {colour} {bits}", icns_of(png), None if colour == 3 else truth, 1)
        if colour & 4:
            continue
        clear = samples[7, 5] if colour != 3 else np.array([1])
        body = struct.pack(f">{count}H", *clear.tolist()) if colour != 3 else b"\xff\0"
        png = write_png(samples, colour, bits, before=before + png_chunk(b"tRNS", body))
        hit = (samples == clear).all(-1, keepdims=True)
        yield Case(f"ico {colour} {bits} tRNS", icon_of(png, 32), np.where(hit, 255, truth), 1)
        yield Case(f"icns {colour} {bits} tRNS", icns_of(png), None)


def tga_of(flags: int, end: bytes, kind: int, bits: int, pixels: np.ndarray, colours: bytes = b"") -> bytes:
    """A TGA; ``colours`` are 24 bits each."""
    count = len(colours) // 3
    sizes = (int(count > 0), kind, 0, count, 24 if count else 0, 0, 0, WIDTH, HEIGHT, bits, flags)
    body = (pixels if flags & 32 else pixels[::-1]).tobytes()
    return struct.pack("<3B2HB4H2B", 0, *sizes) + colours + body + end


def tga_cases() -> Iterator[Case]:
    """32 and 16 bits, palettes and grey, with and without a word on alpha, upside down and not."""
    footer = bytes(8) + b"TRUEVISION-XFILE.\0"
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    for alpha, down, end in itertools.product((0, 8), (False, True), (b"", footer)):
        file = functools.partial(tga_of, alpha | 32 * down, end)
        name = f"{alpha} {down} {len(end)}"
        samples = random_samples(4, 8)
        rgb = samples[..., :3].astype(float)
        truth = over_white(rgb, samples[..., 3:]) if alpha else rgb
        yield Case(f"tga 32 {name}", file(2, 32, samples[..., [2, 1, 0, 3]]), truth, 1)
        grey, clear = samples[..., :1], samples[..., 1:2]
        truth = over_white(as_rgb(grey), clear) if alpha else as_rgb(grey)
        yield Case(f"tga grey {name}", file(3, 16, samples[..., :2]), truth, 1)
        truth = palette[grey[..., 0]].astype(float)
        yield Case(f"tga palette {name}", file(1, 8, grey, palette[:, ::-1].tobytes()), truth)
        short = random_samples(1, 16)
        truth = np.concatenate([(short >> by & 31) * (255 / 31) for by in (10, 5, 0)], -1)
        yield Case(f"tga 16 {name}", file(2, 16, short.astype("<u2")), None if alpha else truth, 1.01)


def psd_cases() -> Iterator[Case]:
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    merged_alpha = struct.pack(">Ih", 8, -1) + bytes(6)
    kinds = [
        (0, 1, 1),
        (1, 1, 8),
        (1, 1, 16),
        (2, 1, 8),
        (3, 3, 8),
        (3, 3, 16),
        (3, 4, 8),
        (4, 4, 8),
        (4, 4, 16),
    ]
    for (mode, count, bits), packed in itertools.product(
        [*kinds, (8, 1, 8), (9, 3, 8), (7, 3, 8)], (False, True)
    ):
        samples = random_samples(count, bits)
        values = np.rint(in_255(samples, bits))
        truth: np.ndarray | None = values[..., :3] if count > 2 else as_rgb(values)
        if mode == 0:
            truth = 255 - as_rgb(values)
        elif mode == 2:
            truth = palette[samples[..., 0]].astype(float)
        elif mode == 4:
            truth = values[..., :3] * values[..., 3:] / 255
        elif mode == 9:
            signed = samples ^ np.array([0, 128, 128], np.uint8)
            truth = np.asarray(decode(write_tiff(signed, 8, 8), DecodeConfig()).image).astype(float)
        elif mode == 7:
            truth = None
        name, colours = f"psd {mode} {count}x{bits} {packed}", palette.T.tobytes() if mode == 2 else b""
        data = write_psd(samples, mode, bits, packed=packed, palette=colours)
        yield Case(name, data, truth, 1.5 if mode == 4 else 0.5)
        if mode == 3 and count == 4:
            data = write_psd(samples, mode, bits, packed=packed, layers=merged_alpha)
            yield Case(f"{name} merged alpha", data, over_white(values[..., :3], values[..., 3:]), 1)


def netpbm_cases() -> Iterator[Case]:
    for top, (count, binary, plain) in itertools.product(
        (1, 3, 100, 255, 256, 1000, 4095, 65535), ((1, "P5", "P2"), (3, "P6", "P3"))
    ):
        samples = RNG.integers(0, top + 1, (HEIGHT, WIDTH, count))
        truth = samples[..., :3] * (255 / top) if count == 3 else as_rgb(samples * (255 / top))
        for magic in (binary, plain):
            header = f"{magic}\n{WIDTH} {HEIGHT}\n{top}\n".encode()
            raw = samples.astype(">u2" if top > 255 else np.uint8).tobytes()
            body = raw if magic == binary else " ".join(map(str, samples.ravel())).encode()
            # Pillow goes by way of its own depth, and may round twice.
            yield Case(f"netpbm {magic} {top}", header + body, truth, 1)


def sgi_cases() -> Iterator[Case]:
    for size, count in itertools.product((1, 2), (1, 3, 4)):
        samples = random_samples(count, 8 * size)
        head = struct.pack(
            ">hBBHHHHii", 474, 0, size, 3 if count > 1 else 2, WIDTH, HEIGHT, count, 0, 255
        ).ljust(512, b"\0")
        values = samples >> 8 * (size - 1)
        truth = values[..., :3].astype(float) if count > 2 else as_rgb(values)
        truth = over_white(truth, values[..., 3:]) if count == 4 else truth
        body = pack(samples[::-1].transpose(2, 0, 1), 8 * size, ">")
        yield Case(f"sgi {size} {count}", head + body, truth, 1.5)


def bmp_cases() -> Iterator[Case]:
    for bits, masks, down in itertools.product((1, 4, 8, 16, 24, 32), (False, True), (False, True)):
        if masks and bits not in (16, 32):
            continue
        palette, fields = b"", b""
        if bits <= 8:
            samples = random_samples(1, bits)
            colours = RNG.integers(0, 256, (1 << bits, 4), dtype=np.uint8)
            palette, truth = colours.tobytes(), colours[samples[..., 0]][..., 2::-1].astype(float)
        elif bits == 16:
            samples = random_samples(1, 16)
            fields = struct.pack("<3I", 0xF800, 0x7E0, 0x1F) if masks else b""
            sizes = ((11, 31), (5, 63), (0, 31)) if masks else ((10, 31), (5, 31), (0, 31))
            truth = np.concatenate([(samples >> by & top) * (255 / top) for by, top in sizes], -1)
        else:
            samples = random_samples(bits // 8, 8)
            fields = struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF) if masks else b""
            truth = samples[..., 2::-1].astype(float)
        depth = bits if bits <= 16 else 8
        rows = [pack(row[None], depth) for row in (samples if down else samples[::-1])]
        body = b"".join(row + bytes(-len(row) % 4) for row in rows)
        start, height = 54 + len(fields) + len(palette), -HEIGHT if down else HEIGHT
        head = struct.pack("<2sI4xI", b"BM", start + len(body), start)
        head += struct.pack(
            "<IiiHHII8xI4x", 40, WIDTH, height, 1, bits, 3 * masks, len(body), len(palette) // 4
        )
        yield Case(f"bmp {bits} {masks} {down}", head + fields + palette + body, truth, 1)


def jpeg2000_cases() -> Iterator[Case]:
    """Written with 8 bits; a depth in the header that is another makes an image of that depth of it."""
    grid = np.linspace(0, 40, 64)
    waves = 127.5 + 250 * np.sin(grid[:, None, None] / 3 + grid[None, :, None] / 5 + np.arange(3))
    for count, lossy in itertools.product((1, 3), (False, True)):
        image = np.clip(waves[..., :count], 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(image.squeeze()).save(out, "JPEG2000", irreversible=lossy, no_jp2=True)
        plain = np.asarray(Image.open(io.BytesIO(out.getvalue()))).reshape(image.shape).astype(float)
        for bits in (4, 6, 7, 8, 9, 10, 12, 16):
            data = bytearray(out.getvalue())
            for component in range(count):
                data[42 + 3 * component] = bits - 1
            scale, top = 2.0 ** (bits - 8) if lossy else 1, (1 << bits) - 1
            values = np.clip((plain - 128) * scale + (top + 1) / 2, 0, top) * (255 / top)
            truth = as_rgb(values) if count == 1 else values
            if not lossy or bits >= 8:  # what 9/7 gives in few bits is rounded as no construction tells
                yield Case(f"jpeg 2000 {count}x{bits} {lossy}", bytes(data), truth, 1.51)
        signed = bytearray(out.getvalue())
        signed[42] |= 0x80
        yield Case(f"jpeg 2000 signed {count}", bytes(signed), None)


MATRICES = [tiff_cases, tiff_number_cases, tiff_storage_cases, tiff_jpeg_cases, png_cases, psd_cases]
MATRICES += [icon_cases, tga_cases, netpbm_cases, sgi_cases, bmp_cases, jpeg2000_cases]


@pytest.mark.parametrize("cases", MATRICES, ids=lambda cases: cases.__name__)
def test_every_layout_is_right_or_refused_by_name(cases, capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[str] = Counter()
    wrong = []
    for case in cases():
        counts["cases"] += 1
        try:
            shown = np.asarray(decode(case.data, DecodeConfig()).image).astype(float)
        except Reject as reject:
            counts["refused"] += 1
            if case.truth is not None or reject.error != "UnsupportedLayoutError":
                wrong.append(f"{case.name}: {reject.error}: {reject}")
            continue
        if case.truth is None or np.abs(shown - case.truth).max() > case.tolerance:
            wrong.append(
                f"{case.name}: {'shown' if case.truth is None else np.abs(shown - case.truth).max()}"
            )
        counts["pixels"] += shown.shape[0] * shown.shape[1]
    with capsys.disabled():
        print(f"\n{cases.__name__}: " + ", ".join(f"{number:,} {what}" for what, number in counts.items()))
    assert counts["cases"] >= 6
    assert counts["pixels"] > 0
    assert not wrong, "\n".join(wrong)


def second_decoder_reads(case: Case) -> bool:
    """Whether OpenCV decodes the layout, without alpha, floats, inks or metadata of its own understanding."""
    words = case.name.split()
    if words[0] == "png":
        return words[1] in "02" and "tRNS" not in case.name
    if words[0] == "netpbm":
        return words[2] == "255"
    plain = case.name.startswith(("tiff 0 1x", "tiff 1 1x", "tiff 2 3x")) and words[2][2:] in ("8", "16")
    return words[0] == "tiff" and plain and words[-1] != "16}"


def test_second_decoder_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    cv2 = pytest.importorskip("cv2")
    counts: Counter[str] = Counter()
    wrong = []
    for case in itertools.chain(tiff_cases(), png_cases(), netpbm_cases()):
        if case.truth is None or not second_decoder_reads(case):
            continue
        other = cv2.imdecode(np.frombuffer(case.data, np.uint8), cv2.IMREAD_COLOR)
        if other is None:
            continue
        shown = np.asarray(decode(case.data, DecodeConfig()).image).astype(int)
        counts["cases"] += 1
        counts["pixels"] += other.shape[0] * other.shape[1]
        if other[..., ::-1].shape != shown.shape or np.abs(other[..., ::-1] - shown).max() > 1:
            wrong.append(case.name)
    with capsys.disabled():
        print("\nOpenCV: " + ", ".join(f"{number:,} {what}" for what, number in counts.items()))
    assert counts["cases"] > 100
    assert not wrong, "\n".join(wrong)

"""HEIF (HEIC) and JPEG XL, decoded by packages of the extras ``heic`` and ``jxl``; and what nothing decodes.

==========  ========================================================================================
HEIF        HEVC of 8, 10 or 12 bits, grey, RGB or YCbCr, with alpha; turned and mirrored as the file says
JPEG XL     grey or RGB of 1 to 16 bits or floats, with alpha; a JPEG that was packed without losses
==========  ========================================================================================

Neither format takes its orientation from EXIF. Of several images the primary one counts; animations, inks
and colours multiplied by alpha are refused by name. Further depth than 8 bits keeps its upper bits alone, but
in grey.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from transforms.images.jxl import JXL_CODESTREAM, JXL_CONTAINER, read_jxl_header
from transforms.images.layouts import UnsupportedLayoutError
from vqgan.extras import require_extra
from vqgan.faults import raise_machine_fault

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "F")

_HEAD_BYTES = 1024
_REFUSED = {
    rb"%!PS|\xc5\xd0\xd3\xc6": "EPS is a program for a PostScript interpreter, and files are never executed",
    rb"%PDF": "PDF is a document, not an image",
    rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF": "drawing commands (WMF, EMF) are not an image",
    rb"\x89HDF|GRIB|BUFR|SIMPLE": "scientific data (HDF5, GRIB, BUFR, FITS) is not decoded",
    rb"\x00\x00\x01\xb3": "MPEG is video, not an image",
    rb"\xd0\xcf\x11\xe0": "OLE containers (FlashPix, Microsoft Image Composer) are not decoded",
    rb"....ftyp(crx )|II\*\0....CR|IIU\0|IIR[OS]|FUJIFILMCCD-RAW": "camera raw is not decoded: develop it",
    rb"....(ftyp(?!avi|hei|hev|mif1|msf1)|moov|mdat)|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|OggS": (
        "video or sound is not an image: write its frames as images"
    ),
    rb"ID3|fLaC|RIFF....WAVE": "sound is not an image",
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(?i:<!doctype svg|<svg)": (
        "SVG is drawing commands, not an image"
    ),
    rb"(\xef\xbb\xbf)?\s*(?i:<(!doctype )?html)": "a web page (of a failed download?), not an image",
    rb"version https://git-lfs": "a Git LFS pointer in place of the image: run git lfs pull",
    rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd": "a compressed file: decompress it",
    rb"II\xbc": "JPEG XR is not decoded: convert it to PNG",
    rb"\x76\x2f\x31\x01|#\?(RADIANCE|RGBE)": "OpenEXR and Radiance are not decoded: convert it to PNG",
    rb".{128}DICM": "DICOM is not decoded: convert it to PNG",
    rb"P7\s|PF\s": "PAM, and PFM of colours, are not decoded: convert it to PNG",
    rb"gimp xcf|AT&TFORM|BPG\xfb|FLIF|\xabKTX": "XCF, DjVu, BPG, FLIF and KTX are not decoded",
}


_SIGNED = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "JPEG2000", "ICNS", "ICO", "DDS", "QOI")
"""Pillow's formats that first bytes tell for sure."""


def name_unread(data: bytes, formats: Sequence[str]) -> tuple[str, str]:
    """Returns class and message of the reject of a file that nothing opens, by its first bytes.

    Args:
      data: the file.
      formats: of Pillow, none of which opened it.

    Raises:
      MachineError: not the file is at fault.
    """
    for sign, reason in _REFUSED.items():
        if re.match(sign, data[:_HEAD_BYTES], re.DOTALL):
            return "UnsupportedFormat", reason
    for name in formats:
        factory, accept = Image.OPEN[name]
        if name in _SIGNED and accept is not None and accept(data[:16]) is True:
            what = f"{name} that is damaged, cut off or in a layout that is not decoded"
            return "UnidentifiedImageError", what + _why(factory, data)
    return "UnidentifiedImageError", "not an image in any known format"


def _why(factory: Callable[..., Any], data: bytes) -> str:
    """Says what the plugin of a format has against a file that it does not open."""
    try:
        factory(io.BytesIO(data), "").close()
    except Exception as error:  # noqa: BLE001 - plugins raise almost anything
        raise_machine_fault(error, "an image cannot be decoded")
        reason = " ".join(str(error).split())[:200]
        return f" ({reason})" if reason and "<" not in reason and "not identified" not in reason else ""
    return ""


class ExtraImage(Image.Image):
    """An image that a package of an extra decodes when it is loaded."""

    def __init__(self, format: str, size: tuple[int, int], decode: Callable[[], Image.Image]) -> None:
        """Decodes nothing yet.

        Args:
          format: name of it.
          size: as the header has it; loading may tell another.
          decode: gives the pixels, upright unless EXIF comes along.
        """
        super().__init__()
        self.format, self._mode, self._size, self._decode = format, "RGB", size, decode

    def load(self) -> Any:
        """Decodes the pixels, once."""
        if self._im is None:
            decoded = self._decode()
            self._im, self._mode, self._size, self.info = (
                decoded.im,
                decoded.mode,
                decoded.size,
                decoded.info,
            )
        return super().load()


def is_heif(data: bytes) -> bool:
    """Returns whether a file is HEIF of other codings than AV1, as far as its first bytes tell."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def is_jxl(data: bytes) -> bool:
    """Returns whether a file is JPEG XL."""
    return data.startswith((JXL_CODESTREAM, JXL_CONTAINER))


def open_heif(data: bytes) -> Image.Image:
    """Opens the primary image of a HEIF file; pixels are not decoded yet.

    Raises:
      UserError: the extra is not installed.
      UnsupportedLayoutError: its colours are multiplied by alpha.
      Exception: whatever the package raises where the file is damaged.
    """
    require_extra("heic", "HEIF")
    import pillow_heif

    heif = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True, hdr_to_16bit=True)
    primary = heif[heif.primary_index]
    if primary.premultiplied_alpha:
        raise UnsupportedLayoutError("HEIF whose colours are multiplied by alpha is not decoded")

    def decode() -> Image.Image:
        image: Image.Image = primary.to_pillow()
        image.info = {}  # EXIF repeats an orientation that is already applied
        return image

    return ExtraImage("HEIF", primary.size, decode)


def open_jxl(data: bytes) -> Image.Image:
    """Opens a JPEG XL file; pixels are not decoded yet.

    Raises:
      UserError: the extra is not installed.
      UnsupportedLayoutError: its layout is not decoded.
      EOFError: it is cut off in its header.
    """
    require_extra("jxl", "JPEG XL")
    header = read_jxl_header(data)
    if header.problem:
        raise UnsupportedLayoutError(f"JPEG XL {header.problem} is not decoded")
    return ExtraImage("JXL", header.size, lambda: _decode_jxl(data))


def _decode_jxl(data: bytes) -> Image.Image:
    import pillow_jxl

    try:
        is_jpeg, info, pixels, *_ = pillow_jxl.Decoder(num_threads=0)(data)
    except RuntimeError as error:  # its text is about building the package
        raise OSError("the JPEG XL file is truncated or damaged") from error
    if is_jpeg:
        image: Image.Image = Image.open(io.BytesIO(pixels), formats=("JPEG",))
        image.load()
        return image  # with its EXIF, since its pixels lie as they did in the JPEG
    if info.mode not in _MODES:
        raise UnsupportedLayoutError(f"JPEG XL in mode {info.mode} is not decoded")
    return Image.frombytes(info.mode, (info.width, info.height), pixels)

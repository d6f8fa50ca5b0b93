"""Verdicts on images: what is raised becomes a reject, unless the machine is at fault; and what a file is."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from vqgan.faults import MachineError, raise_machine_fault

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
"""Formats that first bytes tell for sure."""
_HEAD_BYTES = 1024


class Reject(Exception):  # noqa: N818 -- a verdict on one image rather than a fault
    """This image gives no row. Survives pickling.

    Attributes:
      stage: ``read``, ``decode`` or ``filter``.
      error: class of the error, that of the library which refused it where there is one.
      message: one line, the same in every run.
    """

    def __init__(self, stage: str, error: str, message: str) -> None:
        super().__init__(stage, error, message)
        self.stage = stage
        self.error = error
        self.message = message

    def __str__(self) -> str:
        return self.message


def reject_reason(error: Exception, stage: str) -> Reject:
    """Returns the reject that stands for ``error``: its class name and its message on one line.

    Addresses of objects are removed, so that the same file gives the same reject in every run.
    """
    if isinstance(error, Reject):
        return error
    if isinstance(error, Image.DecompressionBombError):  # its text depends on Pillow's process-wide limit
        return Reject(stage, type(error).__name__, "the image, or one inside it, has more than max_pixels")
    message = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(error)) or "no message"
    message = " ".join(message.encode("utf-8", "replace").decode().split())
    return Reject(stage, type(error).__name__, message[:500])


@contextlib.contextmanager
def rejecting(stage: str) -> Iterator[None]:
    """Turns any exception of the block into a :class:`Reject`; exits and interrupts pass.

    Decoders fail with OSError, ValueError, SyntaxError, struct.error and many more, so no shorter list
    would do.

    Raises:
      MachineError: not the image is at fault.
    """
    try:
        yield
    except (Reject, MachineError):
        raise
    except Exception as error:
        if str(error).startswith("out of memory"):  # what Pillow's decoders say, as an OSError
            error = MemoryError(str(error))
        raise_machine_fault(error, "an image cannot be decoded")
        raise reject_reason(error, stage) from error


def unidentified(data: bytes, formats: Sequence[str]) -> Reject:
    """Names the formats that are refused on purpose, and those that are damaged; others stay unidentified."""
    for signature, reason in _REFUSED.items():
        if re.match(signature, data[:_HEAD_BYTES], re.DOTALL):
            return Reject("decode", "UnsupportedFormat", reason)
    for name in formats:
        factory, accept = Image.OPEN[name]
        if name in _SIGNED and accept is not None and accept(data[:16]) is True:
            reason = _why_not(factory, data)
            what = f"{name} that is damaged, cut off or in a layout that is not decoded{reason}"
            return Reject("decode", "UnidentifiedImageError", what)
    return Reject("decode", "UnidentifiedImageError", "not an image in any known format")


def _why_not(factory: Callable[..., Any], data: bytes) -> str:
    """Says what the plugin of a format has against a file that it does not open."""
    try:
        factory(io.BytesIO(data), "").close()
    except Exception as error:  # noqa: BLE001 - plugins raise almost anything
        reason = reject_reason(error, "decode").message
        return "" if "not identified" in reason else f" ({reason})"
    return ""

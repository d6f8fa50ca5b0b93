"""The images of ``vqgan browse``: originals, reconstructions, patches, and tokens as colours.

They are made when asked for, a few together, kept for a while, and encoded anew: no byte of a source reaches
a web browser.
"""

import collections
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from pipelines.browsing.token_browser import BrowsedRow, TokenBrowser
from transforms.decoding.image_format import ImageFormat
from transforms.images.decode import Decoded, Prepared, Reject, decode_image, prepare, rejecting
from transforms.sharded.batching import load_codec
from transforms.sharded.plan import read_slice
from transforms.sources import Entry, Loader, SourceConfig, open_source
from transforms.sources.base import error_reason
from transforms.tokenizing.replay import replayed_images
from vqgan.caching import LatestResults
from vqgan.codec_checkpoint import read_info
from vqgan.errors import UserError
from vqgan.image_grid import displayed
from vqgan.token_layouts import GRID

T = TypeVar("T")
BATCH_ROWS = 4
"""Rows that are decoded, or read from the source, together."""
KEPT_BYTES = 128 << 20
"""About how much of either is kept."""
WHOLE_SIDE = 768
"""Longer side, at most, of a whole original as it is shown, in pixels."""
_MOST_SLICES = 1 << 32  # of a part
_SLICES_KEPT = 4
_GOLDEN, _SILVER = (5**0.5 - 1) / 2, 2**0.5 - 1


class MadeTogether(Generic[T]):
    """Results by number, made a few together: those that are asked for while others are being made.

    Those that were used last are kept. One that fails is made anew when it is asked for again.
    """

    def __init__(
        self, make: Callable[[list[int]], Mapping[int, T | UserError]], together: int, kept: int
    ) -> None:
        """Keeps no more than ``kept`` results; ``make`` is never called twice at a time."""
        self._make, self._together, self._kept = make, together, max(kept, together)
        self._results: collections.OrderedDict[int, T] = collections.OrderedDict()
        self._asked: collections.Counter[int] = collections.Counter()  # what threads are waiting for
        self._lock = threading.Lock()  # of the two; never held while something is made
        self._making = threading.Lock()

    def __call__(self, number: int) -> T:
        """Returns the result for a number.

        Raises:
          UserError: there is none; it says why.
        """
        with self._lock:
            if number in self._results:
                self._results.move_to_end(number)
                return self._results[number]
            self._asked[number] += 1
        try:
            with self._making:
                return self._after_waiting(number)
        finally:
            with self._lock:
                self._asked -= collections.Counter([number])

    def close(self) -> None:
        """Waits until nothing is being made, and lets nothing be made from then on."""
        self._making.acquire()

    def _after_waiting(self, number: int) -> T:
        with self._lock:
            if number in self._results:  # another thread has made it meanwhile
                return self._results[number]
            others = (other for other in self._asked if other != number and other not in self._results)
            numbers = [number, *others][: self._together]
        made = self._make(numbers)
        with self._lock:
            for each, result in made.items():
                if not isinstance(result, UserError):
                    self._results[each] = result
            while len(self._results) > self._kept:
                self._results.popitem(last=False)
        result = made[number]
        if isinstance(result, UserError):
            raise result
        return result


class Original(NamedTuple):
    """An original, read from its source again.

    Attributes:
      pixels: uint8 ``[H, W, 3]``, what the codec was given for the row.
      whole: uint8 ``[H, W, 3]``, the whole image, no larger than it is shown.
    """

    pixels: np.ndarray
    whole: np.ndarray


class Originals:
    """The originals of a data set's rows. Safe from many threads."""

    def __init__(self, browser: TokenBrowser, source: SourceConfig) -> None:
        """Opens the source; reads nothing.

        Raises:
          UserError: there is none, or the data set was not made of images.
        """
        if browser.is_sampled:
            raise UserError(f"{browser.path}: its tokens were not made of images; leave out --input")
        self._browser = browser
        self._images = replayed_images(browser.folder, dict(browser.manifest), source)
        self._source = open_source(self._images.source)
        self._slices = LatestResults(self._read_entries, _SLICES_KEPT)
        height, width = self._images.geometry.shape
        size = (height * width + WHOLE_SIDE * WHOLE_SIDE) * 3
        self.of_row = MadeTogether(self._make, BATCH_ROWS, KEPT_BYTES // size)

    def _read_entries(self, number: int) -> dict[str, Entry]:
        part, slice_number = divmod(number, _MOST_SLICES)
        entries = read_slice(self._browser.folder, slice_number, part)
        return {entry.key: entry.unseen() for entry in entries}  # rows tell whether it is their image

    def _make(self, numbers: list[int]) -> dict[int, Original | UserError]:
        made: dict[int, Original | UserError] = {}
        slices: dict[int, list[BrowsedRow]] = {}
        for number in numbers:
            try:
                row = self._browser.row(number)
            except UserError as error:
                made[number] = error
            else:
                slices.setdefault(row.part * _MOST_SLICES + row.slice_number, []).append(row)
        for number, rows in slices.items():
            try:
                made |= self._of_slice(self._slices(number), rows)
            except UserError as error:
                made |= dict.fromkeys((row.number for row in rows), error)
        return made

    def _of_slice(
        self, known: Mapping[str, Entry], rows: Sequence[BrowsedRow]
    ) -> dict[int, Original | UserError]:
        lost = UserError("the plan of the data set does not have this key")
        made: dict[int, Original | UserError] = dict.fromkeys((row.number for row in rows), lost)
        keys = {row.key for row in rows}
        entries = [entry for key, entry in known.items() if key in keys]  # in the order of the source
        for entry, load in zip(entries, self._source.read(entries), strict=True):
            of_entry = [row for row in rows if row.key == entry.key]
            try:
                prepared, whole = self._load(entry, load)
            except UserError as error:
                made |= dict.fromkeys((row.number for row in of_entry), error)
                continue
            made |= {row.number: _original(row, prepared, whole) for row in of_entry}
        return made

    def _load(self, entry: Entry, load: Loader) -> tuple[Prepared, np.ndarray]:
        """Reads an image: its squares, and the whole of it no larger than it is shown."""
        try:
            data = load().data
        except Exception as error:  # of whatever type its source knows, as in a run
            raise UserError(f"{entry.key}: cannot be read ({error_reason(error)})") from error
        try:
            prepared = prepare(data, entry.key, self._images.decode, self._images.geometry)
            return prepared, _whole(decode_image(data, self._images.decode, WHOLE_SIDE))
        except Reject as reject:
            raise UserError(f"{entry.key}: {reject.error} ({reject.message})") from reject


def _original(row: BrowsedRow, prepared: Prepared, whole: np.ndarray) -> Original | UserError:
    """Returns what a row shows of an image, unless that is no longer the one that it was made of."""
    found = [
        pixels
        for view, pixels in zip(prepared.views, prepared.pixels, strict=True)
        if view.view == row.view and (*view[1:5],) == row.crop
    ]
    if (prepared.width, prepared.height) != (row.width, row.height) or not found:
        return UserError(
            f"{row.key}: {prepared.width}x{prepared.height} pixels, but its row was made of "
            f"{row.width}x{row.height}; give the --input that the tokens were made of"
        )
    return Original(found[0], whole)


def _whole(decoded: Decoded) -> np.ndarray:
    """Returns the content of an image, with the longer side at no more than it is shown at."""
    scale = min(1.0, WHOLE_SIDE / max(decoded.width, decoded.height))
    size = (max(1, round(decoded.width * scale)), max(1, round(decoded.height * scale)))
    with rejecting("decode"):
        left, top, right, bottom = decoded.extent
        image = decoded.image
        box = (left, top, min(right, float(image.width)), min(bottom, float(image.height)))
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box))


class Reconstructions:
    """Images decoded from a data set's rows. Safe from many threads; loads JAX at the first one."""

    def __init__(self, browser: TokenBrowser, codec: str | None) -> None:
        """Reads the codec's description.

        Args:
          browser: the data set.
          codec: path or name; None for the one that the data set names.

        Raises:
          UserError: it cannot be opened, or is not the one that made the tokens.
        """
        info = read_info(codec or browser.codec_name)
        if info.fingerprint != browser.fingerprint:
            raise UserError(
                f"{browser.path}: its tokens were made by codec {browser.codec_name} "
                f"({browser.fingerprint[:12]}), not by {codec or browser.codec_name} "
                f"({info.fingerprint[:12]}); give the codec that made them with --codec"
            )
        info.require_decoder()
        self._browser, self._codec = browser, codec or browser.codec_name
        size = int(np.prod(info.config.image_shape(browser.grid))) * 3
        self.of_row = MadeTogether(self._make, BATCH_ROWS, KEPT_BYTES // size)

    def _make(self, numbers: list[int]) -> dict[int, np.ndarray | UserError]:
        """Decodes rows, uint8 ``[H, W, 3]`` each."""
        made: dict[int, np.ndarray | UserError] = {}
        tokens: dict[int, np.ndarray] = {}
        for number in numbers:
            try:
                tokens[number] = self._browser.row(number).tokens
            except UserError as error:
                made[number] = error
        if tokens:
            decoded = load_codec(self._codec, BATCH_ROWS, "float32").decode(np.stack(list(tokens.values())))
            made |= dict(zip(tokens, decoded, strict=True))
        return made


def patch_of(pixels: np.ndarray, grid: tuple[int, int], cell: int, layout: str = GRID) -> np.ndarray:
    """Cuts out the patch that a token stands for.

    Args:
      pixels: uint8 ``[H, W, 3]``.
      grid: ``(h, w)``; the sides are multiples of it.
      cell: of the grid, row by row.
      layout: of the tokens; what is no grid has no patches, and every token stands for the whole image.

    Returns:
      uint8 ``[H / h, W / w, 3]``.
    """
    if layout != GRID:
        return pixels
    height, width = pixels.shape[0] // grid[0], pixels.shape[1] // grid[1]
    row, column = divmod(cell, grid[1])
    return pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]


def token_colors(tokens: np.ndarray) -> np.ndarray:
    """Gives each code a colour of its own, far from those of its neighbours.

    Args:
      tokens: integers ``[...]``.

    Returns:
      uint8 ``[..., 3]``.
    """
    hue = tokens * _GOLDEN % 1.0  # multiples of the golden ratio are spread evenly, however many
    value = 0.55 + 0.4 * (tokens * _SILVER % 1.0)
    sector = hue[..., None] * 6 + np.array([0.0, 4.0, 2.0])
    ramp = np.clip(np.abs(sector % 6 - 3) - 1, 0, 1)
    return np.round(255 * value[..., None] * (1 - 0.6 * (1 - ramp))).astype(np.uint8)


def as_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 ``[H, W, 3]`` without loss."""
    return ImageFormat(encoding="png").encode(np.ascontiguousarray(displayed(pixels)))


def as_jpeg(pixels: np.ndarray) -> bytes:
    """Encodes uint8 ``[H, W, 3]`` to be looked at."""
    return ImageFormat(encoding="jpeg", quality=90).encode(displayed(pixels))

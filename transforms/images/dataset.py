"""The images of a source by number, for training: decoded on demand, in any order, from many threads."""

import bisect
import copy
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from transforms.images.decode import DecodeConfig, Decoded, Reject, decoding, reject_reason
from transforms.sources import Entry, Loader, SourceConfig, open_source
from vqgan.caching import LatestResults
from vqgan.data.splits import is_validation
from vqgan.errors import UserError
from vqgan.faults import raise_machine_fault, retrying
from vqgan.image_sizes import ImageSize, describe_size, shape_of_size

BLOCK_ENTRIES = 256
"""Most images of a container that are read together."""
BLOCK_BYTES = 32 << 20
"""About how many bytes these have, encoded."""
BLOCKS_KEPT = 14
"""Blocks whose encoded bytes stay in memory: those that the loader mixes at a time, and some to spare."""
_SAMPLED = 4

Encoded = bytes | Reject
"""The file of an image, or why there is none."""


class ImageDataset:
    """Random access to the images of a source. Safe from many threads; picklable, without its caches.

    What cannot be used (not decodable, too small, found damaged by the listing) is None, and stands in
    :attr:`rejects` with its reason. A failure to read may pass, so it is tried again when the image is
    asked for again; every other reject is final. A fault of the machine (:mod:`vqgan.faults`) is no reject.

    Files are read one by one. Inside a container (tar, Parquet, TFRecord, TFDS) an image may cost as much
    to read as all those before it, so containers are read in :attr:`blocks` of neighbours, the last few of
    which are kept: ask for images block by block, more or less. Even so, a block costs what lies before
    it in its Parquet row group or compressed archive; row groups of a few hundred rows are read best.

    Decoded images are kept until ``cache_bytes`` are full, and then stay: where every round has an order
    of its own, the images dropped because they were used least recently would be those needed next.

    Attributes:
      config: where images come from.
      keys: of the images, in the order of the listing.
    """

    def __init__(
        self,
        config: SourceConfig,
        decode: DecodeConfig,
        max_short_side: int | None,
        least_size: ImageSize,
        cache_bytes: int,
    ) -> None:
        """Lists the source.

        Args:
          config: where images come from; further columns are not read.
          decode: what is accepted as an image.
          max_short_side: an image whose shorter side is longer is reduced to it (Lanczos; JPEGs partly
            in decoding). None: no limit.
          least_size: an image that a square of this side, or a rectangle of this height and width, does not
            fit into is rejected.
          cache_bytes: memory for decoded images, of this object and its subsets together.

        Raises:
          UserError: the source cannot be opened or has nothing in it, or the sides contradict each other.
        """
        least = shape_of_size(least_size)
        if max_short_side is not None and max_short_side < max(least):
            raise UserError(
                f"images reduced to {max_short_side} pixels are too small for {describe_size(least_size)}; "
                "reduce less"
            )
        self.config = dataclasses.replace(config, columns=())
        self._decode = dataclasses.replace(decode, min_side=max(decode.min_side, min(least)))
        self._least = least
        self._max_short_side = max_short_side
        self._cache = _Cache(cache_bytes)
        self._source = open_source(self.config)
        self._take(self._source.list())
        if not self._entries:
            raise UserError(f"{config.input}: there are no images here; check the path of the input")

    def _take(self, entries: Iterator[Entry]) -> None:
        """Makes these the images, none of which has been looked at."""
        # A file that changes during training gives other pixels, or a reject, and no more.
        self._entries = [entry.unseen() for entry in entries]
        self.keys = [entry.key for entry in self._entries]
        self._rejects: dict[str, Reject] = {}
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._read_blocks = LatestResults(self._read_block, BLOCKS_KEPT)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = {**self.__dict__, "_rejects": dict(self._rejects)}
        del state["_lock"], state["_read_blocks"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> np.ndarray | None:
        """An image, uint8 ``[H, W, C]``, not writable; None for one that cannot be used.

        Raises:
          IndexError: there is no such number.
          UserError: the source as a whole cannot be opened any more, or the machine fails time after time.
        """
        number = range(len(self))[number]
        entry = self._entries[number]
        image = self._cache.get(entry)
        if image is not None or self._is_final(entry.key):
            return image
        try:
            image = retrying(lambda: self._image(number))
        except Reject as reject:
            self._note(entry.key, reject)
            return None
        self._note(entry.key, None)
        self._cache.keep(entry, image)
        return image

    def _image(self, number: int) -> np.ndarray:
        """Reads and decodes an image. Raises Reject and MachineError."""
        limit = self._max_short_side

        def pixels(decoded: Decoded) -> np.ndarray:
            _check_fits(decoded, self._least)
            return _bounded(decoded, limit)

        return decoding(self._encoded(number), self._decode, limit, pixels)

    @property
    def rejects(self) -> dict[str, str]:
        """Reason by key of each image asked for so far that could not be used."""
        with self._lock:
            return {key: f"{reject.error}: {reject}" for key, reject in self._rejects.items()}

    @functools.cached_property
    def blocks(self) -> list[range] | None:
        """Numbers of images that are cheap to read together, every one once; None for single files."""
        return None if self._source.shuffles else list(_cut(self._entries, self._usual_bytes()))

    def subset(self, accept: Callable[[str], bool]) -> "ImageDataset":
        """Returns the images whose key is accepted, perhaps none.

        It shares the cache, and has its own rejects.
        """
        part = copy.copy(self)
        part.__dict__.pop("blocks", None)
        part._take(entry for entry in self._entries if accept(entry.key))
        return part

    def uncached(self) -> "ImageDataset":
        """Returns the same images, none of which is kept: for what is read once."""
        part = self.subset(lambda key: True)
        part._cache = _Cache(0)
        return part

    def _is_final(self, key: str) -> bool:
        """Tells whether the image is known to be of no use: only a failure to read may pass."""
        with self._lock:
            known = self._rejects.get(key)
        return known is not None and known.stage != "read"

    def _note(self, key: str, reject: Reject | None) -> None:
        with self._lock:
            if reject is None:
                self._rejects.pop(key, None)
            else:
                self._rejects[key] = _copied(reject)

    def _usual_bytes(self) -> int:
        """Returns encoded bytes of an image where the listing does not tell: those of the first ones."""
        unknown = (entry for entry in self._entries if entry.size < 0 and entry.error is None)
        sample = self._read(list(itertools.islice(unknown, _SAMPLED)))
        return max((len(data) for data in sample if isinstance(data, bytes)), default=0)

    def _encoded(self, number: int) -> bytes:
        """Returns the file of an image. Raises Reject."""
        if self.blocks is None:
            (data,) = self._read([self._entries[number]])
        else:
            block = bisect.bisect_right(self.blocks, number, key=lambda block: block.start) - 1
            data = self._read_blocks(block)[number - self.blocks[block].start]
        if isinstance(data, Reject):
            raise _copied(data)
        return data

    def _read_block(self, block: int) -> list[Encoded]:
        assert self.blocks is not None
        numbers = self.blocks[block]
        return self._read(self._entries[numbers.start : numbers.stop])

    def _read(self, entries: Sequence[Entry]) -> list[Encoded]:
        """Returns the files of some images, read in the order of the source."""
        loaders = self._source.read([entry for entry in entries if entry.error is None])
        return [_damaged(entry) if entry.error is not None else _load(next(loaders)) for entry in entries]


def split(images: ImageDataset, holdout: int) -> tuple[ImageDataset, ImageDataset]:
    """Splits images into those to train on and those to validate with: one in ``holdout``, none if 0.

    The split is by image, never by crop, and depends on nothing but the key; see
    :mod:`vqgan.data.splits`.

    Raises:
      UserError: nothing is left to train on.
    """
    training = images.subset(lambda key: not is_validation(key, holdout))
    validation = images.subset(lambda key: is_validation(key, holdout))
    if not len(training):
        raise UserError(
            f"{images.config.input}: with one in {holdout} images for validation none of {len(images)} "
            "is left to train on; hold back fewer"
        )
    return training, validation


class _Cache:
    """Decoded images, until there is no more room. Pickled without them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._room = size
        self._images: dict[tuple[str, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["_Cache"], tuple[int]]:
        return _Cache, (self._size,)

    def get(self, entry: Entry) -> np.ndarray | None:
        return self._images.get((entry.file, entry.offset))

    def keep(self, entry: Entry, image: np.ndarray) -> None:
        place = (entry.file, entry.offset)
        with self._lock:
            if place not in self._images and image.nbytes <= self._room:
                self._images[place] = image
                self._room -= image.nbytes


def _cut(entries: Sequence[Entry], usual_bytes: int) -> Iterator[range]:
    """Runs of neighbours in one file, of bounded number and size."""
    start, size = 0, 0
    for number, entry in enumerate(entries):
        more = entry.size if entry.size >= 0 else usual_bytes
        full = number - start == BLOCK_ENTRIES or size + more > BLOCK_BYTES
        if number > start and (full or entry.file != entries[start].file):
            yield range(start, number)
            start, size = number, 0
        size += more
    if entries:
        yield range(start, len(entries))


def _load(load: Loader) -> Encoded:
    try:
        return load().data
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one example may end nothing but that
        raise_machine_fault(error, "an image cannot be read")
        return reject_reason(error, "read")


def _damaged(entry: Entry) -> Reject:
    """Returns the reject of an entry that the listing found damaged."""
    return Reject("plan", "Damaged", " ".join((entry.error or "").split()))


def _copied(reject: Reject) -> Reject:
    """Returns the same without a traceback, which would keep an image's bytes alive."""
    return Reject(reject.stage, reject.error, reject.message)


def _check_fits(decoded: Decoded, least: tuple[int, int]) -> None:
    """Rejects an image that is lower or narrower than height and width ``least``."""
    if decoded.height < least[0] or decoded.width < least[1]:
        size = f"{decoded.width}x{decoded.height} pixels"
        raise Reject("filter", "TooSmall", f"{size}; at least {least[1]} wide and {least[0]} high are needed")


def _bounded(decoded: Decoded, limit: int | None) -> np.ndarray:
    """Returns the pixels, with the shorter side at no more than ``limit``."""
    image, short = decoded.image, min(decoded.width, decoded.height)
    if limit is not None and short > limit:
        size = (round(decoded.width * limit / short), round(decoded.height * limit / short))
        left, top, right, bottom = decoded.extent
        box = (left, top, min(right, float(image.width)), min(bottom, float(image.height)))
        image = image.resize(size, Image.Resampling.LANCZOS, box)
    return np.asarray(image)

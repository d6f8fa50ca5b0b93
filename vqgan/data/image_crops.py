"""Training crops: endless batches of random parts of images, in an order fixed by a seed.

Where a position of the endless stream leads (which image, which part of it) is a pure function of
the seed and the position. Grain makes positions in threads ahead of the training step, keeps their
order, and remembers how far it has come; so neither the number of threads nor a stop and a resume
changes a batch.

Worker processes are left out on purpose: Pillow releases the interpreter's lock, every process would
decode and cache images of its own, and what it rejects would not be heard of here.
"""

import dataclasses
import functools
import math
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vqgan.data.shuffle import EndlessOrder, block_layout, epoch_order
from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.image_sizes import ImageSize, describe_size, largest_inside, shape_of_size
from vqgan.processor import available_cores

_BATCHES_AHEAD = 2
_STATE_VERSION = 1


class ImageSequence(Protocol):
    """Random access to images, from many threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> np.ndarray | None:
        """uint8 ``[H, W, C]``; None for an image that cannot be used, which is then skipped."""
        ...


@dataclasses.dataclass(frozen=True)
class CropConfig:
    """Random squares of an image, or rectangles of one aspect.

    Their side is log-uniform, so that fine texture and whole scenes are seen equally often.

    Attributes:
      size: side of a crop after resizing, in pixels, or its height and width.
      least_share: smallest crop, as a share of the largest one's side (of squares: of the image's shorter
        side). Crops are never smaller than ``size`` unless ``upsample``.
      most_share: largest crop, likewise.
      flip: mirror half of the crops.
      upsample: allow crops smaller than ``size``.
    """

    size: ImageSize
    least_share: float = 0.0
    most_share: float = 1.0
    flip: bool = True
    upsample: bool = False

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise UserError(f"crop.size is {describe_size(self.size)}: it must be at least 1")
        if not 0 <= self.least_share <= self.most_share <= 1 or self.most_share == 0:
            raise UserError(
                f"crop.least_share is {self.least_share:g} and crop.most_share {self.most_share:g}: "
                "shares lie between 0 and 1, the least first"
            )
        if self.upsample and self.least_share == 0:
            raise UserError("crop.upsample without crop.least_share would enlarge single pixels: set both")

    @property
    def shape(self) -> tuple[int, int]:
        """Returns height and width of a crop after resizing."""
        return shape_of_size(self.size)


def random_crop(image: np.ndarray, crop: CropConfig, rng: np.random.Generator) -> np.ndarray:
    """Returns a random part of an image, of the aspect of ``crop.size``, resized (Lanczos) to it.

    Args:
      image: uint8 ``[H, W, C]``.
      crop: what crops are drawn.
      rng: source of randomness.

    Returns:
      uint8, of height and width ``crop.shape``, of the image's channels.

    Raises:
      ValueError: a side of the image is shorter than that of ``crop.size``, and ``upsample`` is off.
    """
    height, width = image.shape[:2]
    rows, columns = _random_size(height, width, crop, rng)
    top = int(rng.integers(height - rows + 1))
    left = int(rng.integers(width - columns + 1))
    mirrored = crop.flip and rng.random() < 0.5
    pixels = _resized(image[top : top + rows, left : left + columns], crop.shape)
    return pixels[:, ::-1] if mirrored else pixels


def center_crop_resize(image: np.ndarray, size: ImageSize) -> np.ndarray:
    """Returns the largest centred part of an image of a size's aspect, resized (Lanczos): for validation.

    Args:
      image: uint8 ``[H, W, C]``.
      size: side of the result, or its height and width; a smaller image is enlarged.

    Returns:
      uint8, of that height and width, of the image's channels.
    """
    height, width = image.shape[:2]
    rows, columns = largest_inside(height, width, size)
    top, left = (height - rows) // 2, (width - columns) // 2
    return _resized(image[top : top + rows, left : left + columns], shape_of_size(size))


def crop_batches(
    images: ImageSequence,
    crop: CropConfig,
    batch_size: int,
    seed: int,
    *,
    threads: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    blocks: Sequence[range] | None = None,
    name: str = "the training data",
) -> "CropBatches":
    """Makes endless batches of random crops, fixed by the seed and the shard.

    Every image of the shard comes once before any comes again, in an order of its own each time.
    Two batches are made ahead in threads while the caller's step runs.

    Args:
      images: where crops come from.
      crop: size and kind of crops.
      batch_size: crops in a batch, of this shard; may be more than there are images.
      seed: of order and crops, not negative.
      threads: that read, decode and crop; None for one per core.
      shard_index: of this host. Shards share no image and leave none out; their sizes differ by one
        image or block at most.
      shard_count: number of hosts.
      blocks: ranges of images that are cheap to read together, which cover all once. The order then
        mixes :data:`vqgan.data.shuffle.BLOCKS_MIXED` random blocks at a time. None: all images are mixed.
      name: what the images are, for messages.

    Raises:
      UserError: there are no images, fewer images or blocks than shards, or Grain is not installed.
        While iterating: not one image can be used.
    """
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size} crops: it must be at least 1")
    starts, sizes = (part[shard_index::shard_count] for part in block_layout(len(images), blocks))
    own_seed = (seed, shard_index)
    order = EndlessOrder(int(sizes.sum()), functools.partial(epoch_order, starts, sizes, own_seed))
    if not order.count:
        parts = "" if blocks is None else f" in {len(blocks)} blocks"
        raise UserError(
            f"{name}: {len(images)} images{parts} are too few for shard {shard_index} of {shard_count}; "
            "add images"
        )
    crops = _Crops(images, crop, order, own_seed, name)
    return CropBatches(crops, batch_size, threads or available_cores(), (seed, shard_index, shard_count))


class CropBatches:
    """Endless iterator over uint8 ``[B, H, W, C]``, whose position can be saved and set."""

    def __init__(self, crops: "_Crops", batch_size: int, threads: int, identity: tuple[int, ...]) -> None:
        grain = _grain()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, batch_size))
        stream = grain.MapDataset.source(crops).to_iter_dataset(options)  # leaves out what is None
        stream = stream.batch(batch_size, drop_remainder=True)
        # Collecting a batch takes milliseconds, which would be the training step's.
        ahead = grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=_BATCHES_AHEAD)
        self._open = [iter(ahead)]
        # Also at the interpreter's end, when threads that nobody stopped would fail noisily.
        self._finalizer = weakref.finalize(self, _close, self._open)
        self._identity = {"version": _STATE_VERSION, "pictures": crops.order.count, "shard": list(identity)}

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        batch: np.ndarray = next(self._iterator)
        return batch

    @property
    def _iterator(self) -> Any:
        if not self._open:
            raise ValueError("these batches are closed")
        return self._open[0]

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch that was given, as JSON data."""
        return {**self._identity, "position": self._iterator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after the batch before :meth:`get_state`, in any process and with any number of threads.

        Raises:
          UserError: the state belongs to other data, another seed or shard.
        """
        saved = {name: state.get(name) for name in self._identity}
        if saved != self._identity or "position" not in state:
            raise UserError(
                f"the saved position is of other training data: {saved}, now {self._identity}; "
                "give the same images, seed and hosts, or start anew"
            )
        self._iterator.set_state(state["position"])

    def close(self) -> None:
        """Ends the threads; there are no further batches."""
        self._finalizer()


class _Crops:
    """The endless stream of crops by position, as Grain wants a source; None where an image is rejected."""

    def __init__(
        self,
        images: ImageSequence,
        crop: CropConfig,
        order: EndlessOrder,
        seed: tuple[int, ...],
        name: str,
    ) -> None:
        self.order = order
        self._seed = seed
        self._images = images
        self._crop = crop
        self._name = name
        self._rejected: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> np.ndarray | None:
        number = self.order.number(position)
        image = self._images[number]
        self._note(number, image is None)
        if image is None:
            return None
        return random_crop(image, self._crop, np.random.default_rng([*self._seed, 1, position]))

    def _note(self, number: int, rejected: bool) -> None:
        """Remembers rejects: where there is nothing else, Grain would look for ever."""
        with self._lock:
            (self._rejected.add if rejected else self._rejected.discard)(number)
            if len(self._rejected) == self.order.count:
                raise UserError(
                    f"{self._name}: not one of {self.order.count} images can be used; see the reasons of "
                    "the rejects and correct the input"
                )


def _close(iterators: list[Any]) -> None:
    """Ends Grain's threads and drops what holds them: Grain's finalizers fail once modules are gone."""
    for iterator in iterators:
        iterator.close()
    iterators.clear()


def _random_size(height: int, width: int, crop: CropConfig, rng: np.random.Generator) -> tuple[int, int]:
    """Draws height and width of a part of an image: its shorter side, from which the other follows."""
    rows, columns = crop.shape
    if rows <= columns:
        least, most = _sides(min(height, width * rows // columns), crop)
        side = round(math.exp(rng.uniform(math.log(least), math.log(most))))
        return side, min(width, round(side * columns / rows))
    # The same of the image on its side.
    lying = dataclasses.replace(crop, size=(columns, rows))
    return _random_size(width, height, lying, rng)[::-1]


def _sides(most_side: int, crop: CropConfig) -> tuple[float, float]:
    """Returns the smallest and largest shorter side of crops, of which ``most_side`` is the most there is."""
    size = min(crop.shape)
    if crop.upsample:
        least = max(1.0, crop.least_share * most_side)
    elif most_side >= size:
        least = max(float(size), crop.least_share * most_side)
    else:
        raise ValueError(
            f"an image with a side of {most_side} pixels is too small for crops of {describe_size(crop.size)}"
        )
    return least, max(least, crop.most_share * most_side)


def _resized(part: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if part.shape[:2] == shape:
        return part
    if part.shape[-1] != 3:  # Pillow would mix the others: colours with alpha, for one
        planes = (_resized_plane(part[..., number], shape) for number in range(part.shape[-1]))
        return np.stack(list(planes), axis=-1)
    return _resized_plane(part, shape)


def _resized_plane(part: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    # A box filter first where the part is large: half the time, and no visible difference.
    return np.asarray(Image.fromarray(part).resize(shape[::-1], Image.Resampling.LANCZOS, reducing_gap=2.0))


def _grain() -> Any:
    """Imports Grain on demand: it loads JAX, which whoever only reads a configuration does without."""
    require_extra("train", "reading crops", "grain")
    import grain

    return grain

"""Random training crops from pictures held in memory."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of a picture, resized to ``size``, mirrored half of the time.

    The square's side is log-uniform between ``size`` and the picture's shorter side, so that fine
    texture and whole scenes are seen equally often.

    Args:
      image: uint8 ``[H, W, 3]``, both sides at least ``size``.
      size: side of the result in pixels.
      rng: source of randomness.

    Returns:
      uint8 ``[size, size, 3]``.
    """
    height, width = image.shape[:2]
    side = round(math.exp(rng.uniform(math.log(size), math.log(min(height, width)))))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    crop = image[top : top + side, left : left + side]
    if side != size:
        resized = Image.fromarray(crop).resize((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
        crop = np.asarray(resized)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def crop_batches(images: Sequence[np.ndarray], size: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of random crops, uint8 ``[batch_size, size, size, 3]``, fixed by the seed.

    Pictures come in random order, each once before any comes again. Two batches are made ahead in a
    thread while the caller's step runs.
    """
    rng = np.random.default_rng(seed)
    order: list[int] = []

    def make() -> np.ndarray:
        batch = np.empty((batch_size, size, size, 3), np.uint8)
        for row in batch:
            if not order:
                order.extend(rng.permutation(len(images)))
            row[...] = random_crop(images[order.pop()], size, rng)
        return batch

    with ThreadPoolExecutor(1) as pool:  # one thread: the draws keep their order
        ahead = deque(pool.submit(make) for _ in range(2))
        while True:
            yield ahead.popleft().result()
            ahead.append(pool.submit(make))

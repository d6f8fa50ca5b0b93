"""Grids of images, and of originals with their reconstructions, to be looked at."""

import numpy as np

MARGIN = 2  # pixels between an original and its reconstruction, and between columns
GAP = 8  # pixels between rows of pairs
GREY = 128  # of margins: visible on a light page and on a dark one


def tile_pairs(originals: np.ndarray, reconstructions: np.ndarray, columns: int = 8) -> np.ndarray:
    """Tiles all pairs in one image: a row of originals, their reconstructions right below, and so on.

    Args:
      originals: uint8 ``[N, H, W, C]``, of which :func:`displayed` shows some.
      reconstructions: the same shape.
      columns: the most pairs side by side.

    Returns:
      uint8 ``[height, width, 3]``; with fewer than ``columns`` pairs it is no wider than they are.
    """
    if originals.shape != reconstructions.shape or originals.ndim != 4 or not len(originals):
        raise ValueError(f"expected pairs of images, got {originals.shape} and {reconstructions.shape}")
    if originals.dtype != np.uint8 or reconstructions.dtype != np.uint8:
        raise ValueError(f"expected uint8, got {originals.dtype} and {reconstructions.dtype}")
    originals, reconstructions = displayed(originals), displayed(reconstructions)
    pairs = np.concatenate([originals, _bar(originals, MARGIN), reconstructions], axis=1)  # (N, 2H+m, W, 3)
    return _tiled(pairs, columns, GAP)


def tile_images(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """Tiles all images in one, side by side in rows.

    Args:
      images: uint8 ``[N, H, W, C]``, at least one, of which :func:`displayed` shows some channels.
      columns: images in a row, at most.

    Returns:
      uint8 ``[height, width, 3]``.
    """
    if images.ndim != 4 or not len(images) or images.dtype != np.uint8:
        raise ValueError(f"expected uint8 images, got {images.dtype} {images.shape}")
    return _tiled(displayed(images), columns, MARGIN)


def displayed(images: np.ndarray) -> np.ndarray:
    """Returns what is shown of images ``[..., C]``, as ``[..., 3]``: the first three channels, or grey.

    Of one channel or two the first is repeated; alpha is not shown.
    """
    if images.shape[-1] == 3:
        return images
    return images[..., :3] if images.shape[-1] > 3 else np.repeat(images[..., :1], 3, axis=-1)


def displayed_note(channels: int) -> str:
    """Returns which channels :func:`displayed` shows, as the end of a title; nothing for RGB."""
    if channels == 3:
        return ""
    return f" (channels 1 to 3 of {channels})" if channels > 3 else f" (channel 1 of {channels}, as grey)"


def tiled_size(count: int, height: int, width: int, columns: int = 8, gap: int = MARGIN) -> tuple[int, int]:
    """Returns height and width of ``count`` images of one size tiled, ``gap`` pixels between the rows."""
    across = min(count, columns)
    return -(-count // across) * (height + gap) - gap, across * (width + MARGIN) - MARGIN


def _tiled(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Tiles ``[N, H, W, 3]`` in rows, ``gap`` pixels between the rows."""
    count, height, width, _ = tiles.shape
    across = min(count, columns)
    grid = np.full((*tiled_size(count, height, width, columns, gap), 3), GREY, np.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, across)
        top, left = row * (height + gap), column * (width + MARGIN)
        grid[top : top + height, left : left + width] = tile
    return grid


def _bar(images: np.ndarray, height: int) -> np.ndarray:
    count, _, width, channels = images.shape
    return np.full((count, height, width, channels), GREY, np.uint8)

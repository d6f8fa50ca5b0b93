"""``vqgan complete``: a picture of one's own, part of it hidden, and what a prior puts there.

The picture becomes tokens as ``vqgan tokenize`` makes them; those of the hidden part are drawn anew
(arXiv 2012.09841, section 4.3), several times. One image shows the original, what was given, and the draws.
"""

import dataclasses
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from pipelines.options.settings import check_at_least_one
from pipelines.sampling.given_tokens import (
    GivenText,
    check_can_complete,
    check_drawing,
    knows_no_class,
    missing_tokens,
    open_text,
)
from transforms.decoding.image_format import EXTENSIONS, ImageFormat
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig, Reject, prepare
from vqgan import filesystems, publishing
from vqgan.errors import UserError, counted, first_line
from vqgan.image_grid import GREY, tile_images, tiled_size
from vqgan.image_sizes import ImageSize
from vqgan.prior.checkpoint import NO_CLASS, PriorInfo, class_numbers, read_prior
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import UNKNOWN
from vqgan.prior.text import Text

if TYPE_CHECKING:
    from vqgan.prior.inference import Prior

COLUMNS = 8
LEAST_SIDE = 128
"""Smaller pictures are enlarged to at least this many pixels in the image that is written."""
SUFFIXES = {f".{extension}": encoding for encoding, extension in EXTENSIONS.items()} | {".jpeg": "jpeg"}


@dataclasses.dataclass(frozen=True)
class CompleteConfig:
    """All settings of a completion.

    Attributes:
      image: path or URI of the picture.
      prior: folder of a prior, or of the run that has trained it.
      output: file to write; its ending says in which format.
      codec: of the prior's tokens; None for the one that the prior names.
      keep_rows: rows of the grid that are given, from the top; None for half of them, or with ``inpaint``.
      inpaint: top, left, bottom and right of the region of the grid that is drawn anew.
      draws: how many.
      classes: names or numbers, taken in turn; empty for no class, or for all where the prior has never
        learned without.
      text: prompts or vectors, taken in turn.
      seed: of the first draw; the others follow.
      settings: how tokens are drawn.
    """

    image: str
    prior: str
    output: str
    codec: str | None = None
    keep_rows: int | None = None
    inpaint: tuple[int, int, int, int] | None = None
    draws: int = 4
    classes: tuple[str, ...] = ()
    text: GivenText = dataclasses.field(default_factory=GivenText)
    seed: int = 0
    settings: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_at_least_one(self, ("draws",))
        if self.keep_rows is not None and self.inpaint is not None:
            raise UserError("--keep-rows and --inpaint both say what is given: leave one out")
        if PurePath(self.output).suffix.lower() not in SUFFIXES:
            raise UserError(f"--output {self.output}: give the name of a file in {', '.join(SUFFIXES)}")


def complete_image(config: CompleteConfig) -> str:
    """Completes a picture, and writes the original, what was given, and the draws as one image.

    Returns:
      What was done, in a line.

    Raises:
      UserError: the picture cannot be used, or the prior cannot complete such a picture.
    """
    _check_output(config.output)
    info = read_prior(config.prior)
    text = _check(config, info)
    missing = _missing(config, info.config.grid)
    original = read_picture(config.image, info.codec.image_size)
    file = ImageFormat(encoding=SUFFIXES[PurePath(config.output).suffix.lower()])
    _, height, width, _ = enlarge(original[None], LEAST_SIDE).shape
    file.check_size(*tiled_size(2 + config.draws, height, width, COLUMNS))
    prior = _open(config, info)
    drawn = _draw(config, prior, original, missing, text)
    tiles = np.stack([original, hide_tokens(original, missing), *drawn])
    sheet = tile_images(enlarge(tiles, LEAST_SIDE), COLUMNS)
    publishing.write_bytes(config.output, file.encode(sheet))
    given = f"{missing.size - missing.sum()} of {missing.size} tokens given"
    return f"{config.output}: the original, what was given of it, {counted(config.draws, 'draw')}; {given}"


def _check_output(output: str) -> None:
    """Refuses, before anything is drawn, a place where no file can be written."""
    if "://" in output:
        return
    if filesystems.exists(output) and not filesystems.file_info(output).is_file:
        raise UserError(f"--output {output}: is a folder; give the name of a file")
    folder = str(PurePath(output).parent)
    if not filesystems.exists(folder) or filesystems.file_info(folder).is_file:
        raise UserError(f"--output {output}: there is no folder {folder}; create it, or choose another place")


def _check(config: CompleteConfig, info: PriorInfo) -> Text | None:
    """Refuses what the prior cannot do, before the picture is read; returns the texts."""
    check_can_complete(info, config.inpaint is not None, f"--prior {config.prior}")
    if info.config.condition_length:
        raise UserError(
            f"--prior {config.prior}: it needs a condition grid beside the picture; tokenize both, and use "
            "vqgan sample with --given and --condition"
        )
    check_drawing(info, config.settings, config.classes, config.text)
    class_numbers(info, config.classes)
    return open_text(config.text, info)


def _missing(config: CompleteConfig, grid: tuple[int, int]) -> np.ndarray:
    keep_rows = config.keep_rows
    if keep_rows is None and config.inpaint is None:
        keep_rows = (grid[0] + 1) // 2
    return missing_tokens(grid, keep_rows, config.inpaint)


def read_picture(path: str, image_size: ImageSize) -> np.ndarray:
    """Reads a picture as ``vqgan tokenize`` does by default: its centre, resized.

    Args:
      path: or URI.
      image_size: that the prior has learned.

    Returns:
      uint8 ``[H, W, 3]``.

    Raises:
      UserError: it cannot be read, or is no image.
    """
    try:
        data = filesystems.read_bytes(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); give one picture") from error
    try:
        return prepare(data, path, DecodeConfig(), Geometry(image_size=image_size)).pixels[0]
    except Reject as reject:
        raise UserError(
            f"{path}: cannot be used ({reject.error}: {reject}); give another picture"
        ) from reject


def _open(config: CompleteConfig, info: PriorInfo) -> "Prior":
    from vqgan.prior.inference import Prior

    prior = Prior(info, codec=config.codec, batch_size=min(config.draws, 16))
    prior.codec.info.require_decoder("give one of the same tokens that has one with --codec")
    return prior


def _draw(
    config: CompleteConfig, prior: "Prior", original: np.ndarray, missing: np.ndarray, text: Text | None
) -> np.ndarray:
    """Returns the draws, uint8 ``[N, H, W, 3]``, all of it decoded from tokens."""
    tokens = prior.codec.encode(original[None])
    classes = config.classes
    if not classes and prior.config.classes and knows_no_class(prior.info):
        classes = (NO_CLASS,)
    given = np.where(missing, UNKNOWN, tokens)
    vectors: list[np.ndarray] = []
    if text is not None and config.text.embeddings is not None:
        vectors = [values[mask] for values, mask in zip(*text, strict=True)]
    drawn = prior.sample(
        config.draws,
        labels=classes,
        seed=config.seed,
        config=config.settings,
        given=given,
        prompts=config.text.prompts,
        vectors=vectors,
    )
    return prior.images(drawn)


def hide_tokens(image: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Paints grey what tokens ``[h, w]`` that are missing stand for in an image, uint8 ``[H, W, 3]``."""
    size = image.shape[0] // missing.shape[0]
    hidden = np.kron(missing, np.ones((size, size), bool))
    return np.where(hidden[..., None], np.uint8(GREY), image)


def enlarge(images: np.ndarray, least: int) -> np.ndarray:
    """Repeats pixels of images, uint8 ``[N, H, W, 3]``, so that their heights are at least so long."""
    times = max(1, -(-least // images.shape[1]))
    return images.repeat(times, axis=1).repeat(times, axis=2)

"""Every picture of docs/gallery.md, anew: by the shipped codec and small priors that are trained on the way.

Priors learn from the digits of the demo and from crops of the test photographs: half an hour on two cores,
less where --work names a folder of an earlier run. --only makes some of the pictures.

    python benchmarks/gallery.py docs/gallery
    python benchmarks/gallery.py docs/gallery --only codebook usage --work gallery-work
"""

import io
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import PHOTOS, finished, parser, read_photos, say, scratch
from PIL import Image, ImageDraw

from pipelines import tokenize, train, train_prior
from pipelines.demo import DIGIT_SIZE, DIGITS, PRIOR_SETTINGS
from pipelines.sampling.complete_image import enlarge, hide_tokens
from vqgan import Codec, Prior, open_tokens
from vqgan.data.tokens import all_batches
from vqgan.image_grid import tile_images
from vqgan.metrics.image import psnr

MOST_BYTES = 60_000
SEED = 0  # of the first sample of each picture
SMALL = 64  # pixels of a crop of a photograph that a prior learns
# Of priors beside the demo's: smaller, so that all are trained in a quarter of an hour.
MODEST = (
    "model.layers=3",
    "model.width=96",
    "train.steps=600",
    "train.batch_size=32",
    "train.evaluate_every=300",
    "train.save_every=300",
    "optimizer.learning_rate=0.004",
    "data.holdout=10",
    "data.samples=0",
)
# Codecs of three downsamplings, trained alike: minutes each.
LEVELS = {4: [1, 2, 4], 8: [1, 2, 3, 4], 16: [1, 2, 3, 4, 4]}
SHORT_TRAINING = {
    "train.steps": 300,
    "train.batch_size": 8,
    "train.evaluate_every": 300,
    "train.save_every": 100,
    "train.ema_decay": 0.97,
    "train.best": "lpips",
    "data.validation_size": 64,
    "data.validation_limit": 16,
    "loss.perceptual": 0.5,
    "loss.perceptual_network": "alex",
    "codebook.autoencoder_steps": 30,
}


class Studio:
    """What pictures are made of; each part is made when a picture first asks for it.

    Args:
      codec: name or path of the codec.
      folder: to work in; what is finished there is taken as it is.
      pictures: training pictures for codecs, where some are to be trained.
    """

    def __init__(self, codec: str, folder: Path, pictures: str = ""):
        self.name, self.folder, self.pictures = codec, folder, pictures
        self.codec = Codec.load(codec, batch_size=16)
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def photos(self) -> np.ndarray:
        """The ten photographs, which the codec has not seen: uint8 ``[10, 256, 256, 3]``."""
        return read_photos(PHOTOS, 256)[1]

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Returns images after their tokens alone."""
        return self.codec.decode(self.codec.encode(images))

    def trained(self, downsampling: int) -> Codec:
        """Trains a codec on the pictures for a short time, or goes on where that was stopped."""
        output = str(self.folder / f"f{downsampling}")
        settings = {"model.ch_mult": LEVELS[downsampling], **SHORT_TRAINING}
        finished(train(input=self.pictures, output=output, preset="tiny", set=settings))
        return Codec.load(output, batch_size=5)

    def tokens(self, name: str, source: Path, size: int, **more: Any) -> str:
        """Makes a token data set; returns its folder."""
        output = str(self.folder / name)
        tokenize(
            input=str(source), codec=self.name, output=output, image_size=size, batch_size=32, quiet=True,
            report=False, **more,
        )  # fmt: skip
        return output

    @cached_property
    def digits(self) -> str:
        """Tokens of the demo's digits."""
        return self.tokens("digits", DIGITS, DIGIT_SIZE, key_column="key", label_column="label")

    @cached_property
    def outlines(self) -> str:
        """Tokens of the digits' outlines: the length of the gradient, at the size of the digits."""
        path = self.folder / "outlines.parquet"
        table = pq.read_table(DIGITS)
        images = [_outline(Image.open(io.BytesIO(data))) for data in table.column("image").to_pylist()]
        pq.write_table(table.set_column(table.column_names.index("image"), "image", pa.array(images)), path)
        return self.tokens("outlines", path, DIGIT_SIZE, key_column="key", label_column="label")

    @cached_property
    def crops(self) -> str:
        """Tokens of 120 random crops of each photograph."""
        return self.tokens("crops", PHOTOS, SMALL, views="random-crops", random_crops=120, min_crop=0.25)

    def prior(self, name: str, tokens: str, settings: tuple[str, ...], **more: Any) -> Prior:
        """Trains a prior, or goes on where that was stopped."""
        output = str(self.folder / name)
        finished(train_prior(tokens=tokens, output=output, set=settings, **more))
        return Prior.load(output, codec=self.codec, batch_size=16)

    @cached_property
    def digit_prior(self) -> Prior:
        """The demo's prior."""
        return self.prior("digit-prior", self.digits, PRIOR_SETTINGS)

    @cached_property
    def masked_prior(self) -> Prior:
        """A masked one of the same digits."""
        return self.prior("masked-prior", self.digits, (*MODEST, "model.kind=masked"))

    @cached_property
    def outline_prior(self) -> Prior:
        """One that draws a digit from its outline, without being told the class."""
        return self.prior("outline-prior", self.digits, MODEST, condition=self.outlines, unconditional=True)

    @cached_property
    def crop_prior(self) -> Prior:
        """One of crops of most photographs; the others are kept apart."""
        return self.prior("crop-prior", self.crops, (*MODEST, "data.holdout=5"))

    def unseen(self, path: str, holdout: int) -> np.ndarray:
        """Returns tokens of the images of a data set that no prior learned from, int32 ``[N, h, w]``."""
        kept = open_tokens(path, holdout=holdout, validation=True)
        found = np.concatenate([batch.tokens for batch in all_batches(kept, 1024)])
        return found.reshape(-1, *kept.grid).astype(np.int32)


def _outline(image: Image.Image) -> bytes:
    large = np.asarray(image.convert("L").resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC), float)
    down, right = np.gradient(large)
    length = np.clip(np.hypot(down, right) * 6, 0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(length).save(sink, "PNG")
    return sink.getvalue()


# Pictures


def reconstructions(studio: Studio) -> np.ndarray:
    """Five photographs; below them the same from 1,024, 256 and 64 tokens."""
    photos = studio.photos[:5]
    decoded = [studio.reconstruct(_shrunk(photos, size)) for size in (256, 128, 64)]
    return tile_images(np.concatenate([_shrunk(images, 144) for images in (photos, *decoded)]), len(photos))


def downsamplings(studio: Studio) -> np.ndarray:
    """Five photographs; below them the same by codecs of 4, 8 and 16 pixels a token, trained alike."""
    photos = studio.photos[:5]
    codecs = [studio.trained(downsampling) for downsampling in LEVELS]
    decoded = [codec.decode(codec.encode(photos)) for codec in codecs]
    return tile_images(np.concatenate([_shrunk(images, 144) for images in (photos, *decoded)]), len(photos))


def guidance(studio: Studio) -> np.ndarray:
    """Digits by class, 0 to 9, the same seeds at guidance 1, 2, 3 and 5."""
    prior = studio.digit_prior
    rows = [prior.sample(20, seed=SEED, guidance=scale, temperature=0.6) for scale in (1, 2, 3, 5)]
    return tile_images(prior.images(np.concatenate(rows)), 20)


def completion(studio: Studio) -> np.ndarray:
    """Digits kept apart: original, upper half, five draws of the lower one; no class is told."""
    return _completed(studio.digit_prior, studio.unseen(studio.digits, 10)[:6], _lower, temperature=0.6)


def inpainting(studio: Studio) -> np.ndarray:
    """The same with the middle missing, by a masked prior."""
    return _completed(studio.masked_prior, studio.unseen(studio.digits, 10)[6:12], _middle, temperature=1.0)


def photographs(studio: Studio) -> np.ndarray:
    """Crops of photographs kept apart, completed by a prior of crops of the others."""
    unseen = studio.unseen(studio.crops, 5)[3::20][:4]
    return _completed(studio.crop_prior, unseen, _lower, top_p=0.95)


def outlines(studio: Studio) -> np.ndarray:
    """Outlines of digits kept apart, and five draws for each."""
    prior, condition = studio.outline_prior, studio.unseen(studio.outlines, 10)[:6]
    rows = []
    for number, grid in enumerate(condition):
        drawn = prior.sample(5, seed=SEED + 5 * number, condition=grid[None], temperature=0.8)
        rows.append(np.concatenate([studio.codec.decode(grid[None]), prior.images(drawn)]))
    return tile_images(enlarge(np.concatenate(rows), 64), 6)


def wide(studio: Studio) -> np.ndarray:
    """Three pictures four times as wide as the prior was trained on, by a sliding window."""
    h, w = studio.crop_prior.config.grid
    tokens = studio.crop_prior.sample(3, seed=SEED, top_p=0.95, grid=(h, 4 * w))
    return tile_images(studio.crop_prior.images(tokens).repeat(2, axis=1).repeat(2, axis=2), 1)


def interpolation(studio: Studio) -> np.ndarray:
    """Between two photographs and two digits in six steps: mixed latents, quantized and decoded."""
    shares = np.linspace(0, 1, 6, dtype=np.float32)[:, None, None, None]
    digits = studio.codec.decode(studio.unseen(studio.digits, 10)[[0, 9]])
    rows = []
    for first, last in (_shrunk(studio.photos[2:4], 160), _shrunk(studio.photos[6:8], 160), digits):
        a, b = studio.codec.latents(np.stack([first, last]))
        mixed = studio.codec.decode(studio.codec.quantize((1 - shares) * a + shares * b))
        rows.append(_shrunk(mixed, 128))
    return tile_images(np.concatenate(rows), 6)


def codebook(studio: Studio) -> np.ndarray:
    """Each code: the middle of a grid of it alone, from dark to bright."""
    codes, cell = studio.codec.config.codebook_size, studio.codec.config.downsampling
    tokens = np.arange(codes, dtype=np.int32)[:, None, None].repeat(4, axis=1).repeat(4, axis=2)
    middle = studio.codec.decode(tokens)[:, cell : 3 * cell, cell : 3 * cell]
    order = np.argsort(middle.mean(axis=(1, 2, 3)), kind="stable")
    columns = int(np.ceil(np.sqrt(codes)))
    whole = np.zeros((columns * columns, *middle.shape[1:]), np.uint8)
    whole[:codes] = middle[order]
    side = columns * middle.shape[1]
    return whole.reshape(columns, columns, *middle.shape[1:]).swapaxes(1, 2).reshape(side, side, 3)


def usage(studio: Studio) -> np.ndarray:
    """How often each code occurs in the photographs, by rank, on a logarithmic scale."""
    counts = np.bincount(
        studio.codec.encode(studio.photos).ravel(), minlength=studio.codec.config.codebook_size
    )
    ranked = np.sort(counts)[::-1]
    width, height, left, bottom = 720, 260, 50, 30
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    top = np.log10(max(ranked[0], 10))
    for power in range(int(top) + 1):
        y = height - bottom - (height - bottom - 16) * power / top
        draw.line((left, y, width - 10, y), fill=(220, 220, 220))
        draw.text((left - 8, y), f"{10**power:,}", fill="black", anchor="rm")
    xs = left + (width - left - 10) * np.arange(len(ranked)) / len(ranked)
    for x, count in zip(xs, ranked, strict=True):
        if count:
            y = height - bottom - (height - bottom - 16) * np.log10(count) / top
            draw.line((x, height - bottom, x, y), fill=(31, 119, 180))
    used = f"codes by rank; {np.count_nonzero(ranked)} of {len(ranked)} occur in {ranked.sum():,} tokens"
    draw.text((width / 2, height - 12), used, fill="black", anchor="mm")
    return np.asarray(image)


def failures(studio: Studio) -> np.ndarray:
    """The worst quarter-size crops by PSNR, one of each photograph, and writing; originals above."""
    parts = studio.photos.reshape(10, 4, 64, 4, 64, 3).swapaxes(2, 3).reshape(10, 16, 64, 64, 3)
    whole = studio.reconstruct(studio.photos)
    decoded = whole.reshape(10, 4, 64, 4, 64, 3).swapaxes(2, 3).reshape(10, 16, 64, 64, 3)
    values = np.stack([psnr(a, b) for a, b in zip(parts, decoded, strict=True)])
    worst = np.argsort(values.min(axis=1))[:5]
    at = values[worst].argmin(axis=1)
    text = _writing()
    above = np.concatenate([parts[worst, at], text[None]])
    below = np.concatenate([decoded[worst, at], studio.reconstruct(text[None])])
    return tile_images(enlarge(np.concatenate([above, below]), 128), 6)


PICTURES: Mapping[str, Callable[[Studio], np.ndarray]] = {
    make.__name__: make
    for make in (
        reconstructions, downsamplings, failures, codebook, usage, interpolation, guidance, completion,
        inpainting, outlines, photographs, wide,
    )
}  # fmt: skip


def _writing() -> np.ndarray:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    for row, words in enumerate(("To read", "is not to", "see: 8 px", "a token")):
        draw.text((3, 2 + 15 * row), words, fill="black")
    return np.asarray(image)


def _shrunk(images: np.ndarray, size: int) -> np.ndarray:
    resized = [Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def _lower(grid: tuple[int, int]) -> np.ndarray:
    missing = np.zeros(grid, bool)
    missing[(grid[0] + 1) // 2 :] = True
    return missing


def _middle(grid: tuple[int, int]) -> np.ndarray:
    missing = np.zeros(grid, bool)
    missing[grid[0] // 3 : -(grid[0] // 3), grid[1] // 4 : -(grid[1] // 4)] = True
    return missing


def _completed(
    prior: Prior,
    grids: np.ndarray,
    hidden: Callable[[tuple[int, int]], np.ndarray],
    **drawing: Any,
) -> np.ndarray:
    """A row for each grid ``[N, h, w]``: what it stands for, what is given of it, five draws."""
    missing = hidden(prior.config.grid)
    rows = []
    for number, grid in enumerate(grids):
        (original,) = prior.images(grid[None])
        given = np.where(missing, -1, grid)[None]
        drawn = prior.sample(5, labels=None, seed=SEED + 5 * number, given=given, **drawing)
        rows.append(np.stack([original, hide_tokens(original, missing), *prior.images(drawn)]))
    return tile_images(enlarge(np.concatenate(rows), 64), 7)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Writes a JPEG of the best quality that stays below :data:`MOST_BYTES`."""
    for quality in range(92, 20, -4):
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "JPEG", quality=quality, optimize=True)
        if sink.tell() < MOST_BYTES:
            break
    path.write_bytes(sink.getvalue())
    say(f"{path}: {pixels.shape[1]}x{pixels.shape[0]}, {sink.tell():,} bytes at quality {quality}")


def main() -> None:
    """Makes the pictures that were asked for."""
    flags = parser("The pictures of docs/gallery.md.")
    flags.add_argument("output", type=Path, help="folder for the pictures")
    flags.add_argument("--codec", default="tiny")
    flags.add_argument("--only", nargs="+", choices=list(PICTURES), default=list(PICTURES), metavar="NAME")
    flags.add_argument("--pictures", help="those of benchmarks/training_data.py, for codecs that are trained")
    flags.add_argument("--work", type=Path, help="folder to work in, kept; a temporary one by default")
    args = flags.parse_args()
    if "downsamplings" in args.only and args.pictures is None:
        say("downsamplings: left out, as it trains codecs; name the --pictures")
        args.only.remove("downsamplings")
    args.output.mkdir(parents=True, exist_ok=True)
    with scratch() as temporary:
        studio = Studio(args.codec, args.work or Path(temporary), args.pictures or "")
        for name in args.only:
            write_picture(args.output / f"{name}.jpg", PICTURES[name](studio))
    say(f"made on {jax.default_backend()} from {studio.codec.fingerprint[:12]}")


if __name__ == "__main__":
    main()

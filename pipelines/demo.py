"""``vqgan demo``: photographs to tokens and back; a prior of handwritten digits, and new ones by class."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipelines import decode_tokens, tokenize_images
from pipelines.inspecting import verify_data_set
from pipelines.sampling import sample_prior
from pipelines.sampling.sample_prior import SampleConfig
from pipelines.training import training_prior
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sharded.batching import load_codec
from transforms.sharded.run import speaker
from transforms.sharded.verify import require_manifest
from transforms.sources import SourceConfig
from transforms.tokenizing.replay import replayed_images
from transforms.tokenizing.report import Pair, sample_pairs
from vqgan import html_page
from vqgan.data.tokens import all_batches, open_tokens
from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.prior.checkpoint import read_prior
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.publishing import write_atomically

PHOTOS = Path(__file__).parent / "photos"
DIGITS = Path(__file__).parent / "digits" / "digits.parquet"
DIGIT_SIDE = 8  # pixels, as the data set has them
NEIGHBOURS = 5
CODEC = "tiny"
IMAGE_SIZE = 256
BATCH_SIZE = 4
DIGIT_SIZE = 64
DIGIT_BATCH_SIZE = 32
PRIOR_SETTINGS = (
    "train.steps=1500",
    "train.batch_size=16",
    "train.evaluate_every=250",
    "train.save_every=250",
    "optimizer.learning_rate=0.003",
    "model.dropout=0.15",  # and no more steps than these: validation gets better to the end
    "data.holdout=10",
)
SAMPLES = 100
DRAWING = SamplingConfig(guidance=3.0, temperature=0.6)
REPORT_FILE = "report.html"
PAGES = (
    ("tokens/report.html", "the photographs: originals beside reconstructions, use of the codebook, rejects"),
    ("decoded/report.html", "the photographs, decoded from the shards alone"),
    ("digits/report.html", "the digits as tokens"),
    ("prior/report.html", "curves of the prior, and its samples during training"),
)

say = speaker(quiet=False)


def run_demo(output: str, images: str | None) -> None:
    """Tokenizes photographs and decodes them; trains a small prior of digits, and draws new ones by class.

    Every part is a run of its own, so a demo that was stopped goes on where it was.

    Args:
      output: folder for everything.
      images: the user's own images in place of the photographs that come along, or None.

    Raises:
      UserError: as the commands do that it runs.
    """
    require_extra("train", "the demo")
    folder = Path(output)
    photos = SourceConfig(input=images or f"{PHOTOS}/*.jpg")
    say("== 1 of 5: photographs to tokens")
    tokens = tokenize_and_verify(photos, folder / "tokens", IMAGE_SIZE, BATCH_SIZE)
    say("== 2 of 5: tokens back to images")
    decode_tokens.run_decode(
        decode_tokens.DecodeTokensConfig(tokens, str(folder / "decoded"), batch_size=BATCH_SIZE), []
    )
    say("== 3 of 5: handwritten digits to tokens")
    digits = SourceConfig(input=str(DIGITS), key_column="key", label_column="label")
    rows = tokenize_and_verify(digits, folder / "digits", DIGIT_SIZE, DIGIT_BATCH_SIZE)
    say("== 4 of 5: a small prior learns the digits with their classes; the longest part")
    request = training_prior.TrainPriorRequest(
        tokens=(rows,), output=str(folder / "prior"), settings=PRIOR_SETTINGS
    )
    if not training_prior.run_prior_training(request).finished:
        raise UserError(f"{folder}: the demo was stopped; the same command goes on")
    say("== 5 of 5: new digits, asked for by class")
    sample_prior.run_sample(
        SampleConfig(
            prior=str(folder / "prior"),
            output=str(folder / "samples"),
            count=SAMPLES,
            batch_size=50,
            settings=DRAWING,
        )
    )
    new = read_new_digits(folder / "samples")
    originals = replayed_images(tokens, require_manifest(tokens), photos)
    write_demo_report(folder, sample_pairs([originals], load_codec(CODEC, BATCH_SIZE, "float32")), new)
    right = sum(digit.asked == digit.read for digit in new)
    say(
        f"{right} of {len(new)} new digits are read as the digit that was asked for "
        f"(by the {NEIGHBOURS} real ones nearest to each)\n\n"
        f"{folder.resolve()}\n"
        f"  report.html              all of it on one page: open this first\n"
        f"  tokens/                  the shards of the photographs, and originals beside reconstructions\n"
        f"  decoded/                 decoded from the shards alone\n"
        f"  digits/                  1,797 handwritten digits as tokens, with their classes\n"
        f"  prior/                   the prior, its curves and its samples\n"
        f"  samples/                 tokens that the prior has drawn, and their images"
    )


def tokenize_and_verify(source: SourceConfig, output: Path, image_size: int, batch_size: int) -> str:
    """Makes a token data set and checks it; returns its folder.

    Raises:
      UserError: as ``vqgan tokenize`` does, or the data set is damaged.
    """
    config = tokenize_images.TokenizeConfig(
        source=source,
        output=str(output),
        codec=CODEC,
        geometry=Geometry(image_size=image_size),
        decode=DecodeConfig(),
        batch_size=batch_size,
    )
    tokenize_images.run_tokenize(config, [])
    problems, summary = verify_data_set(config.output)
    if problems:
        raise UserError(f"{config.output}: {problems[0]}; delete the folder and run the demo again")
    say(f"verified: {summary}")
    return config.output


class NewDigit(NamedTuple):
    """A sample of the prior.

    Attributes:
      asked: the digit that was asked for.
      read: what the real digits nearest to it vote that it is.
      pixels: uint8 ``[S, S, 3]``.
    """

    asked: int
    read: int
    pixels: np.ndarray


def read_new_digits(samples: Path) -> list[NewDigit]:
    """Decodes the samples, in the order in which they were drawn, and has their neighbours read them."""
    tokens = open_tokens(str(samples))
    codec = load_codec(CODEC, DIGIT_BATCH_SIZE, "float32")
    found: list[NewDigit] = []
    for batch in all_batches(tokens, DIGIT_BATCH_SIZE):
        images = codec.decode(batch.tokens.reshape(-1, *tokens.grid))
        votes = read_by_neighbours(shrink_to_digits(images), *real_digits())
        found += [
            NewDigit(int(asked), int(read), image)
            for asked, read, image in zip(batch.labels, votes, images, strict=True)
        ]
    return found


def real_digits() -> tuple[np.ndarray, np.ndarray]:
    """Reads the data set: pixels, float32 ``[N, 64]`` from 0 to 255, and classes, int32 ``[N]``."""
    table = pq.read_table(DIGITS)
    images = [np.asarray(Image.open(io.BytesIO(data))) for data in table.column("image").to_pylist()]
    pixels = np.stack(images).reshape(-1, DIGIT_SIDE**2).astype(np.float32)
    return pixels, table.column("label").to_numpy()


def shrink_to_digits(images: np.ndarray) -> np.ndarray:
    """Reduces images, uint8 ``[N, H, W, 3]``, to the size of the real digits: float32 ``[N, 64]``."""
    size = (DIGIT_SIDE, DIGIT_SIDE)
    grey = (Image.fromarray(image).convert("L").resize(size, Image.Resampling.BOX) for image in images)
    return np.stack([np.asarray(image) for image in grey]).reshape(-1, DIGIT_SIDE**2).astype(np.float32)


def read_by_neighbours(
    found: np.ndarray, pixels: np.ndarray, classes: np.ndarray, own: np.ndarray | None = None
) -> np.ndarray:
    """Reads digits by a vote of the nearest real ones.

    Args:
      found: what is to be read, ``[M, 64]``.
      pixels: of real ones, ``[N, 64]``.
      classes: of those, ``[N]``.
      own: of each that is itself a real one its number, which has no vote; int ``[M]``.

    Returns:
      int ``[M]``.
    """
    distances = ((found[:, None] - pixels[None]) ** 2).sum(axis=-1)
    if own is not None:
        distances[np.arange(len(found)), own] = np.inf
    nearest = np.argsort(distances, axis=1)[:, :NEIGHBOURS]
    return np.array([np.bincount(classes[row], minlength=10).argmax() for row in nearest])


def write_demo_report(folder: Path, photos: Sequence[Pair], new: Sequence[NewDigit]) -> None:
    """Writes one page that shows what each part has made."""
    sections = [
        html_page.tiles(_tiles(read_prior(folder / "prior").card.get("metrics", {}), photos, new)),
        html_page.section("New digits, drawn from the prior", NEW + _digits(new), "digits"),
        html_page.section("Photographs beside their reconstructions", "".join(map(_pair, photos)), "pairs"),
        html_page.section("More", html_page.links(PAGES)),
    ]
    subtitle = f"codec {CODEC}; click an image to enlarge it"
    text = html_page.document("From photographs and digits to new images", subtitle, sections, STYLE)
    write_atomically(folder / REPORT_FILE, text.encode())


def _tiles(metrics: dict[str, Any], photos: Sequence[Pair], new: Sequence[NewDigit]) -> list[html_page.Tile]:
    right = np.mean([digit.asked == digit.read for digit in new])
    tiles = [
        html_page.Tile(
            "new digits read as what was asked for", f"{right:.0%}", "100 % is best; a guess gives 10 %"
        ),
        html_page.Tile(
            "PSNR of the photographs",
            f"{np.mean([pair.psnr for pair in photos]):.1f} dB" if photos else "–",
            "higher is better; from 30 dB hard to tell apart",
        ),
    ]
    if "bits" in metrics and "unigram_bits" in metrics:
        bits, unigram = (metrics[name]["value"] for name in ("bits", "unigram_bits"))
        meaning = f"lower is better; {unigram:.2f} for one that knows only how often each code occurs"
        tiles.append(html_page.Tile("bits a token, on digits kept apart", f"{bits:.2f}", meaning))
    return tiles


def _digits(new: Sequence[NewDigit]) -> str:
    """Shows each sample; ten classes in turn make a column for each."""
    return "".join(
        html_page.figure(
            [(f"a new {digit.asked}", html_page.data_uri(digit.pixels))],
            str(digit.asked),
            "" if digit.asked == digit.read else f"read as {digit.read}",
        )
        for digit in new
    )


def _pair(pair: Pair) -> str:
    images = (("original", pair.original), ("reconstruction", pair.reconstruction))
    shown = [(f"{name} of {pair.key}", html_page.data_uri(pixels, MOST_BYTES)) for name, pixels in images]
    return html_page.figure(shown, pair.key, f"{pair.psnr:.1f} dB")


MOST_BYTES = 200_000  # of an image in the page
NEW = (
    "<p>A column for each class that was asked for. Where the real digits nearest to a sample take it for "
    "another one, that is noted.</p>"
)
STYLE = """
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:16px}
.digits{display:grid;grid-template-columns:repeat(10,1fr);gap:8px}.digits p{grid-column:1/-1;margin:0}
"""

"""``vqgan demo``: the full circle. Photographs to tokens and back, a prior of them, and new images."""

import html
import math
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines import decode_tokens, sample_prior, tokenize_images, training_prior
from pipelines.inspecting import verify_data_set
from pipelines.sample_prior import GRID_FILE, SampleConfig
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sharded.plan import all_keys
from transforms.sharded.run import speaker
from transforms.sources import SourceConfig
from vqgan import html_page
from vqgan.data.splits import is_validation
from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.filesystems import write_atomically
from vqgan.prior.checkpoint import read_prior
from vqgan.prior.sampling.config import SamplingConfig

PHOTOS = Path(__file__).parent / "photos"
CODEC = "tiny"
IMAGE_SIZE = 256
BATCH_SIZE = 4
CROP_SIZE = 64
CROPS_PER_IMAGE = 100
LEAST_CROP = 0.6  # share of the shorter side: crops of whole scenes
PRIOR_SETTINGS = (
    "train.steps=400",
    "train.evaluate_every=100",
    "train.save_every=100",
    "optimizer.learning_rate=0.003",
)
HOLDOUTS = (5, 4, 3, 2)  # tried in turn: images of one's own may be few
SAMPLES = 48
TOP_P = 0.9
REPORT_FILE = "report.html"

say = speaker(quiet=False)


def run_demo(output: str, images: str | None) -> None:
    """Tokenizes photographs, decodes them again, trains a small prior, and samples new images.

    Every part is a run of its own, so a demo that was stopped goes on where it was.

    Args:
      output: folder for everything.
      images: the user's own images, or None for those that come along.

    Raises:
      UserError: as the commands do that it runs.
    """
    require_extra("train", "the demo")
    folder = Path(output)
    source = SourceConfig(input=images or f"{PHOTOS}/*.jpg")
    say("== 1 of 5: photographs to tokens")
    tokens = tokenize_and_verify(source, folder / "tokens", Geometry(image_size=IMAGE_SIZE))
    say("== 2 of 5: tokens back to images")
    decode_tokens.run_decode(
        decode_tokens.DecodeTokensConfig(tokens, str(folder / "pictures"), batch_size=BATCH_SIZE), []
    )
    say(f"== 3 of 5: tokens of {CROP_SIZE}-pixel crops, to learn from")
    views = Geometry(
        image_size=CROP_SIZE, views="random-crops", random_crops=CROPS_PER_IMAGE, min_crop=LEAST_CROP
    )
    crops = tokenize_and_verify(source, folder / "crops", views)
    say("== 4 of 5: a small prior")
    settings = (*PRIOR_SETTINGS, f"data.holdout={choose_holdout(crops)}")
    request = training_prior.TrainPriorRequest(
        tokens=(crops,), output=str(folder / "prior"), settings=settings
    )
    if not training_prior.run_prior_training(request).finished:
        raise UserError(f"{folder}: the demo was stopped; the same command goes on")
    say("== 5 of 5: new images")
    sample_prior.run_sample(
        SampleConfig(
            prior=str(folder / "prior"),
            output=str(folder / "samples"),
            count=SAMPLES,
            settings=SamplingConfig(top_p=TOP_P),
        )
    )
    write_demo_report(folder)
    say(
        f"\n{folder.resolve()}\n"
        f"  report.html              all of it on one page: open this first\n"
        f"  tokens/                  the shards of the photographs, and originals beside reconstructions\n"
        f"  pictures/                decoded from the shards alone\n"
        f"  prior/                   the prior, its curves and its samples\n"
        f"  samples/                 tokens that the prior has drawn, and their images"
    )


def tokenize_and_verify(source: SourceConfig, output: Path, geometry: Geometry) -> str:
    """Makes a token data set and checks it; returns its folder.

    Raises:
      UserError: as ``vqgan tokenize`` does, or the data set is damaged.
    """
    config = tokenize_images.TokenizeConfig(
        source=source,
        output=str(output),
        codec=CODEC,
        geometry=geometry,
        decode=DecodeConfig(),
        batch_size=BATCH_SIZE,
    )
    tokenize_images.run_tokenize(config, [])
    problems, summary = verify_data_set(config.output)
    if problems:
        raise UserError(f"{config.output}: {problems[0]}; delete the folder and run the demo again")
    say(f"verified: {summary}")
    return config.output


def choose_holdout(tokens: str) -> int:
    """Chooses one image in how many is for validation: some are and some are not; 0 where that cannot be."""
    keys = [key for batch in all_keys(tokens) for key in batch.column("key").to_pylist()]
    for holdout in HOLDOUTS:
        if 0 < sum(is_validation(key, holdout) for key in keys) < len(keys):
            return holdout
    return 0


def write_demo_report(folder: Path) -> None:
    """Writes one page that shows what each part has made."""
    metrics = read_prior(folder / "prior").card.get("metrics", {})
    shown: list[tuple[str, str]] = []
    if "loss" in metrics:
        loss, unigram = (metrics[name]["value"] / math.log(2) for name in ("loss", "unigram"))
        shown = [
            ("bits per token, validation", f"{loss:.2f}"),
            ("knowing frequencies only", f"{unigram:.2f}"),
        ]
    samples = _pixels(folder / "samples" / GRID_FILE)
    rows = [
        (f"{name}/{REPORT_FILE}", what)
        for name, what in (
            ("tokens", "originals beside reconstructions, use of the codebook, rejects"),
            ("pictures", "the decoded images"),
            ("prior", "curves, and samples during training"),
        )
    ]
    sections = [
        html_page.tiles(shown),
        html_page.section("Photographs, decoded from their tokens", _decoded(folder / "pictures"), "images"),
        html_page.section("New images, drawn from the prior", _img(samples, "samples"), "samples"),
        html_page.section("More", html_page.table(("page", "what it shows"), rows)),
    ]
    text = html_page.document("From photographs to new images", f"codec {CODEC}", sections, STYLE)
    write_atomically(folder / REPORT_FILE, text.encode())


def _decoded(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*.png") if not path.name.startswith("."))
    return "".join(_img(_pixels(path), path.stem) for path in paths[:12])


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def _img(pixels: np.ndarray, name: str) -> str:
    return f"<img alt='{html.escape(name, quote=True)}' src='{html_page.data_uri(pixels, 200_000)}'>"


STYLE = """
.images{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px}
.images img{width:100%;border-radius:4px}.samples img{width:100%;image-rendering:auto}
"""

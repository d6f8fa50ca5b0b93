"""Speed of the tokenize pipeline against a bare loop over the same encoder.

The bare loop keeps two batches in flight over batches that already lie in memory: reading, decoding,
resizing and writing cost it nothing, so a ratio of 1 means that the pipeline hides all of them. Both
use the same compiled encoder in the same process. Pipeline and loop alternate, and the ratio is taken
pair by pair, since the speed of a shared machine drifts.

    python benchmarks/pipeline.py
"""

import itertools
import time
from pathlib import Path

import numpy as np
from common import LARGE, add_output, figure, make_corpus, parser, random_codec, say, scratch, write_results

from pipelines import tokenize_images
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sharded.batching import BATCHES_IN_FLIGHT, load_codec
from transforms.sources import SourceConfig
from transforms.tokenizing.shard import Batch, encode
from vqgan.codec import Codec


def bare_loop(codec: Codec, size: int, images: int) -> float:
    """Images per second of encoding preloaded batches."""
    rng = np.random.default_rng(0)
    preloaded = [
        rng.integers(0, 256, (codec.batch_size, size, size, 3), dtype=np.uint8)
        for _ in range(BATCHES_IN_FLIGHT + 1)
    ]
    count = -(-images // codec.batch_size)
    rows: list = [None] * codec.batch_size  # of which none is looked at
    stream = (Batch(rows, pixels) for pixels in itertools.islice(itertools.cycle(preloaded), count))
    started = time.monotonic()
    for _ in encode(stream, codec):
        pass
    return count * codec.batch_size / (time.monotonic() - started)


def pipeline(corpus: Path, output: Path, codec: str, size: int, batch_size: int) -> tuple[float, float]:
    """Images per second inside of the one slice, and of the whole run with Beam's start-up."""
    config = tokenize_images.TokenizeConfig(
        source=SourceConfig(input=str(corpus)),
        output=str(output),
        codec=codec,
        geometry=Geometry(image_size=size),
        decode=DecodeConfig(),
        slice_size=1 << 20,
        batch_size=batch_size,
        report=False,
        quiet=True,
    )
    started = time.monotonic()
    manifest = tokenize_images.run_tokenize(config, [])
    whole = manifest["counts"]["images"] / (time.monotonic() - started)
    return manifest["throughput"]["images_per_second"], whole


def main() -> None:
    """Measures both codecs and prints a table."""
    flags = parser("Pipeline against a bare encoder loop.")
    flags.add_argument("--images", type=int, default=768, help="images for the small codec")
    flags.add_argument("--large-images", type=int, default=96, help="images for the large codec")
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--batch-size", type=int, default=32)
    flags.add_argument("--size", type=int, default=256)
    add_output(flags)
    args = flags.parse_args()
    figures = []
    with scratch() as name:
        folder = Path(name)
        large = random_codec(folder / "large", LARGE)
        for label, codec_name, images in (("tiny", "tiny", args.images), ("large", large, args.large_images)):
            corpus = folder / f"corpus-{label}"
            make_corpus(corpus, images)
            codec = load_codec(codec_name, args.batch_size, "float32")
            bare_loop(codec, args.size, args.batch_size)  # compiles
            ratios = []
            for repeat in range(args.repeats):
                bare = bare_loop(codec, args.size, images)
                inside, whole = pipeline(
                    corpus, folder / f"{label}-{repeat}", codec_name, args.size, args.batch_size
                )
                ratios.append(inside / bare)
                say(
                    f"{label}: bare loop {bare:.1f}, pipeline {inside:.1f}, "
                    f"with start-up {whole:.1f} images/s, ratio {inside / bare:.3f}"
                )
            say(f"{label}: median ratio {np.median(ratios):.3f} over {args.repeats} pairs")
            assert codec.compilations == 1, codec.compilations
            figures.append(
                figure(f"tokenize beside a bare loop over its encoder, {label}, 256 pixels", ratios)
            )
    write_results(args.output, figures)


if __name__ == "__main__":
    main()

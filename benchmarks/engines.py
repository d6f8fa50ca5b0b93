"""Encoding and decoding by JAX, and by OpenVINO in float32 and bfloat16: speed, and how far tokens agree.

Two codecs: one of taming-transformers' f16 shape for ImageNet with random weights, of half its width unless
``--ch 128`` asks for the whole; and the shipped ``tiny``, whose weights are trained, for the agreement. All
ways take turns in one process. Processor time is what a shared machine leaves comparable; images/s are wall.

    python benchmarks/engines.py
    python benchmarks/engines.py --ch 128 --batch-size 8 --output engines.json
"""

import argparse
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from common import (
    PHOTOS,
    Figure,
    add_output,
    figure,
    installed,
    parser,
    random_codec,
    ratios,
    say,
    scratch,
    take_turns,
    write_results,
)
from PIL import Image

from vqgan import Codec, UserError
from vqgan.config import ModelConfig
from vqgan.engines.agreement import compare_tokens

WAYS: dict[str, dict[str, Any]] = {
    "jax": {},
    "openvino float32": {"engine": "openvino"},
    "openvino bfloat16": {"engine": "openvino", "dtype": jnp.bfloat16},
}


def photographs(count: int, size: int) -> np.ndarray:
    """Photographs of the tests as uint8 ``[count, size, size, 3]``, some of them again."""
    files = sorted(PHOTOS.glob("*.jpg"))
    images = [np.asarray(Image.open(path).convert("RGB").resize((size, size))) for path in files[:count]]
    return np.resize(np.stack(images), (count, size, size, 3))


def open_ways(name: str, images: np.ndarray) -> dict[str, Codec]:
    """The codec by every engine that runs here, each compiled in both directions."""
    codecs: dict[str, Codec] = {}
    for way, settings in WAYS.items():
        codec = Codec.load(name, batch_size=len(images), **settings)
        try:
            codec.decode(codec.encode(images))
        except UserError as error:
            say(f"NOT MEASURED: {way}: {error}")
            continue
        codecs[way] = codec
    return codecs


def timed(work: Callable[[], Any], seconds: list[float]) -> Callable[[], float]:
    """Work whose call returns its processor time and notes its wall time."""

    def measure() -> float:
        started, used = time.monotonic(), time.process_time()
        work()
        seconds.append(time.monotonic() - started)
        return time.process_time() - used

    return measure


def compare(label: str, ways: Mapping[str, Callable[[], Any]], images: int, rounds: int) -> list[Figure]:
    """Prints speeds of ways to do the same; returns how many times as fast as JAX each other one is."""
    walls: dict[str, list[float]] = {name: [] for name in ways}
    used = take_turns({name: timed(work, walls[name]) for name, work in ways.items()}, rounds)
    say(f"\n| {label} | images/s | processor s an image | × JAX in it | × JAX in wall time |")
    say("|---|---|---|---|---|")
    figures = []
    for name in ways:
        times, wall = ratios(used, "jax", name), ratios(walls, "jax", name)
        rate, spent = images / np.median(walls[name]), np.median(used[name]) / images
        say(f"| {name} | {rate:.2f} | {spent:.3f} | {np.median(times):.2f} | {np.median(wall):.2f} |")
        if name != "jax":
            figures.append(figure(f"{label}, {name} beside JAX in processor time", times))
    return figures


def compare_directions(
    label: str, runs: Mapping[str, Any], images: np.ndarray, tokens: np.ndarray, rounds: int
) -> list[Figure]:
    """Compares what encodes and decodes by each of some ways, in both directions."""
    encode = {way: functools.partial(run.encode, images) for way, run in runs.items()}
    decode = {way: functools.partial(run.decode, tokens) for way, run in runs.items()}
    figures = compare(f"{label}, encode", encode, len(images), rounds)
    return figures + compare(f"{label}, decode", decode, len(images), rounds)


def measure(label: str, name: str, images: np.ndarray, rounds: int) -> list[Figure]:
    """Prints and returns what was measured of one codec."""
    codecs = open_ways(name, images)
    reference = codecs["jax"]
    tokens = reference.encode(images)
    figures = compare_directions(label, codecs, images, tokens, rounds)
    for way in list(codecs)[1:]:
        agreement = compare_tokens(reference, images, codecs[way].encode(images))
        say(f"{label}, {way}: {agreement}")
        share = agreement.equal / agreement.tokens
        figures.append(figure(f"{label}, {way}: tokens that are JAX's", [100 * share], "%"))
    return figures


def codec_flags(description: str) -> argparse.ArgumentParser:
    """Makes a parser with what such a comparison is asked for."""
    flags = parser(description)
    flags.add_argument(
        "--ch", type=int, default=64, help="channels of the f16 codec at its highest resolution"
    )
    flags.add_argument("--size", type=int, default=256)
    flags.add_argument("--batch-size", type=int, default=4)
    flags.add_argument("--rounds", type=int, default=3)
    add_output(flags)
    return flags


def main() -> None:
    """Measures both codecs."""
    args = codec_flags("Engines of a codec beside each other.").parse_args()
    if not installed("openvino", "openvino"):
        return
    images = photographs(args.batch_size, args.size)
    with scratch() as folder:
        f16 = random_codec(Path(folder) / "f16", ModelConfig(ch=args.ch, codebook_size=1024))
        figures = measure(f"f16, ch {args.ch}, {args.size} px", f16, images, args.rounds)
        figures += measure(f"tiny, {args.size} px", "tiny", images, args.rounds)
    write_results(args.output, figures, batch_size=args.batch_size, rounds=args.rounds)


if __name__ == "__main__":
    main()

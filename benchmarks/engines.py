"""Encoding and decoding by JAX, and by OpenVINO in float32 and bfloat16: speed, and how far tokens agree.

Two codecs: one of taming-transformers' f16 shape for ImageNet with random weights, of half its width unless
``--ch 128`` asks for the whole; and the shipped ``tiny``, whose weights are trained, for the agreement. All
ways take turns in one process. Processor time is what a shared machine leaves comparable; images/s are wall.

    python benchmarks/engines.py
    python benchmarks/engines.py --ch 128 --batch-size 8 --output engines.json
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from common import (
    PHOTOS,
    installed,
    median,
    parser,
    random_codec,
    ratio,
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


def compare(ways: dict[str, Callable[[], Any]], images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Speeds of ways to do the same, and how many times as fast as the first each is in processor time."""
    walls: dict[str, list[float]] = {name: [] for name in ways}
    used = take_turns({name: timed(work, walls[name]) for name, work in ways.items()}, rounds)
    first = next(iter(ways))
    return {
        name: {
            "images_per_second": images / median(walls[name]),
            "processor_seconds_per_image": median(used[name]) / images,
            "times_as_fast_in_processor_time": ratio(used, first, name),
            "times_as_fast_in_wall_time": ratio(walls, first, name),
        }
        for name in ways
    }


def measure(label: str, name: str, images: np.ndarray, rounds: int) -> dict[str, Any]:
    """Prints and returns what was measured of one codec."""
    codecs = open_ways(name, images)
    reference = codecs["jax"]
    tokens = reference.encode(images)
    found: dict[str, Any] = {"agreement": {}}
    for work in ("encode", "decode"):
        given = images if work == "encode" else tokens
        ways = {way: lambda c=codec, w=work, g=given: getattr(c, w)(g) for way, codec in codecs.items()}
        found[work] = compare(ways, len(images), rounds)
        say(f"\n| {label}, {work} | images/s | processor s an image | × JAX in it | × JAX in wall time |")
        say("|---|---|---|---|---|")
        for way, row in found[work].items():
            rate, used, times, wall = row.values()
            say(f"| {way} | {rate:.2f} | {used:.3f} | {times:.2f} | {wall:.2f} |")
    for way in list(codecs)[1:]:
        agreement = compare_tokens(reference, images, codecs[way].encode(images))
        found["agreement"][way] = {**vars(agreement), "share": agreement.equal / agreement.tokens}
        say(f"{label}, {way}: {agreement}")
    return found


def main() -> None:
    """Measures both codecs."""
    flags = parser("Engines of a codec beside each other.")
    flags.add_argument(
        "--ch", type=int, default=64, help="channels of the f16 codec at its highest resolution"
    )
    flags.add_argument("--size", type=int, default=256)
    flags.add_argument("--batch-size", type=int, default=4)
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--output", type=Path, help="JSON file")
    args = flags.parse_args()
    if not installed("openvino", "openvino"):
        return
    installed("torch", "taming-transformers in torch")
    images = photographs(args.batch_size, args.size)
    with scratch() as folder:
        shape = ModelConfig(ch=args.ch, codebook_size=1024)
        f16 = random_codec(Path(folder) / "f16", shape)
        results = {
            f"f16, ch {args.ch}": measure(f"f16, ch {args.ch}, {args.size} px", f16, images, args.rounds),
            "tiny": measure(f"tiny, {args.size} px", "tiny", images, args.rounds),
        }
    settings = {name: getattr(args, name) for name in ("ch", "size", "batch_size", "rounds")}
    write_results(args.output, {**settings, "results": results})


if __name__ == "__main__":
    main()

"""A batch spread over a processor's cores, an image on each, beside XLA's way of cutting each operation.

What an image leaves between two layers is megabytes; of few images it stays in the processor's caches. And a
core that has an image to itself waits for no other one, as cores do after each operation that is cut. Tokens
and pixels of both ways are compared, too.

    python benchmarks/cores.py
    python benchmarks/cores.py --codec codec/ --batch-size 8 --rounds 1
"""

import functools

import jax
import numpy as np
from common import add_output, figure, parser, ratios, say, take_turns, write_results
from engines import photographs, timed

from vqgan import Codec
from vqgan.engines.jax_engine import JAXEngine


def whole_batches(name: str, batch_size: int) -> Codec:
    """The codec as it runs on devices that are no processors: the whole batch at once."""
    codec = Codec.load(name, batch_size=batch_size)
    engine = JAXEngine(codec.info, np.float32, jax.devices()[:1], lambda: None)
    engine._on_cores = False
    codec._jax = codec._engine = engine
    return codec


def main() -> None:
    """Prints how much faster cores with an image each are."""
    flags = parser("Images on a core each beside whole batches.")
    flags.add_argument("--codec", default="tiny")
    flags.add_argument("--size", type=int, default=256)
    flags.add_argument("--batch-size", type=int, default=32)
    flags.add_argument("--rounds", type=int, default=3)
    add_output(flags)
    args = flags.parse_args()
    images = photographs(args.batch_size, args.size)
    codecs = {
        "cores": Codec.load(args.codec, batch_size=args.batch_size),
        "whole": whole_batches(args.codec, args.batch_size),
    }
    tokens = codecs["cores"].encode(images)
    figures = []
    for what, given in (("encode", images), ("decode", tokens)):
        walls: dict[str, list[float]] = {way: [] for way in codecs}
        ways = {}
        for way, codec in codecs.items():
            work = functools.partial(getattr(codec, what), given)
            work()  # what is compiled is compiled here
            ways[way] = timed(work, walls[way])
        used = take_turns(ways, args.rounds)
        label = f"{args.codec}, {what}, cores beside whole batches of {args.batch_size}"
        for measured, by in ((walls, "by the clock"), (used, "in processor time")):
            faster = ratios(measured, "whole", "cores")
            say(f"{label}: {np.median(faster):.2f} times as fast {by}")
            figures.append(figure(f"{label}, {by}", faster))
        say(f"{args.codec}, {what}: {min(used['cores']) / args.batch_size * 1e3:.1f} ms of a core an image")
    equal_tokens = np.mean(tokens == codecs["whole"].encode(images))
    equal_pixels = np.mean(codecs["cores"].decode(tokens) == codecs["whole"].decode(tokens))
    say(f"equal: {equal_tokens:.2%} of the tokens, {equal_pixels:.4%} of the decoded values")
    write_results(args.output, figures, codec=args.codec, batch_size=args.batch_size)


if __name__ == "__main__":
    main()

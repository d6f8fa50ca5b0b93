"""A batch worked on in groups of a few images, as a processor does it, beside the whole of it at once.

What an image leaves between two layers is megabytes; of a few images it stays in the processor's caches, of
a whole batch it goes to memory and back. Tokens and pixels of both ways are compared, too.

    python benchmarks/groups.py
    python benchmarks/groups.py --codec codec/ --batch-size 8 --rounds 1
"""

import functools

import numpy as np
from common import add_output, figure, parser, ratios, say, take_turns, write_results
from engines import photographs, timed

from vqgan import Codec
from vqgan.engines import jax_engine


def compiled(name: str, images: np.ndarray, group: int) -> Codec:
    """The codec with both directions compiled for groups of so many images."""
    jax_engine.IMAGES_AT_ONCE = group
    codec = Codec.load(name, batch_size=len(images))
    codec.decode(codec.encode(images))
    return codec


def main() -> None:
    """Prints how much faster groups are than whole batches."""
    flags = parser("Groups of images beside whole batches.")
    flags.add_argument("--codec", default="tiny")
    flags.add_argument("--size", type=int, default=256)
    flags.add_argument("--batch-size", type=int, default=32)
    flags.add_argument("--group", type=int, default=jax_engine.IMAGES_AT_ONCE)
    flags.add_argument("--rounds", type=int, default=3)
    add_output(flags)
    args = flags.parse_args()
    images = photographs(args.batch_size, args.size)
    groups = compiled(args.codec, images, args.group)
    whole = compiled(args.codec, images, args.batch_size)
    tokens = groups.encode(images)
    figures = []
    for what, direction, given in (("encode", "encode", images), ("decode", "decode", tokens)):
        ways = {
            name: timed(functools.partial(getattr(codec, direction), given), [])
            for name, codec in (("groups", groups), ("whole", whole))
        }
        faster = ratios(take_turns(ways, args.rounds), "whole", "groups")
        label = f"{args.codec}, {what}, groups of {args.group} beside batches of {args.batch_size}"
        say(f"{label}: {np.median(faster):.2f} times as fast, in processor time")
        figures.append(figure(f"{label} in processor time", faster))
    equal_tokens = np.mean(tokens == whole.encode(images))
    equal_pixels = np.mean(groups.decode(tokens) == whole.decode(tokens))
    say(f"equal: {equal_tokens:.2%} of the tokens, {equal_pixels:.2%} of the decoded values")
    write_results(args.output, figures, codec=args.codec, batch_size=args.batch_size, group=args.group)


if __name__ == "__main__":
    main()

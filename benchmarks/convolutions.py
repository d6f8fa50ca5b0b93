"""What a processor gains from convolutions and a search for codes that are arranged for it.

Each row is the same computation twice: as the formula has it, as accelerators get it, and as
``vqgan/model/convolutions.py`` and ``vqgan/quantizers/nearest.py`` arrange it for processors. Then
whole codecs, both ways. Processor time, in turns; how far results differ stands beside it.

    python benchmarks/convolutions.py
    python benchmarks/convolutions.py --codec tiny --codec codec/ --output convolutions.json
"""

import contextlib
import functools
import time
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from common import Figure, add_output, figure, parser, ratios, say, take_turns, write_results
from engines import photographs

from vqgan import Codec
from vqgan.model import convolutions, layers
from vqgan.model.layers import repeat_pixels
from vqgan.quantizers import nearest

Way = Callable[[], object]


def as_written(run: Way) -> None:
    """Runs something whose programs are traced without the rearrangement."""
    with contextlib.ExitStack() as patches:
        for module in (convolutions, layers, nearest):
            patches.enter_context(mock.patch.object(module, "on_processor", return_value=False))
        run()


def processor_seconds(run: Way) -> float:
    """Returns the processor's seconds of one call."""
    started = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - started


def compare(label: str, arranged: Way, written: Way, rounds: int) -> Figure:
    """Prints how many times as fast the first is."""
    first, second = (np.asarray(jax.block_until_ready(run())) for run in (arranged, written))
    difference = np.abs(first.astype(np.float64) - second).max()
    ways = {
        "arranged": functools.partial(processor_seconds, arranged),
        "as written": functools.partial(processor_seconds, written),
    }
    faster = ratios(take_turns(ways, rounds), "as written", "arranged")
    equal = f"{np.mean(first == second):.3%} equal, at most {difference:.2g} apart"
    say(f"{label}: {np.median(faster):.2f} times as fast; {equal}")
    return figure(label, faster)


def single_layers(rounds: int) -> list[Figure]:
    """Compares layers of ``tiny`` and of the f16 codecs, and the search in two codebooks."""
    draw = np.random.default_rng(0).normal

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(draw(size=shape), jnp.float32)

    plain = jax.jit(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=convolutions.LAYOUT
        )
    )
    folded = jax.jit(
        lambda x, kernel: convolutions.convolve_images(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=convolutions.LAYOUT
        )
    )
    figures = []
    for inputs, outputs in ((3, 16), (16, 16), (16, 3)):
        x, kernel = array(4, 256, 256, inputs), array(3, 3, inputs, outputs)
        first, second = (functools.partial(way, x, kernel) for way in (folded, plain))
        label = f"3x3, {inputs} to {outputs} channels, 256 pixels"
        figures.append(compare(label, first, second, rounds))
    doubled = jax.jit(lambda x, kernel: convolutions.convolve_doubled(x, kernel, None))
    repeated = jax.jit(lambda x, kernel: plain(repeat_pixels(x, 2), kernel))
    for batch, size, channels in ((4, 128, 32), (1, 64, 256)):
        x, kernel = array(batch, size, size, channels), array(3, 3, channels, channels)
        first, second = (functools.partial(way, x, kernel) for way in (doubled, repeated))
        figures.append(compare(f"doubled from {size} pixels, {channels} channels", first, second, rounds))
    for latents, codes, width in ((4096, 1024, 8), (1024, 16384, 256)):
        z, codebook = array(latents, width), array(codes, width)
        searches = [jax.jit(lambda z, codebook: nearest.nearest_code(z, codebook)) for _ in range(2)]
        searches[0](z, codebook)
        as_written(lambda: searches[1](z, codebook))  # noqa: B023
        first, second = (functools.partial(way, z, codebook) for way in searches)
        figures.append(compare(f"nearest of {codes} codes of {width} numbers", first, second, rounds))
    return figures


def whole_codec(name: str, size: int, batch_size: int, rounds: int) -> list[Figure]:
    """Compares both directions of a codec."""
    images = photographs(batch_size, size)
    arranged, written = (Codec.load(name, batch_size=batch_size) for _ in range(2))
    tokens = arranged.encode(images)
    arranged.decode(tokens)
    as_written(lambda: written.decode(written.encode(images)))
    directions = (("encode", images), ("decode", tokens))
    return [
        compare(
            f"{name}, {direction}, {size} pixels",
            functools.partial(getattr(arranged, direction), given),
            functools.partial(getattr(written, direction), given),
            rounds,
        )
        for direction, given in directions
    ]


def main() -> None:
    """Prints a line for each layer and each direction of each codec."""
    flags = parser("Convolutions arranged for a processor beside plain ones.")
    flags.add_argument("--codec", action="append", help="default: tiny")
    flags.add_argument("--size", type=int, default=256)
    flags.add_argument("--batch-size", type=int, default=8)
    flags.add_argument("--rounds", type=int, default=3)
    add_output(flags)
    args = flags.parse_args()
    figures = single_layers(args.rounds)
    for name in args.codec or ["tiny"]:
        figures += whole_codec(name, args.size, args.batch_size, args.rounds)
    write_results(args.output, figures)


if __name__ == "__main__":
    main()

"""What a processor gains from convolutions and a search for codes that are arranged for it.

Each row is the same computation twice: as the formula has it, as accelerators get it, and as
``vqgan/model/convolutions.py`` and ``vqgan/quantizers/nearest.py`` arrange it for processors. Then
whole codecs, both ways. Processor time, in turns; how far results differ stands beside it.

``--winograd`` compares the convolutions of ``vqgan/model/winograd.py`` alone, by layers as one core computes
them and by the preset f16-1024 with random weights, whose codes are latents of the photographs.

    python benchmarks/convolutions.py
    python benchmarks/convolutions.py --winograd --rounds 9 --output winograd.json
    python benchmarks/convolutions.py --codec tiny --codec codec/ --output convolutions.json
"""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from common import Figure, add_output, figure, parser, ratios, say, scratch, take_turns, write_results
from engines import photographs
from flax import nnx

from vqgan import Codec
from vqgan.codec_checkpoint import model_weights, save_codec
from vqgan.engines.cores import ONE_CORE
from vqgan.model import convolutions, layers, winograd
from vqgan.model.layers import repeat_pixels
from vqgan.model.vqgan import VQGAN
from vqgan.presets import PRESETS
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


def fewer_products(rounds: int) -> list[Figure]:
    """Compares layers of f16-1024 by Winograd's filtering with plain ones, both on one core."""
    draw = np.random.default_rng(0).normal
    shapes = (
        (256, 64, 64), (256, 128, 128), (128, 128, 128), (128, 256, 128), (64, 128, 256), (64, 256, 256),
        (32, 256, 256), (16, 512, 512),
    )  # fmt: skip
    figures = []
    for size, inputs, outputs in shapes:
        x = jnp.asarray(draw(size=(1, size, size, inputs)), jnp.float32)
        kernel = jnp.asarray(draw(size=(3, 3, inputs, outputs)) / np.sqrt(9 * inputs), jnp.float32)

        def layer(x: jax.Array, kernel: jax.Array) -> jax.Array:
            # What comes before is part of it: there XLA adds the border, at no cost
            return convolutions.convolve_images(
                jax.nn.silu(x), kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=convolutions.LAYOUT
            )

        def compiled(function: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> Way:
            program = jax.jit(function).lower(x, kernel).compile(compiler_options=ONE_CORE)
            return functools.partial(program, x, kernel)

        least: dict[str, Any] = {"LEAST_CHANNELS": 1, "LEAST_PIXELS": 1}
        weights = inputs * outputs / (size * size) if size < 32 else winograd.WEIGHTS_PER_PIXEL
        with mock.patch.multiple(winograd, **least, WEIGHTS_PER_PIXEL=weights):
            fewer = compiled(winograd.with_fewer_products(layer, True), x, kernel)
        label = f"fewer products, {inputs} to {outputs} channels, {size} pixels"
        figures.append(compare(label, fewer, compiled(layer, x, kernel), rounds))
    return figures


def fewer_products_of_codec(images: np.ndarray, rounds: int) -> list[Figure]:
    """Compares both directions of f16-1024 with random weights, and counts tokens that change."""
    config = PRESETS["f16-1024"]
    model = VQGAN(config, rngs=nnx.Rngs(0))
    with scratch() as scratched:
        folder = Path(scratched) / "codec"
        save_codec(folder, config, model_weights(model))
        latents = Codec.load(folder, batch_size=len(images)).latents(images).reshape(-1, config.embed_dim)
        places = np.random.default_rng(0).choice(len(latents), config.codebook_size)
        assert isinstance(model.quantizer, nearest.NearestQuantizer)
        model.quantizer.codebook[...] = jnp.asarray(latents[places])
        save_codec(folder, config, model_weights(model))
        fewer, plain = (Codec.load(folder, batch_size=len(images)) for _ in range(2))
        tokens, _ = fewer.encode_with_margins(images)
        fewer.decode(fewer.encode(images))
        with mock.patch.object(winograd, "LEAST_CHANNELS", 1 << 30):
            expected, margins = plain.encode_with_margins(images)
            plain.decode(plain.encode(images))
        clear = margins >= 1e-4
        changed = tokens != expected
        of_clear = f"{(changed & clear).sum()} of {clear.sum()} clear ones"
        say(f"tokens: {changed.sum()} of {changed.size} change, {of_clear}")
        return [
            compare(
                f"fewer products, f16-1024, {direction}, {images.shape[1]} pixels",
                functools.partial(getattr(fewer, direction), given),
                functools.partial(getattr(plain, direction), given),
                rounds,
            )
            for direction, given in (("encode", images), ("decode", expected))
        ]


def main() -> None:
    """Prints a line for each layer and each direction of each codec."""
    flags = parser("Convolutions arranged for a processor beside plain ones.")
    flags.add_argument("--codec", action="append", help="default: tiny")
    flags.add_argument("--size", type=int, default=256)
    flags.add_argument("--batch-size", type=int, default=8)
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--winograd", action="store_true", help="compare vqgan/model/winograd.py alone")
    add_output(flags)
    args = flags.parse_args()
    if args.winograd:
        figures = fewer_products(args.rounds)
        figures += fewer_products_of_codec(photographs(args.batch_size, args.size), args.rounds)
        write_results(args.output, figures)
        return
    figures = single_layers(args.rounds)
    for name in args.codec or ["tiny"]:
        figures += whole_codec(name, args.size, args.batch_size, args.rounds)
    write_results(args.output, figures)


if __name__ == "__main__":
    main()

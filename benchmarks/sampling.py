"""Speed of sampling: tokens per second with the cache of keys and values, and of the same model without it.

Both draw the same tokens with the same random weights, in turns, in one process. Without the cache, a
token costs a pass over all tokens before it; lengths are rounded up to an eighth of the grid, so that such a
pass reads about half the grid on average and not all of it. Guidance doubles the batch of both.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --preset llamagen-b --dtype bfloat16 --batch 64   # a GPU
"""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from common import Figure, add_output, figure, parser, say, write_results
from flax import nnx

from vqgan.functional import Arrays, take_apart
from vqgan.prior.config import PriorConfig
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.logits import SamplingVariant, sample_keys
from vqgan.prior.sampling.loops import AutoregressiveLoop, RasterNumbers
from vqgan.prior.sampling.request import Request, SampleInputs
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.transformer import PriorTransformer

PRESETS = {
    "tiny": PriorConfig(layers=4, heads=4, width=128, classes=10),
    "small": PriorConfig(layers=6, heads=4, width=256, classes=10),
    "llamagen-b": PriorConfig(layers=12, heads=12, width=768, classes=1000, codebook_size=16384),
}
PARTS = 8


class UncachedLoop(AutoregressiveLoop):
    """Every token from a pass over all tokens before it."""

    def __call__(self, prior: PriorTransformer, inputs: SampleInputs, numbers: RasterNumbers) -> jax.Array:
        """Decodes a batch, int32 ``[B, L]``."""
        variant, keys = self.variant, sample_keys(jnp.asarray(inputs.seeds))
        labels, _ = variant.double_conditions(jnp.asarray(inputs.labels), None, prior.config.classes)
        tokens = jnp.maximum(jnp.asarray(inputs.known), 0)
        for part in range(PARTS):
            begin, end = (n * tokens.shape[1] // PARTS for n in (part, part + 1))

            def step(k: jax.Array, tokens: jax.Array, end: int = end) -> jax.Array:
                logits = prior(variant.double(tokens[:, :end]), labels)[:, k]
                return tokens.at[:, k].set(self.next_tokens(logits, keys, k, numbers))

            tokens = jax.lax.fori_loop(begin, end, step, tokens)
        return tokens


def random_params(config: PriorConfig) -> Arrays:
    """Random weights; the last layer's, which start at zero, too."""
    params, _ = take_apart(lambda: PriorTransformer(config, rngs=nnx.Rngs(0))).initial()
    kernel = params["head.kernel"]
    return params | {"head.kernel": jax.random.normal(jax.random.key(1), kernel.shape) / config.width**0.5}


def timed(
    sampler: PriorSampler, loop: AutoregressiveLoop, request: Request, settings: SamplingConfig
) -> tuple[float, np.ndarray]:
    """Seconds that a batch takes, and its tokens."""
    started = time.monotonic()
    tokens = sampler.run(loop, sampler.config, request, settings)
    return time.monotonic() - started, tokens


def measure(
    config: PriorConfig, batch: int, rounds: int, dtype: str, settings: SamplingConfig
) -> list[Figure]:
    """Prints tokens per second of both, and their ratio, at one grid."""
    sampler = PriorSampler(config, random_params(config), batch_size=batch, dtype=dtype)
    request = Request(np.arange(sampler.batch_size), np.arange(sampler.batch_size) % config.classes)
    variant = SamplingVariant(settings.is_guided, settings.truncates)
    loops = {"cached": AutoregressiveLoop(variant, 0), "uncached": UncachedLoop(variant, 0)}
    tokens = {name: timed(sampler, loop, request, settings)[1] for name, loop in loops.items()}  # compiles
    same = (tokens["cached"] == tokens["uncached"]).mean()
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            seconds[name].append(timed(sampler, loop, request, settings)[0])
    rate = {name: sampler.batch_size * config.length / statistics.median(s) for name, s in seconds.items()}
    say(
        f"{config.length} tokens, batch {sampler.batch_size}: {rate['cached']:.0f} tokens/s with the cache, "
        f"{rate['uncached']:.0f} without, {rate['cached'] / rate['uncached']:.1f} times as fast; "
        f"{same:.2%} of tokens equal"
    )
    times = [slow / fast for slow, fast in zip(seconds["uncached"], seconds["cached"], strict=True)]
    return [figure(f"sampling {config.length} tokens with the cache beside without", times)]


def main() -> None:
    """Measures every grid asked for."""
    flags = parser(__doc__ or "")
    flags.add_argument("--preset", choices=sorted(PRESETS), default="tiny", help="size of the model")
    flags.add_argument("--side", type=int, action="append", help="sides of square grids (16 and 32)")
    flags.add_argument("--batch", type=int, default=2, help="samples at a time")
    flags.add_argument("--rounds", type=int, default=2, help="timed batches of each")
    flags.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of activations")
    flags.add_argument("--guidance", type=float, default=1.0, help="scale of guidance")
    flags.add_argument("--top-k", type=int, default=0, help="tokens that may be drawn; 0 for all")
    add_output(flags)
    args = flags.parse_args()
    figures: list[Figure] = []
    settings = SamplingConfig(guidance=args.guidance, top_k=args.top_k)
    say(f"{args.preset}, {args.dtype}, {jax.devices()[0].device_kind}")
    for side in args.side or [16, 32]:
        config = dataclasses.replace(PRESETS[args.preset], grid=(side, side))
        figures += measure(config, args.batch, args.rounds, args.dtype, settings)
    write_results(args.output, figures)


if __name__ == "__main__":
    main()

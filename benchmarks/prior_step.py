"""Times training steps of a prior, beside the same steps with JAX's own products and attention.

    python benchmarks/prior_step.py --steps 6

Both learners take the same batches in turns, in both orders, so that whatever else the machine does falls on
both alike. Processor time is printed, which other processes change least, and the losses, which agree.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import jax
import numpy as np
from common import parser, say

from vqgan.prior import transformer
from vqgan.prior.config import PriorConfig
from vqgan.training.prior.config import PriorLoopConfig, PriorTrainConfig
from vqgan.training.prior.learner import PriorLearner
from vqgan.training.prior.prior_rows import PriorRows


@contextmanager
def plain() -> Iterator[None]:
    """Makes learners of JAX's own operations."""

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)

    with (
        mock.patch("vqgan.prior.building_blocks.product", jax.lax.dot_general),
        mock.patch.object(transformer, "product", jax.lax.dot_general),
        mock.patch.object(transformer, "_attend_causally", attention),
    ):
        yield


def main() -> None:
    """Prints a table."""
    flags = parser("Processor time of a prior's training step.")
    flags.add_argument("--steps", type=int, default=6, help="steps that count, at least 2")
    flags.add_argument("--batch-size", type=int, default=8)
    flags.add_argument("--layers", type=int, default=6)
    flags.add_argument("--width", type=int, default=384)
    flags.add_argument("--block", choices=("llama", "gpt"), default="gpt")
    args = flags.parse_args()
    config = PriorTrainConfig(
        model=PriorConfig(
            block=args.block, layers=args.layers, heads=args.width // 64, width=args.width,
            codebook_size=1024, grid=(16, 16),
        ),
        train=PriorLoopConfig(steps=100, batch_size=args.batch_size, ema_decay=0.0),
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 1024, (args.batch_size, 256)).astype(np.int32)
    rows = PriorRows(tokens, np.full(args.batch_size, -1, np.int32))
    learners, states, seconds = {}, {}, {}
    for name, patched in (("ours", nullcontext), ("plain", plain)):
        with patched():  # while it is built and traced
            learners[name], seconds[name] = PriorLearner(config), []
            states[name], _ = learners[name].step(0, learners[name].initial(), rows)
    losses = {}
    for step in range(1, args.steps + 1):
        for name in ("ours", "plain")[:: 1 if step % 2 else -1]:
            start = time.process_time()
            states[name], scalars = learners[name].step(step, states[name], rows)
            jax.block_until_ready(states[name])
            seconds[name].append(time.process_time() - start)
            losses[name] = float(scalars["loss"])
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    say("| products, attention | processor time of a step | tokens for each second of it | loss |")
    say("|---|---|---|---|")
    for name, median in medians.items():
        say(f"| {name} | {median:.2f} s | {args.batch_size * 256 / median:,.0f} | {losses[name]:.6f} |")
    say(f"\nratio {medians['plain'] / medians['ours']:.2f}")


if __name__ == "__main__":
    main()

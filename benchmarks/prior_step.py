"""Times training steps of a prior, beside the same steps with JAX's own operations, and in torch.

    python benchmarks/prior_step.py --steps 6
    taskset -c 0 python benchmarks/prior_step.py --torch-threads 1

All take the same batch in turns, in both orders, so that whatever else the machine does falls on all
alike. Processor time is what other processes change least, but torch's threads spin while they wait: on a
busy machine only its single thread says anything. The row of torch, a GPT as nanoGPT has it, is there where
torch is installed, and for the block ``gpt`` alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import jax
import numpy as np
from common import TimedStep, compare_steps, installed, parser
from flax import nnx

from vqgan.prior import transformer
from vqgan.prior.config import PriorConfig
from vqgan.training.prior.config import PriorLoopConfig, PriorTrainConfig
from vqgan.training.prior.learner import PriorLearner
from vqgan.training.prior.prior_rows import PriorRows

CODES, SIDE = 1024, 16


@contextmanager
def plain() -> Iterator[None]:
    """Makes learners of JAX's own operations."""

    def attention(query: jax.Array, key: jax.Array, value: jax.Array, known: Any) -> jax.Array:
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)

    def layer_norm(*args: Any, **options: Any) -> nnx.LayerNorm:
        return nnx.LayerNorm(*args, use_fast_variance=False, **options)

    with (
        mock.patch("vqgan.prior.building_blocks.product", jax.lax.dot_general),
        mock.patch("vqgan.prior.building_blocks.LayerNorm", layer_norm),
        mock.patch.object(transformer, "product", jax.lax.dot_general),
        mock.patch.object(transformer, "gelu", lambda x: jax.nn.gelu(x, approximate=False)),
        mock.patch("vqgan.prior.attention._attend_causally", attention),
    ):
        yield


def our_step(config: PriorTrainConfig, rows: PriorRows) -> TimedStep:
    """A learner's step, compiled."""
    learner = PriorLearner(config)
    state, number = learner.initial(), 0

    def step() -> float:
        nonlocal state, number
        state, scalars = learner.step(number, state, rows)
        number += 1
        jax.block_until_ready(state)
        return float(scalars["loss"])

    return TimedStep(step)


def torch_step(model: PriorConfig, tokens: np.ndarray, threads: int | None) -> TimedStep:
    """The step of a torch model of the same size."""
    import torch
    from torch_training import GptStep

    if threads:
        torch.set_num_threads(threads)
    step = GptStep(model.codebook_size, model.length, model.layers, model.heads, model.width)
    batch = torch.from_numpy(tokens).long()
    return TimedStep(lambda: step(batch))


def main() -> None:
    """Prints a table."""
    flags = parser("Processor and wall time of a prior's training step.")
    flags.add_argument("--steps", type=int, default=6, help="steps that count")
    flags.add_argument("--batch-size", type=int, default=8)
    flags.add_argument("--layers", type=int, default=6)
    flags.add_argument("--width", type=int, default=384)
    flags.add_argument("--block", choices=("llama", "gpt"), default="gpt")
    flags.add_argument("--torch-threads", type=int, help="threads of torch; its own choice if not given")
    args = flags.parse_args()
    model = PriorConfig(
        block=args.block, layers=args.layers, heads=args.width // 64, width=args.width,
        codebook_size=CODES, grid=(SIDE, SIDE),
    )  # fmt: skip
    train = PriorLoopConfig(steps=100, batch_size=args.batch_size, ema_decay=0.0)
    config = PriorTrainConfig(model=model, train=train)
    tokens = np.random.default_rng(0).integers(0, CODES, (args.batch_size, SIDE**2)).astype(np.int32)
    rows = PriorRows(tokens, np.full(args.batch_size, -1, np.int32))
    ways = {}
    for name, patched in (("ours", nullcontext), ("JAX's own operations", plain)):
        with patched():  # while it is built and traced
            ways[name] = our_step(config, rows)
    if args.block == "gpt" and installed("torch", "a GPT in torch"):
        ways["torch"] = torch_step(model, tokens, args.torch_threads)
    compare_steps(ways, args.steps, args.batch_size * SIDE**2, "tokens")


if __name__ == "__main__":
    main()

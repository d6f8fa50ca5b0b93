"""What an accelerator does with a VQGAN and a prior: items a second, and share of its arithmetic (MFU).

Encode, decode, both training steps and sampling are each compiled once and then repeated for some seconds
with inputs that lie in memory. The arithmetic is counted by XLA in the program before it is optimized,
since calls of cuDNN have no count; what the device can do is taken from its data sheet where it is known,
else given by ``--peak-tflops`` or measured with a large matrix product. Ends in a few minutes.

Where torch is installed, its encoder and decoder stand beside ours, of the same architecture, compiled and in
``channels_last`` on the same device. So the architecture is f16's without attention, which those have not.

    python benchmarks/accelerator.py                 # one GPU: f16-16384 at 256 pixels, a prior of 111 M
    python benchmarks/accelerator.py --scale quick   # a CPU: small models, to see that everything runs
"""

import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import (
    Figure,
    add_output,
    figure,
    installed,
    matrix_flops,
    parser,
    random_codec,
    say,
    scratch,
    write_results,
)

from pipelines.training.training_codec import configure_codec_training
from vqgan import Codec
from vqgan.config import ModelConfig
from vqgan.presets import PRESETS
from vqgan.prior.config import PriorConfig
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.training.codec.learner import CodecLearner
from vqgan.training.codec.run import load_perceptual
from vqgan.training.prior.config import PriorLoopConfig, PriorTrainConfig
from vqgan.training.prior.learner import PriorLearner
from vqgan.training.prior.prior_rows import PriorRows

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")  # leaves torch its share of the same device

# Dense bfloat16 TFLOP/s, by a part of the device's name; from the makers' data sheets.
DATA_SHEETS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "TPU v5e": 197.0}


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is measured.

    Attributes:
      codec: architecture of the VQGAN.
      preset: of its training run, whose model is replaced by ``codec``.
      prior: architecture of the prior.
      image_size: side of the images, in pixels.
      batch: images of encode and decode, and samples.
      train_batch: images of a step of the VQGAN.
      rows: token grids of a step of the prior.
      seconds: how long each is repeated.
    """

    codec: ModelConfig
    preset: str
    prior: PriorConfig
    image_size: int
    batch: int
    train_batch: int
    rows: int
    seconds: float


SCALES = {
    "full": Scale(
        codec=replace(PRESETS["f16-16384"], attn_resolutions=(), mid_attention=False), preset="f16-16384",
        prior=PriorConfig(layers=12, heads=12, width=768, classes=1000, codebook_size=16384, grid=(16, 16)),
        image_size=256, batch=64, train_batch=16, rows=64, seconds=10,
    ),
    "quick": Scale(
        codec=PRESETS["tiny"], preset="tiny",
        prior=PriorConfig(layers=2, heads=2, width=64, classes=10, codebook_size=1024, grid=(8, 8)),
        image_size=64, batch=8, train_batch=4, rows=8, seconds=0.5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Something to repeat.

    Attributes:
      unit: what one call makes.
      count: how many of them.
      flops: floating-point operations of a call; 0 where they are not counted.
      call: does it, and waits.
    """

    unit: str
    count: int
    flops: float
    call: Callable[[], Any]


def codec_work(scale: Scale, codec: Codec) -> Iterator[tuple[str, Work]]:
    """Encode and decode of full batches, as the pipelines call them."""
    rng, size = np.random.default_rng(0), scale.image_size
    images = rng.integers(0, 256, (codec.batch_size, size, size, 3), np.uint8)
    tokens = np.asarray(codec.encode_batch(images))
    for name, function, batch in (
        ("encode", codec.encode_batch, images),
        ("decode", codec.decode_batch, tokens),
    ):
        program = codec._jax.encoder if name == "encode" else codec._jax.decoder
        call = functools.partial(_wait, function, batch)
        flops = _counted(program.function.lower(program.weights, batch))
        yield name, Work("images", codec.batch_size, flops, call)


def torch_work(scale: Scale, dtype: str) -> Iterator[tuple[str, Work]]:
    """Encoder and decoder in torch, without the quantizer; torch counts no operations."""
    import torch
    from torch_training import decoder, encoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    side, latent = scale.image_size, scale.image_size // scale.codec.downsampling
    shapes = {"encode": (3, side, side), "decode": (scale.codec.embed_dim, latent, latent)}
    for name, shape in shapes.items():
        module = (encoder if name == "encode" else decoder)(scale.codec).eval()
        module = torch.compile(module.to(device, memory_format=torch.channels_last))
        batch = torch.randn(scale.batch, *shape, device=device).contiguous(memory_format=torch.channels_last)

        def call(module: Any = module, batch: Any = batch) -> None:
            with torch.no_grad(), torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
                module(batch)
            if device == "cuda":
                torch.cuda.synchronize()

        yield f"torch, {name}", Work("images", scale.batch, 0, call)


def codec_step(scale: Scale, dtype: str) -> Work:
    """A step of the VQGAN with its discriminator and LPIPS."""
    settings = [f"train.dtype={dtype}", f"train.batch_size={scale.train_batch}"]
    settings.append(f"data.crop_size={scale.image_size}")
    config = replace(configure_codec_training(scale.preset, settings), model=scale.codec)
    learner = CodecLearner(config, load_perceptual(config.loss))
    step = config.adversarial.start
    size = scale.image_size
    batch = np.random.default_rng(0).integers(0, 256, (scale.train_batch, size, size, 3), np.uint8)
    state = learner.initial()
    return Work(
        "images", scale.train_batch, learner.flops(step, state, batch), _steps(learner, step, state, batch)
    )


def prior_step(scale: Scale, dtype: str) -> Work:
    """A step of an autoregressive prior."""
    train = PriorLoopConfig(steps=100, batch_size=scale.rows, dtype=dtype)
    learner = PriorLearner(PriorTrainConfig(model=scale.prior, train=train))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, scale.prior.codebook_size, (scale.rows, scale.prior.length)).astype(np.int32)
    rows = PriorRows(tokens, rng.integers(0, scale.prior.classes, scale.rows).astype(np.int32))
    state = learner.initial()
    count = scale.rows * scale.prior.length
    return Work("tokens", count, 3 * _forward_flops(scale.prior, count), _steps(learner, 0, state, rows))


def sampling(scale: Scale, dtype: str) -> Work:
    """Sampling of a batch with the cache."""
    learner = PriorLearner(PriorTrainConfig(model=scale.prior, train=PriorLoopConfig(batch_size=scale.rows)))
    sampler = PriorSampler(scale.prior, learner.initial().params, batch_size=scale.batch, dtype=dtype)
    request = Request(np.arange(sampler.batch_size), np.arange(sampler.batch_size) % scale.prior.classes)
    count = sampler.batch_size * scale.prior.length
    call = functools.partial(sampler.sample, request, SamplingConfig())
    return Work("tokens", count, _forward_flops(scale.prior, count), call)


def _steps(learner: Any, step: int, state: Any, batch: Any) -> Callable[[], None]:
    """Repeats a training step; each takes the state that the one before it left."""
    held = [state]

    def call() -> None:
        held[0], _ = learner.step(step, held[0], batch)
        jax.block_until_ready(held[0])

    return call


def _wait(function: Callable[[np.ndarray], Any], batch: np.ndarray) -> None:
    np.asarray(function(batch))


def _counted(lowered: jax.stages.Lowered) -> float:
    analysis = lowered.cost_analysis()
    return float(analysis["flops"]) if analysis else 0.0


def _forward_flops(config: PriorConfig, tokens: int) -> float:
    """Operations of one pass: two for each weight of a product, and causal attention, half of a square.

    As PaLM's appendix B counts them (arXiv 2204.02311), which leaves out norms and embeddings.
    """
    width, layers = config.width, config.layers
    products = layers * 12 * width**2 + width * config.codebook_size
    attention = layers * 2 * width * config.length / 2
    return 2.0 * tokens * (products + attention)


def timed(work: Work, seconds: float) -> tuple[float, list[float]]:
    """Seconds of the first call, with compilation, and of each after it."""
    started = time.monotonic()
    work.call()
    first = time.monotonic() - started
    each: list[float] = []
    while len(each) < 2 or sum(each) < seconds:
        started = time.monotonic()
        work.call()
        each.append(time.monotonic() - started)
    return first, each


def peak_of(dtype: str, given: float | None) -> float:
    """Floating-point operations per second that the device can do."""
    kind = jax.devices()[0].device_kind
    known = [tflops for name, tflops in DATA_SHEETS.items() if name in kind]
    if given or known:
        return (given or known[0]) * 1e12
    return matrix_flops(dtype)


def main() -> None:
    """Measures everything in turn and prints a table."""
    flags = parser("Throughput and MFU of one device.")
    flags.add_argument("--scale", choices=sorted(SCALES), default="full")
    flags.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    flags.add_argument("--peak-tflops", type=float, help="what the device can do, from its data sheet")
    add_output(flags)
    args = flags.parse_args()
    scale, peak = SCALES[args.scale], peak_of(args.dtype, args.peak_tflops)
    say(f"{jax.devices()[0].device_kind}, {args.dtype}, at most {peak / 1e12:.3g} TFLOP/s\n")
    say("| work | rate | MFU | first call |\n|---|---|---|---|")
    figures: list[Figure] = []

    def show(name: str, work: Work) -> None:
        first, seconds = timed(work, scale.seconds)
        rates, middle = [work.count / one for one in seconds], float(np.median(seconds))
        mfu = work.flops / middle / peak
        figures.append(figure(name, rates, f"{work.unit}/s"))
        if work.flops:
            figures.append(Figure(f"{name}, MFU", mfu, mfu, mfu, "of the peak"))
        share = f"{mfu:.1%}" if work.flops else "not counted"
        say(f"| {name} | {work.count / middle:,.0f} {work.unit}/s | {share} | {first:.1f} s |")

    with scratch() as folder:
        path = random_codec(Path(folder) / "codec", scale.codec)
        codec = Codec.load(path, batch_size=scale.batch, dtype=jnp.dtype(args.dtype))
        for name, work in codec_work(scale, codec):
            show(name, work)
    if installed("torch", "torch.compile"):
        for name, work in torch_work(scale, args.dtype):
            show(name, work)
    show("training of the VQGAN", codec_step(scale, args.dtype))
    show("training of the prior", prior_step(scale, args.dtype))
    show("sampling", sampling(scale, args.dtype))
    write_results(args.output, figures, scale=args.scale, dtype=args.dtype, peak=peak)


if __name__ == "__main__":
    main()

"""Speed of training: images per second, compilations, waiting for data, and share of the device's arithmetic.

Each phase of a preset (autoencoder, quantized, adversarial) is timed over the real loader, on JPEG files
made from the test photographs. The arithmetic is counted by XLA for the compiled step; what the
device can do is taken from ``--peak-tflops``, or else measured with a large matrix product.

With ``--compare`` the adversarial step alone is timed instead, on one batch, beside the same step in torch
where that is installed: with one forward pass, and with two as the published code has it. On a busy machine
give both one thread, since torch's threads spin while they wait.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --preset f8-1024 --peak-tflops 989   # one H100, bfloat16
    taskset -c 0 python benchmarks/train_step.py --compare --preset cpu-64 --torch-threads 1
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import TimedStep, compare_steps, installed, make_corpus, matrix_flops, parser, say, scratch

from pipelines.training.training_codec import configure_codec_training, open_crop_batches, open_images
from transforms.sources import SourceConfig
from vqgan.data.image_crops import CropBatches
from vqgan.image_sizes import shape_of_size
from vqgan.training.codec.config import CodecTrainConfig
from vqgan.training.codec.learner import CodecLearner
from vqgan.training.codec.run import load_perceptual
from vqgan.training.loop_config import LoopConfig
from vqgan.training.sharding import use_cpu_devices


def open_loader(folder: Path, config: CodecTrainConfig) -> CropBatches:
    """The loader that ``vqgan train`` uses."""
    return open_crop_batches(open_images(SourceConfig(str(folder)), config), config)


def loader_rate(folder: Path, config: CodecTrainConfig, batches: int) -> float:
    """Crops per second of the loader alone, after a round that fills its cache."""
    stream = open_loader(folder, config)
    for _ in range(batches):
        next(stream)
    started = time.monotonic()
    for _ in range(batches):
        next(stream)
    elapsed = time.monotonic() - started
    stream.close()
    return batches * config.train.batch_size / elapsed


def time_phase(
    learner: CodecLearner, step: int, state: Any, stream: CropBatches, steps: int
) -> tuple[Any, float, float]:
    """State, seconds per step, and the share of them spent in waiting for data."""
    state, _ = learner.step(step, state, next(stream))
    jax.block_until_ready(state)
    waited, started = 0.0, time.monotonic()
    for _ in range(steps):
        asked = time.monotonic()
        batch = next(stream)
        waited += time.monotonic() - asked
        state, _ = learner.step(step, state, batch)
        jax.block_until_ready(state)
    elapsed = time.monotonic() - started
    return state, elapsed / steps, waited / elapsed


def measure(preset: str, folder: Path, steps: int, peak: float | None) -> None:
    """Prints the figures of one preset."""
    config = configure_codec_training(preset, [])
    peak = peak or matrix_flops(config.train.dtype)
    learner = CodecLearner(config, load_perceptual(config.loss))
    stream, state = open_loader(folder, config), learner.initial()
    phases = {"autoencoder": 0, "quantized": config.codebook.autoencoder_steps}
    if config.adversarial.weight:
        phases["adversarial"] = config.adversarial.start
    for name, step in phases.items():
        flops = learner.flops(step, state, next(stream))
        before = learner.compilations
        state, seconds, waiting = time_phase(learner, step, state, stream, steps)
        compiled = learner.compilations - before
        rate = config.train.batch_size / seconds
        say(
            f"{preset} {name}: {seconds:.3f} s a step, {rate:.1f} images/s, waiting for data {waiting:.1%}, "
            f"{compiled} compilations in {steps + 1} steps, {flops / 1e9:.1f} GFLOP a step, "
            f"{flops / seconds / peak:.1%} of {peak / 1e12:.3f} TFLOP/s"
        )
    stream.close()


def our_step(config: CodecTrainConfig, batch: np.ndarray) -> TimedStep:
    """A learner's adversarial step, compiled."""
    learner = CodecLearner(config, load_perceptual(config.loss))
    state, number = learner.initial(), config.adversarial.start

    def step() -> float:
        nonlocal state, number
        state, scalars = learner.step(number, state, batch)
        number += 1
        jax.block_until_ready(state)
        return float(scalars["pixel"])

    return TimedStep(step)


def torch_steps(config: CodecTrainConfig, batch: np.ndarray, threads: int | None) -> dict[str, TimedStep]:
    """The same in torch."""
    import torch
    from torch_training import CodecStep

    if threads:
        torch.set_num_threads(threads)
    images = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1
    ways = {"torch, one forward pass": False, "torch, two forward passes": True}
    return {name: _torch_step(CodecStep(config, twice), images) for name, twice in ways.items()}


def _torch_step(step: Any, images: Any) -> TimedStep:
    return TimedStep(lambda: step(images))


def compare(preset: str, overrides: list[str], rounds: int, threads: int | None) -> None:
    """Prints the adversarial step of one preset beside torch's; losses are each of its own kind."""
    config = configure_codec_training(preset, overrides)
    size, shape = config.train.batch_size, shape_of_size(config.data.crop_size)
    batch = np.random.default_rng(0).integers(0, 256, (size, *shape, 3)).astype(np.uint8)
    ways = {"ours": our_step(config, batch)}
    if installed("torch", "stage 1 in torch"):
        ways |= torch_steps(config, batch, threads)
    compare_steps(ways, rounds, size, "images")


def main() -> None:
    """Makes the corpus and measures every preset asked for."""
    flags = parser(__doc__ or "")
    flags.add_argument("--preset", action="append", help="training presets (tiny and cpu-64)")
    flags.add_argument("--images", type=int, default=100, help="images in the corpus")
    flags.add_argument("--steps", type=int, default=10, help="timed steps of each phase")
    flags.add_argument("--loader-only", action="store_true", help="measure no steps")
    flags.add_argument("--peak-tflops", type=float, help="what the device can do, from its data sheet")
    flags.add_argument(
        "--compare", action="store_true", help="the adversarial step beside torch, nothing else"
    )
    flags.add_argument("--set", action="append", default=[], help="of --compare: SECTION.NAME=VALUE")
    flags.add_argument(
        "--cpu-devices", type=int, default=2, help="as train.cpu_devices, which presets have at 2"
    )
    flags.add_argument("--torch-threads", type=int, help="threads of torch; its own choice if not given")
    args = flags.parse_args()
    use_cpu_devices(LoopConfig(cpu_devices=args.cpu_devices, batch_size=args.cpu_devices))
    if args.compare:
        for preset in args.preset or ["cpu-64"]:
            compare(preset, args.set, args.steps, args.torch_threads)
        return
    peak = args.peak_tflops * 1e12 if args.peak_tflops else None
    with scratch() as folder:
        make_corpus(Path(folder) / "corpus", args.images)
        for preset in args.preset or ["tiny", "cpu-64"]:
            if not args.loader_only:
                measure(preset, Path(folder) / "corpus", args.steps, peak)
            rate = loader_rate(Path(folder) / "corpus", configure_codec_training(preset, []), 4 * args.steps)
            say(f"{preset} loader alone: {rate:.0f} crops/s")


if __name__ == "__main__":
    main()

"""The whole job, from a folder of photographs to tokens on disk, beside scripts that one would write.

Each row is a process of its own, from its start to its end: imports, weights, compilation and all. Ours is
the command line, with and without its report, with an empty compilation cache and with one that an earlier
run has filled. Beside it stand two scripts that keep one ``.npy`` for each image and nothing else: no plan,
no resume, no check, no report.

- ``batch-1``: a loop that opens an image, encodes it alone and saves its tokens.
- ``torch``: a DataLoader with workers and the encoder written in torch with the same weights, in batches of
  8. It needs torch, which nothing here installs; without it the row is left out, and that is said. Where
  this was written there was none, so it has not been run.

Rows take turns, in one order and then in the other; ratios are taken round by round. On a machine with other
work the processor's seconds say more than the clock's.

    python benchmarks/whole_job.py
    python benchmarks/whole_job.py --photos 96 --f16-photos 0 --output whole_job.json
"""

import argparse
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import (
    Figure,
    add_output,
    figure,
    installed,
    make_corpus,
    parser,
    random_codec,
    ratios,
    say,
    scratch,
    take_turns,
    write_results,
)
from PIL import Image, ImageOps

from vqgan.compilation_cache import SWITCH
from vqgan.config import ModelConfig

SIZE = 256
F16 = ModelConfig(codebook_size=16384)  # the shape of taming-transformers' vqgan_imagenet_f16_16384
TORCH_BATCH = 8
VQGAN = "vqgan tokenize"
COLD = f"{VQGAN}, nothing compiled yet"
NO_REPORT = f"{VQGAN} --no-report"
OURS = (VQGAN, NO_REPORT, COLD)


# The scripts that one would write


def read_square(path: Path) -> np.ndarray:
    """Reads a photograph as uint8 ``[SIZE, SIZE, 3]``, its centre."""
    with Image.open(path) as image:
        square = ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(square)


def encode_one_by_one(codec_name: str, images: Path, output: Path) -> None:
    """Encodes image by image."""
    from vqgan import Codec

    codec = Codec.load(codec_name, batch_size=1)
    for path in sorted(images.iterdir()):
        np.save(output / f"{path.stem}.npy", codec.encode(read_square(path)[None])[0])


def encode_with_torch(codec_name: str, images: Path, output: Path) -> None:
    """Encodes what a DataLoader reads."""
    import torch

    from vqgan.codec_checkpoint import load_weights, read_info

    info = read_info(codec_name)
    parts = load_weights(info, ("encoder", "quantizer"))
    weights = {name: torch.tensor(value) for part in parts.values() for name, value in part.items()}
    paths = sorted(images.iterdir())
    reader: Any = torch.utils.data.DataLoader(
        paths, TORCH_BATCH, num_workers=os.cpu_count() or 1, collate_fn=read_squares
    )
    done = 0
    with torch.inference_mode():
        for batch in reader:
            pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1
            for tokens in torch_tokens(weights, info.config, pixels).numpy():
                np.save(output / f"{paths[done].stem}.npy", tokens)
                done += 1


def read_squares(paths: Sequence[Path]) -> np.ndarray:
    """Reads photographs as uint8 ``[B, SIZE, SIZE, 3]``."""
    return np.stack([read_square(path) for path in paths])


def torch_tokens(weights: Mapping[str, Any], config: ModelConfig, images: Any) -> Any:
    """Encodes in torch: ``[B, 3, H, W]`` from -1 to 1 to ``[B, h, w]``.

    Plain codecs alone: the nearest code, full attention, no variant of another code base.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    def conv(name: str, x: Any, **settings: Any) -> Any:
        kernel = weights[f"{name}.kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, weights[f"{name}.bias"], **settings)

    def norm(name: str, x: Any) -> Any:
        return F.group_norm(
            x, config.norm_groups, weights[f"{name}.scale"], weights[f"{name}.bias"], eps=1e-6
        )

    def block(name: str, x: Any) -> Any:
        h = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)), padding=1)
        h = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)), padding=1)
        return h + (conv(f"{name}.shortcut", x) if f"{name}.shortcut.kernel" in weights else x)

    def attention(name: str, x: Any) -> Any:
        if f"{name}.query.kernel" not in weights:
            return x
        normed = norm(f"{name}.norm", x)
        q, k, v = (conv(f"{name}.{part}", normed).flatten(2).mT for part in ("query", "key", "value"))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + conv(f"{name}.out", attended.mT.reshape(x.shape))

    x = conv("encoder.conv_in", images, padding=1)
    for level in range(len(config.ch_mult)):
        for index in range(config.num_res_blocks):
            x = block(f"encoder.levels.{level}.blocks.{index}", x)
            x = attention(f"encoder.levels.{level}.attentions.{index}", x)
        if level < len(config.ch_mult) - 1:
            x = conv(f"encoder.levels.{level}.resample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    x = block("encoder.middle.block1", x)
    x = block("encoder.middle.block2", attention("encoder.middle.attention", x))
    x = conv("encoder.conv_out", F.silu(norm("encoder.norm_out", x)), padding=1)
    x = conv("quant_conv", x).permute(0, 2, 3, 1)  # (B, h, w, D)
    codes = weights["codebook"]
    return torch.argmin((codes**2).sum(1) - 2 * x @ codes.T, dim=-1)


SCRIPTS = {"batch-1": encode_one_by_one, "torch": encode_with_torch}


# Measuring


class Seconds(NamedTuple):
    """What a process took: by the clock, and of the processor, its children's included."""

    wall: float
    processor: float


def timed(command: Sequence[str], cache: str) -> Seconds:
    """Runs a process to its end, with compiled programs in a folder, or none at ``"0"``."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | {SWITCH: cache})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # nobody else may wait for it any more
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Seconds(time.monotonic() - started, usage.ru_utime + usage.ru_stime)


def timed_row(row: str, codec: str, images: Path, folder: Path) -> Seconds:
    """Does the job once in the way that a row names, in a folder that is made anew."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    if row in SCRIPTS:
        output.mkdir()
        return timed([sys.executable, __file__, "--script", row, codec, str(images), str(output)], cache="0")
    cache = folder / ("cold" if row == COLD else "warm")
    if row == COLD:
        shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-m", "vqgan", "tokenize", "--input", str(images), "--output", str(output)]
    command += ["--codec", codec, "--image-size", str(SIZE), "--quiet"]
    return timed(command + ["--no-report"] * (row == NO_REPORT), cache=str(cache))


def measure(
    label: str, codec: str, images: Path, folder: Path, rows: Sequence[str], rounds: int
) -> list[Figure]:
    """Runs all rows in turns; returns what each took, and how many times as long the scripts took as ours."""
    timed_row(VQGAN, codec, images, folder)  # fills the cache
    processor: dict[str, list[float]] = {row: [] for row in rows}

    def way(row: str) -> float:
        taken = timed_row(row, codec, images, folder)
        processor[row].append(taken.processor)
        say(f"  {row}: {taken.wall:.1f} s, of the processor {taken.processor:.1f} s")
        return taken.wall

    wall = take_turns({row: functools.partial(way, row) for row in rows}, rounds)
    figures = []
    for row in rows:
        figures.append(figure(f"{label}: {row}", wall[row], "s"))
        figures.append(figure(f"{label}: {row}, of the processor", processor[row], "s"))
    for script in (row for row in rows if row in SCRIPTS):
        for ours in OURS:
            what = f"{label}: {script} / {ours}"
            figures.append(figure(what, ratios(wall, script, ours)))
            figures.append(figure(f"{what}, of the processor", ratios(processor, script, ours)))
    return figures


def main() -> None:
    """Measures both codecs and prints what each row took and the ratios."""
    made = parser("The whole job beside naive scripts.")
    made.add_argument("--photos", type=int, default=96, help="photographs for tiny; 0 leaves it out")
    made.add_argument("--f16-photos", type=int, default=16, help="for the f16 codec; 0 leaves it out")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--script", nargs=4, help=argparse.SUPPRESS, metavar="")
    add_output(made)
    args = made.parse_args()
    if args.script:
        name, codec, images, output = args.script
        SCRIPTS[name](codec, Path(images), Path(output))
        return
    peers = ["torch"] if installed("torch", "a DataLoader and an encoder in torch") else []
    rows = [*OURS, "batch-1", *peers]
    figures = []
    with scratch() as name:
        folder = Path(name)
        f16 = random_codec(folder / "f16", F16) if args.f16_photos else ""
        for label, codec, photos in (("tiny", "tiny", args.photos), ("f16", f16, args.f16_photos)):
            if photos:
                images = folder / f"{label}-photos"  # beside the codec, which is a folder of its own
                make_corpus(images, photos)
                what = f"{label}, {photos} photographs"
                say(f"{what} of {SIZE} pixels")
                figures += measure(what, codec, images, folder, rows, args.rounds)
    for one in figures:
        say(f"{one.what}: {one.value:.2f} {one.unit} ({one.low:.2f} to {one.high:.2f})")
    write_results(args.output, figures, load=os.getloadavg())


if __name__ == "__main__":
    main()

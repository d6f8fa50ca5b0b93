"""Images decoded and resized in a second of one core, beside other libraries.

JPEG files made from the test photographs are decoded in full by each library, and how far its pixels are from
ours is printed; then each makes centre crops of 256 pixels in the way that its users do. Processor time
counts, and every library works on one thread.

    python benchmarks/decode_images.py
    python benchmarks/decode_images.py --short-side 1080 --images 20
"""

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import (
    add_output,
    figure,
    installed,
    make_corpus,
    parser,
    ratios,
    say,
    scratch,
    take_turns,
    write_results,
)
from PIL import Image

from transforms.images.config import DecodeConfig
from transforms.images.crops import Geometry
from transforms.images.decode import decode_image, prepare

Work = Callable[[bytes], np.ndarray]
"""From the bytes of a file to uint8 ``[H, W, 3]``."""


def full_decoders() -> dict[str, Work]:
    """Ways to decode all pixels; ours comes first."""
    found: dict[str, Work] = {
        "ours": lambda data: np.asarray(decode_image(data, DecodeConfig()).image),
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    }
    if installed("simplejpeg", "libjpeg-turbo"):
        import simplejpeg

        found["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data, "RGB")
    if installed("opencv-python-headless", "OpenCV"):
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if installed("pyvips", "libvips"):
        import pyvips

        pyvips.concurrency_set(1)
        pyvips.cache_set_max(0)
        found["pyvips"] = lambda data: pyvips.Image.new_from_buffer(data, "").numpy()
    return found


def croppers(size: int) -> dict[str, Work]:
    """Ways to a centre crop of ``size`` pixels; ours comes first."""
    geometry = Geometry(image_size=size)
    found: dict[str, Work] = {
        "ours": lambda data: prepare(data, "", DecodeConfig(), geometry).pixels[0],
        "ours, in full": lambda data: prepare(data, "", DecodeConfig(jpeg_draft=False), geometry).pixels[0],
        "Pillow": lambda data: _with_pillow(data, size),
    }
    if installed("opencv-python-headless", "OpenCV"):
        found["OpenCV"] = lambda data: _with_opencv(data, size)
    if installed("pyvips", "libvips"):
        found["pyvips"] = lambda data: _with_vips(data, size)
    return found


def _with_pillow(data: bytes, size: int) -> np.ndarray:
    """What torchvision's Resize and CenterCrop do with a PIL image."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _with_opencv(data: bytes, size: int) -> np.ndarray:
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = image.shape[:2]
    scale = size / min(height, width)
    image = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def _with_vips(data: bytes, size: int) -> np.ndarray:
    import pyvips

    return pyvips.Image.thumbnail_buffer(data, size, height=size, crop="centre").numpy()


def measure(title: str, ways: dict[str, Work], files: list[bytes], rounds: int) -> dict[str, list[float]]:
    """Prints a table; returns images for each second of processor time, round by round."""

    def rate(work: Work) -> Callable[[], float]:
        def once() -> float:
            started = time.process_time()
            for data in files:
                work(data)
            return len(files) / (time.process_time() - started)

        return once

    reference = [ways["ours"](data).astype(np.int16) for data in files]
    measured = take_turns({name: rate(work) for name, work in ways.items()}, rounds)
    say(f"\n| {title} | images/s of one core | ours is | differs from ours by |\n|---|---|---|---|")
    for name, work in ways.items():
        times, speed = np.median(ratios(measured, "ours", name)), np.median(measured[name])
        levels = np.mean(
            [np.abs(work(data) - one).mean() for data, one in zip(files, reference, strict=True)]
        )
        say(f"| {name} | {speed:.0f} | {times:.2f} times as fast | {levels:.3f} levels |")
    return measured


def main() -> None:
    """Measures both kinds of work."""
    flags = parser("Decoding and resizing beside other libraries.")
    flags.add_argument("--images", type=int, default=40)
    flags.add_argument("--short-side", type=int, default=480, help="of the JPEG files, in pixels")
    flags.add_argument("--size", type=int, default=256, help="side of the crops")
    flags.add_argument("--rounds", type=int, default=3)
    add_output(flags)
    args = flags.parse_args()
    with scratch() as name:
        make_corpus(Path(name), args.images, args.short_side)
        files = [path.read_bytes() for path in sorted(Path(name).iterdir())]
    decoded = measure("decoded in full", full_decoders(), files, args.rounds)
    crops = measure(f"centre crop of {args.size} pixels", croppers(args.size), files, args.rounds)
    cores = 1000 / float(np.median(crops["ours"]))
    say(f"\n1,000 images/s of this size need {cores:.1f} cores like this one")
    figures = [
        figure(f"{work}, {args.short_side} pixels, beside {name}", ratios(measured, "ours", name))
        for work, measured in (("decoding JPEG in full", decoded), ("from JPEG to a crop", crops))
        for name in list(measured)[1:]
    ]
    write_results(args.output, figures, decoded=decoded, crops=crops, cores_for_1000_per_second=cores)


if __name__ == "__main__":
    main()

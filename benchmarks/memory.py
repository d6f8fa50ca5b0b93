"""Peak memory of tokenizing N and 10 N images, each in a process of its own.

python benchmarks/memory.py
"""

import os
import subprocess
import sys
from pathlib import Path

from common import add_output, figure, make_corpus, parser, say, scratch, write_results


def peak_megabytes(corpus: Path, output: Path, size: int) -> float:
    """Peak resident memory of one ``vqgan tokenize``."""
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "tokenize",
        "--input",
        str(corpus),
        "--output",
        str(output),
    ]
    command += ["--codec", "tiny", "--image-size", str(size), "--slice-size", "256", "--quiet"]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    return usage.ru_maxrss / 1024


def main() -> None:
    """Measures both and prints their ratio."""
    flags = parser("Peak memory for N and 10 N images.")
    flags.add_argument("--images", type=int, default=800, help="N")
    flags.add_argument("--size", type=int, default=64, help="side of the encoded square")
    add_output(flags)
    args = flags.parse_args()
    with scratch() as name:
        folder = Path(name)
        peaks = []
        for images in (args.images, 10 * args.images):
            corpus = folder / f"corpus-{images}"
            make_corpus(corpus, images, short_side=160)
            peaks.append(peak_megabytes(corpus, folder / f"tokens-{images}", args.size))
            say(f"{images} images: peak {peaks[-1]:.0f} MB")
        say(f"ratio {peaks[1] / peaks[0]:.3f}")
    what = f"peak memory of {10 * args.images} images beside {args.images}"
    write_results(args.output, [figure(what, [peaks[1] / peaks[0]])])


if __name__ == "__main__":
    main()

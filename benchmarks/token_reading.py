"""Speed of reading shuffled batches of tokens, on one core, against the usual other ways.

One data set is written as shards and as one .npy file for each image, and every way gives int32 ``[B, L]``
batches in a new random order each round: ours from memory and from disk, Hugging Face ``datasets`` from the
same Parquet files (its own files made beforehand and shuffled by index, or read as a stream with a shuffle
buffer), and one .npy for each image. The ways take turns, and ratios are taken turn by turn, since the speed
of a shared machine drifts. Opening is not counted; making the order and decoding pages is. All files are in
the system's page cache.

    python benchmarks/token_reading.py
"""

import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import add_output, figure, parser, ratios, say, scratch, write_results

from vqgan.data.token_batches import token_batches
from vqgan.data.tokens import open_tokens
from vqgan.manifest import FORMAT_VERSION, write_manifest
from vqgan.shards import DATA_FOLDER, ShardMetadata, ShardWriter, shard_name

GRID = (16, 16)
CODES = 16_384
SHARD_ROWS = 4096
REQUIRED = 20e6
SHUFFLE_BUFFER = 10_000

Round = Callable[[int], Iterator[np.ndarray]]
"""Batches of one round, by its number."""


def write_shards(folder: Path, tokens: np.ndarray) -> None:
    """The tokens as a finished data set."""
    (folder / DATA_FOLDER).mkdir()
    parts = [tokens[start : start + SHARD_ROWS] for start in range(0, len(tokens), SHARD_ROWS)]
    entries = []
    for number, part in enumerate(parts):
        name = shard_name(number, len(parts))
        metadata = ShardMetadata("0" * 64, {}, {}, GRID, CODES, {}, "0" * 64, number, len(parts), len(part))
        with (folder / name).open("wb") as file, ShardWriter(file, metadata) as writer:
            size = len(part)
            columns = {
                "key": [f"{number:05d}/{row:05d}.jpg" for row in range(size)],
                "crop": [[0, 0, 256, 256]] * size,
                "mirrored": [False] * size,
                "view": [0] * size,
                **{name: [256] * size for name in ("width", "height")},
                "label": list(range(size)),
            }
            writer.write(columns, part.reshape(-1, *GRID))
        entries.append({"name": name, "rows": len(part), "bytes": (folder / name).stat().st_size})
    manifest = {
        "version": FORMAT_VERSION,
        "plan_hash": "0" * 64,
        "codec": {"name": "none", "fingerprint": "0" * 64},
        "grid": list(GRID),
        "counts": {"rows": len(tokens)},
        "shards": entries,
        "codebook": {"histogram": np.bincount(tokens.reshape(-1), minlength=CODES).tolist()},
    }
    write_manifest(str(folder), manifest)


def write_npy(folder: Path, tokens: np.ndarray) -> list[Path]:
    """One file for each image."""
    paths = [folder / f"{row:06d}.npy" for row in range(len(tokens))]
    for path, row in zip(paths, tokens.astype(np.uint16), strict=True):
        np.save(path, row)
    return paths


def ours(folder: Path, batch_size: int, rounds: int, memory_mib: int) -> Round:
    """Our reader; ``rounds`` rounds count as one, where one alone is too short to measure."""

    def read(number: int) -> Iterator[np.ndarray]:
        tokens = open_tokens(str(folder), memory_mib=memory_mib)
        batches = token_batches([tokens], batch_size, seed=number)
        count = rounds * len(tokens) // batch_size
        yield np.empty((0, 0))  # opened
        yield from (batch.tokens for batch in itertools.islice(batches, count))

    return read


def npy_files(paths: list[Path], batch_size: int) -> Round:
    """A loader that opens the file of each image."""

    def read(number: int) -> Iterator[np.ndarray]:
        order = np.random.default_rng(number).permutation(len(paths))
        yield np.empty((0, 0))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            rows = [np.load(paths[row]) for row in order[start : start + batch_size]]
            yield np.stack(rows).astype(np.int32)

    return read


def hugging_face(folder: Path, cache: Path, batch_size: int, streaming: bool) -> Round:
    """``datasets`` over the same Parquet files."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    datasets.disable_progress_bars()
    files = sorted(str(path) for path in (folder / DATA_FOLDER).glob("*.parquet"))
    whole = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=streaming, cache_dir=str(cache)
    ).select_columns(["tokens", "label"])

    def read(number: int) -> Iterator[np.ndarray]:
        options = {"buffer_size": SHUFFLE_BUFFER} if streaming else {}
        shuffled = whole.shuffle(seed=number, **options).with_format("numpy")
        yield np.empty((0, 0))
        for batch in shuffled.iter(batch_size, drop_last_batch=True):
            yield batch["tokens"].astype(np.int32)

    return read


def speed(read: Round, number: int) -> float:
    """Tokens per second of one round."""
    batches = read(number)
    next(batches)
    started, tokens = time.perf_counter(), 0
    for batch in batches:
        assert batch.dtype == np.int32
        assert batch.shape[1] == GRID[0] * GRID[1]
        tokens += batch.size
    return tokens / (time.perf_counter() - started)


def ways(folder: Path, tokens: np.ndarray, batch_size: int) -> dict[str, Round]:
    """Everything to compare; ours from memory comes first."""
    shards, files = folder / "tokens", folder / "npy"
    shards.mkdir()
    files.mkdir()
    write_shards(shards, tokens)
    found = {
        "ours, memory": ours(shards, batch_size, 20, 1024),
        "ours, disk": ours(shards, batch_size, 1, 0),
        ".npy files": npy_files(write_npy(files, tokens), batch_size),
    }
    if importlib.util.find_spec("datasets") is None:
        say("NOT COMPARED with Hugging Face datasets: it is not installed (pip install datasets)")
    else:
        found["datasets, index"] = hugging_face(shards, folder / "cache", batch_size, streaming=False)
        found["datasets, stream"] = hugging_face(shards, folder / "cache", batch_size, streaming=True)
    return found


def main() -> None:
    """Measures all ways in turns and prints medians and ratios."""
    flags = parser("Reading tokens, in several ways.")
    flags.add_argument("--rows", type=int, default=20_480, help="images of 256 tokens")
    flags.add_argument("--batch-size", type=int, default=256)
    flags.add_argument("--repeats", type=int, default=5)
    add_output(flags)
    args = flags.parse_args()
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # before any pool of threads is made, which inherits it
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    tokens = np.random.default_rng(0).integers(0, CODES, (args.rows, GRID[0] * GRID[1]))
    with scratch() as name:
        compared = ways(Path(name), tokens, args.batch_size)
        turns = []
        for number in range(args.repeats):
            turns.append({way: speed(read, number) for way, read in compared.items()})
            say(", ".join(f"{way} {value / 1e6:.1f}" for way, value in turns[-1].items()) + " M tokens/s")
    first = next(iter(compared))
    rates = {way: [turn[way] for turn in turns] for way in compared}
    figures = [
        figure("reading shuffled tokens, in M tokens/s of one core", [r / 1e6 for r in rates[first]], "")
    ]
    for way in compared:
        times = ratios(rates, first, way)
        say(
            f"{way}: median {np.median(rates[way]) / 1e6:.1f} M tokens/s on one core; "
            f"{first} is {np.median(times):.1f} times as fast"
        )
        if way != first:
            figures.append(figure(f"reading shuffled tokens from memory beside {way}", times))
    slowest = min(turn[first] for turn in turns)
    say(f"{first}: at least {slowest / 1e6:.1f} M tokens/s; {REQUIRED / 1e6:.0f} M are asked for")
    write_results(args.output, figures)


if __name__ == "__main__":
    main()

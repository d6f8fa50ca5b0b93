"""``vqgan tokenize --dry-run``: what a run would cost, from its plan and a few encoded batches."""

import math
import time
from typing import Any

from pipelines.tokenize_images import TokenizeConfig, prepare
from transforms.images.crops import count_views
from transforms.inference import load_codec
from transforms.rejects import RejectRow
from transforms.slices import Item, batches, encode, read_and_decode
from transforms.sources import Entry, open_source

SAMPLE_BATCHES = 3
OTHER_BYTES_PER_ROW = 64  # key, crop and the rest


def estimate(config: TokenizeConfig) -> dict[str, Any]:
    """Plans and encodes the first few batches; writes nothing.

    Returns:
      Estimates as JSON data, in the order in which to print them.

    Raises:
      UserError: as a real run would.
    """
    prepared = prepare(config)
    codec = load_codec(config.codec, config.batch_size, config.dtype)
    views = count_views(config.geometry)
    sample = prepared.slices[0].slice(0, max(1, SAMPLE_BATCHES * codec.batch_size // views))
    entries = [Entry(**row) for row in sample.to_pylist()]
    source = open_source(prepared.config.source)
    rejected = 0

    def items() -> Any:
        nonlocal rejected
        for item in read_and_decode(prepared.job, source, entries):
            if isinstance(item, RejectRow):
                rejected += 1
            else:
                yield item

    _compile(next(items(), None), codec)
    rejected = 0
    started = time.monotonic()
    for _ in encode(batches(items(), codec.batch_size), codec):
        pass
    rate = len(entries) / (time.monotonic() - started)
    share = rejected / len(entries)
    height, width = codec.config.grid(config.geometry.image_size, config.geometry.image_size)
    rows = round(prepared.plan.entries * (1 - share)) * views
    # Entropy is at most log2(K) bits, and the shards' encodings come close to it.
    token_bytes = height * width * math.log2(codec.config.codebook_size) / 8
    return {
        "images": prepared.plan.entries,
        "slices": prepared.plan.slices,
        "rows": rows,
        "tokens per row": height * width,
        "megabytes on disk, at most about": round(rows * (token_bytes + OTHER_BYTES_PER_ROW) / 1e6, 2),
        "images per second": round(rate, 2),
        "seconds to expect": round(prepared.plan.entries / rate, 1),
        "images sampled": len(entries),
        "share of rejects in the sample": round(share, 4),
    }


def _compile(item: Item | None, codec: Any) -> None:
    """Compiles the encoder outside of the measured time."""
    if item is not None:
        for _ in encode(batches(iter([item]), codec.batch_size), codec):
            pass

"""Images become tokens as they arrive: a streaming pipeline of your own around the codec.

    python examples/stream_tokens.py 'incoming/*.jpg' tokens.jsonl --codec tiny --image-size 64 --seconds 60

Looks for new files every few seconds, and writes one line for each: its tokens, or why there are none. For a
corpus that is there already, ``vqgan tokenize`` is faster and can be resumed.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.io import fileio
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.timestamp import Timestamp

from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig, Reject, prepare
from transforms.run_inference import CodecModelHandler
from vqgan import Codec


class Decode(beam.DoFn):
    """Key and encoded image to key and pixels ``[S, S, 3]``; to ``rejects``, with the reason."""

    def __init__(self, image_size: int) -> None:
        self._geometry, self._config = Geometry(image_size=image_size), DecodeConfig()

    def process(self, element: tuple[str, bytes]) -> Iterator[Any]:
        key, data = element
        try:
            yield key, prepare(data, key, self._config, self._geometry).pixels[0]
        except Reject as reject:
            yield beam.pvalue.TaggedOutput("rejects", (key, f"{reject.error}: {reject.message}"))


class EncodeStream(beam.PTransform):
    """Key and encoded image to ``tokens``, of key and int32 ``[h, w]``, and ``rejects``.

    Memory does not grow with the stream: a batch holds at most ``batch_size`` images; nothing else is kept.

    Args:
      codec: path or name.
      image_size: side of the encoded square in pixels.
      batch_size: images per device call.
    """

    def __init__(self, codec: str, image_size: int, batch_size: int = 32) -> None:
        super().__init__()
        handler = CodecModelHandler(codec, batch_size)
        self._handler: KeyedModelHandler[str, np.ndarray, np.ndarray, Codec] = KeyedModelHandler(handler)
        self._image_size = image_size

    def expand(self, images: Any) -> Any:
        decode = beam.ParDo(Decode(self._image_size)).with_outputs("rejects", main="pixels")
        decoded = images | "Decode" >> decode
        tokens = decoded.pixels | "Encode" >> RunInference(self._handler)
        return {"tokens": tokens, "rejects": decoded.rejects}


def as_line(pair: tuple[str, Any]) -> str:
    """Returns a line of JSON for tokens, or for the reason that there are none."""
    key, value = pair
    result = {"tokens": value.tolist()} if isinstance(value, np.ndarray) else {"reject": value}
    return json.dumps({"key": key, **result})


class Append(beam.DoFn):
    """Appends lines to a local file, at once."""

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, line: str) -> None:
        with open(self._path, "a") as file:
            file.write(f"{line}\n")


def main() -> None:
    """Watches a pattern of files for some time."""
    parser = argparse.ArgumentParser(description="Turns images into tokens as they arrive.")
    parser.add_argument("pattern", help="such as 'incoming/*.jpg'")
    parser.add_argument("output", help="file that lines of JSON are appended to")
    parser.add_argument("--codec", default="tiny")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--interval", type=float, default=5, help="seconds between two looks")
    parser.add_argument("--seconds", type=float, default=60, help="how long to watch")
    args, beam_args = parser.parse_known_args()
    options = PipelineOptions(["--runner=FnApiRunner", "--streaming", *beam_args])
    with beam.Pipeline(options=options) as pipeline:
        ends = Timestamp.now() + args.seconds
        watched = fileio.MatchContinuously(args.pattern, interval=args.interval, stop_timestamp=ends)
        encoded = (
            pipeline
            | "Watch" >> watched
            | "Open" >> fileio.ReadMatches()
            | "Read" >> beam.Map(lambda file: (file.metadata.path, file.read()))
            | EncodeStream(args.codec, args.image_size, args.batch_size)
        )
        both = (encoded["tokens"], encoded["rejects"]) | beam.Flatten()
        both | "Line" >> beam.Map(as_line) | "Append" >> beam.ParDo(Append(args.output))


if __name__ == "__main__":
    main()

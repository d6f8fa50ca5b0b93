"""The codec as a ModelHandler in a pipeline of the user's own, and the streaming example around it."""

import importlib.util
import io
import sys
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.utils.timestamp import Timestamp
from PIL import Image

from transforms.run_inference import CodecModelHandler
from vqgan.codec import Codec


def test_run_inference_gives_the_codecs_tokens(toy_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    expected = Codec.load(toy_path, batch_size=4).encode(images)

    def check(found: list[tuple[int, np.ndarray]]) -> None:
        assert sorted(key for key, _ in found) == list(range(7))
        for key, tokens in found:
            np.testing.assert_array_equal(tokens, expected[key])

    handler = KeyedModelHandler(CodecModelHandler(str(toy_path), batch_size=4))
    with beam.Pipeline("FnApiRunner") as pipeline:
        tokens = pipeline | beam.Create(list(enumerate(images))) | RunInference(handler)
        assert_that(tokens, check)


def test_size_of_a_batch_is_counted_not_pickled() -> None:
    images = [np.zeros((32, 32, 3), np.uint8)] * 3
    assert CodecModelHandler("tiny").get_num_bytes(images) == 3 * 32 * 32 * 3


EXAMPLE = Path(__file__).parents[2] / "examples" / "stream_tokens.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module that Beam can pickle by name."""
    spec = importlib.util.spec_from_file_location("stream_tokens", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stream_tokens", module)
    spec.loader.exec_module(module)
    return module


def arriving(count: int) -> PeriodicImpulse:
    """An unbounded source of so many elements, all of them due."""
    begins = Timestamp(1_000_000_000)
    return PeriodicImpulse(begins, begins + count, 1)


def streaming() -> beam.Pipeline:
    return beam.Pipeline("FnApiRunner", options=PipelineOptions(["--streaming"]))


def as_png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_streaming_example(example: ModuleType, toy_path: Path) -> None:
    """Unbounded input, one broken image among it: each has its tokens, or its reason."""
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    encoded = {f"{number}.png": as_png(pixels) for number, pixels in enumerate(images)}
    expected = Codec.load(toy_path, batch_size=4).encode(images)
    wanted = [(f"{number}.png", tokens.tolist()) for number, tokens in enumerate(expected) if number != 5]
    encoded["5.png"] = b"no image"
    pairs = sorted(encoded.items())

    with streaming() as pipeline:
        pick = beam.Map(lambda second: pairs[int(second) - 1_000_000_000])
        arrived = pipeline | arriving(len(pairs)) | pick
        found = arrived | example.EncodeStream(str(toy_path), 16, batch_size=4)
        tokens = found["tokens"] | beam.MapTuple(lambda key, tokens: (key, tokens.tolist()))
        assert_that(tokens, equal_to(wanted), label="tokens")
        broken = [("5.png", "UnidentifiedImageError: not an image in any known format")]
        assert_that(found["rejects"], equal_to(broken), label="rejects")


def test_lines_of_the_example(example: ModuleType) -> None:
    assert example.as_line(("a", np.array([[1, 2]]))) == '{"key": "a", "tokens": [[1, 2]]}'
    assert example.as_line(("b", "Error: it is none")) == '{"key": "b", "reject": "Error: it is none"}'


class SizesOfBatches(CodecModelHandler):
    """Gives for each image how many are in its batch."""

    def run_inference(
        self, batch: Sequence[np.ndarray], model: Codec, inference_args: Mapping[str, Any] | None = None
    ) -> list[np.ndarray]:
        return [np.asarray(len(batch))] * len(batch)


@pytest.mark.parametrize("seconds", [None, 1])
def test_batches_are_bounded(seconds: int | None, toy_path: Path) -> None:
    def check(sizes: list[np.ndarray]) -> None:
        assert len(sizes) == 50
        assert max(map(int, sizes)) <= 4

    handler = SizesOfBatches(str(toy_path), batch_size=4, max_batch_seconds=seconds)
    with beam.Pipeline("FnApiRunner") as pipeline:
        images = pipeline | beam.Create([50]) | beam.FlatMap(_blank_images)
        assert_that(images | RunInference(handler), check)


def _blank_images(count: int, side: int = 16) -> Iterator[np.ndarray]:
    for _ in range(count):
        yield np.zeros((side, side, 3), np.uint8)


class Zeros:
    """Stands for a codec."""

    def encode(self, images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), 8, 8), np.int32)


class OfZeros(CodecModelHandler):
    """Without a codec, so that what Beam and the handler hold is all that is measured."""

    def load_model(self) -> Any:
        return Zeros()


def test_memory_does_not_grow_with_the_stream() -> None:
    """Ten times the images take no more: a batch is gone when the next is there."""
    few, many, side = 16, 160, 128
    peaks = []
    for images in (few, few, many):  # the first one imports
        tracemalloc.start()
        with beam.Pipeline("FnApiRunner") as pipeline:
            arrived = pipeline | beam.Create([images]) | beam.FlatMap(_blank_images, side)
            tokens = arrived | RunInference(OfZeros("tiny", batch_size=4))
            assert_that(tokens | beam.combiners.Count.Globally(), equal_to([images]))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 0.3 * (many - few) * side * side * 3

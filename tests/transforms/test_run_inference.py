"""The codec as a ModelHandler in a pipeline of the user's own."""

from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.testing.util import assert_that

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

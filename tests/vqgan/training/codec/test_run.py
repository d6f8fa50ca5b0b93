"""Metrics during training are those of the codec that is exported at that moment."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vqgan.codec import Codec
from vqgan.codec_checkpoint import save_codec
from vqgan.metrics.codebook_usage import codebook_usage
from vqgan.metrics.image import psnr
from vqgan.training.codec.config import CodecTrainConfig
from vqgan.training.codec.learner import CodecLearner
from vqgan.training.codec.run import initial_params, make_codec_evaluation, split_parts


@pytest.fixture(scope="module")
def params(learner: CodecLearner) -> Any:
    params = learner.vqgan.initial()[0]
    codes = jax.random.normal(jax.random.key(1), params["quantizer.codebook"].shape)
    return {**params, "quantizer.codebook": codes}


def test_metrics_are_those_of_the_codec(
    learner: CodecLearner, toy: CodecTrainConfig, params: Any, crops: np.ndarray, tmp_path: Path
) -> None:
    images = crops.reshape(-1, 16, 16, 3)[:21]  # more than one batch, and a rest
    result = make_codec_evaluation(learner.vqgan, toy.model, None, images)(params)
    save_codec(tmp_path / "codec", toy.model, split_parts(params))
    codec = Codec.load(tmp_path / "codec", batch_size=7)
    tokens = codec.encode(images)
    decoded = codec.decode(tokens)
    usage = codebook_usage(np.bincount(np.ravel(tokens), minlength=16))
    assert result.metrics["psnr"] == pytest.approx(float(np.mean(psnr(images, decoded))), abs=0.01)
    assert result.metrics["used_codes"] == usage.used > 4
    assert result.metrics["perplexity"] == pytest.approx(usage.perplexity, rel=1e-3)
    difference = np.abs(images.astype(float) - decoded)
    assert result.metrics["l1"] == pytest.approx(difference.mean(), abs=0.05)
    assert "lpips" not in result.metrics
    assert result.image_grid is not None


def test_parameters_survive_the_codec(toy: CodecTrainConfig, params: Any, tmp_path: Path) -> None:
    path = save_codec(tmp_path / "codec", toy.model, split_parts(params)).path
    again = initial_params(str(path), toy.model)
    assert again.keys() == params.keys()
    assert all(np.array_equal(again[name], params[name]) for name in params)


def test_no_validation_images(learner: CodecLearner, toy: CodecTrainConfig, params: Any) -> None:
    result = make_codec_evaluation(learner.vqgan, toy.model, None, np.zeros((0, 16, 16, 3), np.uint8))(params)
    assert (result.metrics, result.image_grid) == ({}, None)

"""Figures during training are those of the codec that is exported at that moment."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vqgan.codec import Codec
from vqgan.codec_checkpoint import save_codec
from vqgan.metrics import codebook_usage, psnr
from vqgan.training.tokenizer import TokenizerLearner
from vqgan.training.tokenizer_config import TokenizerConfig
from vqgan.training.tokenizer_run import initial_params, split_parts
from vqgan.training.validating import make_evaluate


@pytest.fixture(scope="module")
def params(learner: TokenizerLearner) -> Any:
    params = learner.vqgan.initial()[0]
    codes = jax.random.normal(jax.random.key(1), params["quantizer.codebook"].shape)
    return {**params, "quantizer.codebook": codes}


def test_figures_are_those_of_the_codec(
    learner: TokenizerLearner, toy: TokenizerConfig, params: Any, crops: np.ndarray, tmp_path: Path
) -> None:
    images = crops.reshape(-1, 16, 16, 3)[:21]  # more than one batch, and a rest
    result = make_evaluate(learner.vqgan, toy.model, None, images)(params)
    save_codec(tmp_path / "codec", toy.model, split_parts(params))
    codec = Codec.load(tmp_path / "codec", batch_size=7)
    tokens = codec.encode(images)
    decoded = codec.decode(tokens)
    usage = codebook_usage(np.bincount(np.ravel(tokens), minlength=16))
    assert result.figures["psnr"] == pytest.approx(float(np.mean(psnr(images, decoded))), abs=0.01)
    assert result.figures["used_codes"] == usage.used > 4
    assert result.figures["perplexity"] == pytest.approx(usage.perplexity, rel=1e-3)
    difference = np.abs(images.astype(float) - decoded)
    assert result.figures["l1"] == pytest.approx(difference.mean(), abs=0.05)
    assert "lpips" not in result.figures
    assert result.sheet is not None


def test_parameters_survive_the_codec(toy: TokenizerConfig, params: Any, tmp_path: Path) -> None:
    path = save_codec(tmp_path / "codec", toy.model, split_parts(params)).path
    again = initial_params(str(path), toy.model)
    assert again.keys() == params.keys()
    assert all(np.array_equal(again[name], params[name]) for name in params)


def test_nothing_held_back(learner: TokenizerLearner, toy: TokenizerConfig, params: Any) -> None:
    result = make_evaluate(learner.vqgan, toy.model, None, np.zeros((0, 16, 16, 3), np.uint8))(params)
    assert (result.figures, result.sheet) == ({}, None)

"""Metrics during training are those of the codec that is exported at that moment."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vqgan.codec import Codec
from vqgan.codec_checkpoint import save_codec
from vqgan.errors import UserError
from vqgan.metrics.codebook_usage import codebook_usage
from vqgan.metrics.image import psnr
from vqgan.model.parameters import codec_parameter_shapes
from vqgan.training.codec.config import AdversarialConfig, CodebookConfig, CodecTrainConfig
from vqgan.training.codec.learner import CodecLearner
from vqgan.training.codec.run import CodecRun, fit_codec, initial_params, make_codec_evaluation, split_parts


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


@pytest.mark.parametrize("quantizer", ["nearest", "ema"])
def test_tokens_stay_where_the_decoder_alone_learns(
    quantizer: str, toy: CodecTrainConfig, params: Any, crops: np.ndarray
) -> None:
    config = dataclasses.replace(
        toy,
        model=dataclasses.replace(toy.model, quantizer=quantizer),
        codebook=CodebookConfig(revive_every=1, least_share=1.0, keep_tokens=True),
        adversarial=AdversarialConfig(weight=0.0),
    )
    learner = CodecLearner(config, None, params)
    state = learner.initial()
    for step in range(3):
        state, _ = learner.before_step(step, state, iter(crops[step:]))
        state, _ = learner.step(step, state, crops[step])
    for after in (state.generator.params, state.generator.average):
        changed = {name for name, value in after.items() if not np.array_equal(value, params[name])}
        assert changed == {name for name in params if name.startswith("decoder.")}


def test_another_decoder_for_the_same_tokens(toy: CodecTrainConfig, params: Any, tmp_path: Path) -> None:
    path = str(save_codec(tmp_path / "codec", toy.model, split_parts(params)).path)
    smaller = dataclasses.replace(toy.model, decoder_res_blocks=toy.model.decoder_blocks - 1)
    with pytest.raises(UserError, match="decoder_res_blocks is"):
        initial_params(path, smaller)
    kept = initial_params(path, smaller, other_decoder=True)
    assert {name.split(".")[0] for name in kept} == {"encoder", "quantizer"}
    assert initial_params(path, toy.model, other_decoder=True).keys() == params.keys()
    config = dataclasses.replace(toy, model=smaller)
    begun = CodecLearner(config, None, kept).initial().generator.params
    assert {part: weights.keys() for part, weights in split_parts(begun).items()} == {
        part: shapes.keys() for part, shapes in codec_parameter_shapes(smaller).items()
    }
    assert all(np.array_equal(begun[name], params[name]) for name in kept)


@pytest.mark.parametrize("quantizer", ["nearest", "ema", "cosine"])
def test_another_number_of_codes(
    quantizer: str, toy: CodecTrainConfig, params: Any, crops: np.ndarray, tmp_path: Path
) -> None:
    """Encoder and decoder go on; codes are placed on latents once the first steps are done."""
    path = str(save_codec(tmp_path / "codec", toy.model, split_parts(params)).path)
    model = dataclasses.replace(toy.model, codebook_size=24, quantizer=quantizer)
    config = dataclasses.replace(toy, model=model, codebook=CodebookConfig(autoencoder_steps=1))
    kept = initial_params(path, model)
    assert kept.keys() == {name for name in params if not name.startswith("quantizer.")}
    assert all(np.array_equal(kept[name], params[name]) for name in kept)

    learner = CodecLearner(config, None, kept)
    state, _ = learner.step(0, learner.initial(), crops[0])
    state, what = learner.before_step(1, state, iter(crops))
    codes = np.asarray(state.generator.params["quantizer.codebook"])
    assert ("placed" in str(what), codes.shape[0], len(np.unique(codes, axis=0))) == (True, 24, 24)

    with pytest.raises(UserError, match="codebook_size is 16 there, 24 here"):
        initial_params(path, model, other_decoder=True)
    at_once = dataclasses.replace(config, codebook=CodebookConfig(autoencoder_steps=0))
    run = CodecRun(config=at_once, folder=tmp_path / "run", data="0", card={}, init=path)
    with pytest.raises(UserError, match=r"it has 16 codes, model\.codebook_size is 24: say with codebook"):
        fit_codec(run, iter(()), np.zeros((0, 16, 16, 3), np.uint8))  # type: ignore[arg-type]


def test_no_tokens_to_keep(toy: CodecTrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(toy, codebook=CodebookConfig(keep_tokens=True))
    run = CodecRun(config=config, folder=tmp_path / "run", data="0", card={})
    with pytest.raises(UserError, match="keep_tokens is on: name with --init the codec"):
        fit_codec(run, iter(()), np.zeros((0, 16, 16, 3), np.uint8))  # type: ignore[arg-type]


def test_no_validation_images(learner: CodecLearner, toy: CodecTrainConfig, params: Any) -> None:
    result = make_codec_evaluation(learner.vqgan, toy.model, None, np.zeros((0, 16, 16, 3), np.uint8))(params)
    assert (result.metrics, result.image_grid) == ({}, None)

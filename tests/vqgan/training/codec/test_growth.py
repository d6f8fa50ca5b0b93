"""A grown decoder gives the images of the one that it began as, for the same tokens."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.toy_codec import TOY, TOY_WITH_ATTENTION, toy_weights
from vqgan.codec import Codec
from vqgan.codec_checkpoint import codec_fingerprint, read_info, save_codec
from vqgan.config import ModelConfig
from vqgan.errors import UserError
from vqgan.model.parameters import codec_parameter_shapes
from vqgan.training.codec.config import CodebookConfig, CodecTrainConfig
from vqgan.training.codec.growth import can_grow_decoder, grow_decoder, with_tokens_of
from vqgan.training.codec.learner import CodecLearner
from vqgan.training.codec.run import initial_params, split_parts

SIZES: list[dict[str, Any]] = [
    {"decoder_res_blocks": 3},
    {"decoder_added_blocks": 2},
    {"decoder_ch": 16},
    {"decoder_ch": 24, "decoder_added_blocks": 1},
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_codec(tmp_path_factory.mktemp("codecs") / "small", TOY, toy_weights(0)).path


def begun(codec: Path, config: ModelConfig, toy: CodecTrainConfig, folder: Path) -> Codec:
    """The codec of a training that has not made a step."""
    training = dataclasses.replace(toy, model=config, codebook=CodebookConfig(keep_tokens=True))
    learner = CodecLearner(training, None, initial_params(str(codec), config, other_decoder=True))
    return Codec.load(
        save_codec(folder, config, split_parts(learner.exported(learner.initial()))).path, batch_size=4
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_same_pixels_before_training(
    size: dict[str, Any], small: Path, toy: CodecTrainConfig, tmp_path: Path
) -> None:
    config = with_tokens_of(TOY, dataclasses.replace(TOY, **size))
    grown, before = begun(small, config, toy, tmp_path / "grown"), Codec.load(small, batch_size=4)
    tokens = np.random.default_rng(1).integers(0, TOY.codebook_size, (4, 6, 4))
    images, expected = grown.decode(tokens).astype(int), before.decode(tokens).astype(int)
    assert np.std(expected) > 10
    # Sums of twice as many terms: a value between two levels may be rounded to the other one.
    assert np.abs(images - expected).max() <= (1 if config.decoder_ch else 0)
    assert (images != expected).mean() < 0.001
    assert grown.fingerprint == before.fingerprint
    info, was = read_info(tmp_path / "grown"), read_info(small)
    assert (info.quantizer_sha256, info.config.decoder_width) == (was.quantizer_sha256, config.decoder_width)


def test_blocks_beside_attentions(toy: CodecTrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(TOY_WITH_ATTENTION, attn_resolutions=(8,))
    shapes, rng = codec_parameter_shapes(config), np.random.default_rng(0)
    weights = {
        part: {name: 0.3 * rng.standard_normal(shape).astype(np.float32) for name, shape in of.items()}
        for part, of in shapes.items()
    }
    small = save_codec(tmp_path / "small", config, weights).path
    deeper = dataclasses.replace(config, decoder_added_blocks=1)
    grown, before = begun(small, deeper, toy, tmp_path / "grown"), Codec.load(small, batch_size=4)
    tokens = np.arange(32).reshape(1, 8, 4)
    assert np.array_equal(grown.decode(tokens), before.decode(tokens))
    assert not can_grow_decoder(config, dataclasses.replace(config, decoder_ch=16))


@given(st.integers(1, 4), st.integers(0, 100))
@settings(max_examples=10)
def test_copies_can_go_different_ways(factor: int, seed: int) -> None:
    """Of every weight that is divided, the parts have its sum and are of like size, but not equal."""
    weights = toy_weights(0)["decoder"]
    wider = dataclasses.replace(TOY, decoder_ch=factor * TOY.ch)
    grown = grow_decoder(weights, TOY, wider, seed)
    assert {name: value.shape for name, value in grown.items()} == codec_parameter_shapes(wider)["decoder"]
    name = "decoder.levels.0.blocks.0.conv1.kernel"
    kernel, parts = weights[name], grown[name].reshape(3, 3, 16, factor, 16, factor)
    np.testing.assert_allclose(parts.sum(axis=3), np.stack([kernel] * factor, axis=-1), rtol=1e-4, atol=1e-6)
    shares = parts / kernel[:, :, :, None, :, None]
    assert shares.min() > 0.25 / factor
    assert factor == 1 or (parts[..., 0, :, :] != parts[..., 1, :, :]).mean() > 0.99


@pytest.mark.parametrize(
    "other",
    [
        {"decoder_ch": 4},
        {"decoder_ch": 12},
        {"decoder_res_blocks": 1},
        {"decoder_res_blocks": 3, "depth_to_space": True},
        {"decoder_added_blocks": 1, "embed_dim": 6},
    ],
    ids=str,
)
def test_no_other_architecture_is_grown(other: dict[str, Any], small: Path) -> None:
    config = dataclasses.replace(TOY, **other)
    assert not can_grow_decoder(TOY, config)
    with pytest.raises(UserError, match=rf"another architecture \(.*{list(other)[-1]} is "):
        initial_params(str(small), config)


def test_sizes_that_fingerprints_leave_out() -> None:
    weights = toy_weights(0)
    deeper = dataclasses.replace(TOY, decoder_res_blocks=4, decoder_ch=16)
    same = with_tokens_of(TOY, deeper)
    assert (same.decoder_res_blocks, same.decoder_added_blocks, same.decoder_blocks) == (None, 2, 4)
    prints = [
        codec_fingerprint(config, weights["encoder"], weights["quantizer"]) for config in (TOY, same, deeper)
    ]
    assert prints[0] == prints[1] != prints[2]
    other = dataclasses.replace(deeper, codebook_size=32)
    assert with_tokens_of(TOY, other) is other

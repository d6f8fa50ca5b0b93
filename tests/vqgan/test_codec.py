"""The codec: any number of images, one compilation, no weights it does not need, every device used."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from vqgan.codec import Codec
from vqgan.codec_checkpoint import load_weights, module_state, module_weights, read_info, save_codec
from vqgan.config import ModelConfig
from vqgan.metrics.image import psnr
from vqgan.model.vqgan import VQGAN, denormalize, normalize
from vqgan.quantizers import NearestQuantizer, make_quantizer

PSNR_FLOOR = 24.0  # dB, of the codec that comes with the package, on the photographs of the tests
BFLOAT16_AGREEMENT = 0.9  # of tokens, for random weights; trained ones agree more
ROOT = Path(__file__).parents[2]
PHOTOS = sorted((ROOT / "tests" / "testdata" / "photos").glob("*.jpg"))
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="session")
def compile_events() -> list[str]:
    """Grows by one whenever XLA compiles a program, whatever the codec's own counter says."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: events.append(event) if event == COMPILED else None
    )
    return events


@pytest.fixture(scope="module")
def toy_tokens(toy_codec: Codec, toy_images: np.ndarray) -> np.ndarray:
    return toy_codec.encode(toy_images)


def test_tokens_are_diverse_and_in_range(toy_codec: Codec, toy_tokens: np.ndarray) -> None:
    assert toy_tokens.shape == (9, 8, 8)
    assert toy_tokens.dtype == np.int32
    assert 0 <= toy_tokens.min() <= toy_tokens.max() < toy_codec.config.codebook_size
    assert len(np.unique(toy_tokens)) > 8


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9])
def test_any_number_in_any_company(
    count: int, toy_codec: Codec, toy_images: np.ndarray, toy_tokens: np.ndarray
) -> None:
    """A batch holds four. The last images, so that companions and places in the batch change."""
    tokens = toy_codec.encode(toy_images[9 - count :])
    np.testing.assert_array_equal(tokens, toy_tokens[9 - count :])
    assert tokens.dtype == np.int32
    images = toy_codec.decode(tokens)
    assert images.shape == (count, 16, 16, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, toy_codec.decode(toy_tokens)[9 - count :])


def test_padding_does_not_reach_the_images(
    toy_codec: Codec, toy_images: np.ndarray, toy_tokens: np.ndarray
) -> None:
    white = np.full((4, 16, 16, 3), 255, np.uint8)
    white[2] = toy_images[0]
    np.testing.assert_array_equal(toy_codec.encode(white)[2], toy_tokens[0])


def test_input_is_not_changed(toy_codec: Codec, toy_images: np.ndarray) -> None:
    images = toy_images[:5].copy()
    images.flags.writeable = False
    toy_codec.encode(images)
    np.testing.assert_array_equal(images, toy_images[:5])


def test_video_is_taken_frame_by_frame(
    toy_codec: Codec, toy_images: np.ndarray, toy_tokens: np.ndarray
) -> None:
    video = toy_images[:6].reshape(2, 3, 16, 16, 3)
    tokens = toy_codec.encode(video)
    assert tokens.shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(tokens.reshape(6, 8, 8), toy_tokens[:6])
    frames = toy_codec.decode(tokens)
    assert frames.shape == video.shape
    np.testing.assert_array_equal(frames.reshape(6, 16, 16, 3), toy_codec.decode(toy_tokens[:6]))


@pytest.mark.parametrize("leading", [(0, 3), (2, 0)])
def test_video_without_frames(leading: tuple[int, int], toy_codec: Codec) -> None:
    assert toy_codec.encode(np.zeros((*leading, 16, 16, 3), np.uint8)).shape == (*leading, 8, 8)
    assert toy_codec.decode(np.zeros((*leading, 8, 8), np.int32)).shape == (*leading, 16, 16, 3)


def test_input_that_is_not_contiguous(
    toy_codec: Codec, toy_images: np.ndarray, toy_tokens: np.ndarray
) -> None:
    reversed_twice = np.ascontiguousarray(toy_images[::-1])[::-1]
    np.testing.assert_array_equal(toy_codec.encode(reversed_twice), toy_tokens)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 16, 16, 3), np.float32),
        np.zeros((1, 16, 16, 3), np.int32),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((1, 16, 16, 4), np.uint8),
        np.zeros((1, 3, 16, 16), np.uint8),
        np.zeros((1, 1, 1, 16, 16, 3), np.uint8),
    ],
)
def test_encode_refuses_what_are_not_images(images: np.ndarray, toy_codec: Codec) -> None:
    with pytest.raises(ValueError, match=rf"images must be uint8 .* got {images.dtype} \("):
        toy_codec.encode(images)


def test_encode_refuses_sides_that_do_not_fit(toy_codec: Codec, refused: Any) -> None:
    with refused("images of 16x17 pixels \\(height x width\\) do not fit this codec"):
        toy_codec.encode(np.zeros((1, 16, 17, 3), np.uint8))


@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros((1, 8, 8), np.float32),
        np.zeros((1, 8, 8), bool),
        np.zeros((8, 8), np.int32),
        np.zeros((1, 1, 1, 8, 8), np.int32),
    ],
)
def test_decode_refuses_what_are_not_tokens(tokens: np.ndarray, toy_codec: Codec) -> None:
    with pytest.raises(ValueError, match=rf"tokens must be integers .* got {tokens.dtype} \("):
        toy_codec.decode(tokens)


@pytest.mark.parametrize("wrong", [-1, 32, 2**40])
def test_decode_refuses_tokens_outside_the_codebook(wrong: int, toy_codec: Codec, refused: Any) -> None:
    tokens = np.zeros((1, 8, 8), np.int64)
    tokens[0, 3, 3] = wrong
    with refused(f"tokens from {min(wrong, 0)} to {max(wrong, 0)} do not fit .* has 32 codes"):
        toy_codec.decode(tokens)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
def test_decode_takes_every_integer_type(
    dtype: type[np.integer[Any]], toy_codec: Codec, toy_tokens: np.ndarray
) -> None:
    decoded = toy_codec.decode(toy_tokens[:2].astype(dtype))
    np.testing.assert_array_equal(decoded, toy_codec.decode(toy_tokens[:2]))


def test_full_batches_only(toy_codec: Codec, toy_images: np.ndarray, toy_tokens: np.ndarray) -> None:
    np.testing.assert_array_equal(toy_codec.encode_batch(toy_images[:4]), toy_tokens[:4])
    with pytest.raises(ValueError, match="a full batch has 4 items, got 3"):
        toy_codec.encode_batch(toy_images[:3])
    with pytest.raises(ValueError, match="a full batch has 4 items, got 5"):
        toy_codec.decode_batch(toy_tokens[:5])
    with pytest.raises(ValueError, match="count 5: it must be 1 to 4"):
        toy_codec.encode_batch(toy_images[:4], 5)
    with pytest.raises(ValueError, match="count 0"):
        toy_codec.decode_batch(toy_tokens[:4], 0)


def test_batch_size_is_at_least_one(toy_path: Path, refused: Any) -> None:
    with refused("batch size 0: it must be at least 1"):
        Codec.load(toy_path, batch_size=0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 6, 7, 8])
def test_tokens_do_not_depend_on_the_batch_size(
    toy_path: Path, toy_images: np.ndarray, toy_tokens: np.ndarray, batch_size: int
) -> None:
    """Latents may differ in their last bit: XLA chooses other convolutions for a batch of one or two."""
    tokens = Codec.load(toy_path, batch_size=batch_size).encode(toy_images)
    np.testing.assert_array_equal(tokens, toy_tokens)


def test_one_compilation_for_each_size(
    toy_path: Path, toy_images: np.ndarray, compile_events: list[str]
) -> None:
    codec = Codec.load(toy_path, batch_size=2)
    before = len(compile_events)
    for count in (1, 2, 3, 5, 0, 4):
        codec.encode(toy_images[:count])
    assert (codec.compilations, len(compile_events) - before) == (1, 1)
    for _ in range(2):
        codec.encode(toy_images[:3, :8])
    assert (codec.compilations, len(compile_events) - before) == (2, 2)
    for count in (1, 2, 3, 0):
        codec.decode(np.zeros((count, 8, 8), np.uint16))
    assert (codec.compilations, len(compile_events) - before) == (3, 3)


def test_encoding_needs_no_decoder(
    toy_path: Path, toy_images: np.ndarray, toy_tokens: np.ndarray, tmp_path: Path, refused: Any
) -> None:
    copy = shutil.copytree(toy_path, tmp_path / "codec")
    shutil.rmtree(copy / "decoder")
    codec = Codec.load(copy, batch_size=4)
    np.testing.assert_array_equal(codec.encode(toy_images), toy_tokens)
    with refused("decoder/.* is missing"):
        codec.decode(toy_tokens)


def test_decoding_needs_no_encoder(
    toy_path: Path, toy_codec: Codec, toy_tokens: np.ndarray, tmp_path: Path, refused: Any
) -> None:
    copy = shutil.copytree(toy_path, tmp_path / "codec")
    shutil.rmtree(copy / "encoder")
    codec = Codec.load(copy, batch_size=4)
    np.testing.assert_array_equal(codec.decode(toy_tokens), toy_codec.decode(toy_tokens))
    with refused("encoder/.* is missing"):
        codec.encode(np.zeros((1, 16, 16, 3), np.uint8))


def test_weights_that_do_not_fit_are_listed(
    toy_config: ModelConfig, toy_weights: dict[str, Any], tmp_path: Path, refused: Any
) -> None:
    narrow = dataclasses.replace(toy_config, mid_attention=False)
    path = save_codec(tmp_path / "codec", narrow, toy_weights).path
    with refused(r"the weights in encoder/ do not fit codec.json: encoder\.middle\.attention\S+ is unknown"):
        Codec.load(path).encode(np.zeros((1, 16, 16, 3), np.uint8))


def test_dropout_plays_no_part(
    toy_config: ModelConfig,
    toy_weights: dict[str, Any],
    toy_codec: Codec,
    toy_images: np.ndarray,
    toy_tokens: np.ndarray,
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(toy_config, dropout=0.5)
    codec = Codec.load(save_codec(tmp_path / "codec", config, toy_weights).path, batch_size=4)
    assert codec.fingerprint == toy_codec.fingerprint
    np.testing.assert_array_equal(codec.encode(toy_images), toy_tokens)
    np.testing.assert_array_equal(codec.decode(toy_tokens), toy_codec.decode(toy_tokens))


@pytest.fixture(scope="module")
def bfloat16_codec(toy_path: Path) -> Codec:
    return Codec.load(toy_path, batch_size=4, dtype=jnp.bfloat16)


def test_bfloat16_gives_mostly_the_same(
    bfloat16_codec: Codec, toy_codec: Codec, toy_images: np.ndarray, toy_tokens: np.ndarray
) -> None:
    tokens = bfloat16_codec.encode(toy_images)
    agreement = np.mean(tokens == toy_tokens)
    assert BFLOAT16_AGREEMENT < agreement < 1
    images = bfloat16_codec.decode(toy_tokens)
    assert psnr(toy_codec.decode(toy_tokens), images).min() > 30


def test_distances_stay_float32_at_highest_precision(
    bfloat16_codec: Codec, toy_images: np.ndarray, matrix_products: Callable[[Any], list[Any]]
) -> None:
    program = bfloat16_codec._jax.encoder
    function, weights = program.function, program.weights
    jaxpr = jax.make_jaxpr(function)(weights, jnp.asarray(toy_images[:4]))
    found = [item for item in matrix_products(jaxpr) if item.outvars[0].aval.shape[-1] == 32]
    assert len(found) == 1
    assert found[0].params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
    assert {str(variable.aval.dtype) for variable in found[0].invars} == {"float32"}


def run_python(script: str, *arguments: object, **environment: str) -> str:
    """What a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


DEVICES_SCRIPT = """
import sys
import jax
import numpy as np
from vqgan import Codec

path, images_path, tokens_path = sys.argv[1:]
images = np.load(images_path)
assert len(jax.devices()) == 4
codec = Codec.load(path, batch_size=6, devices=jax.devices())
assert codec.batch_size == 8, codec.batch_size
for result in (codec.encode_batch(images[:8]), codec.decode_batch(np.zeros((8, 8, 8), np.int32))):
    assert len(result.sharding.device_set) == 4, result.sharding
    assert sorted(shard.index[0].start or 0 for shard in result.addressable_shards) == [0, 2, 4, 6]
tokens = codec.encode(images)
np.savez(tokens_path, tokens=tokens, images=codec.decode(tokens))
assert codec.compilations == 2, codec.compilations
"""


def test_four_devices_share_a_batch(
    toy_path: Path, toy_codec: Codec, toy_images: np.ndarray, toy_tokens: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", toy_images)
    flags = "--xla_force_host_platform_device_count=4"
    arguments = (toy_path, tmp_path / "images.npy", tmp_path / "result.npz")
    run_python(DEVICES_SCRIPT, *arguments, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    with np.load(tmp_path / "result.npz") as result:
        np.testing.assert_array_equal(result["tokens"], toy_tokens)
        difference = result["images"].astype(int) - toy_codec.decode(toy_tokens)
    assert np.abs(difference).max() <= 1


LAUNCHER_SCRIPT = """
import importlib
import sys

for name in sys.argv[1:]:
    importlib.import_module(name)
    print(*{"jax", "flax", "orbax"} & sys.modules.keys())
"""
LAUNCHER_MODULES = (
    "vqgan",
    "vqgan.config",
    "vqgan.config_json",
    "vqgan.codec_checkpoint",
    "vqgan.shards",
    "vqgan.metrics",
    "transforms.sharded.plan",
    "transforms.sharded.batching",
    "transforms.tokenizing.shard",
)


def test_launcher_loads_no_jax() -> None:
    assert run_python(LAUNCHER_SCRIPT, *LAUNCHER_MODULES) == ""


def test_codec_is_a_lazy_attribute_of_the_package() -> None:
    import vqgan

    assert vqgan.Codec is Codec
    with pytest.raises(AttributeError, match="no attribute 'codec_of_another_name'"):
        vqgan.codec_of_another_name  # noqa: B018


# Every quantizer

GRIDS: dict[str, dict[str, Any]] = {
    "fsq": {"fsq_levels": (5, 4, 3, 5), "codebook_size": 300},
    "lfq": {"codebook_size": 16},
}


@pytest.fixture(params=["fsq", "lfq"])
def grid_codec(
    request: pytest.FixtureRequest, toy_config: ModelConfig, toy_weights: dict[str, Any], tmp_path: Path
) -> Codec:
    config = dataclasses.replace(toy_config, quantizer=request.param, **GRIDS[request.param])
    path = save_codec(tmp_path / "codec", config, {**toy_weights, "quantizer": {}}).path
    return Codec.load(path, batch_size=4)


def test_codec_without_a_codebook(
    grid_codec: Codec, toy_weights: dict[str, Any], toy_images: np.ndarray
) -> None:
    """Tokens and images are those of encoder, quantizer and decoder one after the other."""
    model = nnx.eval_shape(lambda: VQGAN(grid_codec.config, rngs=nnx.Rngs(0)))
    for part in ("encoder", "decoder"):
        nnx.update(getattr(model, part), module_state(getattr(model, part), toy_weights[part], part))
    graph, state = nnx.split(model)
    low_to_high = grid_codec.config.input_range

    @jax.jit
    def forward(state: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, state)
        tokens = model.quantizer.tokens(model.encoder(normalize(images, low_to_high)))
        return tokens, denormalize(model.decoder(model.quantizer.lookup(tokens)), low_to_high)

    tokens, images = forward(state, toy_images)
    found = grid_codec.encode(toy_images)
    np.testing.assert_array_equal(found, tokens)
    assert 8 < len(np.unique(found)) <= grid_codec.config.codebook_size
    difference = grid_codec.decode(found).astype(int) - np.asarray(images)
    assert np.abs(difference).max() <= 1


def test_codec_without_a_codebook_needs_one_part_only(grid_codec: Codec, toy_images: np.ndarray) -> None:
    shutil.rmtree(grid_codec.info.path / "encoder")
    tokens = np.zeros((4, 8, 8), np.int32)
    assert grid_codec.decode(tokens).shape == (4, 16, 16, 3)


def test_moving_averages_encode_and_decode_as_the_nearest(
    toy_config: ModelConfig,
    toy_weights: dict[str, Any],
    toy_codec: Codec,
    toy_images: np.ndarray,
    toy_tokens: np.ndarray,
    tmp_path: Path,
) -> None:
    """A model as it is in training, statistics and all."""
    config = dataclasses.replace(toy_config, quantizer="ema")
    quantizer = make_quantizer(config, rngs=nnx.Rngs(0))
    assert isinstance(quantizer, NearestQuantizer)
    quantizer.codebook[...] = jnp.asarray(toy_weights["quantizer"]["codebook"])
    weights = {**toy_weights, "quantizer": module_weights(quantizer)}
    codec = Codec.load(save_codec(tmp_path / "codec", config, weights).path, batch_size=4)
    assert codec.info.quantizer_sha256 == toy_codec.info.quantizer_sha256
    np.testing.assert_array_equal(codec.encode(toy_images), toy_tokens)
    np.testing.assert_array_equal(codec.decode(toy_tokens), toy_codec.decode(toy_tokens))


# The codec that comes with the package


def photographs(side: int) -> np.ndarray:
    """The middle square of each photograph."""
    squares = []
    for path in PHOTOS:
        with Image.open(path) as image:
            width, height = image.size
            shorter = min(width, height)
            left, top = (width - shorter) // 2, (height - shorter) // 2
            box = (left, top, left + shorter, top + shorter)
            squares.append(np.asarray(image.convert("RGB").resize((side, side), box=box)))
    return np.stack(squares)


def test_pretrained_codec_is_whole() -> None:
    """Its weights agree with the recorded fingerprint and sum, or they would not load."""
    loaded = load_weights(read_info("tiny"), ("encoder", "quantizer", "decoder"))
    assert loaded["quantizer"]["codebook"].shape == (1024, 8)


def test_pretrained_codec_reconstructs_photographs() -> None:
    codec = Codec.load("tiny", batch_size=5)
    images = photographs(codec.config.resolution)
    assert len(images) == 10
    values = psnr(images, codec.decode(codec.encode(images)))
    assert values.mean() > PSNR_FLOOR

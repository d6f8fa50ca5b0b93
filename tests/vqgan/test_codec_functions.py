"""Latents, codes and pure functions of codecs, for every quantizer and layout, inside programs of others."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.vqgan.test_codec import PHOTOS, run_python
from vqgan import Codec
from vqgan.codec_checkpoint import save_codec
from vqgan.codec_functions import CodecFunctions, to_levels
from vqgan.config import QUANTIZERS, ModelConfig
from vqgan.engines.choice import EngineChoice
from vqgan.model.parameters import codec_parameter_shapes
from vqgan.token_layouts import ScalesConfig, ViTConfig

pytestmark = pytest.mark.usefixtures("few_optimizations")

PLAIN = ModelConfig(
    resolution=16, ch=4, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), mid_attention=False,
    norm_groups=2, z_channels=4, embed_dim=4, codebook_size=32, mid_blocks=1,
)  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "fsq": {"fsq_levels": (2, 2, 3, 4), "codebook_size": 48},
    "lfq": {"codebook_size": 16, "input_range": (0.0, 1.0)},
    "scales": {"quant_conv_kernel": 3, "scales": ScalesConfig((1, 2, 5, 8), 2)},
}
SEQUENCE = ModelConfig(
    resolution=16, ch=4, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), mid_attention=False,
    norm_groups=2, z_channels=4, embed_dim=6, codebook_size=32, quantizer="cosine", quant_conv=False,
    vit=ViTConfig(tokens=6, patch=8, encoder_width=64, encoder_layers=1, decoder_patch=4, decoder_width=64,
                  decoder_layers=1, pixel_codes=16),
)  # fmt: skip
CONFIGS = {name: dataclasses.replace(PLAIN, quantizer=name, **CHANGES.get(name, {})) for name in QUANTIZERS}
CONFIGS["sequence"] = SEQUENCE


@pytest.fixture(scope="module")
def toy_codec(toy_path: Path) -> Codec:
    """Not the one of other tests, which keeps its programs."""
    return Codec.load(toy_path, batch_size=4)


def random_codec(path: Path, config: ModelConfig) -> Codec:
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        part: {name: _spread(rng, shape) for name, shape in named.items()}
        for part, named in codec_parameter_shapes(config).items()
    }
    return Codec.load(save_codec(path, config, weights).path, batch_size=2)


def _spread(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values that keep the size of activations, and with them the difference of images."""
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (rng.standard_normal(shape) * 1.5 / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


@pytest.fixture(scope="module", params=CONFIGS)
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return random_codec(tmp_path_factory.mktemp("codec") / "codec", CONFIGS[request.param])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def test_vectors_are_those_of_the_tokens(codec: Codec, images: np.ndarray) -> None:
    config, tokens, latents = codec.config, codec.encode(images), codec.latents(images)
    assert len(np.unique(tokens)) > 1
    assert latents.shape == (3, *codec.latent_shape(config.grid(16, 16)))
    assert latents.dtype == np.float32
    np.testing.assert_array_equal(codec.quantize(latents), tokens)
    assert codec.codebook.shape == (config.codebook_size, config.embed_dim)
    assert (codec.codebook.dtype, codec.codebook.flags.writeable) == (np.float32, False)
    codes = codec.lookup(tokens)
    assert (codes.shape, codes.dtype) == (latents.shape, np.float32)
    if config.quantizer != "scales":  # whose codes are sums
        np.testing.assert_array_equal(codes, codec.codebook[tokens])
    if config.quantizer in ("cosine", "nearest_unit"):
        np.testing.assert_allclose(np.linalg.norm(codec.codebook, axis=1), 1, atol=1e-6)


# As functions, ema is nearest, and nearest_unit goes the way of inner_product.
@pytest.mark.parametrize(
    "codec", [name for name in CONFIGS if name not in ("ema", "nearest_unit")], indirect=True
)
def test_functions_are_the_codec_s(codec: Codec, images: np.ndarray) -> None:
    """In one program, as compiling is what takes long: all functions, vmap over images, gradients."""
    functions, tokens = codec.functions(value_range=(-1, 1)), codec.encode(images)
    floats = jnp.asarray(images / 127.5 - 1, jnp.float32)

    def loss(weights: Any, floats: jax.Array) -> tuple[jax.Array, Any]:
        encode = jax.vmap(lambda image: functions.encode(weights, image[None]))
        encoded = jax.tree.map(lambda each: each[:, 0], encode(floats))
        decoded = functions.decode(weights, encoded.codes)
        looked_up = functions.lookup(weights, encoded.tokens)
        again = functions.quantize(weights, encoded.latents)
        return jnp.mean(decoded**2), (encoded, decoded, looked_up, again)

    gradients, found = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(functions.weights, floats)
    encoded, decoded, looked_up, again = found
    np.testing.assert_array_equal(encoded.tokens, tokens)
    np.testing.assert_array_equal(again, tokens)
    np.testing.assert_allclose(encoded.codes, codec.lookup(tokens), atol=1e-5)
    np.testing.assert_allclose(looked_up, codec.lookup(tokens), atol=1e-6)
    np.testing.assert_allclose(encoded.latents, codec.latents(images), atol=1e-4)
    levels = np.clip((np.asarray(decoded) + 1) * 127.5, 0, 255)
    assert np.abs(levels - codec.decode(tokens)).max() <= 0.51
    of_weights, of_images = gradients
    for part in (of_weights["encoder"], of_weights["decoder"], {"images": of_images}):
        sizes = [float(np.abs(value).max()) for value in part.values()]
        assert np.isfinite(sizes).all()
        assert max(sizes) > 0


def test_straight_through_is_the_gradient_of_the_latents(
    tmp_path_factory: pytest.TempPathFactory, images: np.ndarray
) -> None:
    """Of the nearest code: as if there were no quantizer."""
    functions = random_codec(tmp_path_factory.mktemp("plain") / "codec", PLAIN).functions()
    weight = jax.random.normal(jax.random.key(0), (3, 8, 8, 4))

    @jax.jit
    def gradients(floats: jax.Array) -> list[jax.Array]:
        def total(floats: jax.Array, name: str) -> jax.Array:
            return jnp.sum(weight * getattr(functions.encode(functions.weights, floats), name))

        return [jax.grad(total)(floats, name) for name in ("codes", "latents")]

    through, around = gradients(jnp.asarray(images / 255, jnp.float32))
    np.testing.assert_allclose(through, around, rtol=1e-4, atol=1e-6)


def test_float_images_take_the_same_program(toy_path: Path, toy_images: np.ndarray) -> None:
    codec = Codec.load(toy_path, batch_size=4)
    tokens, latents = codec.encode(toy_images), codec.latents(toy_images)
    compiled = codec.compilations
    unit = toy_images.astype(np.float32) / 255
    for floats, value_range in ((unit, (0, 1)), (unit.astype(np.float64) * 2 - 1, (-1, 1))):
        np.testing.assert_array_equal(codec.encode(floats, value_range=value_range), tokens)
        np.testing.assert_array_equal(codec.latents(floats, value_range=value_range), latents)
    assert codec.compilations == compiled == 2


@given(st.floats(-4, 4), st.floats(1e-2, 1e3))
def test_levels_of_any_range_come_back(start: float, width: float) -> None:
    low = start * width
    levels = np.arange(256, dtype=np.uint8)
    floats = low + levels.astype(np.float64) / 255 * width
    np.testing.assert_array_equal(to_levels(floats, (low, low + width)), levels)


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_values_outside_of_the_range_are_refused(value: float, toy_codec: Codec, refused: Any) -> None:
    floats = np.full((1, 16, 16, 3), 0.5, np.float32)
    floats[0, 3, 3, 1] = value
    with refused(r"images from .* lie outside of \[0, 1\]: give the value_range that they have"):
        toy_codec.encode(floats, value_range=(0, 1))


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0, float("inf")), (float("nan"), 1)])
def test_ranges_are_checked(value_range: tuple[float, float], toy_codec: Codec, refused: Any) -> None:
    with refused("give the lower and the upper end"):
        toy_codec.functions(value_range=value_range)


@pytest.mark.parametrize("dtype", [np.int32, bool])
def test_a_range_does_not_make_whole_numbers_floats(dtype: type, toy_codec: Codec) -> None:
    with pytest.raises(ValueError, match="or float with a value_range, got"):
        toy_codec.latents(np.zeros((1, 16, 16, 3), dtype), value_range=(0, 1))


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (8, 8, 4), (1, 1, 1, 8, 8, 4)])
def test_quantize_refuses_what_are_not_latents(shape: tuple[int, ...], toy_codec: Codec) -> None:
    with pytest.raises(ValueError, match=r"latents must be float \[N, h, w, 4\] .* got float32 \("):
        toy_codec.quantize(np.zeros(shape, np.float32))


def test_any_number_and_video(toy_codec: Codec, toy_images: np.ndarray) -> None:
    video = toy_images[:6].reshape(2, 3, 16, 16, 3)
    latents = toy_codec.latents(video)
    assert latents.shape == (2, 3, 8, 8, 4)
    np.testing.assert_array_equal(toy_codec.quantize(latents), toy_codec.encode(video))
    assert toy_codec.lookup(toy_codec.encode(video)).shape == latents.shape
    assert toy_codec.latents(toy_images[:0]).shape == toy_codec.lookup(toy_codec.encode(toy_images[:0])).shape
    assert toy_codec.quantize(latents[:, :0]).shape == (2, 0, 8, 8)


def test_lookup_refuses_tokens_outside_of_the_codebook(toy_codec: Codec, refused: Any) -> None:
    with refused("tokens from 0 to 32 do not fit this codec"):
        toy_codec.lookup(np.arange(33).reshape(1, 3, 11))


def test_another_engine_gives_no_latents(refused: Any) -> None:
    with refused("engine openvino: it gives tokens and no latents; take the engine jax"):
        EngineChoice("openvino", "2026.1").require_latents()


def test_without_a_decoder(toy_codec: Codec, toy_images: np.ndarray, refused: Any) -> None:
    whole = toy_codec.functions()
    modules = {name: module for name, module in whole.modules.items() if name != "decoder"}
    functions = dataclasses.replace(whole, modules=modules)
    with refused("makes tokens but has no decoder"):
        functions.decode(functions.weights, jnp.zeros((1, 8, 8, 4)))


def test_weights_that_do_not_fit_are_named(toy_codec: Codec, refused: Any) -> None:
    functions = toy_codec.functions()
    weights = {**functions.weights, "quantizer": {"codebook": jnp.zeros((32, 5))}}
    with refused(r"codebook is \(32, 5\), expected \(32, 4\)"):
        functions.lookup(weights, jnp.zeros((1, 2, 2), jnp.int32))


@pytest.fixture(scope="module")
def tiny() -> CodecFunctions:
    return Codec.load("tiny").functions()


def test_a_linear_map_before_the_encoder_learns(tiny: CodecFunctions) -> None:
    """Somebody else's model: dark photographs with red for blue, and a map of colours that is to undo it."""
    photos = [np.asarray(Image.open(path).resize((32, 32))) for path in PHOTOS[:4]]
    target = jnp.asarray(np.stack(photos) / 255, jnp.float32)
    mixed = 0.4 * target[..., ::-1]

    def loss(matrix: jax.Array) -> jax.Array:
        codes = tiny.encode(tiny.weights, mixed @ matrix).codes
        return jnp.mean((tiny.decode(tiny.weights, codes) - target) ** 2)

    @jax.jit
    def step(matrix: jax.Array, momentum: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(matrix)
        momentum = 0.8 * momentum + gradient
        return matrix - 1.0 * momentum, momentum, value

    matrix, momentum, losses = jnp.eye(3), jnp.zeros((3, 3)), []
    for _ in range(12):
        matrix, momentum, value = step(matrix, momentum)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]


SHARDED_SCRIPT = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from vqgan import Codec

path, images_path, tokens_path = sys.argv[1:]
mesh = Mesh(np.array(jax.devices()), ("data",))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
functions = Codec.load(path).functions()
encode = jax.jit(functions.encode, in_shardings=(whole, split), out_shardings=split)
encoded = encode(functions.weights, jax.device_put(np.load(images_path), split))
assert len(encoded.tokens.sharding.device_set) == len(jax.devices()) == 4
np.save(tokens_path, encoded.tokens)
"""


def test_four_devices(toy_path: Path, toy_codec: Codec, toy_images: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", toy_images[:8].astype(np.float32) / 255)
    flags = "--xla_force_host_platform_device_count=4"
    arguments = (toy_path, tmp_path / "images.npy", tmp_path / "tokens.npy")
    run_python(SHARDED_SCRIPT, *arguments, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    np.testing.assert_array_equal(np.load(tmp_path / "tokens.npy"), toy_codec.encode(toy_images[:8]))

"""OpenVINO's graphs give what our layers give, for every quantizer and every variant of a layer."""

import dataclasses
import importlib.util
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.toy_codec import TOY, TOY_WITH_ATTENTION
from vqgan.channels import ChannelsConfig
from vqgan.codec import Codec
from vqgan.codec_checkpoint import load_weights, module_state, save_codec
from vqgan.config import ModelConfig
from vqgan.engines import choice
from vqgan.engines.agreement import (
    CLEAR_MARGIN,
    TokenAgreement,
    compare_pixels,
    compare_tokens,
    read_agreement,
)
from vqgan.engines.choice import KNOWN_FIELDS, EngineChoice, check_variant, resolve_engine
from vqgan.engines.openvino_engine import PendingResult
from vqgan.errors import UserError
from vqgan.model.parameters import codec_parameter_shapes
from vqgan.model.vqgan import VQGAN, network_range

pytestmark = pytest.mark.usefixtures("few_optimizations")
ROOT = Path(__file__).parents[3]
INSTALLED = importlib.util.find_spec("openvino") is not None
with_openvino = pytest.mark.skipif(not INSTALLED, reason="NOT CHECKED: openvino is not installed (extra cpu)")

# Small, with every kind of layer; each variant changes what is named.
BASE = dataclasses.replace(TOY_WITH_ATTENTION, attn_resolutions=(8,))
VARIANTS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "ema, narrow stem": {"quantizer": "ema", "stem_channels": 4, "mid_blocks": 3},
    "cosine, linear attention": {"quantizer": "cosine", "attention": "linear"},
    "gumbel, no attention": {"quantizer": "gumbel", "attn_resolutions": (), "mid_attention": False},
    "fsq, pooling": {
        "quantizer": "fsq",
        "fsq_levels": (5, 4, 3),
        "embed_dim": 3,
        "codebook_size": 60,
        "resamp_with_conv": False,
        "mid_blocks": 1,
    },
    "lfq, mean and variance": {
        "quantizer": "lfq",
        "embed_dim": 5,
        "codebook_size": 32,
        "double_z": True,
        "pool_downsample": True,
        "mid_blocks": 2,
    },
    "inner product, padded on all sides": {"quantizer": "inner_product", "symmetric_downsample": True},
    "open-magvit2's decoder": {"quantizer": "nearest_unit", "depth_to_space": True, "adaptive_norm": True},
    "maskgit's": {
        "bias": False,
        "shortcut_from_branch": True,
        "quant_conv": False,
        "z_channels": 4,
        "encoder_out_kernel": 1,
        "input_range": (0.0, 1.0),
        "clip_output": True,
        "decoder_res_blocks": 1,
    },
    "grey": {"channels": ChannelsConfig(1)},
    "six channels, ranges by channel": {
        "channels": ChannelsConfig(6, ranges=((0, 10000),), input_ranges=((0, 1),) * 3 + ((-1, 1),) * 3),
        "clip_output": True,
    },
}


def random_weights(config: ModelConfig) -> dict[str, dict[str, np.ndarray]]:
    """None of them zero, in sizes that keep the size of activations."""
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        size = 1.0 if name == "codebook" else 0.1 if len(shape) == 1 else np.prod(shape[:-1]) ** -0.5
        return (size * rng.standard_normal(shape) + name.endswith("scale")).astype(np.float32)

    shapes = codec_parameter_shapes(config)
    return {part: {name: draw(name, shape) for name, shape in of.items()} for part, of in shapes.items()}


def images_for(codec: Codec, images: np.ndarray) -> np.ndarray:
    """Images of the codec's channels, made of those of ``[N, H, W, 3]`` and their negatives."""
    return np.concatenate([images, 255 - images], axis=-1)[..., : codec.config.channels.count]


@pytest.fixture(scope="module", params=VARIANTS)
def codecs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Codec, Codec]:
    """One codec, run by JAX and by OpenVINO."""
    if not INSTALLED:
        pytest.skip("NOT CHECKED: openvino is not installed (extra cpu)")
    config = dataclasses.replace(BASE, **VARIANTS[request.param])
    path = save_codec(tmp_path_factory.mktemp("codecs") / "codec", config, random_weights(config)).path
    return Codec.load(path, batch_size=4), Codec.load(path, batch_size=4, engine="openvino")


def test_tokens_are_those_of_jax(codecs: tuple[Codec, Codec], toy_images: np.ndarray) -> None:
    reference, codec = codecs
    images = images_for(codec, toy_images)
    tokens = codec.encode(images)
    found = compare_tokens(reference, images, tokens)
    assert (tokens.shape, tokens.dtype) == ((9, 8, 8), np.int32)
    assert len(np.unique(tokens)) > 4
    assert found.clear_equal == found.clear > 0.9 * found.tokens
    np.testing.assert_array_equal(codec.encode(images[::-1])[::-1], tokens)


def test_pixels_are_those_of_jax(codecs: tuple[Codec, Codec]) -> None:
    """Within 1e-3 of the input range before they are rounded, so that none is off by more than one after."""
    reference, codec = codecs
    tokens = np.random.default_rng(1).integers(codec.config.codebook_size, size=(4, 8, 8)).astype(np.int32)
    pending = codec.decode_batch(tokens)
    assert isinstance(pending, PendingResult)
    pending._request.wait()
    images = pending._request.get_output_tensor().data.copy()
    expected = decode_by_jax(reference, tokens)
    low, high = network_range(codec.config)
    assert (np.abs(images - expected) < 1e-3 * (high - low)).all()
    rounded = np.clip(np.round((expected - low) * 255 / (high - low)), 0, 255)
    assert np.abs(np.asarray(pending) - rounded).max() <= 1


def decode_by_jax(codec: Codec, tokens: np.ndarray) -> np.ndarray:
    """Images in the input range."""
    loaded = load_weights(codec.info, ("quantizer", "decoder"))
    config = dataclasses.replace(codec.config, quantizer=codec.config.quantizer.replace("ema", "nearest"))
    model = nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0)))
    names = ("quantizer", "decoder")
    states = {name: module_state(getattr(model, name), loaded[name], name) for name in names}

    @jax.jit
    def decode(states: Any, tokens: jax.Array) -> jax.Array:
        parts = {name: nnx.merge(nnx.graphdef(getattr(model, name)), states[name]) for name in names}
        return parts["decoder"](parts["quantizer"].lookup(tokens))

    return np.asarray(decode(states, tokens))


@with_openvino
def test_agreements_are_told(toy_path: Path, toy_codec: Codec) -> None:
    tokens = np.random.default_rng(1).integers(32, size=(3, 8, 8)).astype(np.int32)
    images = Codec.load(toy_path, batch_size=4, engine="openvino").decode(tokens)
    found = compare_pixels(toy_codec, tokens, images)
    assert (found.images, found.largest <= 1, found.equal > 0.99) == (3, True, True)
    assert read_agreement(dataclasses.asdict(found)) == found
    told = TokenAgreement(images=2, tokens=128, equal=127, clear=126, clear_equal=126)
    assert read_agreement(dataclasses.asdict(told)) == told
    assert str(told) == "127 of 128 tokens of 2 images are JAX's, 126 of the 126 clear ones"


@with_openvino
def test_one_compilation_for_each_size(toy_path: Path, toy_images: np.ndarray) -> None:
    codec = Codec.load(toy_path, batch_size=2, engine="openvino")
    for count in (1, 2, 3, 0):
        codec.encode(toy_images[:count])
    assert codec.compilations == 1
    codec.encode(toy_images[:3, :8])
    codec.decode(np.zeros((3, 8, 8), np.int32))
    assert codec.compilations == 3


@with_openvino
def test_a_batch_may_change_while_it_is_encoded(toy_path: Path, toy_images: np.ndarray) -> None:
    codec = Codec.load(toy_path, batch_size=4, engine="openvino")
    batch = toy_images[:4].copy()
    pending = codec.encode_batch(batch)
    batch[:] = 0
    np.testing.assert_array_equal(np.asarray(pending), codec.encode(toy_images[:4]))


@with_openvino
def test_bfloat16_gives_mostly_the_same(toy_path: Path, toy_codec: Codec, toy_images: np.ndarray) -> None:
    from vqgan.engines.openvino_graph import import_openvino

    if "BF16" not in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("NOT CHECKED: this processor does not compute in bfloat16")
    codec = Codec.load(toy_path, batch_size=4, dtype=jnp.bfloat16, engine="openvino")
    share = np.mean(codec.encode(toy_images) == toy_codec.encode(toy_images))
    assert 0.9 < share < 1


@with_openvino
def test_float16_is_refused(toy_path: Path, refused: Any) -> None:
    with refused("dtype float16: the engine openvino computes in float32 or bfloat16"):
        Codec.load(toy_path, dtype=jnp.float16, engine="openvino")


@with_openvino
def test_a_processor_without_bfloat16(
    toy_path: Path, toy_images: np.ndarray, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqgan.engines import openvino_engine

    package = types.SimpleNamespace(
        Core=lambda: types.SimpleNamespace(get_property=lambda device, name: ["FP32"])
    )
    codec = Codec.load(toy_path, dtype=jnp.bfloat16, engine="openvino")
    monkeypatch.setattr(openvino_engine, "import_openvino", lambda: package)
    with refused("this processor does not compute in bfloat16.*leave out --dtype"):
        codec.encode(toy_images)


TELEMETRY_SCRIPT = """
import os, sys
import jax, numpy as np
jax.devices()
forks = []
os.register_at_fork(before=lambda: forks.append(1))
from vqgan.engines.openvino_graph import import_openvino
import_openvino().Core()
import time
time.sleep(0.5)  # telemetry works in a thread
print(len(forks), "openvino_telemetry" in sys.modules, os.listdir(os.environ["HOME"]))
"""


@with_openvino
def test_openvino_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    script = [sys.executable, "-W", "error", "-c", TELEMETRY_SCRIPT]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("0 False []", "")


def test_all_fields_of_a_configuration_are_known() -> None:
    """A field that is added has to be taken into the graphs, or is refused where it is set."""
    assert {field.name for field in dataclasses.fields(ModelConfig)} >= KNOWN_FIELDS
    check_variant(BASE)


@dataclasses.dataclass(frozen=True)
class OtherConfig(ModelConfig):
    """A codec of another kind."""


def test_unknown_variants_are_refused(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "^the engine openvino has no graph for {}; leave out --engine, or give --engine jax$"
    with refused(line.format("a codec of kind OtherConfig")):
        check_variant(OtherConfig())
    config = dataclasses.replace(TOY)
    object.__setattr__(config, "attention", "sparse")
    with refused(line.format("model.attention='sparse'")):
        check_variant(config)
    monkeypatch.setattr(choice, "KNOWN_FIELDS", KNOWN_FIELDS - {"ch"})
    with refused(line.format("model.ch=8")):
        check_variant(TOY)


@with_openvino
def test_weights_without_a_layer_are_refused(refused: Any) -> None:
    from vqgan.engines.openvino_graph import encoder_graph

    weights = random_weights(TOY)["encoder"]
    with refused("no graph for the weights gate.scale;"):
        encoder_graph(TOY, {**weights, "gate.scale": np.ones(3, np.float32)}, (1, 16, 16, 3))


def test_what_auto_takes(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setattr(choice, "is_installed", lambda module: True)
    monkeypatch.setattr(choice, "_openvino_version", lambda: "1.2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert resolve_engine("auto", TOY) == EngineChoice("openvino", "1.2")
    assert resolve_engine("auto", OtherConfig()).is_jax
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert resolve_engine("auto", TOY).is_jax
    assert resolve_engine("openvino", TOY).name == "openvino"
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(choice.importlib.metadata, "entry_points", lambda group: ["xla_cuda12"])
    assert resolve_engine("auto", TOY).is_jax
    with refused("^--engine tpu: known are jax, openvino, auto$"):
        resolve_engine("tpu", TOY)


def test_openvino_that_is_missing(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert resolve_engine("auto", TOY).is_jax
    with refused(
        r"^--engine openvino needs openvino \(extra 'cpu'\), not installed; .* pip install 'openvino>="
    ):
        resolve_engine("openvino", TOY)


def test_another_release_on_a_worker(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setattr(choice, "_openvino_version", lambda: "1.3")
    EngineChoice("openvino", "1.3").check_installed()
    with refused(
        "^the run is bound to openvino 1.2, here is 1.3; install it with: pip install openvino==1.2$"
    ):
        EngineChoice("openvino", "1.2").check_installed()


@pytest.mark.parametrize("name", ["nearest", "cosine", "gumbel", "fsq", "lfq"])
def test_margins_tell_clear_tokens(name: str) -> None:
    """Tokens that turn when latents change a little have small margins."""
    from vqgan.quantizers import make_quantizer

    grids = {"fsq": {"fsq_levels": (4, 5, 3, 3), "codebook_size": 180}, "lfq": {"codebook_size": 16}}
    config = dataclasses.replace(TOY, quantizer=name, **grids.get(name, {}))
    quantizer = make_quantizer(config, rngs=nnx.Rngs(0))
    latents = jax.random.normal(jax.random.key(0), (4, 16, 16, 4)) * (0.01 if name == "nearest" else 1)
    noise = jax.random.normal(jax.random.key(1), latents.shape)
    size = jnp.abs(latents).mean()
    margins = np.asarray(quantizer.margins(latents))
    assert margins.shape == (4, 16, 16)
    assert 0 <= margins.min() < 0.02 < margins.max() <= 2
    turned = np.asarray(quantizer.tokens(latents) != quantizer.tokens(latents + 1e-2 * size * noise))
    assert 0 < turned.sum() < 0.3 * turned.size
    assert margins[turned].max() < 0.3 * margins.max()
    same = np.asarray(quantizer.tokens(latents) == quantizer.tokens(latents + 1e-7 * size * noise))
    assert same[margins >= CLEAR_MARGIN].all()


def test_an_engine_that_is_no_name(toy_path: Path) -> None:
    with pytest.raises(UserError, match="--engine fast: known are"):
        Codec.load(toy_path, engine="fast")

"""ONNX models give what our layers give, run by ONNX Runtime: every quantizer, every variant, any size."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from pipelines.importing import export_codec
from tests.toy_codec import TOY
from tests.vqgan.engines.test_openvino_graph import BASE, VARIANTS, random_weights
from tests.vqgan.importers import foreign
from tests.vqgan.test_codec import PHOTOS
from vqgan import Codec, codec_checkpoint
from vqgan.config import ModelConfig
from vqgan.engines.agreement import compare_tokens
from vqgan.exporters.onnx_codec import check_onnx, encoder_model
from vqgan.token_layouts import ScalesConfig

onnx = pytest.importorskip("onnx", reason="NOT CHECKED: onnx is not installed (extra export)")
onnxruntime = pytest.importorskip("onnxruntime", reason="NOT CHECKED: onnxruntime is not installed")

F16 = ModelConfig(
    resolution=64, ch=8, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, attn_resolutions=(4,), z_channels=16,
    embed_dim=8, codebook_size=64, norm_groups=4,
)  # fmt: skip
"""Taming's f16 with fewer channels: attention at the lowest level and in the middle."""


class Exported:
    """The models of a folder, run as its README says."""

    def __init__(self, folder: Path) -> None:
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder")
        )
        said = self.encoder.get_modelmeta().custom_metadata_map
        self.low, self.high = json.loads(said["vqgan_input_range"])

    def encode(self, images: np.ndarray) -> np.ndarray:
        scaled = images.astype(np.float32) * ((self.high - self.low) / 255) + self.low
        (tokens,) = self.encoder.run(None, {"images": scaled.transpose(0, 3, 1, 2)})
        return np.asarray(tokens)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        (images,) = self.decoder.run(None, {"tokens": tokens})
        levels = (images.transpose(0, 2, 3, 1) - self.low) / (self.high - self.low) * 255
        return np.asarray(np.rint(levels).astype(np.uint8))


def photographs(height: int, width: int, count: int) -> np.ndarray:
    opened = [Image.open(path).convert("RGB").resize((width, height)) for path in PHOTOS[:count]]
    return np.stack([np.asarray(image) for image in opened])


def assert_same(codec: Codec, exported: Exported, images: np.ndarray) -> None:
    tokens = exported.encode(images)
    found = compare_tokens(codec, images, tokens)
    assert tokens.dtype == np.int32
    assert found.clear_equal == found.clear > 0.9 * found.tokens
    assert len(np.unique(tokens)) > 8
    off = np.abs(exported.decode(tokens).astype(int) - codec.decode(tokens))
    assert off.max() <= 1
    assert (off == 0).mean() > 0.99


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    """Many programs are compiled, and each runs once, on little data."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    said = export_codec("tiny", str(folder), "onnx")
    assert said.startswith(f"{folder}: decoder.onnx, encoder.onnx; 0.90 M parameters, fingerprint a9ebd987")
    return folder


def test_photographs_of_any_size(tiny: Path) -> None:
    codec, exported = Codec.load("tiny", batch_size=4), Exported(tiny)
    assert_same(codec, exported, photographs(96, 128, 4))
    assert_same(codec, exported, photographs(64, 64, 3))


def test_models_say_what_they_are(tiny: Path) -> None:
    for name, given, made in (("encoder", "images", "tokens"), ("decoder", "tokens", "images")):
        model = onnx.load(tiny / f"{name}.onnx")
        said = {entry.key: entry.value for entry in model.metadata_props}
        assert said["vqgan_fingerprint"] == codec_checkpoint.read_info("tiny").fingerprint
        assert said["vqgan_channels"] == "RGB"
        assert json.loads(said["vqgan_input_range"]) == [-1, 1]
        assert (said["vqgan_preprocessing"], said["vqgan_downsampling"]) == ("uint8 / 255 * 2 + -1", "8")
        assert [value.name for value in (*model.graph.input, *model.graph.output)] == [given, made]
        assert {entry.version for entry in model.opset_import} == {17}
    readme = (tiny / "README.md").read_text()
    assert codec_checkpoint.read_info("tiny").fingerprint in readme


def save(folder: Path, config: ModelConfig, weights: Any) -> Path:
    return codec_checkpoint.save_codec(folder / "codec", config, weights).path


def test_an_f16_with_attention(tmp_path: Path) -> None:
    images, weights = photographs(64, 96, 4), random_weights(F16)
    latents = Codec.load(save(tmp_path / "first", F16, weights), batch_size=4).latents(images)
    chosen = np.random.default_rng(0).permutation(latents.reshape(-1, 8))[:64]
    weights["quantizer"]["codebook"] = chosen  # so that tokens are diverse, and no two codes nearly the same
    path = save(tmp_path, F16, weights)
    export_codec(str(path), str(tmp_path / "out"), "onnx")
    assert_same(Codec.load(path, batch_size=4), Exported(tmp_path / "out"), images)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, tmp_path: Path, toy_images: np.ndarray) -> None:
    config = dataclasses.replace(BASE, **VARIANTS[name])
    path = save(tmp_path, config, random_weights(config))
    export_codec(str(path), str(tmp_path / "out"), "onnx")
    assert_same(Codec.load(path, batch_size=4), Exported(tmp_path / "out"), toy_images)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"spatial_norm": True, "ch": 32, "norm_groups": 32}, "model.spatial_norm=True"),
        ({"haar_patch": 2}, "model.haar_patch=2"),
        ({"quantizer": "scales", "scales": ScalesConfig((1, 2, 4), 2)}, "model.scales="),
    ],
)
def test_what_has_no_graph_is_named(fields: dict[str, Any], says: str, refused: Any) -> None:
    with refused(f"^--to onnx cannot express this codec: there is no graph for {says}"):
        check_onnx(dataclasses.replace(TOY, **fields))


def test_weights_that_are_not_used_or_too_many(refused: Any) -> None:
    weights = random_weights(TOY)
    with refused("no graph for the weights gate.scale$"):
        encoder_model(TOY, {**weights, "encoder": {**weights["encoder"], "gate.scale": np.ones(3)}}, {})
    huge = {"codebook": np.broadcast_to(np.float32(0), (1 << 20, 1 << 10))}
    with refused(r"no graph for 4\.0 GiB of weights, where a file ends at 2 GiB$"):
        check_onnx(TOY, huge)


def test_a_codec_without_a_decoder(tmp_path: Path) -> None:
    foreign.write("chameleon", tmp_path / "codec")
    said = export_codec(f"{tmp_path}/codec?resolution=32", str(tmp_path / "out"), "onnx")
    assert said.startswith(f"{tmp_path / 'out'}: encoder.onnx; ")
    assert "decoder" not in (tmp_path / "out" / "README.md").read_text()


def test_what_is_there_stays(tiny: Path, tmp_path: Path, refused: Any) -> None:
    before = {path.name: path.read_bytes() for path in tiny.iterdir()}
    with refused("there is something else in it, such as README.md; give a new folder"):
        export_codec("tiny", str(tiny), "onnx")
    assert {path.name: path.read_bytes() for path in tiny.iterdir()} == before
    (tmp_path / "file").touch()
    with refused("file: is a file; give a new folder"):
        export_codec("tiny", str(tmp_path / "file"), "onnx")
    export_codec("tiny", str(tmp_path / "again"), "onnx")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "file"]

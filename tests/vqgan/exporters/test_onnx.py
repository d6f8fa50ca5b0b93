"""ONNX models give what our layers give, run by ONNX Runtime: every quantizer, every variant, any size."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.importing import export_codec
from tests.toy_codec import TOY
from tests.vqgan.engines.test_openvino_graph import BASE, VARIANTS, images_for, random_weights
from tests.vqgan.importers import foreign
from tests.vqgan.test_codec import PHOTOS
from vqgan import Codec, codec_checkpoint
from vqgan.channels import RGB, ChannelsConfig
from vqgan.config import ModelConfig
from vqgan.engines.agreement import compare_tokens
from vqgan.exporters.onnx_codec import check_onnx, encoder_model
from vqgan.token_layouts import ScalesConfig

pytestmark = pytest.mark.usefixtures("few_optimizations")
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
        self.low, self.high = np.array(json.loads(said["vqgan_input_range"]), np.float32).T

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
    codec = Codec.load(path, batch_size=4)
    assert_same(codec, Exported(tmp_path / "out"), images_for(codec, toy_images))


@pytest.mark.parametrize(
    "channels",
    [
        RGB,
        ChannelsConfig(1),
        ChannelsConfig(2, input_ranges=((0, 1), (-1, 1))),
        ChannelsConfig(4),
        ChannelsConfig(5),
        ChannelsConfig(6, ranges=((0, 1000), (-1, 1), (0, 2), (5, 6), (0, 255), (0, 65535))),
    ],
    ids=str,
)
def test_the_lines_of_the_readme(
    channels: ChannelsConfig, tmp_path: Path, toy_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They give the codec's tokens for a file of its channels, and a level or one off of what it decodes."""
    config = dataclasses.replace(TOY, channels=channels, resolution=16)
    codec = Codec.load(save(tmp_path, config, random_weights(config)), batch_size=1)
    export_codec(str(codec.info.path), str(tmp_path / "out"), "onnx")
    images = images_for(codec, toy_images)[:1]
    monkeypatch.chdir(tmp_path / "out")
    write_source(channels, images[0])
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL):
        exec(block, names)
    found = compare_tokens(codec, images, names["tokens"])
    assert found.clear_equal == found.clear > 50
    assert np.abs(names["levels"].astype(int) - codec.decode(names["tokens"])).max() <= 1


def write_source(channels: ChannelsConfig, levels: np.ndarray) -> None:
    """Writes a file whose levels these are, as the lines read it."""
    if channels.ranges:
        low, high = np.array(channels.ranges).T
        np.save("image.npy", levels / 255 * (high - low) + low)
    elif channels.count > 4:
        np.save("image.npy", levels.astype(np.uint16) * 257)
    else:
        Image.fromarray(levels[..., 0] if channels.count == 1 else levels).save("image.png")


def test_models_say_the_channels(tmp_path: Path) -> None:
    pairs = ((0, 1), (-1, 1), (0, 2), (0, 1))
    channels = ChannelsConfig(4, ranges=((0, 1000),), input_ranges=pairs)
    config = dataclasses.replace(TOY, channels=channels)
    path = save(tmp_path, config, random_weights(config))
    export_codec(str(path), str(tmp_path / "out"), "onnx")
    model = onnx.load(tmp_path / "out" / "encoder.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert (said["vqgan_channels"], said["vqgan_channel_count"]) == ("RGBA", "4")
    assert json.loads(said["vqgan_input_range"]) == [list(map(float, pair)) for pair in pairs]
    assert json.loads(said["vqgan_source_ranges"]) == [[0, 1000]] * 4
    assert said["vqgan_preprocessing"] == "uint8 / 255 * (high - low) + low"
    assert [each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim] == [0, 4, 0, 0]
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "float32 `[B, 4, H, W]`, RGBA in [0, 1], [-1, 1], [0, 2], [0, 1] by channel |" in readme
    assert "0 to 255 stand for values of the source [0, 1000]; what lies beyond is clipped" in readme


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"spatial_norm": True, "ch": 32, "norm_groups": 32}, "model.spatial_norm=True"),
        ({"haar_patch": 2}, "model.haar_patch=2"),
        ({"quantizer": "scales", "scales": ScalesConfig((1, 2, 4), 2)}, "model.scales$"),
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

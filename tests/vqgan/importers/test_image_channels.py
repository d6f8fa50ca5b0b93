"""Checkpoints of other channels than RGB."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.conftest import Refused
from tests.toy_codec import TOY
from vqgan.channels import ChannelsConfig
from vqgan.importers.convert import infer_config
from vqgan.importers.layout import check_image_channels
from vqgan.importers.tensors import Tensor
from vqgan.model.parameters import codec_parameter_shapes


@pytest.mark.parametrize("count", [1, 2, 4, 16])
@pytest.mark.parametrize("kind", ["taming", "diffusers", "vqgan-jax", "maskgit-torch"])
def test_channels_follow_from_shapes(kind: str, count: int, foreign: Any) -> None:
    config = dataclasses.replace(foreign.config_for(kind), channels=ChannelsConfig(count))
    shapes = codec_parameter_shapes(config)
    empty = {part: {n: np.broadcast_to(np.float32(0), s) for n, s in shapes[part].items()} for part in shapes}
    tensors = {
        name: Tensor(array.shape, array.dtype, lambda: pytest.fail("read"))
        for name, array in foreign.foreign_tensors(kind, config, empty).items()
    }
    assert infer_config(tensors, foreign.LAYOUTS[kind], {}, "test").channels == ChannelsConfig(count)


@pytest.mark.parametrize("data", [{"in_channels": 4}, {"in_channels": 0, "out_ch": 0}, {"out_ch": "3"}])
def test_other_channels_on_either_side_are_refused(data: dict[str, Any], refused: Refused) -> None:
    with refused("only images of the same 1 to 16 channels"):
        check_image_channels("config.yaml", data)
    check_image_channels("config.yaml", {})
    check_image_channels("config.yaml", {"in_channels": 4, "out_ch": 4})


def test_transformers_are_rgb(refused: Refused) -> None:
    from vqgan.token_layouts import ViTConfig

    with refused("model.vit: only RGB without ranges"):
        dataclasses.replace(
            TOY,
            channels=ChannelsConfig(1),
            vit=ViTConfig(patch=2, decoder_patch=2),
            quant_conv=False,
            quantizer="nearest",
        )

"""Parity with the published implementations: tokens and reconstructions that they computed."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan import Codec, codec_checkpoint
from vqgan.model.vqgan import VQGAN, normalize

HERE = Path(__file__).parents[2] / "testdata" / "golden"
NAMES = (
    "diffusers-vq", "latent-diffusion-vq", "llamagen", "lwm", "maskgit-vqgan", "taming-gumbel", "taming-vq",
    "vqgan-jax", "movq", "cosmos-di", "var", "titok", "titok-rgb",
)  # fmt: skip


def _folder(name: str) -> Path:
    given = os.environ.get("VQGAN_GOLDEN")
    for root in ([Path(given)] if given else []) + [HERE]:
        if (root / name).is_dir():
            return root / name
    pytest.skip(f"NOT CHECKED: no fixture {name}; set VQGAN_GOLDEN to the folder with all of them")


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_reconstruction_are_the_reference_s(name: str) -> None:
    folder = _folder(name)
    expected = np.load(folder / "expected.npz")
    scales = json.loads((folder / "about.json").read_text()).get("v_patch_nums")
    source = f"{folder}?scales={','.join(map(str, scales))}" if scales else folder
    info = codec_checkpoint.read_info(source)
    weights = codec_checkpoint.load_weights(info, codec_checkpoint.PARTS)
    model = nnx.eval_shape(lambda: VQGAN(info.config, rngs=nnx.Rngs(0)))
    parts = {
        part: nnx.merge(
            nnx.graphdef(getattr(model, part)),
            codec_checkpoint.module_state(getattr(model, part), weights[part], name),
        )
        for part in codec_checkpoint.PARTS
    }
    reconstruction = parts["decoder"](parts["quantizer"].lookup(jnp.asarray(expected["tokens"])))
    assert float(np.abs(np.asarray(reconstruction) - expected["recon"]).max()) < 1e-3
    images = normalize(jnp.asarray(expected["images"]), info.config.input_range)
    _check_tokens(np.asarray(parts["quantizer"].tokens(parts["encoder"](images))), expected)
    _check_tokens(Codec.load(source, batch_size=2).encode(expected["images"]), expected)


def _check_tokens(tokens: np.ndarray, expected: np.lib.npyio.NpzFile) -> None:
    equal = tokens == expected["tokens"]
    assert equal[expected["margin"] >= 1e-4].all()
    assert equal.mean() >= 0.999

"""Parity with the published implementations: tokens and reconstructions that they computed."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan import Codec, codec_checkpoint
from vqgan.importers.convert import convert_weights, infer_config
from vqgan.importers.registry import layout_by_names, recognise_model
from vqgan.model.vqgan import VQGAN, normalize

HERE = Path(__file__).parents[2] / "testdata" / "golden"
NAMES = (
    "chameleon", "chameleon-vqgan", "diffusers-vq", "ibq", "janus", "janus-original", "latent-diffusion-vq",
    "llamagen", "lwm", "maskgit-muse", "maskgit-torch", "maskgit-vqgan", "open-magvit2", "taming-gumbel",
    "taming-vq", "vqgan-jax", "movq", "cosmos-di", "var", "titok", "titok-rgb",
)  # fmt: skip
# Formats by names alone, where no configuration names a class.
FORMATS = {
    "chameleon": "chameleon",
    "chameleon-vqgan": "taming-transformers",
    "ibq": "latent-diffusion",
    "janus": "janus",
    "janus-original": "llamagen",
    "maskgit-muse": "maskgit-torch",
    "maskgit-torch": "maskgit-torch",
    "open-magvit2": "open-magvit2",
}


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
        if weights[part] or part != "decoder"
    }
    assert ("decoder" in parts) == ("recon" in expected)
    if "decoder" in parts:
        reconstruction = parts["decoder"](parts["quantizer"].lookup(jnp.asarray(expected["tokens"])))
        assert float(np.abs(np.asarray(reconstruction) - expected["recon"]).max()) < 1e-3
    images = normalize(jnp.asarray(expected["images"]), info.config.input_range)
    _check_tokens(np.asarray(parts["quantizer"].tokens(parts["encoder"](images))), expected)
    _check_tokens(Codec.load(source, batch_size=2).encode(expected["images"]), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_every_name_and_shape_of_a_published_file_has_its_place(name: str) -> None:
    tree = _zeros(json.loads((HERE / "names.json").read_text())[name])
    model = recognise_model(Path(name), "test", tree, "raw")
    layout = layout_by_names(model)
    assert layout.name == FORMATS[name]
    config = infer_config(model.tensors, layout, {}, name)
    parts = convert_weights(model.tensors, layout, config, name)
    assert bool(parts["decoder"]) == (name != "chameleon")


def _zeros(tree: Any) -> Any:
    if isinstance(tree, list):
        return np.broadcast_to(np.float32(0), tree)
    return {name: _zeros(value) for name, value in tree.items()}


def _check_tokens(tokens: np.ndarray, expected: np.lib.npyio.NpzFile) -> None:
    equal = tokens == expected["tokens"]
    assert equal[expected["margin"] >= 1e-4].all()
    assert equal.mean() >= 0.999

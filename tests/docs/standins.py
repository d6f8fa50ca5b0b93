"""Small things in the place of those that a reader has: photographs, codecs and data sets."""

import dataclasses
import itertools
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines import cli
from tests.docs.reading import ROOT, Change
from tests.toy_codec import TOY
from tests.vqgan.importers import foreign
from vqgan.codec_checkpoint import save_codec

PHOTOS = sorted((ROOT / "tests/testdata/photos").glob("*.jpg"))
SIZES = ((96, 80), (80, 120), (70, 70), (150, 66))

MAKE = Change("make ", f"make -C {ROOT} --dry-run ", "takes long; make names what it would run")

TRAINING = (
    "model.ch=8", "model.ch_mult=[1]", "model.num_res_blocks=1", "model.norm_groups=4", "model.resolution=32",
    "model.attn_resolutions=[]", "data.crop_size=32", "data.validation_size=32", "discriminator.channels=4",
    "train.steps=3", "train.batch_size=4", "train.evaluate_every=3", "train.save_every=3",
    "codebook.autoencoder_steps=0", "adversarial.weight=0", "loss.perceptual=0", "train.best=psnr",
)  # fmt: skip
PRIOR_TRAINING = (
    "model.layers=1", "model.heads=2", "model.width=16", "model.hidden=16", "data.samples=2",
    "data.validation_limit=8", "train.steps=3", "train.batch_size=4", "train.evaluate_every=3",
    "train.save_every=3", "data.holdout=5",
)  # fmt: skip


def small_training(old: str) -> Change:
    """A change that makes ``vqgan train`` short."""
    return Change(old, f"{old} {_flags(TRAINING)}", "half an hour, and weights of LPIPS from the network")


def small_prior(old: str) -> Change:
    """A change that makes ``vqgan train-prior`` short."""
    return Change(old, f"{old} {_flags(PRIOR_TRAINING)}", "minutes")


def _flags(settings: Sequence[str]) -> str:
    return " ".join(f"--set '{setting}'" for setting in settings)


def make_photos(folder: Path, count: int = 20) -> Path:
    """A folder of small JPEGs in ten folders by what they show, and one file that is none."""
    for (number, size), path in itertools.islice(itertools.product(enumerate(SIZES), PHOTOS), count):
        (folder / path.stem).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize(size).save(folder / path.stem / f"{number}.jpg")
    (folder / PHOTOS[0].stem / "broken.jpg").write_bytes(b"no image")
    return folder


def make_codec(path: Path, resolution: int = 32) -> Path:
    """A codec with random weights, four pixels a token."""
    config = dataclasses.replace(TOY, resolution=resolution, ch_mult=(1, 1, 2))
    save_codec(path, config, foreign.random_weights(config))
    return path


def tokenize(photos: Path, output: Path, *flags: str, codec: str = "tiny", size: int = 32) -> Path:
    """A finished token data set."""
    where = ["--input", str(photos), "--output", str(output), "--codec", codec]
    assert cli.main(["tokenize", *where, "--image-size", str(size), "--quiet", *flags]) == 0
    return output


def make_foreign(kind: str, path: Path, averaged: bool = False) -> Path:
    """A checkpoint of another code base with random weights, four pixels a token.

    Args:
      kind: of :data:`foreign.CONFIGS`.
      path: of the file; its configuration lies beside it.
      averaged: whether it has averaged twins of its parameters.
    """
    config = foreign.config_for(kind)
    tensors = foreign.foreign_tensors(kind, config, foreign.random_weights(config))
    if averaged:
        tensors |= {f"model_ema.{name.replace('.', '')}": value for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind in ("vqgan-jax", "maskgit"):
        tree = foreign.nest(tensors)
        path.write_bytes(foreign.msgpack_bytes(tree if kind == "vqgan-jax" else {"params": tree}))
    elif kind == "lwm":
        path.write_bytes(pickle.dumps(foreign.nest(tensors)))
    elif kind == "diffusers":
        foreign.write_safetensors(path, tensors)
    else:
        foreign.write_torch_zip(path, {"model" if kind == "llamagen" else "state_dict": tensors})
    (path.parent / "config.json").write_text(json.dumps({"resolution": 32, "sample_size": 32}))
    return path


def make_transformer(path: Path, codes: int, positions: int, width: int = 4) -> Path:
    """A transformer of Taming Transformers in the folder of a run, of one block and two heads."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (codes, width),
        "pos_emb": (1, positions, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
        "head.weight": (codes, width),
        "blocks.0.mlp.0.weight": (4 * width, width),
        "blocks.0.mlp.0.bias": (4 * width,),
        "blocks.0.mlp.2.weight": (width, 4 * width),
        "blocks.0.mlp.2.bias": (width,),
    }
    for name in ("key", "query", "value", "proj"):
        shapes |= {f"blocks.0.attn.{name}.weight": (width, width), f"blocks.0.attn.{name}.bias": (width,)}
    for name in ("ln1", "ln2"):
        shapes |= {f"blocks.0.{name}.weight": (width,), f"blocks.0.{name}.bias": (width,)}
    tensors = {
        f"transformer.{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    path.parent.mkdir(parents=True)
    foreign.write_torch_zip(path, {"state_dict": tensors, "global_step": 5})
    config = path.parent.parent / "configs" / "run-project.yaml"
    config.parent.mkdir()
    params = {"transformer_config": {"params": {"n_head": 2}}}
    config.write_text(json.dumps({"model": {"params": params}}))
    return path

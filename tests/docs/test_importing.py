"""docs/importing.md, as its reader types it."""

import shutil

import pytest

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import make_foreign, make_photos, make_transformer
from tests.pipelines.fake_hub import Hub

DOCUMENT = Document(
    "docs/importing.md",
    (
        Change(
            "--codec my-model/vqvae --input photos --output tokens",
            "--codec my-model/vqvae --input photos --output tokens-2",
            "rows of the table are alternatives; a reader takes one",
        ),
        Change(
            "input_range=0,1' --input photos --output tokens",
            "input_range=0,1' --input photos --output tokens-3",
            "rows of the table are alternatives; a reader takes one",
        ),
        Change(
            "--codec tokenizer_imagenet256.ckpt --input photos --output tokens",
            "--codec tokenizer_imagenet256.ckpt --input photos --output tokens-4",
            "rows of the table are alternatives; a reader takes one",
        ),
        Change(
            "--input photos",
            "--input photos --image-size 32 --no-report",
            "attention of the stand-ins at 256 pixels takes long",
        ),
        Change("vqgan inspect SRC", "vqgan inspect vq_ds16_c2i.pt", "a name for any checkpoint"),
        Change("SRC --output DIR", "vq_ds16_c2i.pt --output codecs/llamagen", "a name for any checkpoint"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    make_photos(folder / "photos", 3)
    make_foreign("taming", folder / "vqgan_imagenet_f16_16384" / "model.ckpt")
    shutil.copy(folder / "vqgan_imagenet_f16_16384" / "model.ckpt", folder / "vqgan_imagenet_f16_16384.ckpt")
    make_foreign("ldm", folder / "vq-f8" / "model.ckpt", averaged=True)
    make_foreign("llamagen", folder / "vq_ds16_c2i.pt")
    diffusers = make_foreign(
        "diffusers", folder / "my-model" / "vqvae" / "diffusion_pytorch_model.safetensors"
    )
    make_foreign("vqgan-jax", folder / "vqgan_f16_16384" / "flax_model.msgpack")
    make_foreign("lwm", folder / "vqgan")
    make_foreign("maskgit", folder / "tokenizer_imagenet256.ckpt")
    run = folder / "2020-11-20_cin_transformer" / "checkpoints" / "last.ckpt"
    make_transformer(run, codes=1024, positions=64 * 64)
    hub.files = {path.name: path.read_bytes() for path in diffusers.parent.iterdir()}
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)

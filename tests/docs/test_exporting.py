"""docs/exporting.md, as its reader types it."""

import json
import shutil

import numpy as np
import pytest

from tests.docs.blocks import Block
from tests.docs.conftest import Typed
from tests.docs.reading import Change, Document, Reader
from tests.docs.standins import PHOTOS, make_codec, make_photos, small_prior, tokenize
from vqgan import Codec
from vqgan.codec_checkpoint import read_info

DOCUMENT = Document(
    "docs/exporting.md",
    (
        small_prior("vqgan train-prior --tokens tokens/ --output run/"),
        Change("MODEL --to FORMAT --output DIR", "codec/ --to safetensors --output any", "names for any"),
        Change("CODEC --to diffusers --output DIR", "codec/ --to diffusers --output other", "names for any"),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    tokenize(make_photos(folder / "photos"), folder / "tokens", "--no-report")
    shutil.copy(PHOTOS[0], folder / "photo.jpg")
    make_codec(folder / "codec")
    return Reader(DOCUMENT, folder)


@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=str)
def test_block(block: Block, reader: Reader, typed: Typed) -> None:
    typed(reader, block)


def test_what_it_says_holds(reader: Reader) -> None:
    """Of what the blocks have left behind."""
    names = reader.names
    said = json.loads((reader.folder / "llama" / "config.json").read_text())
    assert said["vqgan"]["codec_fingerprint"] == read_info("tiny").fingerprint
    assert (said["vqgan"]["grid"], said["bos_token_id"], said["vocab_size"]) == ([4, 4], 1024, 1025)
    if "tokens" in names:  # ONNX Runtime is there
        assert names["decoded"].shape == (1, 128, 192, 3)
        pixels = np.rint((names["pixels"].transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
        assert np.mean(Codec.load("tiny", batch_size=1).encode(pixels) == names["tokens"]) > 0.99

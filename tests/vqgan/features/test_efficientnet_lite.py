"""EfficientNet-Lite0 against the reference implementation in torch, and on real photographs."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vqgan.downloads import fetch
from vqgan.errors import UserError
from vqgan.features import FeatureNetwork, efficientnet_lite, load_features

PHOTOS = Path(__file__).parents[2] / "testdata" / "photos"
Refused = Callable[[str], object]


def _published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict, put together from the paper's table."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        shapes[f"{conv}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = shape[:1]

    layer("_conv_stem", "_bn0", (32, 3, 3, 3))
    widths = [32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
    kernels = [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]
    for index, (before, after, size) in enumerate(zip(widths[:-1], widths[1:], kernels, strict=True)):
        name, inner = f"_blocks.{index}", before * (6 if index else 1)
        if index:
            layer(f"{name}._expand_conv", f"{name}._bn0", (inner, before, 1, 1))
        layer(f"{name}._depthwise_conv", f"{name}._bn1", (inner, 1, size, size))
        layer(f"{name}._project_conv", f"{name}._bn2", (after, inner, 1, 1))
    layer("_conv_head", "_bn1", (1280, 320, 1, 1))
    return shapes | {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}


@pytest.fixture(scope="module")
def made_up(state_dicts: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("efficientnet") / "net.pth"
    return state_dicts.write(path, state_dicts.ruled(_published_shapes()))


@pytest.fixture(scope="session")
def real() -> FeatureNetwork:
    """The published weights, or a loud skip; bytes other than the pinned ones are a failure."""
    try:
        path = fetch(efficientnet_lite.RELEASE)
    except UserError as error:
        if "SHA-256 differs" in str(error):
            raise
        pytest.skip(f"NOT TESTED: EfficientNet-Lite0 with its published weights on photographs. {error}")
    return load_features("efficientnet-lite0", path)


def test_features_and_logits_are_those_of_the_reference(made_up: Path) -> None:
    """Expected: the package efficientnet_lite_pytorch 0.1.0 with the same weights on the same input."""
    network = load_features("efficientnet-lite0", made_up)
    images = np.random.default_rng(3).integers(0, 256, (2, 50, 61, 3), dtype=np.uint8)
    features = np.asarray(network.features(images))
    assert features.shape == (2, network.dimension) == (2, 1280)
    assert features.dtype == np.float32
    expected = [[0.24949755, 0.41360202, 4.6809015, 3.8378928], [0.285821, 0.05519844, 4.3919764, 3.4363315]]
    np.testing.assert_allclose(features[:, :4], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features.mean(axis=1), [1.5813485, 1.5875078], rtol=1e-5)
    logits = np.asarray(efficientnet_lite.logits(network.weights, images))
    assert logits.shape == (2, 1000)
    expected = [[-6.2408085, 6.618989, 1.7900269], [-6.2535353, 6.251526, 1.9271214]]
    np.testing.assert_allclose(logits[:, :3], expected, rtol=1e-3)


@pytest.mark.parametrize("size", [(300, 411), (50, 61), (224, 224)])
def test_resizing_is_antialiased_bicubic_without_rounding(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    planes = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(plane.resize((224, 224), Image.Resampling.BICUBIC)) for plane in planes]
    expected = (np.clip(np.stack(resized, axis=2), 0, 255) - 127) / 128
    found = np.asarray(efficientnet_lite.preprocess_for_efficientnet(image[None]))[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_weights_of_another_network_are_refused(
    tmp_path: Path, state_dicts: ModuleType, refused: Refused
) -> None:
    shapes = _published_shapes()
    del shapes["_blocks.0._depthwise_conv.weight"]
    shapes["_blocks.0._se_reduce.weight"] = (8, 32, 1, 1)
    path = state_dicts.write(
        tmp_path / "b0.pth", {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    )
    with refused(
        "b0.pth: these are not the weights of EfficientNet-Lite0 .missing: _blocks.0._depthwise_conv.weight; "
        "unknown: _blocks.0._se_reduce.weight"
    ):
        efficientnet_lite.load_efficientnet(path)


def test_photographs_get_their_classes(real: FeatureNetwork) -> None:
    """ImageNet's class 970 is "alp", 696 "paintbrush"."""
    images = np.stack([_middle(PHOTOS / f"{name}.jpg") for name in ("picosdeeuropa", "picture_1a")])
    logits = np.asarray(efficientnet_lite.logits(real.weights, images))
    assert logits.argmax(axis=1).tolist() == [970, 696]


def _middle(path: Path) -> np.ndarray:
    """The square of 640 pixels in the middle."""
    with Image.open(path) as image:
        left, top = (image.width - 640) // 2, (image.height - 640) // 2
        return np.asarray(image.convert("RGB").crop((left, top, left + 640, top + 640)))


def test_only_batches_of_uint8_images_are_taken(made_up: Path) -> None:
    network = load_features("efficientnet-lite0", made_up)
    for wrong in (np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="must be uint8"):
            network.features(wrong)

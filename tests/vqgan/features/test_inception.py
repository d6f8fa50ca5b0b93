"""InceptionV3 with FID's semantics against pytorch-fid and torchvision, with made-up weights."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vqgan.features import inception, load_features

Refused = Callable[[str], object]
AUXILIARY = {"conv0": (128, 768, 1, 1), "conv1": (768, 128, 5, 5)}


def _shapes(classes: int, auxiliary: bool) -> dict[str, tuple[int, ...]]:
    """A published state dict's names and shapes."""
    convs = dict(inception._convs())
    if auxiliary:
        convs |= {f"AuxLogits.{name}": shape for name, shape in AUXILIARY.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in convs.items():
        shapes[f"{name}.conv.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = shape[:1]
    if auxiliary:
        shapes |= {"AuxLogits.fc.weight": (1000, 768), "AuxLogits.fc.bias": (1000,)}
    return shapes | {"fc.weight": (classes, 2048), "fc.bias": (classes,)}


@pytest.fixture(scope="module")
def files(state_dicts: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inception")
    found = {}
    for name, classes, auxiliary in (("fid", 1008, False), ("torchvision", 1000, True)):
        tensors = state_dicts.ruled(_shapes(classes, auxiliary))
        tensors["Conv2d_1a_3x3.bn.num_batches_tracked"] = np.zeros((), np.int64)
        found[name] = state_dicts.write(folder / f"{name}.pth", tensors)
    return found


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2, 50, 61, 3), dtype=np.uint8)


def test_features_with_the_first_file_are_those_of_pytorch_fid(
    files: dict[str, Path], images: np.ndarray
) -> None:
    """Expected: pytorch-fid 0.3.0, its resizing included, with the same weights on the same images."""
    network = load_features("inception", files["fid"])
    assert (network.name, network.distance, network.dimension) == ("inception-fid", "FID", 2048)
    features = np.asarray(network.features(images))
    assert features.shape == (2, 2048)
    assert features.dtype == np.float32
    expected = [[8.6615, 0.04384389, 0.0, 8.221732], [8.769059, 0.10700872, 0.0, 8.079785]]
    np.testing.assert_allclose(features[:, :4], expected, rtol=1e-4, atol=1e-5)
    expected = [[0.8390862, 10.733171, 0.0], [0.7095966, 10.922848, 0.0]]
    np.testing.assert_allclose(features[:, -3:], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features.mean(axis=1), [4.40639, 4.402377], rtol=1e-5)


def test_features_with_the_second_file_are_those_of_torchvision(
    files: dict[str, Path], images: np.ndarray
) -> None:
    """Expected: torchvision 0.29.2 on the images resized by torch's own bilinear interpolation."""
    network = load_features("inception", files["torchvision"])
    assert network.name == "inception-torchvision"
    assert "FID" not in network.distance
    features = np.asarray(network.features(images))
    expected = [[8.44896, 0.10998443, 0.0, 7.8713207], [8.579487, 0.13932794, 0.0, 7.692186]]
    np.testing.assert_allclose(features[:, :4], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features.mean(axis=1), [4.1006937, 4.1005435], rtol=1e-5)


def test_the_number_of_parameters_is_the_documented_one() -> None:
    """torchvision documents 27,161,264 for the network with its auxiliary classifier."""
    shapes = _shapes(1000, auxiliary=True)
    assert sum(np.prod(shape) for name, shape in shapes.items() if "running" not in name) == 27_161_264


def _numpy_windows(x: np.ndarray, fill: float) -> np.ndarray:
    """``[N, H, W, C]`` to ``[9, N, H, W, C]``: each position's 3x3 window."""
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    corners = [(top, left) for top in range(3) for left in range(3)]
    return np.stack([padded[:, top : top + height, left : left + width] for top, left in corners])


def test_average_pools_count_padding_or_do_not() -> None:
    x = np.random.default_rng(1).standard_normal((2, 4, 5, 3)).astype(np.float32)
    counting = np.asarray(inception.average_pool(x, count_padding=True))
    np.testing.assert_allclose(counting, _numpy_windows(x, 0).mean(axis=0), atol=1e-6)
    inside = np.asarray(inception.average_pool(x, count_padding=False))
    np.testing.assert_allclose(inside, np.nanmean(_numpy_windows(x, np.nan), axis=0), atol=1e-6)
    np.testing.assert_allclose(inside[:, 1:-1, 1:-1], counting[:, 1:-1, 1:-1], rtol=1e-6)
    np.testing.assert_allclose(inside[:, 0, 0], counting[:, 0, 0] * 9 / 4, rtol=1e-5)


def test_max_pools_keep_the_size_or_halve_it() -> None:
    x = -1 - np.random.default_rng(1).random((2, 5, 7, 3)).astype(
        np.float32
    )  # so that padding by 0 would win
    windows = _numpy_windows(x, -np.inf).max(axis=0)
    np.testing.assert_array_equal(np.asarray(inception.max_pool(x, stride=1)), windows)
    np.testing.assert_array_equal(np.asarray(inception.max_pool(x, stride=2)), windows[:, 1:-1:2, 1:-1:2])


def _numpy_bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Half-pixel centres, coordinates clamped to the image, no antialiasing; ``[H, W, 3]``."""
    for axis in (0, 1):
        length = image.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        weight = (at - low)[:, None, None] if axis == 0 else (at - low)[None, :, None]
        high = np.minimum(low + 1, length - 1)
        image = np.take(image, low, axis) * (1 - weight) + np.take(image, high, axis) * weight
    return image


@pytest.mark.parametrize("size", [(40, 33), (700, 512), (299, 299)])
def test_resizing_is_bilinear_without_antialiasing(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = np.asarray(inception.preprocess_for_inception(image[None]))[0]
    assert found.shape == (299, 299, 3)
    np.testing.assert_allclose(found, _numpy_bilinear(image, 299) / 127.5 - 1, atol=2e-4)


def test_a_classifier_of_other_classes_is_refused(
    tmp_path: Path, state_dicts: ModuleType, refused: Refused
) -> None:
    for name, tensors in (
        ("ten", {"fc.weight": np.zeros((10, 2048), np.float16)}),
        ("none", {"a": np.zeros(1)}),
    ):
        path = state_dicts.write(tmp_path / f"{name}.pth", tensors)
        with refused(f"{name}.pth: a classifier of (10|0) classes where InceptionV3 has 1008"):
            inception.load_inception(path)


@pytest.mark.parametrize("classes", [1008, 1000])
def test_a_missing_and_an_unknown_tensor_are_named(
    tmp_path: Path, state_dicts: ModuleType, refused: Refused, classes: int
) -> None:
    shapes = _shapes(classes, auxiliary=False)
    tensors = {
        name: np.zeros(1, np.float16) if len(shape) > 1 else np.zeros(shape, np.float16)
        for name, shape in shapes.items()
    }
    tensors["fc.weight"] = np.zeros((classes, 2048), np.float16)
    tensors["Mixed_5b.branch1x1.norm.weight"] = tensors.pop("Mixed_5b.branch1x1.bn.weight")
    path = state_dicts.write(tmp_path / "net.pth", tensors)
    with refused(
        "not the weights of InceptionV3 .*missing: Mixed_5b.branch1x1.bn.weight; "
        r"unknown: Mixed_5b.branch1x1.norm.weight; wrongly shaped: Conv2d_1a_3x3.conv.weight \(1,\) "
        r"instead of \(32, 3, 3, 3\), .* and 90 more"
    ):
        inception.load_inception(path)

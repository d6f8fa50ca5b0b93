"""Strict loading of published weights, and BatchNorm folded into convolutions."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vqgan.features.pretrained_network import fold_norm, norm_shapes, read_tensors, take_weights

Refused = Callable[[str], object]
SHAPES = {"conv.weight": (4, 3, 1, 1), "conv.bias": (4,)}


def _tensors(path: Path, state_dicts: ModuleType, shapes: dict[str, tuple[int, ...]]) -> dict:
    return read_tensors(state_dicts.write(path / "net.pth", state_dicts.ruled(shapes)))


def test_exactly_the_tensors_of_the_network_are_read(tmp_path: Path, state_dicts: ModuleType) -> None:
    tensors = _tensors(tmp_path, state_dicts, {**SHAPES, "head.weight": (2, 4)})
    found = take_weights(tensors, SHAPES, "net.pth", "a net", r"head\..*")
    assert list(found) == list(SHAPES)
    for name, values in state_dicts.ruled(SHAPES).items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values.astype(np.float32))


def test_both_sides_of_a_mismatch_are_named(
    tmp_path: Path, state_dicts: ModuleType, refused: Refused
) -> None:
    shapes = {"conv.weight": (4, 3, 3, 3), "convolution.bias": (4,)}
    tensors = _tensors(tmp_path, state_dicts, shapes)
    with refused(
        r"^net.pth: these are not the weights of a net \(missing: conv.bias; unknown: convolution.bias; "
        r"wrongly shaped: conv.weight \(4, 3, 3, 3\) instead of \(4, 3, 1, 1\)\); give the right file$"
    ):
        take_weights(tensors, SHAPES, "net.pth", "a net")


def test_a_pattern_of_unneeded_names_means_whole_names(
    tmp_path: Path, state_dicts: ModuleType, refused: Refused
) -> None:
    tensors = _tensors(tmp_path, state_dicts, {**SHAPES, "overhead.weight": (2, 4)})
    with refused(r"unknown: overhead\.weight"):
        take_weights(tensors, SHAPES, "net.pth", "a net", r"head\..*")


def test_a_long_list_is_cut(tmp_path: Path, state_dicts: ModuleType, refused: Refused) -> None:
    wanted = {f"layer{index}": (1,) for index in range(9)}
    with refused("missing: layer0, layer1, layer2, layer3 and 5 more;"):
        take_weights(_tensors(tmp_path, state_dicts, SHAPES), wanted, "net.pth", "a net")


def test_numbers_that_are_not_finite_are_refused(
    tmp_path: Path, state_dicts: ModuleType, refused: Refused
) -> None:
    values = state_dicts.ruled(SHAPES)
    values["conv.bias"][2] = np.nan
    tensors = read_tensors(state_dicts.write(tmp_path / "net.pth", values))
    with refused("conv.bias holds numbers that are not finite"):
        take_weights(tensors, SHAPES, "net.pth", "a net")


def test_a_state_dict_within_a_training_checkpoint_is_found(tmp_path: Path, state_dicts: ModuleType) -> None:
    values = state_dicts.ruled(SHAPES)
    path = state_dicts.write(
        tmp_path / "net.pth", {"state_dict": values, "optimizer": {"m": values["conv.bias"]}}
    )
    assert set(read_tensors(path)) == set(SHAPES)


def test_files_that_hold_no_weights(tmp_path: Path, refused: Refused) -> None:
    with refused("missing.pth: no such file"):
        read_tensors(tmp_path / "missing.pth")
    (tmp_path / "page.pth").write_text("<!doctype html>")
    with refused("page.pth: not a file of weights, it is an HTML page"):
        read_tensors(tmp_path / "page.pth")


def test_no_code_of_a_file_is_run(tmp_path: Path, refused: Refused) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "was-run"),)

    (tmp_path / "net.ckpt").write_bytes(pickle.dumps({"conv": Attack()}))
    with refused("which can run code; such a file is refused"):
        read_tensors(tmp_path / "net.ckpt")
    assert not (tmp_path / "was-run").exists()


def test_a_folded_norm_is_the_convolution_and_the_norm() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 3, 1, 1)).astype(np.float32)  # OIHW
    scale, bias, mean = (rng.standard_normal(5).astype(np.float32) for _ in range(3))
    variance = rng.uniform(0.5, 2, 5).astype(np.float32)
    tensors = {
        "c.weight": weight,
        **dict(zip(norm_shapes("n", 5), (scale, bias, mean, variance), strict=True)),
    }
    kernel, folded = fold_norm(tensors, "c", "n", 1e-3)
    x = rng.standard_normal((7, 3))
    expected = (x @ weight[:, :, 0, 0].T - mean) / np.sqrt(variance + 1e-3) * scale + bias
    assert kernel.shape == (1, 1, 3, 5)
    np.testing.assert_allclose(x @ kernel[0, 0] + folded, expected, atol=1e-5)


def test_the_parts_of_a_norm_bear_torchs_names() -> None:
    parts = ["weight", "bias", "running_mean", "running_var"]
    assert norm_shapes("bn1", 3) == {f"bn1.{part}": (3,) for part in parts}


@pytest.mark.parametrize("shape", [(2, 3, 5, 7)])
def test_kernels_turn_from_oihw_to_hwio(shape: tuple[int, int, int, int]) -> None:
    weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    neutral = {"n.weight": np.ones(2), "n.bias": np.zeros(2), "n.running_mean": np.zeros(2)}
    kernel, _ = fold_norm({"c.weight": weight, **neutral, "n.running_var": np.ones(2)}, "c", "n", 0.0)
    assert kernel.shape == (5, 7, 3, 2)
    assert kernel[4, 6, 1, 0] == weight[0, 1, 4, 6]

"""Made-up weights of published shapes, the same on every machine, and torch files to hold them."""

import importlib.util
import math
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

Tensors = dict[str, np.ndarray]


def ruled(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Numbers that depend on a tensor's name and shape only, of a size that keeps activations moderate.

    float16, so that files stay small. Expected values in the tests come from the reference
    implementations in torch, given the same numbers.
    """
    return {name: _values(name, shape).astype(np.float16) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.startswith("lin"):  # a head of LPIPS
        return np.abs(rng.standard_normal(shape))
    if len(shape) > 1:
        return rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    if name.endswith((".running_var", ".weight")):
        return rng.uniform(0.5, 1.5, shape)
    return rng.standard_normal(shape) * 0.1


def write(path: Path, tensors: Tensors) -> Path:
    """A file as torch.save writes it."""
    _foreign().write_torch_zip(path, dict(tensors))
    return path


def _foreign():  # type: ignore[no-untyped-def]
    """The importers' writer of foreign files; tests are no package, so it is found by its path."""
    name = "vqgan_tests_foreign"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "importers" / "foreign.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]

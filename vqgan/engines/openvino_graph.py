"""The networks of a codec as OpenVINO graphs, built from its configuration and its weights.

:mod:`vqgan.model.network_graph` walks through the layers; here are OpenVINO's operations. Images, latents and
codes keep our layout, ``[B, h, w, C]``, at a graph's borders. What is not known is refused, never left out:
fields of a configuration by name, weights because each must be used.
"""

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vqgan.config import ModelConfig
from vqgan.engines.choice import check_variant, graph_refusal
from vqgan.errors import UserError
from vqgan.model.layers import GROUP_NORM_EPSILON
from vqgan.model.network_graph import NetworkGraph, Weights, pixel_range

if TYPE_CHECKING:
    from openvino import Model, Node

TO_CHANNELS_FIRST = (0, 3, 1, 2)
TO_CHANNELS_LAST = (0, 2, 3, 1)


_TELEMETRY = "openvino_telemetry"
_importing = threading.Lock()


def import_openvino() -> Any:
    """Imports OpenVINO without its telemetry.

    Its import alone would tell Google Analytics of it, from a forked process, which JAX's threads forbid.
    Where the package that does so cannot be imported, OpenVINO does without.
    """
    with _importing:
        held = sys.modules.get(_TELEMETRY)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules[_TELEMETRY]
            if held is not None:
                sys.modules[_TELEMETRY] = held
    return openvino


def encoder_graph(config: ModelConfig, weights: Weights, shape: Sequence[int]) -> "Model":
    """Builds the graph from uint8 images ``[B, H, W, C]`` to float32 latents ``[B, h, w, D]``.

    Args:
      config: architecture.
      weights: of the encoder, by dotted name.
      shape: of the images.

    Raises:
      UserError: a variant that has no graph here.
    """
    ops, graph = _start(config, weights)
    low, high = pixel_range(config)
    images = ops.opset.parameter(list(shape), np.uint8)
    # As :func:`vqgan.model.vqgan.normalize` does.
    x = ops.transpose(ops.opset.convert(images, "f32"), TO_CHANNELS_FIRST)
    x = ops.add(ops.multiply(x, np.asarray((high - low) / 255.0, np.float32)), np.asarray(low, np.float32))
    latents = ops.transpose(graph.encode(x), TO_CHANNELS_LAST)
    graph.check_used()
    return ops.model(images, latents)


def decoder_graph(config: ModelConfig, weights: Weights, shape: Sequence[int]) -> "Model":
    """Builds the graph from float32 code vectors ``[B, h, w, D]`` to float32 images ``[B, H, W, C]``.

    Args:
      config: architecture.
      weights: of the decoder, by dotted name.
      shape: of the codes.

    Returns:
      A graph whose images lie in the configuration's input range; clipped only where that says so.

    Raises:
      UserError: a variant that has no graph here.
    """
    ops, graph = _start(config, weights)
    codes = ops.opset.parameter(list(shape), np.float32)
    images = ops.transpose(graph.decode(ops.transpose(codes, TO_CHANNELS_FIRST)), TO_CHANNELS_LAST)
    graph.check_used()
    return ops.model(codes, images)


def _start(config: ModelConfig, weights: Weights) -> "tuple[OpenVINOOperations, NetworkGraph[Node]]":
    check_variant(config)
    ops = OpenVINOOperations()
    return ops, NetworkGraph(config, weights, ops, GROUP_NORM_EPSILON)


class OpenVINOOperations:
    """OpenVINO's :class:`vqgan.model.network_graph.GraphOperations`; all shapes are fixed."""

    def __init__(self) -> None:
        self._openvino = import_openvino()
        self.opset = self._openvino.opset13

    def model(self, given: "Node", result: "Node") -> "Model":
        """Closes a graph."""
        return self._openvino.Model([self.opset.result(result)], [given])

    def refusal(self, what: str) -> UserError:
        return graph_refusal(what)

    def add(self, x: "Node", y: "Node | np.ndarray") -> "Node":
        return self.opset.add(x, y)

    def subtract(self, x: "Node", y: "Node") -> "Node":
        return self.opset.subtract(x, y)

    def multiply(self, x: "Node", y: "Node | np.ndarray") -> "Node":
        return self.opset.multiply(x, y)

    def divide(self, x: "Node", y: "Node | np.ndarray") -> "Node":
        return self.opset.divide(x, y)

    def sqrt(self, x: "Node") -> "Node":
        return self.opset.sqrt(x)

    def clamp(self, x: "Node", low: np.ndarray, high: np.ndarray) -> "Node":
        return self.opset.minimum(self.opset.maximum(x, low), high)

    def silu(self, x: "Node") -> "Node":
        return self.opset.swish(x)

    def softmax(self, x: "Node") -> "Node":
        return self.opset.softmax(x, 2)

    def matmul(self, x: "Node", y: "Node | np.ndarray", turn_x: bool = False, turn_y: bool = False) -> "Node":
        return self.opset.matmul(x, y, turn_x, turn_y)

    def convolution(
        self, x: "Node", filters: np.ndarray, bias: np.ndarray | None, stride: int, pads: tuple[int, int]
    ) -> "Node":
        before, after = pads
        x = self.opset.convolution(x, filters, [stride] * 2, [before] * 2, [after] * 2, [1, 1])
        return x if bias is None else self.opset.add(x, bias.reshape(1, -1, 1, 1))

    def group_norm(self, x: "Node", scale: np.ndarray, bias: np.ndarray, groups: int) -> "Node":
        return self.opset.group_normalization(x, scale, bias, groups, GROUP_NORM_EPSILON)

    def average_pool(self, x: "Node") -> "Node":
        return self.opset.avg_pool(x, [2, 2], [0, 0], [0, 0], [2, 2], exclude_pad=True)

    def repeat_places(self, x: "Node") -> "Node":
        _, _, height, width = x.shape
        return self.opset.interpolate(
            x,
            self.opset.constant([2 * height, 2 * width]),
            "nearest",
            "sizes",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
            axes=self.opset.constant([2, 3]),
        )

    def depth_to_space(self, x: "Node") -> "Node":
        return self.opset.depth_to_space(x, "blocks_first", 2)

    def rows(self, x: "Node") -> "Node":
        batch, channels, height, width = x.shape
        return self._reshape(x, (batch, channels, height * width))

    def unrows(self, rows: "Node", like: "Node") -> "Node":
        return self._reshape(rows, like.shape)

    def split_thirds(self, rows: "Node") -> "tuple[Node, Node, Node]":
        first, second, third = self.opset.split(rows, self.opset.constant(1), 3).outputs()
        return first, second, third

    def mean_of_places(self, x: "Node") -> "Node":
        return self.opset.reduce_mean(x, self.opset.constant([2, 3]), True)

    def sum_of_places(self, x: "Node") -> "Node":
        return self.opset.reduce_sum(x, self.opset.constant([2, 3]), False)

    def freedom(self, x: "Node") -> np.ndarray:
        return np.array(max(x.shape[2] * x.shape[3] - 1, 1), np.float32)

    def without_places(self, x: "Node") -> "Node":
        return self.opset.squeeze(x, self.opset.constant([2, 3]))

    def with_places(self, x: "Node") -> "Node":
        return self._reshape(x, (*x.shape, 1, 1))

    def transpose(self, x: "Node", axes: Sequence[int]) -> "Node":
        """Orders axes anew."""
        return self.opset.transpose(x, self.opset.constant(list(axes)))

    def _reshape(self, x: "Node", shape: Sequence[int]) -> "Node":
        return self.opset.reshape(x, self.opset.constant(list(shape)), False)

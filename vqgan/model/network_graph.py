"""The networks of a codec for other runtimes: one walk through its layers, in whatever operations they have.

The layers are those of :mod:`vqgan.model.layers` and :mod:`vqgan.model.vqgan`, in the ``[B, C, h, w]`` layout
that other runtimes prefer. What a runtime calls its operations, :class:`GraphOperations` hides; which layers
there are, in which order and with which weights, is said here alone.
"""

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

import numpy as np

from vqgan.config import ModelConfig
from vqgan.errors import UserError
from vqgan.model.vqgan import network_range

Weights = Mapping[str, np.ndarray]
"""Parameters by dotted name."""

Node = TypeVar("Node")


class GraphOperations(Protocol[Node]):
    """What a graph is put together from; nodes are ``[B, C, h, w]`` where nothing else is said.

    Arrays are float32, and broadcast against nodes as NumPy's do.
    """

    def refusal(self, what: str) -> UserError:
        """Returns the error for a part of a codec that has no graph."""

    def add(self, x: Node, y: Node | np.ndarray) -> Node:
        """Adds."""

    def subtract(self, x: Node, y: Node) -> Node:
        """Subtracts ``y`` from ``x``."""

    def multiply(self, x: Node, y: Node | np.ndarray) -> Node:
        """Multiplies number by number."""

    def divide(self, x: Node, y: Node | np.ndarray) -> Node:
        """Divides ``x`` by ``y``."""

    def sqrt(self, x: Node) -> Node:
        """Takes square roots."""

    def clamp(self, x: Node, low: np.ndarray, high: np.ndarray) -> Node:
        """Brings numbers into a range."""

    def silu(self, x: Node) -> Node:
        """Multiplies by the logistic function: ``x * sigmoid(x)``."""

    def softmax(self, x: Node) -> Node:
        """Normalises over the last of three axes."""

    def matmul(self, x: Node, y: Node | np.ndarray, turn_x: bool = False, turn_y: bool = False) -> Node:
        """Multiplies the matrices in the last two axes, either of them transposed before."""

    def convolution(
        self, x: Node, filters: np.ndarray, bias: np.ndarray | None, stride: int, pads: tuple[int, int]
    ) -> Node:
        """Convolves with ``filters [out, in, side, side]``; ``pads`` before and after both sides."""

    def group_norm(self, x: Node, scale: np.ndarray, bias: np.ndarray, groups: int) -> Node:
        """Normalises groups of channels; ``scale`` and ``bias`` are ``[C]``."""

    def average_pool(self, x: Node) -> Node:
        """Halves height and width by averaging."""

    def repeat_places(self, x: Node) -> Node:
        """Doubles height and width by repetition."""

    def depth_to_space(self, x: Node) -> Node:
        """Doubles height and width by four of the outer parts of channels, row by row."""

    def rows(self, x: Node) -> Node:
        """Joins height and width: ``[B, C, h, w]`` to ``[B, C, h*w]``."""

    def unrows(self, rows: Node, like: Node) -> Node:
        """Undoes :meth:`rows`, with the height and width of ``like``."""

    def split_thirds(self, rows: Node) -> tuple[Node, Node, Node]:
        """Splits ``[B, 3*C, n]`` into three of ``[B, C, n]``."""

    def mean_of_places(self, x: Node) -> Node:
        """Averages over height and width, to ``[B, C, 1, 1]``."""

    def sum_of_places(self, x: Node) -> Node:
        """Sums over height and width, to ``[B, C]``."""

    def freedom(self, x: Node) -> Node | np.ndarray:
        """Returns the number of places less one, at least 1, as float32."""

    def without_places(self, x: Node) -> Node:
        """Drops two axes of one: ``[B, C, 1, 1]`` to ``[B, C]``."""

    def with_places(self, x: Node) -> Node:
        """Adds two axes of one: ``[B, C]`` to ``[B, C, 1, 1]``."""


class NetworkGraph(Generic[Node]):
    """Adds a codec's layers, by the names of their weights, to nodes.

    Args:
      config: architecture; whoever makes a graph has refused variants that are not known here.
      weights: of one side, by dotted name. Each is used once.
      ops: the runtime's operations.
      epsilon: of group normalisations.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, ops: GraphOperations[Node], epsilon: float
    ) -> None:
        self._config = config
        self._left = dict(weights)  # each is taken once
        self._ops = ops
        self._epsilon = epsilon

    def check_used(self) -> None:
        """Checks that no weight was left out.

        Raises:
          UserError: one was, so there is a layer that is not known here.
        """
        if self._left:
            raise self._ops.refusal(f"the weights {min(self._left)}")

    def encode(self, images: Node) -> Node:
        """Turns images in the input range into latents ``[B, D, h, w]``."""
        config = self._config
        x = self._conv("encoder.conv_in", images)
        side = config.resolution
        for level in range(len(config.ch_mult)):
            x = self._level(f"encoder.levels.{level}", x, config.num_res_blocks, side)
            if level < len(config.ch_mult) - 1:
                x, side = self._downsample(f"encoder.levels.{level}.resample", x), side // 2
        x = self._head("encoder", self._middle("encoder.middle", x))
        return self._conv("quant_conv", x) if config.quant_conv else x

    def decode(self, codes: Node) -> Node:
        """Turns code vectors ``[B, D, h, w]`` into images, clipped to the input range if the codec clips."""
        config = self._config
        x = self._conv("post_quant_conv", codes) if config.quant_conv else codes
        statistics = self._statistics(x) if config.adaptive_norm else None
        x = self._middle("decoder.middle", self._conv("decoder.conv_in", x))
        side = config.resolution // config.downsampling
        for level in range(len(config.ch_mult)):
            if statistics is not None:
                x = self._adaptive_norm(f"decoder.levels.{level}.adaptive", x, *statistics)
            x = self._level(f"decoder.levels.{level}", x, config.decoder_blocks, side)
            if level < len(config.ch_mult) - 1:
                x, side = self._upsample(f"decoder.levels.{level}.resample", x), side * 2
        x = self._head("decoder", x)
        low, high = (np.asarray(end, np.float32) for end in pixel_range(config))
        return self._ops.clamp(x, low, high) if config.clip_output else x

    def _level(self, name: str, x: Node, blocks: int, side: int) -> Node:
        for block in range(blocks):
            x = self._block(f"{name}.blocks.{block}", x)
            if side in self._config.attn_resolutions:
                x = self._attention(f"{name}.attentions.{block}", x)
        return x

    def _middle(self, name: str, x: Node) -> Node:
        blocks = ["block1", "block2", *(f"blocks.{index}" for index in range(self._config.mid_blocks - 2))]
        x = self._block(f"{name}.block1", x)
        if self._config.mid_attention:
            x = self._attention(f"{name}.attention", x)
        for block in blocks[1 : self._config.mid_blocks]:
            x = self._block(f"{name}.{block}", x)
        return x

    def _head(self, name: str, x: Node) -> Node:
        return self._conv(f"{name}.conv_out", self._ops.silu(self._norm(f"{name}.norm_out", x)))

    def _block(self, name: str, x: Node) -> Node:
        h = self._conv(f"{name}.conv1", self._ops.silu(self._norm(f"{name}.norm1", x)))
        h = self._conv(f"{name}.conv2", self._ops.silu(self._norm(f"{name}.norm2", h)))
        if f"{name}.shortcut.kernel" in self._left:
            x = self._conv(f"{name}.shortcut", h if self._config.shortcut_from_branch else x)
        return self._ops.add(x, h)

    def _attention(self, name: str, x: Node) -> Node:
        return (self._linear_attention if self._config.attention == "linear" else self._full_attention)(
            name, x
        )

    def _full_attention(self, name: str, x: Node) -> Node:
        ops, channels = self._ops, self._left[f"{name}.query.kernel"].shape[-1]
        normed = self._norm(f"{name}.norm", x)
        q, k, v = (ops.rows(self._conv(f"{name}.{part}", normed)) for part in ("query", "key", "value"))
        scores = ops.matmul(q, k, turn_x=True)  # (B, queries, keys) of rows [B, C, h*w]
        weights = ops.softmax(ops.multiply(scores, _scalar(channels**-0.5)))
        attended = ops.matmul(v, weights, turn_y=True)  # (B, C, queries)
        return ops.add(x, self._conv(f"{name}.out", ops.unrows(attended, x)))

    def _linear_attention(self, name: str, x: Node) -> Node:
        ops = self._ops
        q, k, v = ops.split_thirds(ops.rows(self._conv(f"{name}.qkv", x)))  # (B, C, h*w) each
        context = ops.matmul(ops.softmax(k), v, turn_y=True)  # (B, keys' channels, values')
        return self._conv(f"{name}.out", ops.unrows(ops.matmul(context, q, turn_x=True), x))

    def _downsample(self, name: str, x: Node) -> Node:
        if self._config.learned_downsampling:
            pads = (1, 1) if self._config.symmetric_downsample else (0, 1)
            return self._conv(f"{name}.conv", x, stride=2, pads=pads)
        return self._ops.average_pool(x)

    def _upsample(self, name: str, x: Node) -> Node:
        if self._config.depth_to_space:
            return self._ops.depth_to_space(self._conv(f"{name}.conv", x))
        repeated = self._ops.repeat_places(x)
        return self._conv(f"{name}.conv", repeated) if self._config.resamp_with_conv else repeated

    def _conv(self, name: str, x: Node, stride: int = 1, pads: tuple[int, int] | None = None) -> Node:
        """Adds a convolution and, where there is one, its bias; ``pads`` before and after each side."""
        kernel = self._left.pop(f"{name}.kernel")  # (side, side, in, out)
        filters = _float32(kernel.transpose(3, 2, 0, 1))
        bias = self._left.pop(f"{name}.bias", None)
        pads = (kernel.shape[0] // 2,) * 2 if pads is None else pads
        return self._ops.convolution(x, filters, None if bias is None else _float32(bias), stride, pads)

    def _norm(self, name: str, x: Node) -> Node:
        scale, bias = (_float32(self._left.pop(f"{name}.{part}")) for part in ("scale", "bias"))
        return self._ops.group_norm(x, scale, bias, self._config.norm_groups)

    def _statistics(self, codes: Node) -> tuple[Node, Node]:
        """Takes deviation and mean ``[B, D]`` of codes, for :class:`vqgan.model.layers.AdaptiveGroupNorm`."""
        ops = self._ops
        mean = ops.mean_of_places(codes)
        centred = ops.subtract(codes, mean)
        variance = ops.divide(ops.sum_of_places(ops.multiply(centred, centred)), ops.freedom(codes))
        return ops.sqrt(ops.add(variance, _scalar(self._epsilon))), ops.without_places(mean)

    def _adaptive_norm(self, name: str, x: Node, deviation: Node, mean: Node) -> Node:
        ops, channels = self._ops, self._left[f"{name}.gamma.kernel"].shape[-1]
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        x = ops.group_norm(x, ones, zeros, self._config.norm_groups)
        x = ops.multiply(x, self._linear(f"{name}.gamma", deviation))
        return ops.add(x, self._linear(f"{name}.beta", mean))

    def _linear(self, name: str, rows: Node) -> Node:
        """Maps ``[B, D]`` to ``[B, C, 1, 1]``."""
        kernel, bias = (_float32(self._left.pop(f"{name}.{part}")) for part in ("kernel", "bias"))
        return self._ops.with_places(self._ops.add(self._ops.matmul(rows, kernel), bias))


def pixel_range(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the network's values for levels 0 and 255: two numbers, or float32 ``[1, C, 1, 1]`` each."""
    low, high = (np.asarray(end) for end in network_range(config))
    return (low, high) if low.ndim == 0 else (low.transpose(0, 3, 1, 2), high.transpose(0, 3, 1, 2))


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


def _scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)

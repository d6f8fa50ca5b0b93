"""The networks of a codec as OpenVINO graphs, built from its configuration and its weights.

The layers are those of :mod:`vqgan.model.layers` and :mod:`vqgan.model.vqgan`, in OpenVINO's operations and
in its ``[B, C, h, w]`` layout; images, latents and codes keep ours, ``[B, h, w, C]``, at a graph's borders.
What is not known is refused, never left out: fields of a configuration by name, weights because each must be
used.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vqgan.config import ModelConfig
from vqgan.engines.choice import check_variant, graph_refusal
from vqgan.model.layers import GROUP_NORM_EPSILON

if TYPE_CHECKING:
    from openvino import Model, Node

Weights = Mapping[str, np.ndarray]

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
    """Builds the graph from uint8 images ``[B, H, W, 3]`` to float32 latents ``[B, h, w, D]``.

    Args:
      config: architecture.
      weights: of the encoder, by dotted name.
      shape: of the images.

    Raises:
      UserError: a variant that has no graph here.
    """
    builder = _Builder(config, weights)
    images = builder.ops.parameter(list(shape), np.uint8)
    return builder.model(images, builder.latents(images))


def decoder_graph(config: ModelConfig, weights: Weights, shape: Sequence[int]) -> "Model":
    """Builds the graph from float32 code vectors ``[B, h, w, D]`` to float32 images ``[B, H, W, 3]``.

    Args:
      config: architecture.
      weights: of the decoder, by dotted name.
      shape: of the codes.

    Returns:
      A graph whose images lie in the configuration's input range; clipped only where that says so.

    Raises:
      UserError: a variant that has no graph here.
    """
    builder = _Builder(config, weights)
    codes = builder.ops.parameter(list(shape), np.float32)
    return builder.model(codes, builder.images(codes))


class _Builder:
    """Adds layers, by the names of their weights, to nodes ``[B, C, h, w]``."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        check_variant(config)
        self._openvino = import_openvino()
        self.ops = self._openvino.opset13
        self._config = config
        self._left = dict(weights)  # each is taken once

    def model(self, given: "Node", result: "Node") -> "Model":
        """Closes a graph; refuses one that leaves weights unused."""
        if self._left:
            raise graph_refusal(f"the weights {min(self._left)}")
        return self._openvino.Model([self.ops.result(result)], [given])

    def latents(self, images: "Node") -> "Node":
        """Normalizes uint8 images, as :func:`vqgan.model.vqgan.normalize` does, and encodes them."""
        config, (low, high) = self._config, self._config.input_range
        x = self._transpose(self.ops.convert(images, "f32"), TO_CHANNELS_FIRST)
        x = self.ops.add(self.ops.multiply(x, _scalar((high - low) / 255.0)), _scalar(low))
        x = self._conv("encoder.conv_in", x)
        side = config.resolution
        for level in range(len(config.ch_mult)):
            x = self._level(f"encoder.levels.{level}", x, config.num_res_blocks, side)
            if level < len(config.ch_mult) - 1:
                x, side = self._downsample(f"encoder.levels.{level}.resample", x), side // 2
        x = self._head("encoder", self._middle("encoder.middle", x))
        return self._transpose(self._conv("quant_conv", x) if config.quant_conv else x, TO_CHANNELS_LAST)

    def images(self, codes: "Node") -> "Node":
        """Decodes codes to images in the input range."""
        config = self._config
        x = self._transpose(codes, TO_CHANNELS_FIRST)
        x = self._conv("post_quant_conv", x) if config.quant_conv else x
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
        return self._transpose(
            self.ops.clamp(x, *config.input_range) if config.clip_output else x, TO_CHANNELS_LAST
        )

    def _level(self, name: str, x: "Node", blocks: int, side: int) -> "Node":
        for block in range(blocks):
            x = self._block(f"{name}.blocks.{block}", x)
            if side in self._config.attn_resolutions:
                x = self._attention(f"{name}.attentions.{block}", x)
        return x

    def _middle(self, name: str, x: "Node") -> "Node":
        blocks = ["block1", "block2", *(f"blocks.{index}" for index in range(self._config.mid_blocks - 2))]
        x = self._block(f"{name}.block1", x)
        if self._config.mid_attention:
            x = self._attention(f"{name}.attention", x)
        for block in blocks[1 : self._config.mid_blocks]:
            x = self._block(f"{name}.{block}", x)
        return x

    def _head(self, name: str, x: "Node") -> "Node":
        return self._conv(f"{name}.conv_out", self._silu(self._norm(f"{name}.norm_out", x)))

    def _block(self, name: str, x: "Node") -> "Node":
        h = self._conv(f"{name}.conv1", self._silu(self._norm(f"{name}.norm1", x)))
        h = self._conv(f"{name}.conv2", self._silu(self._norm(f"{name}.norm2", h)))
        if f"{name}.shortcut.kernel" in self._left:
            x = self._conv(f"{name}.shortcut", h if self._config.shortcut_from_branch else x)
        return self.ops.add(x, h)

    def _attention(self, name: str, x: "Node") -> "Node":
        return (self._linear_attention if self._config.attention == "linear" else self._full_attention)(
            name, x
        )

    def _full_attention(self, name: str, x: "Node") -> "Node":
        normed = self._norm(f"{name}.norm", x)
        q, k, v = (self._rows(self._conv(f"{name}.{part}", normed)) for part in ("query", "key", "value"))
        scores = self.ops.matmul(q, k, True, False)  # (B, queries, keys) of rows [B, C, h*w]
        weights = self.ops.softmax(self.ops.multiply(scores, _scalar(q.shape[1] ** -0.5)), 2)
        attended = self.ops.matmul(v, weights, False, True)  # (B, C, queries)
        return self.ops.add(x, self._conv(f"{name}.out", self._reshape(attended, x.shape)))

    def _linear_attention(self, name: str, x: "Node") -> "Node":
        rows = self._rows(self._conv(f"{name}.qkv", x))
        q, k, v = self.ops.split(rows, self.ops.constant(1), 3).outputs()  # [B, C, h*w] each
        context = self.ops.matmul(self.ops.softmax(k, 2), v, False, True)  # (B, keys' channels, values')
        attended = self.ops.matmul(context, q, True, False)
        return self._conv(f"{name}.out", self._reshape(attended, x.shape))

    def _downsample(self, name: str, x: "Node") -> "Node":
        if self._config.learned_downsampling:
            pads = (1, 1) if self._config.symmetric_downsample else (0, 1)
            return self._conv(f"{name}.conv", x, stride=2, pads=pads)
        return self.ops.avg_pool(x, [2, 2], [0, 0], [0, 0], [2, 2], exclude_pad=True)

    def _upsample(self, name: str, x: "Node") -> "Node":
        if self._config.depth_to_space:
            return self.ops.depth_to_space(self._conv(f"{name}.conv", x), "blocks_first", 2)
        _, _, height, width = x.shape
        repeated = self.ops.interpolate(
            x,
            self.ops.constant([2 * height, 2 * width]),
            "nearest",
            "sizes",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
            axes=self.ops.constant([2, 3]),
        )
        return self._conv(f"{name}.conv", repeated) if self._config.resamp_with_conv else repeated

    def _conv(self, name: str, x: "Node", stride: int = 1, pads: tuple[int, int] | None = None) -> "Node":
        """Adds a convolution and, where there is one, its bias; ``pads`` before and after each side."""
        kernel = self._left.pop(f"{name}.kernel")  # (side, side, in, out)
        before, after = (kernel.shape[0] // 2,) * 2 if pads is None else pads
        filters = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), np.float32)
        x = self.ops.convolution(x, filters, [stride] * 2, [before] * 2, [after] * 2, [1, 1])
        bias = self._left.pop(f"{name}.bias", None)
        return x if bias is None else self.ops.add(x, _float32(bias).reshape(1, -1, 1, 1))

    def _norm(self, name: str, x: "Node") -> "Node":
        scale, bias = (_float32(self._left.pop(f"{name}.{part}")) for part in ("scale", "bias"))
        return self.ops.group_normalization(x, scale, bias, self._config.norm_groups, GROUP_NORM_EPSILON)

    def _statistics(self, codes: "Node") -> tuple["Node", "Node"]:
        """Takes deviation and mean ``[B, D]`` of codes, for :class:`vqgan.model.layers.AdaptiveGroupNorm`."""
        ops, (_, _, height, width) = self.ops, codes.shape
        axes = self.ops.constant([2, 3])
        mean = ops.reduce_mean(codes, axes, True)
        centred = ops.subtract(codes, mean)
        squares = ops.reduce_sum(ops.multiply(centred, centred), axes, False)
        variance = ops.divide(squares, _scalar(max(height * width - 1, 1)))
        return ops.sqrt(ops.add(variance, _scalar(GROUP_NORM_EPSILON))), ops.squeeze(mean, axes)

    def _adaptive_norm(self, name: str, x: "Node", deviation: "Node", mean: "Node") -> "Node":
        channels = x.shape[1]
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        x = self.ops.group_normalization(x, ones, zeros, self._config.norm_groups, GROUP_NORM_EPSILON)
        x = self.ops.multiply(x, self._linear(f"{name}.gamma", deviation))
        return self.ops.add(x, self._linear(f"{name}.beta", mean))

    def _linear(self, name: str, rows: "Node") -> "Node":
        """Maps ``[B, D]`` to ``[B, C, 1, 1]``."""
        kernel, bias = (_float32(self._left.pop(f"{name}.{part}")) for part in ("kernel", "bias"))
        mapped = self.ops.add(self.ops.matmul(rows, kernel, False, False), bias)
        return self._reshape(mapped, (*mapped.shape, 1, 1))

    def _silu(self, x: "Node") -> "Node":
        return self.ops.swish(x)

    def _rows(self, x: "Node") -> "Node":
        """Joins height and width: ``[B, C, h, w]`` to ``[B, C, h*w]``."""
        batch, channels, height, width = x.shape
        return self._reshape(x, (batch, channels, height * width))

    def _reshape(self, x: "Node", shape: Sequence[int]) -> "Node":
        return self.ops.reshape(x, self.ops.constant(list(shape)), False)

    def _transpose(self, x: "Node", axes: Sequence[int]) -> "Node":
        return self.ops.transpose(x, self.ops.constant(list(axes)))


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


def _scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)

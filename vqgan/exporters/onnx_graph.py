"""ONNX's operations, and how a model is put together from them; shapes may be whatever comes.

Operator set 17, of 2022, which all current runtimes know. Where a later one has an operation of its own
(group normalisation), it is written in older ones, which ONNX Runtime and TensorRT know how to fuse.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vqgan import __version__
from vqgan.errors import UserError
from vqgan.model.layers import GROUP_NORM_EPSILON

if TYPE_CHECKING:
    from onnx import ModelProto

OPERATOR_SET = 17
FORMAT_VERSION = 8
"""Of ONNX's files: the one of that operator set."""

_BY_OURS = {np.dtype(np.float32): "FLOAT", np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64"}


class GraphValue(NamedTuple):
    """An input or output of a model.

    Attributes:
      name: by which a program calls it.
      dtype: float32, int32 or int64.
      shape: a size that may be any has a name.
    """

    name: str
    dtype: type[np.generic]
    shape: tuple[int | str, ...]


class ONNXOperations:
    """Collects nodes, which are called by the names of their results.

    The operations are those of :class:`vqgan.model.network_graph.GraphOperations`, and what quantizers need.
    """

    def __init__(self) -> None:
        import onnx

        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._scalars: dict[tuple[str, bytes], str] = {}

    def node(self, operation: str, *inputs: "str | np.ndarray", outputs: int = 1, **attributes: Any) -> str:
        """Adds any operation; arrays become constants.

        Returns:
          The name of its result, of the first where there are several: the others have ``_1`` behind, ``_2``.
        """
        name = f"{operation.lower()}_{len(self._nodes)}"
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        given = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        self._nodes.append(self._onnx.helper.make_node(operation, given, names, name=name, **attributes))
        return name

    def constant(self, values: np.ndarray) -> str:
        """Adds an array; small ones that are alike are held once."""
        key = (f"{values.dtype} {values.shape}", values.tobytes() if values.size < 16 else b"")
        if key[1] and key in self._scalars:
            return self._scalars[key]
        name = f"constant_{len(self._constants)}"
        self._constants[name] = self._onnx.numpy_helper.from_array(values, name)
        if key[1]:
            self._scalars[key] = name
        return name

    def model(
        self, given: GraphValue, result: GraphValue, source: str, name: str, metadata: Mapping[str, str]
    ) -> "ModelProto":
        """Closes a graph.

        Args:
          given: the input.
          result: the output; ``source`` is the node that becomes it.
          source: name of a node.
          name: of the graph.
          metadata: texts that the file keeps.
        """
        helper = self._onnx.helper
        self._nodes.append(helper.make_node("Identity", [source], [result.name], name=result.name))
        inputs, outputs = ([self._declared(each)] for each in (given, result))
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._constants.values()))
        operators = [helper.make_opsetid("", OPERATOR_SET)]
        model = helper.make_model(graph, opset_imports=operators, ir_version=FORMAT_VERSION)
        model.producer_name, model.producer_version = "vqgan-pipelines", __version__
        helper.set_model_props(model, dict(metadata))
        return model

    def _declared(self, value: GraphValue) -> Any:
        kind = getattr(self._onnx.TensorProto, _BY_OURS[np.dtype(value.dtype)])
        return self._onnx.helper.make_tensor_value_info(value.name, kind, list(value.shape))

    def refusal(self, what: str) -> UserError:
        return onnx_refusal(what)

    def add(self, x: str, y: "str | np.ndarray") -> str:
        return self.node("Add", x, y)

    def subtract(self, x: "str | np.ndarray", y: "str | np.ndarray") -> str:
        return self.node("Sub", x, y)

    def multiply(self, x: str, y: "str | np.ndarray") -> str:
        return self.node("Mul", x, y)

    def divide(self, x: str, y: "str | np.ndarray") -> str:
        return self.node("Div", x, y)

    def sqrt(self, x: str) -> str:
        return self.node("Sqrt", x)

    def clamp(self, x: str, low: np.ndarray, high: np.ndarray) -> str:
        return self.node("Min", self.node("Max", x, low), high)

    def silu(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", x))

    def softmax(self, x: str) -> str:
        return self.node("Softmax", x, axis=2)

    def matmul(self, x: str, y: "str | np.ndarray", turn_x: bool = False, turn_y: bool = False) -> str:
        x = self.node("Transpose", x, perm=[0, 2, 1]) if turn_x else x
        y = self.node("Transpose", y, perm=[0, 2, 1]) if turn_y else y
        return self.node("MatMul", x, y)

    def convolution(
        self, x: str, filters: np.ndarray, bias: np.ndarray | None, stride: int, pads: tuple[int, int]
    ) -> str:
        before, after = pads
        weights = [filters] if bias is None else [filters, bias]
        pads_of_sides = [before, before, after, after]
        return self.node("Conv", x, *weights, strides=[stride] * 2, pads=pads_of_sides)

    def group_norm(self, x: str, scale: np.ndarray, bias: np.ndarray, groups: int) -> str:
        grouped = self.node("Reshape", x, np.array([0, groups, -1]))
        ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        normal = self.node("InstanceNormalization", grouped, ones, zeros, epsilon=GROUP_NORM_EPSILON)
        scaled = self.multiply(self.unrows(normal, x), scale.reshape(-1, 1, 1))
        return self.add(scaled, bias.reshape(-1, 1, 1))

    def average_pool(self, x: str) -> str:
        return self.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])

    def repeat_places(self, x: str) -> str:
        return self.node(
            "Resize",
            x,
            "",  # no region of interest
            np.array([1, 1, 2, 2], np.float32),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def depth_to_space(self, x: str) -> str:
        return self.node("DepthToSpace", x, blocksize=2, mode="DCR")

    def rows(self, x: str) -> str:
        return self.node("Reshape", x, np.array([0, 0, -1]))

    def unrows(self, rows: str, like: str) -> str:
        return self.node("Reshape", rows, self.node("Shape", like))

    def split_thirds(self, rows: str) -> tuple[str, str, str]:
        first = self.node("Split", rows, outputs=3, axis=1)
        return first, f"{first}_1", f"{first}_2"

    def mean_of_places(self, x: str) -> str:
        return self.node("ReduceMean", x, axes=[2, 3], keepdims=1)

    def sum_of_places(self, x: str) -> str:
        return self.node("ReduceSum", x, np.array([2, 3]), keepdims=0)

    def freedom(self, x: str) -> str:
        places = self.node("ReduceProd", self.node("Shape", x, start=2, end=4), axes=[0], keepdims=0)
        less_one = self.subtract(self.cast(places, np.float32), np.array(1, np.float32))
        return self.node("Max", less_one, np.array(1, np.float32))

    def without_places(self, x: str) -> str:
        return self.node("Squeeze", x, np.array([2, 3]))

    def with_places(self, x: str) -> str:
        return self.node("Unsqueeze", x, np.array([2, 3]))

    def transpose(self, x: str, axes: Sequence[int]) -> str:
        """Orders axes anew."""
        return self.node("Transpose", x, perm=list(axes))

    def cast(self, x: str, dtype: Any) -> str:
        """Changes the type."""
        return self.node("Cast", x, to=getattr(self._onnx.TensorProto, _BY_OURS[np.dtype(dtype)]))


def onnx_refusal(what: str) -> UserError:
    """Returns the error for a codec, or a part of one, that has no ONNX graph."""
    return UserError(f"--to onnx cannot express this codec: there is no graph for {what}")

"""``tf.train.Example`` without TensorFlow: its message classes, and what an image example holds."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from transforms.sources.base import Example
from transforms.sources.reading import check_size, to_label
from vqgan.errors import UserError

_LISTS = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}


@functools.cache
def example_class() -> type[message.Message]:
    """Returns the class of ``tensorflow.Example`` messages.

    It lives in a descriptor pool of its own: TensorFlow and tensorflow_metadata register messages of
    the same names in the default pool, which would clash.
    """
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def parse_example(data: bytes) -> dict[str, list[Any]]:
    """Returns the features of a serialised Example: lists of bytes, floats or ints, by name.

    Raises:
      ValueError: the bytes are no Example.
    """
    example: Any = example_class()()
    try:
        example.ParseFromString(data)
    except message.DecodeError as error:
        raise ValueError("the record is no tf.train.Example") from error
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def build_example(features: dict[str, list[Any]]) -> bytes:
    """Returns a serialised Example; the kind of each list is that of its first value."""
    example: Any = example_class()()
    for name, values in features.items():
        kinds = {bytes: "bytes_list", float: "float_list", int: "int64_list"}
        getattr(example.features.feature[name], kinds[type(values[0])]).value.extend(values)
    data: bytes = example.SerializeToString(deterministic=True)
    return data


@dataclasses.dataclass(frozen=True)
class FeatureLayout:
    """Which features of an Example hold what.

    Attributes:
      images: names under which the image may be, the first that is there.
      label: name of the class feature, if any.
      fields: further features with the types that they are passed on as.
      no_label: class number that stands for no class, if any.
    """

    images: tuple[str, ...]
    label: str | None = None
    fields: tuple[pa.Field, ...] = ()
    no_label: int | None = None

    def example(self, data: bytes) -> Example:
        """Returns the image, class and further columns of a serialised Example.

        Raises:
          ValueError: the record cannot be parsed, or has no image.
        """
        features = parse_example(data)
        label = features.get(self.label, []) if self.label else []
        number = to_label(label[0]) if label else None
        columns = {field.name: convert(features.get(field.name, []), field) for field in self.fields}
        return Example(self._image(features), None if number == self.no_label else number, columns)

    def _image(self, features: dict[str, list[Any]]) -> bytes:
        name = next((name for name in self.images if name in features), None)
        if name is None:
            raise ValueError(f"no feature {' or '.join(self.images)} among {', '.join(sorted(features))}")
        values = features[name]
        if len(values) != 1 or not isinstance(values[0], bytes) or not values[0]:
            raise ValueError(f"feature {name} does not hold one image")
        check_size(len(values[0]))
        return values[0]


def infer_fields(where: str, names: Sequence[str], records: Iterable[bytes]) -> list[pa.Field]:
    """Returns Arrow fields for features, as the given records have them.

    A feature with at most one value per record is a scalar, else a list; bytes that are UTF-8
    throughout are strings.

    Raises:
      UserError: no record has the feature; the message names those that are there.
    """
    seen: dict[str, list[list[Any]]] = {}
    for record in records:
        for name, values in parse_example(record).items():
            seen.setdefault(name, []).append(values)
    missing = [name for name in names if not any(seen.get(name, []))]
    if missing:
        raise UserError(f"{where}: no feature {', '.join(missing)}; there are {', '.join(sorted(seen))}")
    return [pa.field(name, _infer_type(seen[name])) for name in names]


def convert(values: list[Any], field: pa.Field) -> Any:
    """Returns the values of a feature as its field wants them; None if there are none.

    Raises:
      ValueError: several values for a scalar, bytes that are not UTF-8 for a string.
    """
    is_list = pa.types.is_list(field.type)
    kind = field.type.value_type if is_list else field.type
    converted = [value.decode() if pa.types.is_string(kind) else value for value in values]
    if is_list:
        return converted or None
    if len(converted) > 1:
        raise ValueError(f"feature {field.name} has {len(converted)} values, not one as elsewhere")
    return converted[0] if converted else None


def _infer_type(lists: list[list[Any]]) -> pa.DataType:
    values = [value for values in lists for value in values]
    if isinstance(values[0], bytes):
        kind = pa.string() if all(_is_text(value) for value in values) else pa.binary()
    else:
        kind = pa.int64() if isinstance(values[0], int) else pa.float32()
    return pa.list_(kind) if any(len(values) > 1 for values in lists) else kind


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _values(feature: Any) -> list[Any]:
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


def _file() -> descriptor_pb2.FileDescriptorProto:
    """Returns the definitions of tensorflow/core/example, as far as Example needs them."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    kinds = {"BytesList": field.TYPE_BYTES, "FloatList": field.TYPE_FLOAT, "Int64List": field.TYPE_INT64}
    for name, kind in kinds.items():
        values = file.message_type.add(name=name)
        values.field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind_name) in enumerate(_LISTS.items(), start=1):
        _add_message(feature, name, number, kind_name).oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    _add_message(entry, "value", 2, "Feature")
    _add_message(features, "feature", 1, "Features.FeatureEntry").label = field.LABEL_REPEATED
    _add_message(file.message_type.add(name="Example"), "features", 1, "Features")
    return file


def _add_message(
    owner: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str
) -> descriptor_pb2.FieldDescriptorProto:
    field = descriptor_pb2.FieldDescriptorProto
    return owner.field.add(
        name=name,
        number=number,
        type=field.TYPE_MESSAGE,
        type_name=f".tensorflow.{kind}",
        label=field.LABEL_OPTIONAL,
    )

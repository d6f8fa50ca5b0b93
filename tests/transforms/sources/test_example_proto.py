import contextlib

import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from transforms.sources.example_proto import (
    FeatureLayout,
    build_example,
    convert,
    infer_fields,
    parse_example,
)
from vqgan.errors import UserError

FEATURES = st.dictionaries(
    st.text(max_size=5),
    st.one_of(
        st.lists(st.binary(max_size=9), min_size=1, max_size=3),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
        st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=3),
    ),
    max_size=4,
)


@given(FEATURES)
def test_what_was_built_is_parsed(features):
    assert parse_example(build_example(features)) == features


@given(st.binary(max_size=60))
def test_other_bytes_raise_nothing_but_value_errors(data):
    with contextlib.suppress(ValueError):
        assert isinstance(parse_example(data), dict)


def test_bytes_are_those_of_the_format():
    expected = bytes.fromhex("0a0d 0a0b 0a016c 1206 1a040a02ac02")
    assert build_example({"l": [300]}) == expected


def test_others_may_register_the_same_names():
    file = descriptor_pb2.FileDescriptorProto(
        name="tensorflow/core/example/example.proto", package="tensorflow"
    )
    file.message_type.add(name="Example")
    pool = descriptor_pool.Default()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    assert message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
    assert parse_example(build_example({"a": [1]})) == {"a": [1]}


def test_a_layout_takes_examples_apart():
    layout = FeatureLayout(("image/encoded", "image"), "label", (pa.field("name", pa.string()),), no_label=-1)
    features = {"image": [b"jpg"], "label": [3], "name": [b"n"]}
    assert layout.example(build_example(features)) == (b"jpg", 3, {"name": "n"})
    features |= {"image/encoded": [b"first"], "label": [-1]}
    del features["name"]
    assert layout.example(build_example(features)) == (b"first", None, {"name": None})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"x": [b"a"]}, "no feature image among x"),
        ({"image": [b"a", b"b"]}, "does not hold one image"),
        ({"image": [b""]}, "does not hold one image"),
        ({"image": [1]}, "does not hold one image"),
        ({"image": [b"a"], "label": [b"cat"]}, "label b'cat' is no integer"),
        ({"image": [b"a"], "label": [1 << 40]}, "is no integer of 32 bits"),
    ],
)
def test_examples_that_do_not_fit(features, message):
    with pytest.raises(ValueError, match=message):
        FeatureLayout(("image",), "label").example(build_example(features))


def test_types_are_inferred():
    records = [
        build_example({"text": [b"a"], "raw": [b"\xff"], "ints": [1, 2], "f": [0.5]}),
        build_example({"text": ["ü".encode()], "raw": [b"a"], "i": [1]}),
    ]
    fields = infer_fields("x", ["text", "raw", "ints", "f", "i"], records)
    assert [field.type for field in fields] == [
        *(pa.string(), pa.binary(), pa.list_(pa.int64()), pa.float32(), pa.int64()),
    ]
    with pytest.raises(UserError, match="no feature b; there are f, i, ints, raw, text"):
        infer_fields("x", ["b"], records)


def test_values_are_converted():
    assert convert([], pa.field("a", pa.list_(pa.int64()))) is None
    assert convert([1, 2], pa.field("a", pa.list_(pa.int64()))) == [1, 2]
    assert convert([b"a"], pa.field("a", pa.list_(pa.string()))) == ["a"]
    with pytest.raises(ValueError, match="2 values"):
        convert([1, 2], pa.field("a", pa.int64()))
    with pytest.raises(ValueError, match="utf-8"):
        convert([b"\xff"], pa.field("a", pa.string()))

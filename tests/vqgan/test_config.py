"""A configuration survives JSON, and every mistake in one gets one line that names it."""

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqgan import UserError
from vqgan.config import MOST_PARAMETERS, ModelConfig
from vqgan.config_json import LARGEST, from_dict, to_dict
from vqgan.model.parameters import check_codec_size, codec_parameter_count


@dataclasses.dataclass(frozen=True)
class Outer:
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    rate: float = 0.5
    limit: int | None = None


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    levels = draw(st.integers(1, 5))
    groups = draw(st.sampled_from([1, 2, 4, 32]))
    low = draw(st.floats(-10, 10))
    return ModelConfig(
        resolution=draw(st.integers(1, 32)) * 2 ** (levels - 1),
        ch=groups * draw(st.integers(1, 8)),
        ch_mult=tuple(draw(st.lists(st.integers(1, 8), min_size=levels, max_size=levels))),
        num_res_blocks=draw(st.integers(1, 4)),
        attn_resolutions=tuple(draw(st.lists(st.integers(1, 64), max_size=3))),
        mid_attention=draw(st.booleans()),
        z_channels=draw(st.integers(1, 512)),
        double_z=draw(st.booleans()),
        embed_dim=draw(st.integers(1, 512)),
        codebook_size=draw(st.integers(2, 1 << 18)),
        dropout=draw(st.floats(0, 0.99)),
        resamp_with_conv=draw(st.booleans()),
        norm_groups=groups,
        input_range=(low, low + draw(st.floats(0.5, 10))),
    )


@given(configs())
def test_survives_json(config: ModelConfig) -> None:
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


@given(configs(), st.floats(0, 1), st.none() | st.integers(-LARGEST, LARGEST))
def test_nested_survives_json(config: ModelConfig, rate: float, limit: int | None) -> None:
    outer = Outer(config, rate, limit)
    assert from_dict(Outer, json.loads(json.dumps(to_dict(outer)))) == outer


def test_tuples_come_back_as_tuples_and_integers_as_floats() -> None:
    config = from_dict(ModelConfig, {"ch_mult": [1, 2], "input_range": [0, 1], "dropout": 0})
    assert config.ch_mult == (1, 2)
    assert [type(value) for value in (*config.input_range, config.dropout)] == [float] * 3


def test_unknown_field_names_the_nearest(refused: Any) -> None:
    with refused(r"codec\.json: unknown field 'codebok_size'; did you mean 'codebook_size'\?"):
        from_dict(ModelConfig, {"codebok_size": 8}, "codec.json")


def test_unknown_field_far_from_all_lists_all(refused: Any) -> None:
    with refused("unknown field 'zzzz'; known: adaptive_norm, attention, .*z_channels"):
        from_dict(ModelConfig, {"zzzz": 8})


def test_unknown_field_with_a_line_break_stays_one_line(refused: Any) -> None:
    with refused("unknown field"):
        from_dict(ModelConfig, {"a\nb": "c\nd"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"ch": "128"}, r"configuration\.ch: expected int, got '128'"),
        ({"ch": 8.0}, r"configuration\.ch: expected int, got 8\.0"),
        ({"ch": True}, r"configuration\.ch: expected int, got True"),
        ({"ch": None}, r"configuration\.ch: expected int, got None"),
        ({"ch": "a\nb"}, r"expected int, got 'a\\nb'"),
        ({"double_z": 1}, r"configuration\.double_z: expected bool, got 1"),
        ({"dropout": "0"}, r"configuration\.dropout: expected float, got '0'"),
        ({"dropout": True}, r"configuration\.dropout: expected float, got True"),
        ({"ch_mult": 2}, r"configuration\.ch_mult: expected a list, got 2"),
        ({"ch_mult": "12"}, r"configuration\.ch_mult: expected a list"),
        ({"ch_mult": [1, "2"]}, r"configuration\.ch_mult: expected int, got '2'"),
        ({"input_range": [0, 1, 2]}, r"configuration\.input_range: expected 2 values, got 3"),
    ],
)
def test_wrong_type(data: dict[str, Any], message: str, refused: Any) -> None:
    with refused(message):
        from_dict(ModelConfig, data)


@pytest.mark.parametrize("data", [None, [], [1], "ch", 3])
def test_not_an_object(data: Any, refused: Any) -> None:
    with refused("configuration: expected an object"):
        from_dict(ModelConfig, data)


def test_nested_object_is_named_with_its_place(refused: Any) -> None:
    with refused(r"run\.model: expected an object, got 3"):
        from_dict(Outer, {"model": 3}, "run")
    with refused(r"run\.model: unknown field 'chh'; did you mean 'ch'"):
        from_dict(Outer, {"model": {"chh": 3}}, "run")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("resolution", "ch", "num_res_blocks", "z_channels", "embed_dim")),
        ("norm_groups", 0),
        ("ch", -32),
        ("ch_mult", ()),
        ("ch_mult", (1, 0)),
        ("codebook_size", 1),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("input_range", (1.0, -1.0)),
        ("input_range", (0.0, 0.0)),
        ("input_range", (float("nan"), 1.0)),
        ("input_range", (0.0, float("inf"))),
        ("resolution", 24),
        ("norm_groups", 3),
        ("ch_mult", (1, 1, 1, 1, 1, 1, 1, 1, 1, 1)),
    ],
)
def test_invalid_value_is_named(field: str, value: Any, refused: Any) -> None:
    named = "resolution" if field == "ch_mult" and len(value) > 5 else field
    with refused(rf"^model\.{named} is "):
        ModelConfig(**{field: value})


def test_width_that_the_groups_do_not_divide_is_named(refused: Any) -> None:
    with refused("norm_groups is 8: it must divide every width, and 12 is one"):
        ModelConfig(ch=12, ch_mult=(2, 4), norm_groups=8)


@pytest.mark.parametrize(("levels", "f"), [(1, 1), (3, 4), (5, 16)])
def test_downsampling(levels: int, f: int) -> None:
    assert ModelConfig(ch_mult=(1,) * levels).downsampling == f


def test_grid_is_height_by_width() -> None:
    assert ModelConfig().grid(256, 512) == (16, 32)


@pytest.mark.parametrize("size", [(255, 256), (256, 264), (0, 256), (256, 0), (-16, 16), (8, 8)])
def test_grid_refuses_other_sizes(size: tuple[int, int], refused: Any) -> None:
    with refused(rf"images of {size[0]}x{size[1]} pixels .* multiples of 16 pixels"):
        ModelConfig().grid(*size)


# Grids of codes


def test_fsq_and_lfq_survive_json() -> None:
    for config in (
        ModelConfig(quantizer="fsq", fsq_levels=(8, 5, 5), embed_dim=3, codebook_size=200),
        ModelConfig(quantizer="lfq", embed_dim=10),
    ):
        assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantizer": "vq"}, "quantizer is 'vq': give one of nearest, cosine, gumbel, ema, fsq, lfq"),
        ({"quantizer": "fsq"}, r"fsq_levels is \[\]: quantizer fsq needs at least 2 levels"),
        ({"quantizer": "fsq", "fsq_levels": (8, 1)}, r"fsq_levels is \[8, 1\]: .* at least 2 levels"),
        ({"quantizer": "fsq", "fsq_levels": (8, 128)}, "embed_dim is 256: it must be 2"),
        (
            {"quantizer": "fsq", "fsq_levels": (8, 5), "embed_dim": 2},
            r"codebook_size is 1024: it must be 40, the product of fsq_levels \[8, 5\]",
        ),
        (
            {"fsq_levels": (8, 128)},
            r"fsq_levels is \[8, 128\]: leave it empty, or set model.quantizer to fsq",
        ),
        ({"quantizer": "lfq"}, r"codebook_size is 1024: .* 2\*\*embed_dim, and embed_dim is 256"),
        ({"quantizer": "lfq", "embed_dim": 9}, r"codebook_size is 1024: .* embed_dim is 9"),
        ({"codebook_size": 2**31 + 1}, r"codebook_size is 2147483649: .* at most 2\*\*31"),
    ],
)
def test_codes_that_do_not_fit_their_quantizer(fields: dict[str, Any], message: str, refused: Any) -> None:
    with refused(rf"^model\.{message}"):
        ModelConfig(**fields)


# Sizes that only a stranger would ask for

INTEGERS = [field.name for field in dataclasses.fields(ModelConfig) if field.type in ("int", int, int | None)]


@pytest.mark.parametrize("value", [1 << 20, 1 << 31, LARGEST])
@pytest.mark.parametrize("name", INTEGERS)
def test_every_integer_is_bounded(name: str, value: int) -> None:
    """Whatever is asked for is refused at once, or has no more parameters than are allowed."""
    fields = {"ch_mult": [1, 1], "norm_groups": 1, "resolution": 2, "attn_resolutions": [], name: value}
    config = None
    with contextlib.suppress(UserError):
        config = from_dict(ModelConfig, fields)
        check_codec_size(config, "codec.json")
        assert codec_parameter_count(config) <= MOST_PARAMETERS
    assert config is None or name not in ("resolution", "mid_blocks", "num_res_blocks", "decoder_res_blocks")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mid_blocks": 1_000_000_000},
            r"mid_blocks is 1000000000, .* are 2000000025 residual blocks, at most 1000",
        ),
        ({"num_res_blocks": 100}, "at 5 levels these are 1009 residual blocks"),
        ({"resolution": 1 << 15}, "resolution is 32768: at most 16384"),
        ({"attn_resolutions": (16,) * 65}, "attn_resolutions has 65 values: at most 64"),
        ({"fsq_levels": (2,) * 65, "quantizer": "fsq"}, "fsq_levels has 65 values"),
        ({"ch_mult": (1,) * 65}, "ch_mult has 65 values"),
    ],
)
def test_more_than_any_model_has(fields: dict[str, Any], message: str, refused: Any) -> None:
    with refused(message):
        ModelConfig(**fields)


def test_more_parameters_and_codes_than_any_codec_has(refused: Any) -> None:
    with refused(r"^codec\.json: the model would have [\d,]+ parameters, at most 10,000,000,000; correct ch"):
        check_codec_size(ModelConfig(ch=1 << 14, norm_groups=1), "codec.json")
    with refused(r"^codec\.json: model.codebook_size is 134,217,728, at most 67,108,864"):
        check_codec_size(ModelConfig(quantizer="lfq", embed_dim=27, codebook_size=1 << 27), "codec.json")
    check_codec_size(ModelConfig(codebook_size=1 << 20), "codec.json")


def test_long_values_are_cut_in_messages(refused: Any) -> None:
    for data in ({"ch": "x" * 10_000}, {"x" * 10_000: 1}, {"ch_mult": [[1] * 10_000]}):
        with pytest.raises(UserError) as caught:
            from_dict(ModelConfig, data)
        assert len(str(caught.value)) < 700

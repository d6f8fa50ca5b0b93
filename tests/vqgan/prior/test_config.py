"""Architectures of priors: derived sizes against numbers worked out by hand, and refusals."""

from typing import Any

import pytest

from vqgan.prior.config import PriorConfig


def test_sizes_of_an_unconditional_prior() -> None:
    config = PriorConfig(grid=(3, 5), codebook_size=7, width=24, heads=3)
    assert (config.length, config.condition_length, config.prefix) == (15, 0, 1)
    assert config.head_width == 8
    assert config.is_causal
    assert config.vocabulary == 7


def test_sizes_of_a_conditional_masked_prior() -> None:
    config = PriorConfig(
        kind="masked", grid=(4, 4), codebook_size=7, condition_codebook_size=9, condition_grid=(2, 3)
    )
    assert (config.length, config.condition_length, config.prefix) == (16, 6, 7)
    assert not config.is_causal
    assert config.vocabulary == 8  # and the id that hides a token


def test_prefix_without_a_start_token() -> None:
    config = PriorConfig(block="gpt", condition_codebook_size=9, condition_grid=(2, 3), start_token=False)
    assert config.prefix == 6


@pytest.mark.parametrize(
    ("block", "width", "hidden", "expected"),
    [
        ("gpt", 256, 0, 1024),
        ("llama", 768, 0, 2048),  # 8 / 3 * 768 is a multiple of 64
        ("llama", 256, 0, 704),  # 682.67, rounded up
        ("llama", 256, 100, 100),
        ("gpt", 256, 100, 100),
    ],
)
def test_feed_forward_width(block: str, width: int, hidden: int, expected: int) -> None:
    assert PriorConfig(block=block, width=width, heads=4, hidden=hidden).feed_forward_width == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "diffusion"}, "model.kind is 'diffusion': give one of autoregressive, masked"),
        ({"block": "bert"}, "model.block is 'bert'"),
        ({"codebook_size": 1}, "model.codebook_size is 1: it must be at least 2"),
        ({"layers": 0}, "model.layers is 0"),
        ({"classes": -1}, "model.classes is -1"),
        ({"grid": (0, 4)}, "model.grid is"),
        ({"grid": (4,)}, "model.grid is"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"condition_grid": (2, 2)}, "give both"),
        ({"condition_grid": (2, 0), "condition_codebook_size": 4}, "give both"),
        ({"condition_grid": (2, 0)}, "give both"),
        ({"condition_grid": (-2, -2)}, "model.condition_grid is"),
        ({"condition_codebook_size": 4}, "give both"),
        ({"start_token": False, "block": "gpt"}, "model.start_token is False"),
        (
            {"start_token": False, "condition_codebook_size": 4, "condition_grid": (2, 2)},
            "model.start_token is False: only an autoregressive prior of block gpt",
        ),
        ({"heads": 3}, "model.heads is 3: it must divide model.width, 256"),
        ({"width": 24, "heads": 4}, "multiple of 4"),
        ({"layers": 1_000_000_000}, "model.layers is 1000000000: at most 1000"),
        (
            {"grid": (1 << 31, 1)},
            r"model.grid is \[2147483648, 1\], condition_grid \[0, 0\]: at most 1,048,576",
        ),
        (
            {"condition_grid": (1024, 1024), "condition_codebook_size": 4},
            "model.grid is .*: at most 1,048,576 tokens",
        ),
        ({"width": 1 << 20}, r"the prior would have [\d,]+ parameters, at most 10,000,000,000; correct"),
        ({"codebook_size": 1 << 31}, "the prior would have"),
        ({"classes": 1 << 50}, "the prior would have"),
        ({"hidden": 1 << 50}, "the prior would have"),
    ],
)
def test_refusals(wrong: dict[str, Any], message: str, refused: Any) -> None:
    with refused(message):
        PriorConfig(**wrong)


def test_learned_positions_take_any_width_of_heads() -> None:
    assert PriorConfig(block="gpt", width=24, heads=4).head_width == 6

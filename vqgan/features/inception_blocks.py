"""The layers of InceptionV3 (arXiv 1512.00567, figures 5 to 7 and 10) under torchvision's names."""

from dataclasses import dataclass

Size = tuple[int, int]


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, BatchNorm and ReLU.

    Attributes:
      name: of the layer.
      channels: of its output.
      size: height and width of its kernel.
      stride: in both directions.
      padded: whether zeros at the border keep the size (at stride 1).
    """

    name: str
    channels: int
    size: Size = (1, 1)
    stride: int = 1
    padded: bool = True


@dataclass(frozen=True)
class MaxPool:
    """A 3x3 max pool of stride 2 without padding."""


@dataclass(frozen=True)
class Branch:
    """One way through a block.

    Attributes:
      convs: one after the other.
      fork: after them, side by side, each of them an output.
      pool: before them: none (""), "smooth" (3x3, size kept) or "halve" (3x3 max pool of stride 2).
    """

    convs: tuple[Conv, ...]
    fork: tuple[Conv, ...] = ()
    pool: str = ""


STEM: tuple[Conv | MaxPool, ...] = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), stride=2, padded=False),
    Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    MaxPool(),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    MaxPool(),
)


def _halving(name: str, channels: int) -> Conv:
    return Conv(name, channels, (3, 3), stride=2, padded=False)


def _a(pool_channels: int) -> tuple[Branch, ...]:
    """Figure 5: the 5x5 convolution beside two of 3x3."""
    return (
        Branch((Conv("branch1x1", 64),)),
        Branch((Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5)))),
        Branch(
            (
                Conv("branch3x3dbl_1", 64),
                Conv("branch3x3dbl_2", 96, (3, 3)),
                Conv("branch3x3dbl_3", 96, (3, 3)),
            )
        ),
        Branch((Conv("branch_pool", pool_channels),), pool="smooth"),
    )


def _b() -> tuple[Branch, ...]:
    """Figure 10: halves height and width."""
    narrow = (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)))
    return (
        Branch((_halving("branch3x3", 384),)),
        Branch((*narrow, _halving("branch3x3dbl_3", 96))),
        Branch((), pool="halve"),
    )


def _c(inner: int) -> tuple[Branch, ...]:
    """Figure 6: 7x7 convolutions as rows and columns, ``inner`` channels within."""
    return (
        Branch((Conv("branch1x1", 192),)),
        Branch(
            (
                Conv("branch7x7_1", inner),
                Conv("branch7x7_2", inner, (1, 7)),
                Conv("branch7x7_3", 192, (7, 1)),
            )
        ),
        Branch(
            (
                Conv("branch7x7dbl_1", inner),
                Conv("branch7x7dbl_2", inner, (7, 1)),
                Conv("branch7x7dbl_3", inner, (1, 7)),
                Conv("branch7x7dbl_4", inner, (7, 1)),
                Conv("branch7x7dbl_5", 192, (1, 7)),
            )
        ),
        Branch((Conv("branch_pool", 192),), pool="smooth"),
    )


def _d() -> tuple[Branch, ...]:
    """Halves height and width once more."""
    narrow = (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
    )
    return (
        Branch((Conv("branch3x3_1", 192), _halving("branch3x3_2", 320))),
        Branch((*narrow, _halving("branch7x7x3_4", 192))),
        Branch((), pool="halve"),
    )


def _e() -> tuple[Branch, ...]:
    """Figure 7: rows and columns side by side, for the coarsest grid."""
    return (
        Branch((Conv("branch1x1", 320),)),
        Branch(
            (Conv("branch3x3_1", 384),),
            fork=(Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
        ),
        Branch(
            (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3))),
            fork=(Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        Branch((Conv("branch_pool", 192),), pool="smooth"),
    )


BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _b(),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e(),
    "Mixed_7c": _e(),
}

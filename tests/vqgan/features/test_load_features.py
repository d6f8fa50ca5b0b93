"""Feature networks by name."""

from collections.abc import Callable

from vqgan.features import NAMES, load_features
from vqgan.features.inception import VARIANTS

Refused = Callable[[str], object]


def test_an_unknown_name_is_answered_with_the_known_ones(refused: Refused) -> None:
    with refused("^resnet: no such feature network; give one of efficientnet-lite0, inception$"):
        load_features("resnet")
    assert NAMES == ("efficientnet-lite0", "inception")


def test_inception_needs_a_path(refused: Refused) -> None:
    with refused(
        "give the path of pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or use efficientnet-lite0"
    ):
        load_features("inception")


def test_only_the_original_weights_give_fid() -> None:
    assert [variant.name for variant in VARIANTS if "FID" in variant.distance] == ["inception-fid"]

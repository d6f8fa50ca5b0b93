"""Protocols of ``vqgan evaluate``: all that a published number depends on, fixed under a name.

``imagenet-50k`` is the reconstruction FID of tokenizers as papers on ImageNet at 256 pixels compute it: each
of the 50,000 validation images (CompVis/taming-transformers, issue 155) beside its own reconstruction, cut by
``center_crop_arr`` of openai/guided-diffusion, ``guided_diffusion/image_datasets.py`` (arXiv 2105.05233), as
LlamaGen's ``tokenizer/validation/val_ddp.py`` does (arXiv 2406.06525). Imports no JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transforms.images.config import DecodeConfig
from transforms.images.crops import Geometry
from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, describe_size

if TYPE_CHECKING:
    from vqgan.features import FeatureNetwork

CITED = ("fid", "psnr", "ssim", "lpips_alex", "lpips_vgg", "codebook_usage")
"""Metrics of the line that can be cited, as far as they were measured."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is measured, on what, and how it is prepared.

    Attributes:
      name: as ``--protocol`` takes it.
      version: raised whenever the same codec and images would give another number.
      images: how many there must be, all of them usable.
      geometry: crop and resize; reconstructions are compared with exactly these pixels, uint8.
      decode: what is accepted; JPEGs are decoded in full, since the decoder's own reduction gives others.
      features: network of the Fréchet distance, which must be FID's.
    """

    name: str
    version: int
    images: int
    geometry: Geometry
    decode: DecodeConfig
    features: str

    def fixed_of(self, given: Mapping[str, Any]) -> tuple[ImageSize, str]:
        """Returns image size and feature network, once no setting says otherwise.

        Args:
          given: values by setting: ``image_size``, ``split``, ``limit``, ``features``, ``features_weights``
            and ``metrics`` among them, None where there is none.

        Raises:
          UserError: names the flag, or the one that is missing.
        """
        size = self.geometry.image_size
        fixed = {"image_size": size, "split": "all", "limit": None, "features": self.features}
        for name, value in fixed.items():
            if given[name] not in (None, value):
                says = "takes all images" if value is None else f"fixes it at {value}"
                shown = describe_size(given[name]) if name == "image_size" else given[name]
                flag = f"--{name.replace('_', '-')} {shown}"
                raise UserError(f"{flag}: --protocol {self.name} {says}; leave it out")
        if given["metrics"] is not None and "frechet" not in given["metrics"]:
            raise UserError(
                f"--metrics {','.join(given['metrics'])}: --protocol {self.name} is about FID; add frechet"
            )
        if given["features_weights"] is None:
            raise self._without_weights()
        return size, self.features

    def _without_weights(self) -> UserError:
        return UserError(
            f"--protocol {self.name}: FID needs the weights of pytorch-fid; give them with "
            "--features-weights pt_inception-2015-12-05-6726825d.pth"
        )

    def check_run(self, network: "FeatureNetwork | None", count: int, data: str) -> None:
        """Refuses, before an image is read, what would end without a number to cite.

        Args:
          network: of the Fréchet distance.
          count: images that are to be measured.
          data: where they come from.

        Raises:
          UserError: another network than FID's, or another number of images.
        """
        if network is None or network.distance != "FID":
            raise self._without_weights()
        if count != self.images:
            raise UserError(
                f"{data}: has {count:,} images, and --protocol {self.name} is over {self.images:,}: give the "
                "whole validation set, or measure without --protocol"
            )

    def describe(self, results: Mapping[str, Any]) -> list[str]:
        """Returns a line to cite for each codec; where images were rejected, one that says why there is none.

        Args:
          results: of the evaluation, as
            :func:`pipelines.evaluating.evaluate_codecs.run_evaluation` returns them.
        """
        measured = results["reference"]["images"]
        if measured != self.images:
            return [
                f"{self.name} v{self.version}: nothing to cite, {measured:,} of {self.images:,} images were "
                "measured; see the rejects"
            ]
        return [
            self._cite(codec, measured, results["versions"]["vqgan-pipelines"]) for codec in results["codecs"]
        ]

    def _cite(self, codec: Mapping[str, Any], measured: int, version: str) -> str:
        metrics = codec["metrics"]
        values = [
            f"{name} {metrics[name]['value']:.4g}{' dB' if name == 'psnr' else ''}"
            for name in CITED
            if name in metrics and metrics[name]["value"] is not None
        ]
        return (
            f"{self.name} v{self.version}: codec {codec['fingerprint'][:12]}, n {measured:,}, "
            f"{', '.join(values)} (vqgan-pipelines {version})"
        )


PROTOCOLS = {
    "imagenet-50k": Protocol(
        name="imagenet-50k",
        version=1,
        images=50_000,
        geometry=Geometry(image_size=256, filter="adm"),
        decode=DecodeConfig(jpeg_draft=False),
        features="inception",
    )
}

"""The metrics of ``vqgan evaluate``: their choice, their weights, sums over batches, and summaries."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqgan.channels import RGB, ChannelsConfig
from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, describe_size, shape_of_size
from vqgan.metrics.codebook_usage import codebook_usage
from vqgan.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance, merge_statistics
from vqgan.metrics.image import SSIM_WINDOW, mean_absolute_error, psnr, ssim

if TYPE_CHECKING:
    from vqgan.features import FeatureNetwork

PerImage = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Originals and reconstructions, uint8 ``[N, S, S, C]``, to one value for each, ``[N]``."""
Metric = dict[str, Any]
"""A metric's ``value``, ``unit``, which way is ``better``, and the number of ``images``; JSON data."""

ON_HOST: Mapping[str, PerImage] = {"psnr": psnr, "ssim": ssim, "l1": mean_absolute_error}
LPIPS = {"lpips-alex": "alex", "lpips-vgg": "vgg"}
FRECHET = "frechet"
METRICS = (*ON_HOST, *LPIPS, FRECHET)
FID_HINT = "FID is frechet with --features inception and the --features-weights of pytorch-fid"
DEFAULT_FEATURES = "efficientnet-lite0"
UNITS = {"psnr": "dB", "l1": "levels of 255"}
HIGHER_IS_BETTER = frozenset({"psnr", "ssim"})


@dataclasses.dataclass(frozen=True)
class MetricChoice:
    """Which metrics, and where their weights lie.

    Attributes:
      metrics: some of :data:`METRICS`; None for all whose weights are available.
      features: network of the Fréchet distance; None for :data:`DEFAULT_FEATURES`.
      features_weights: its weights, where they are not to be fetched.
      lpips_heads: the heads of LPIPS in torch's layout, likewise.
      lpips_backbone: the classifier below them.
    """

    metrics: tuple[str, ...] | None = None
    features: str | None = None
    features_weights: str | None = None
    lpips_heads: str | None = None
    lpips_backbone: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics or () if name not in METRICS]
        if unknown or self.metrics == ():
            hint = f"; {FID_HINT}" if any("fid" in name.lower() for name in unknown) else ""
            raise UserError(f"--metrics {','.join(unknown)}: known are {', '.join(METRICS)}{hint}")
        if (self.lpips_heads or self.lpips_backbone) and len(LPIPS.keys() & set(self.metrics or LPIPS)) != 1:
            raise UserError(
                "--lpips-heads and --lpips-backbone are files of one network: "
                "name lpips-alex or lpips-vgg, not both, in --metrics"
            )
        if (self.features or self.features_weights) and FRECHET not in (self.metrics or METRICS):
            raise UserError("--features and --features-weights are for frechet: name it in --metrics too")

    def asks_for(self, name: str) -> bool:
        """Tells whether the user wants this one by name, rather than whatever is available."""
        given = name == FRECHET and (self.features or self.features_weights)
        return self.metrics is not None or bool(given)


@dataclasses.dataclass(frozen=True)
class LoadedMetrics:
    """Metrics that are ready to be used.

    Attributes:
      on_host: by name, in numpy.
      on_device: by name, in JAX: batches of one size, so that each is compiled once.
      network: of the Fréchet distance.
      skipped: why others of the default metrics are not here.
    """

    on_host: dict[str, PerImage]
    on_device: dict[str, PerImage]
    network: "FeatureNetwork | None"
    skipped: dict[str, str]

    def features(self, images: np.ndarray, count: int) -> FeatureStatistics | None:
        """Returns statistics of the first ``count`` of a batch of images; None without a network.

        Raises:
          UserError: the network gives something that is not a number.
        """
        if self.network is None:
            return None
        rgb = images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)  # grey
        features = np.asarray(self.network.features(rgb))[:count]
        _check_finite(FRECHET, features)
        return feature_statistics(features)


def common_channels(found: Sequence[ChannelsConfig]) -> ChannelsConfig:
    """Returns the channels of the images that all codecs take.

    Raises:
      UserError: they take different ones.
    """
    kinds = list({channels.of_files(): None for channels in found})
    if len(kinds) > 1:
        raise UserError(
            f"these codecs take {', '.join(kind.describe() for kind in kinds)}, or samples of other ranges: "
            "measure them apart, since they do not see the same images"
        )
    return kinds[0]


def load_metrics(
    choice: MetricChoice, image_size: ImageSize, channels: ChannelsConfig = RGB
) -> LoadedMetrics:
    """Finds weights and sees that images of a size in pixels are large enough, of channels that suit.

    Raises:
      UserError: a metric that was asked for by name is not available.
    """
    metrics = LoadedMetrics({}, {}, None, {})
    for name in choice.metrics or METRICS:
        try:
            if name in LPIPS or name == FRECHET:
                channels.require_perception(name, "leave it out")
            if name in LPIPS:
                metrics.on_device[name] = _load_lpips(name, choice, image_size)
            elif name == FRECHET:
                network = _load_network(choice)
                metrics = dataclasses.replace(metrics, network=network)
            else:
                _check_window(name, image_size)
                metrics.on_host[name] = ON_HOST[name]
        except UserError as error:
            if choice.asks_for(name):
                raise
            metrics.skipped[name] = str(error)
    return metrics


def _check_window(name: str, image_size: ImageSize) -> None:
    if name == "ssim" and min(shape_of_size(image_size)) < SSIM_WINDOW:
        raise UserError(
            f"ssim: images of {describe_size(image_size)} pixels are smaller than its window of "
            f"{SSIM_WINDOW}; leave it out or raise --image-size"
        )


def _load_lpips(name: str, choice: MetricChoice, image_size: ImageSize) -> PerImage:
    import jax
    import jax.numpy as jnp

    from vqgan.metrics import lpips

    weights = lpips.load_lpips(LPIPS[name], _path(choice.lpips_heads), _path(choice.lpips_backbone))
    shape = jax.ShapeDtypeStruct((1, *shape_of_size(image_size), 3), jnp.uint8)

    def compare(weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return lpips.distance(weights, x.astype(jnp.float32) / 127.5 - 1, y.astype(jnp.float32) / 127.5 - 1)

    jax.eval_shape(compare, weights, shape, shape)  # says now if the images are too small for the network
    compiled = jax.jit(compare)
    return lambda images, others: np.asarray(compiled(weights, images, others), np.float64)


def _load_network(choice: MetricChoice) -> "FeatureNetwork":
    from vqgan import features

    return features.load_features(choice.features or DEFAULT_FEATURES, _path(choice.features_weights))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


class Scores:
    """Sums over one codec's reconstructions, batch by batch."""

    def __init__(self, metrics: LoadedMetrics, codebook_size: int):
        self.histogram = np.zeros(codebook_size, np.int64)
        self.features: FeatureStatistics | None = None
        self.images = 0
        self._metrics = metrics
        names = (*metrics.on_host, *metrics.on_device)
        self._values: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def add(
        self,
        images: np.ndarray,
        reconstructions: np.ndarray,
        tokens: np.ndarray,
        count: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        """Measures the first ``count`` of a batch; the rest is padding.

        Args:
          images: uint8 ``[B, S, S, C]``.
          reconstructions: the same shape.
          tokens: ``[B, h, w]``.
          count: 1 to B.
          pool: threads for what numpy does, while the device does the rest.

        Raises:
          UserError: a metric gives something that is not a number.
        """
        self.images += count
        used = images[:count], reconstructions[:count]
        waiting = {
            name: [pool.submit(measure, *pair) for pair in _pairs(*used)]
            for name, measure in self._metrics.on_host.items()
        }
        self.histogram += np.bincount(tokens[:count].ravel(), minlength=len(self.histogram))
        for name, measure in self._metrics.on_device.items():
            values = measure(images, reconstructions)[:count]
            _check_finite(name, values)
            self._values[name].append(values)
        self.features = merge_optional(self.features, self._metrics.features(reconstructions, count))
        for name, measured in waiting.items():
            self._values[name] += [one.result() for one in measured]

    @property
    def per_image(self) -> dict[str, np.ndarray]:
        """Returns each per-image metric's values ``[N]``, in the order of the images."""
        return {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in self._values.items()}


def merge_optional(a: FeatureStatistics | None, b: FeatureStatistics | None) -> FeatureStatistics | None:
    """Merges statistics of two sets, either of which may be missing."""
    return merge_statistics(a, b) if a is not None and b is not None else a or b


def _pairs(images: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields one image and its reconstruction at a time."""
    for index in range(len(images)):
        yield images[index : index + 1], others[index : index + 1]


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise UserError(f"{name}: its network gives values that are not numbers; get its weights again")


def summarise(
    scores: Scores, metrics: LoadedMetrics, reference: FeatureStatistics | None
) -> dict[str, Metric]:
    """Returns all metrics of one codec's reconstructions by name.

    Args:
      scores: of all images.
      metrics: those that were measured.
      reference: statistics of the originals' features; the Fréchet distance needs at least two images.
    """
    found = image_metrics(scores) | codebook_metrics(scores)
    network, reconstructed = metrics.network, scores.features
    if network is not None and reference and reconstructed and reference.count > 1:
        found[frechet_name(network)] = frechet_metric(network, reference, reconstructed)
    return found


def image_metrics(scores: Scores) -> dict[str, Metric]:
    """Returns mean, and the spread around it, of each per-image metric."""
    return {name.replace("-", "_"): _image_metric(name, values) for name, values in scores.per_image.items()}


def _image_metric(name: str, values: np.ndarray) -> Metric:
    """Summarises values ``[N]``.

    PSNR has no value where an image is reproduced exactly; those are counted and left out.
    """
    found = values[~np.isposinf(values)]
    spread = (found.mean(), np.median(found), found.min(), found.max()) if found.size else (None,) * 4
    mean, median, lowest, highest = (None if value is None else float(value) for value in spread)
    metric: Metric = {
        "value": mean,
        "unit": UNITS.get(name, ""),
        "better": "higher" if name in HIGHER_IS_BETTER else "lower",
        "images": len(values),
        "median": median,
        "lowest": lowest,
        "highest": highest,
    }
    return metric | ({"equal_images": len(values) - len(found)} if name == "psnr" else {})


def codebook_metrics(scores: Scores) -> dict[str, Metric]:
    """Measures how the tokens of all images together use the codebook."""
    usage = codebook_usage(scores.histogram)
    size = len(scores.histogram)
    values = {
        "codes_used": (usage.used, f"of {size}"),
        "codebook_usage": (usage.used / size, "share of codes"),
        "perplexity": (usage.perplexity, f"of {size}"),
        "entropy": (usage.entropy, f"bits, at most {np.log2(size):.4g}"),
    }
    counts = {"images": scores.images, "tokens": int(scores.histogram.sum())}
    return {
        name: {"value": value, "unit": unit, "better": "higher", **counts}
        for name, (value, unit) in values.items()
    }


def frechet_name(network: "FeatureNetwork") -> str:
    """Returns ``fid`` for the network that FID is defined by, a name of its own for any other."""
    return "fid" if network.distance == "FID" else f"frechet_{network.name.replace('-', '_')}"


def frechet_metric(
    network: "FeatureNetwork", reference: FeatureStatistics, reconstructed: FeatureStatistics
) -> Metric:
    """Returns the distance between the features of originals and of reconstructions; at least two of each."""
    return {
        "value": frechet_distance(reference, reconstructed),
        "unit": "",
        "better": "lower",
        "images": reference.count,
        "distance": network.distance,
        "features": network.name,
        "dimension": network.dimension,
        **({"biased": True} if reference.count <= network.dimension else {}),
    }

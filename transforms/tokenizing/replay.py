"""Making the pixels of a finished data set again: for its report, and to encode a sample once more."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transforms.images.config import DecodeConfig
from transforms.images.crops import Geometry
from transforms.sharded.batching import load_codec
from transforms.sharded.plan import read_slice, spread
from transforms.sharded.verify import require_manifest
from transforms.sources import SourceConfig, open_source
from transforms.tokenizing.shard import Item, PlannedImages, TokenizeTask, read_and_decode
from vqgan import filesystems
from vqgan.codec_checkpoint import read_info
from vqgan.config_json import from_dict
from vqgan.engines.choice import JAX_ENGINE, EngineChoice, recorded_engine, resolve_engine
from vqgan.errors import UserError
from vqgan.manifest import MANIFEST_FILE, DataSetPart, manifest_fields, parts_of, resolve_dataset
from vqgan.shards import open_shard, shard_name

if TYPE_CHECKING:
    from vqgan.codec import Codec
    from vqgan.engines.agreement import TokenAgreement

MAX_VIEWS = 256


class Agreement(NamedTuple):
    """How far re-encoding gives the tokens that the shards hold.

    Attributes:
      images: how many were re-encoded.
      share: of tokens that are equal, 0 to 1.
    """

    images: int
    share: float


def check_agreement(
    output: str, source: SourceConfig, codec_name: str, sample: int, engine: EngineChoice | None = None
) -> Agreement:
    """Encodes some of the images again and compares with the tokens in the shards.

    Args:
      output: a verified data set.
      source: where its images came from.
      codec_name: path or name of its codec.
      sample: images to encode, taken evenly from all slices.
      engine: that encodes them; None for what :func:`replay_engines` chooses.

    Raises:
      UserError: another codec, or another source.
    """
    output = resolve_dataset(output)
    manifest = require_manifest(output)
    if manifest["identity"].get("source", {}).get("kind") in (None, "prior"):
        raise UserError(f"{output}: its tokens were not made of images; leave out --codec and --input")
    # The batch size is that of the data set's slices only by chance; agreement does not need it.
    identity = manifest_fields(output, manifest).fields("identity")
    again = replay_engines(output, codec_name, None)[1] if engine is None else engine
    codec = load_codec(codec_name, 16, identity.text("dtype"), again)
    parts = parts_of(manifest_fields(output, manifest))
    if codec.fingerprint != manifest["codec"]["fingerprint"]:
        raise UserError(
            f"{output}: its tokens were made by codec {manifest['codec']['fingerprint'][:12]}, "
            f"{codec_name} is {codec.fingerprint[:12]}; give the codec that made them"
        )
    agreement = _agreement_of_parts(replayed_images(output, manifest, source), codec, sample, parts)
    if not agreement.images:
        raise UserError(f"{output}: none of its images could be read from {source.input}")
    return agreement


def replay_engines(output: str, codec_name: str, engine: str | None) -> tuple[EngineChoice, EngineChoice]:
    """Returns the engine that has made a data set's tokens, and the one to make them again.

    Args:
      output: the data set.
      codec_name: path or name of its codec.
      engine: to take; None for the one that has made them, or JAX where that very release is not installed.

    Raises:
      UserError: no finished data set, or an engine that is unknown, missing or without a graph for the codec.
    """
    output = resolve_dataset(output)
    identity = manifest_fields(output, require_manifest(output)).fields("identity")
    made = recorded_engine(identity.text_or_none("engine"))
    if engine is not None:
        return made, resolve_engine(engine, read_info(codec_name).config)
    return made, _installed_or_jax(made)


def _installed_or_jax(made: EngineChoice) -> EngineChoice:
    try:
        made.check_installed()
    except UserError:
        return JAX_ENGINE
    return made


def _agreement_of_parts(
    images: PlannedImages, codec: "Codec", sample: int, parts: Sequence[DataSetPart]
) -> Agreement:
    """Takes the sample evenly from the slices of all parts; images that the source lacks do not count."""
    slices = sum(part.slices for part in parts)
    found = []
    for number, part in enumerate(parts):
        share = -(-sample * part.slices // max(1, slices))
        of_part = dataclasses.replace(images, slices=part.slices, part=number)
        found.append(measure_agreement(of_part, codec, share))
    count = sum(each.images for each in found)
    return Agreement(count, sum(each.share * each.images for each in found) / count if count else 0.0)


def measure_agreement(images: PlannedImages, codec: "Codec", sample: int) -> Agreement:
    """Encodes ``sample`` images, taken evenly from all slices, and compares with their shards."""
    equal = total = count = 0
    for number, wanted in spread(sample, images.slices):
        rows = list(stored_rows(images, number, wanted))
        if rows:
            fresh = codec.encode(np.stack([row.pixels for row in rows]))
            equal += int(np.sum(fresh == np.stack([row.tokens for row in rows])))
            total += fresh.size
            count += sum(row.view == 0 for row in rows)
    return Agreement(count, equal / total if total else 0.0)


def measure_token_agreement(task: TokenizeTask) -> "TokenAgreement | None":
    """Encodes a few images with JAX in float32 and compares with their shards; None where there are none."""
    from vqgan.engines.agreement import SAMPLE, compare_tokens

    parts = (stored_rows(task, number, wanted) for number, wanted in spread(SAMPLE, task.slices))
    rows = list(itertools.islice(itertools.chain.from_iterable(parts), SAMPLE))
    if not rows:
        return None
    pixels, tokens = (np.stack(values) for values in ([r.pixels for r in rows], [r.tokens for r in rows]))
    return compare_tokens(load_codec(task.codec, SAMPLE, "float32"), pixels, tokens)


class StoredRow(NamedTuple):
    """A row as a shard holds it, with its pixels made again from the source.

    Attributes:
      key, view: which row.
      tokens: int32 ``[h, w]``.
      pixels: uint8 ``[S, S, C]``.
    """

    key: str
    view: int
    tokens: np.ndarray
    pixels: np.ndarray


def stored_rows(images: PlannedImages, number: int, count: int) -> Iterator[StoredRow]:
    """Yields rows of the first ``count`` images of a slice that give rows, with pixels from the source."""
    path = filesystems.join(images.output, shard_name(number, images.slices, images.part))
    tokens: dict[tuple[str, int], np.ndarray] = {}
    with open_shard(path) as shard:
        first = next(shard.batches(["key", "view", "tokens"], rows=count * MAX_VIEWS), None)
        if first is None:
            return
        grids = shard.tokens(first)
        for key, view, grid in zip(*(first.column(i).to_pylist() for i in (0, 1)), grids, strict=True):
            tokens[key, view] = grid
    keys = list(dict.fromkeys(key for key, _ in tokens))[:count]
    entries = [
        entry.unseen() for entry in read_slice(images.output, number, images.part) if entry.key in set(keys)
    ]
    for item in read_and_decode(images, open_source(images.source), entries):
        if isinstance(item, Item):
            for row, pixels in zip(item.rows, item.pixels, strict=True):
                if (row.key, row.view.view) in tokens:
                    yield StoredRow(row.key, row.view.view, tokens[row.key, row.view.view], pixels)


def replayed_images(output: str, manifest: dict[str, Any], source: SourceConfig) -> PlannedImages:
    """Returns what makes the pixels of a data set again; of several parts, those of the first."""
    fields = manifest_fields(output, manifest)
    identity = fields.fields("identity")
    preprocessing, kept = identity.fields("preprocessing"), identity.fields("source")
    return PlannedImages(
        output=output,
        source=dataclasses.replace(
            source,
            kind=kept.text("kind"),
            image_column=source.image_column or kept.text_or_none("image_column"),
            label_column=source.label_column or kept.text_or_none("label_column"),
        ),
        decode=from_dict(DecodeConfig, preprocessing.value("decode"), where=f"{output}/{MANIFEST_FILE}"),
        geometry=from_dict(Geometry, preprocessing.value("geometry"), where=f"{output}/{MANIFEST_FILE}"),
        batch_size=16,
        threads=2,
        slices=parts_of(fields)[0].slices,
    )

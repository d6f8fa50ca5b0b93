"""Finished data sets of tokens, as what adds to them, mends and joins them opens and holds them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.options.declarations import parse_settings
from pipelines.options.run_options import TokenizeOptions
from pipelines.tokenize_images import TokenizeConfig
from transforms.sharded.ownership import owning
from transforms.sharded.plan import (
    PLAN_FOLDER,
    check_plan_tables,
    differences,
    read_plan,
    read_slices,
)
from transforms.sharded.run import LEFTOVER_SECONDS, missing_files
from transforms.tokenizing.parts import (
    delete_superseded,
)
from vqgan import filesystems, publishing
from vqgan.codec_checkpoint import read_info
from vqgan.config_json import RUN_FILE, to_dict
from vqgan.engines.choice import EngineChoice, recorded_engine
from vqgan.errors import UserError, counted
from vqgan.image_sizes import read_size
from vqgan.manifest import (
    DataSetPart,
    chain_hash,
    check_parts,
    check_tokens,
    manifest_fields,
    parts_of,
    read_manifest,
    refuse_buckets,
)


@dataclasses.dataclass(frozen=True)
class FinishedSet:
    """A finished data set of tokens that were made of images.

    Attributes:
      output: its folder or URI.
      manifest: of it.
      parts: of it.
      identity: of its first plan.
    """

    output: str
    manifest: Mapping[str, Any]
    parts: list[DataSetPart]
    identity: Mapping[str, Any]

    @property
    def engine(self) -> EngineChoice:
        """What runs the codec's networks."""
        engine = self.identity.get("engine")
        return recorded_engine(engine if isinstance(engine, str) else None)

    @property
    def parent(self) -> str:
        """What the plan of the next part names as the plans before it."""
        return chain_hash([part.plan_hash for part in self.parts])

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields the entries of all images, each once, slice by slice."""
        for number, part in enumerate(self.parts):
            if not part.retries:
                yield from read_slices(self.output, columns, number)

    def entries(self, columns: Sequence[str]) -> pa.Table:
        """Returns columns of the entries of all images, each once."""
        return pa.concat_tables(self.tables(columns))


def open_finished(output: str) -> FinishedSet:
    """Opens a finished data set that may get further parts.

    Raises:
      UserError: there is none, it is not finished, files of it are lost, or it was not made of images.
    """
    manifest, plan = read_manifest(output), read_plan(output)
    if manifest is None or plan is None:
        refuse_buckets(output)
        raise UserError(f"{output}: no finished data set there (no manifest.json); finish it first")
    check_tokens(output, manifest)
    check_parts(output, manifest)
    if "sampling" in plan.identity:
        raise UserError(f"{output}: its tokens were drawn from a prior; give one that vqgan tokenize made")
    if missing := missing_files(output, manifest):
        raise UserError(
            f"{output}: {counted(len(missing), 'file')} missing or damaged, such as {missing[0]}; "
            "run vqgan verify --repair first"
        )
    parts = parts_of(manifest_fields(output, manifest))
    for number in range(len(parts)):
        check_plan_tables(output, number)
    return FinishedSet(output, manifest, parts, plan.identity)


def config_of(output: str, given: Mapping[str, Any]) -> TokenizeConfig:
    """Returns the settings that a data set was made with, as its ``plan/run.yaml`` has them.

    Args:
      output: the data set.
      given: settings that win over those; None leaves one as it is.

    Raises:
      UserError: there is no such file, or a codec or input is not there any more.
    """
    path = filesystems.join(output, f"{PLAN_FOLDER}/{RUN_FILE}")
    if not filesystems.exists(path):
        raise UserError(
            f"{output}: there is no {PLAN_FOLDER}/{RUN_FILE} that tells how it was made; merged data sets "
            "have none: do this with those that were merged, remove what is damaged here, and merge again"
        )
    settings = parse_settings(TokenizeOptions, filesystems.read_bytes(path), path)
    settings |= {name: value for name, value in given.items() if value is not None}
    return TokenizeOptions(**{**settings, "output": output}).config()


def checked_config(finished: FinishedSet, config: TokenizeConfig) -> TokenizeConfig:
    """Returns the settings with the kind of the source, which the data set tells.

    Raises:
      UserError: other settings than the data set was made with.
    """
    info, identity = read_info(config.codec), finished.identity
    config = _at_its_size(identity, config.for_codec(info))
    finished.engine.check_installed()
    mine = {
        "codec": {"fingerprint": info.fingerprint, "config": to_dict(info.config)},
        "preprocessing": {"decode": to_dict(config.decode), "geometry": to_dict(config.geometry)},
        "dtype": config.dtype,
    }
    if changed := differences({name: identity[name] for name in mine}, mine):
        raise UserError(f"{finished.output}: other settings than it was made with ({'; '.join(changed)})")
    source = dataclasses.replace(config.source, kind=identity["source"]["kind"])
    return dataclasses.replace(config, source=source)


def _at_its_size(identity: Mapping[str, Any], config: TokenizeConfig) -> TokenizeConfig:
    """Returns the settings of a data set that is one of several buckets, of which they tell all sizes."""
    if "buckets" not in identity:
        return config
    size = read_size("image_size", identity["preprocessing"]["geometry"]["image_size"])
    return dataclasses.replace(config, geometry=dataclasses.replace(config.geometry, image_size=size))


@contextlib.contextmanager
def owned(finished: FinishedSet) -> Iterator[None]:
    """Holds a data set while the block lasts, without what killed commands have left in it.

    Raises:
      UserError: another command is at work, or has been since the data set was opened.
    """
    with owning(finished.output) as alone:
        if read_manifest(finished.output) != finished.manifest:
            raise UserError(
                f"{finished.output}: another command has changed it meanwhile; run this one again"
            )
        publishing.delete_temporaries(finished.output, 0.0 if alone else LEFTOVER_SECONDS, below=True)
        delete_superseded(finished.output, finished.manifest)
        yield

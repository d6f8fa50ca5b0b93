"""Which image goes to which bucket, and a run for each: what ``vqgan tokenize --buckets`` carries out.

An image that is planned in a bucket stays in it; all others are measured.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data_sets.additions import of_planned, only_new
from pipelines.tokenize_images import ListedInput, PlannedTokenize, TokenizeConfig, list_input, plan_listed
from transforms.sharded.batching import threads_here
from transforms.sharded.plan import read_plan
from transforms.sharded.run import check_same_plan, speaker
from transforms.tokenizing.buckets import assign_buckets, planned_keys
from vqgan import filesystems
from vqgan.codec_checkpoint import read_info
from vqgan.errors import UserError
from vqgan.image_sizes import ImageSize, describe_bucket, shape_of_size
from vqgan.manifest import BUCKETS_FILE, read_buckets, read_manifest


def plan_buckets(
    config: TokenizeConfig, buckets: Sequence[ImageSize], append: bool = False
) -> dict[str, PlannedTokenize]:
    """Lists the source, reads each image's size, and plans a data set for each bucket; writes nothing.

    Args:
      config: all settings.
      buckets: sizes of different aspect.
      append: the data sets may be there already, and be of fewer images.

    Returns:
      What is planned by the name of the bucket; those without images are left out.

    Raises:
      UserError: a size that the codec does not take, another run's output, other settings than it was made
        with, or as :func:`pipelines.tokenize_images.plan_tokenize`.
    """
    model = read_info(config.codec).config
    for size in buckets:
        model.grid(*shape_of_size(size))
    names = list(map(describe_bucket, buckets))
    _check_output(config.output, names)
    if append:
        require_finished_buckets(config.output)
    planned_before = {name: planned_keys(filesystems.join(config.output, name)) for name in names}
    listed = list_input(config, _known(planned_before) if append else ())
    chosen = _choose(listed, buckets, planned_before)
    planned = {}
    for number, size in enumerate(buckets):
        entries = listed.entries.take(pa.array(np.flatnonzero(chosen == number)))
        run = _plan_bucket(dataclasses.replace(listed, entries=entries), size, names)
        is_grown = append and read_manifest(run.output) is not None
        if len(entries) or is_grown:
            planned[describe_bucket(size)] = _checked(run, append)
        else:
            speaker(config.quiet)(f"{describe_bucket(size)}: no image is nearest to it")
    return planned


def new_in_bucket(run: PlannedTokenize) -> PlannedTokenize:
    """Returns the part of a planned bucket that its data set does not have; all, where none is finished."""
    return run if read_manifest(run.output) is None else only_new(run)[1]


def _plan_bucket(listed: ListedInput, size: ImageSize, names: Sequence[str]) -> PlannedTokenize:
    config = dataclasses.replace(
        listed.config,
        output=filesystems.join(listed.config.output, describe_bucket(size)),
        geometry=dataclasses.replace(listed.config.geometry, image_size=size),
    )
    return plan_listed(dataclasses.replace(listed, config=config), {"buckets": list(names)})


def _checked(run: PlannedTokenize, append: bool) -> PlannedTokenize:
    """Returns a run that may begin, or raises the UserError that it would end with."""
    if append and read_manifest(run.output) is not None:
        only_new(run)
    else:
        check_same_plan(as_begun(run) if append else run)
    return run


def as_begun(run: PlannedTokenize) -> PlannedTokenize:
    """Returns a run as it was begun, if the input has grown since; what has come is added afterwards."""
    plan = read_plan(run.output)
    return run if plan is None or plan.hash == run.plan.hash else of_planned(run, run.output, 0)


def _known(planned: Mapping[str, pa.Table]) -> frozenset[str]:
    """Returns keys of images that new ones may be duplicates of: not those that are duplicates themselves."""
    keys = (table.filter(pc.is_null(table.column("error"))).column("key") for table in planned.values())
    return frozenset(key for column in keys for key in column.to_pylist())


def _choose(listed: ListedInput, buckets: Sequence[ImageSize], planned: Mapping[str, pa.Table]) -> np.ndarray:
    """Returns the bucket of every entry, int64 ``[N]``: the one that it is planned in already, if any."""
    config, keys = listed.config, listed.entries.column("key")
    chosen = np.full(len(keys), -1)
    for number, table in enumerate(planned.values()):
        known = table.column("key").combine_chunks().cast(keys.type)
        chosen[pc.is_in(keys, known).to_numpy()] = number
    new = np.flatnonzero(chosen < 0)
    entries, threads = listed.entries.take(pa.array(new)), threads_here(config.threads)
    chosen[new] = assign_buckets(listed.source, entries, buckets, config.decode, threads)
    return chosen


def _check_output(output: str, names: Sequence[str]) -> None:
    """Refuses a folder that holds anything but these buckets.

    Raises:
      UserError: says what it holds.
    """
    found = read_buckets(output)
    if found is not None and found["buckets"] != list(names):
        raise UserError(
            f"{output}: was made with --buckets {','.join(found['buckets'])}; choose another output"
        )
    known = {BUCKETS_FILE, *names}
    strangers = [name for name in filesystems.list_entries(output) if name not in known]
    if strangers:
        raise UserError(
            f"{output}: there is something else in it, such as {strangers[0]}; choose an empty or new folder"
        )


def require_finished_buckets(output: str) -> None:
    """Refuses a folder of buckets whose first run has not come to its end.

    Raises:
      UserError: says what to do.
    """
    if "data_sets" not in (read_buckets(output) or {}):
        raise UserError(
            f"{output}: no finished data sets of buckets there; run vqgan tokenize --buckets first, "
            "without --append"
        )

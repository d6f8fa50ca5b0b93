"""``vqgan tokenize --buckets``: one corpus, a data set for each of several sizes, each image in one of them.

``OUTPUT/256x384`` and its like are data sets as any other. ``OUTPUT/buckets.json`` lists them: written first,
it keeps other buckets and other data out; written again at the end, it has the counts of all, and says by
them that every data set is there.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.tokenize_images import (
    ListedInput,
    PlannedTokenize,
    TokenizeConfig,
    carry_out,
    list_input,
    plan_listed,
)
from transforms.sharded.batching import threads_here
from transforms.sharded.manifest import by_count
from transforms.sharded.plan import read_plan, read_slices
from transforms.sharded.run import check_same_plan, speaker
from transforms.tokenizing.buckets import assign_buckets
from vqgan import filesystems
from vqgan.codec_checkpoint import read_info
from vqgan.errors import UserError, counted
from vqgan.image_sizes import ImageSize, describe_bucket, shape_of_size
from vqgan.manifest import BUCKETS_FILE, FORMAT_VERSION, read_buckets, write_buckets


def tokenize_buckets(
    config: TokenizeConfig, buckets: Sequence[ImageSize], beam_args: Sequence[str], record: bytes = b""
) -> dict[str, Any]:
    """Makes a data set for each bucket that has images, or continues a run that was interrupted.

    Args:
      config: all settings; its size is that of any bucket.
      buckets: sizes of different aspect.
      beam_args: flags for Beam; the data sets are made one after the other.
      record: the settings as a file, for each data set.

    Returns:
      What ``buckets.json`` says; ``counts`` and ``reject_reasons`` are those of all buckets together.

    Raises:
      UserError: whatever the user can put right.
    """
    if config.output == "":
        raise UserError("--output is empty: give a folder")
    _check_output(config.output, list(map(describe_bucket, buckets)))
    planned = plan_buckets(config, buckets)
    for run in planned.values():
        check_same_plan(run)  # before any of them begins
    filesystems.make_folder(config.output)
    listed: dict[str, Any] = {"version": FORMAT_VERSION, "buckets": list(map(describe_bucket, buckets))}
    if read_buckets(config.output) is None:
        write_buckets(config.output, listed)
    manifests = {name: carry_out(run, beam_args, record) for name, run in planned.items()}
    document = {**listed, **_sums(manifests)}
    write_buckets(config.output, document)
    counts = document["counts"]
    speaker(config.quiet)(
        f"{config.output}: {counted(counts['images'], 'image')} in {counted(len(manifests), 'bucket')}, "
        f"{counted(counts['rows'], 'row')}, {counted(counts['rejects'], 'reject')}"
    )
    return document


def plan_buckets(config: TokenizeConfig, buckets: Sequence[ImageSize]) -> dict[str, PlannedTokenize]:
    """Lists the source, reads each image's size, and plans a data set for each bucket; writes nothing.

    Returns:
      What is planned by the name of the bucket; those without images are left out.

    Raises:
      UserError: a size that the codec does not take, or as :func:`pipelines.tokenize_images.plan_tokenize`.
    """
    model = read_info(config.codec).config
    for size in buckets:
        model.grid(*shape_of_size(size))
    listed = list_input(config)
    chosen = _choose(listed, buckets)
    planned = {}
    for number, size in enumerate(buckets):
        entries = listed.entries.take(pa.array(np.flatnonzero(chosen == number)))
        name = describe_bucket(size)
        if not len(entries):
            speaker(config.quiet)(f"{name}: no image is nearest to it")
            continue
        own = dataclasses.replace(
            listed.config,
            output=filesystems.join(config.output, name),
            geometry=dataclasses.replace(config.geometry, image_size=size),
        )
        one = dataclasses.replace(listed, config=own, entries=entries)
        planned[name] = plan_listed(one, {"buckets": list(map(describe_bucket, buckets))})
    return planned


def _choose(listed: ListedInput, buckets: Sequence[ImageSize]) -> np.ndarray:
    """Returns the bucket of every entry, int64 ``[N]``: the one that it is planned in already, if any."""
    config, keys = listed.config, listed.entries.column("key")
    chosen = np.full(len(keys), -1)
    for number, size in enumerate(buckets):
        folder = filesystems.join(config.output, describe_bucket(size))
        if read_plan(folder) is not None:
            planned = pa.concat_tables(read_slices(folder, ["key"])).column("key")
            chosen[pc.is_in(keys, planned.combine_chunks().cast(keys.type)).to_numpy()] = number
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


def _sums(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the counts of each data set, and of all."""
    counts, reasons = Counter[str](), Counter[str]()
    for manifest in manifests.values():
        counts.update(manifest["counts"])
        reasons.update(manifest["reject_reasons"])
    return {
        "data_sets": {
            name: {"grid": list(manifest["grid"]), "plan_hash": manifest["plan_hash"], **manifest["counts"]}
            for name, manifest in manifests.items()
        },
        "counts": dict(counts),
        "reject_reasons": by_count(reasons),
    }

"""``vqgan tokenize --buckets``: one corpus, a data set for each of several sizes, each image in one of them.

``OUTPUT/256x384`` and its like are data sets as any other, and grow as any other. ``OUTPUT/buckets.json``
names them: written first, it keeps other buckets and other data out; written again at the end, it lists those
that have images, and says by that that they are there. What they hold their manifests tell alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.data_sets.additions import append_planned, retry_rejects
from pipelines.data_sets.bucket_plans import as_begun, plan_buckets, require_finished_buckets
from pipelines.data_sets.finished_sets import open_finished
from pipelines.tokenize_images import PlannedTokenize, TokenizeConfig, carry_out
from transforms.sharded.run import speaker
from transforms.tokenizing.buckets import describe_buckets
from vqgan import filesystems, publishing
from vqgan.errors import UserError, counted
from vqgan.image_sizes import ImageSize, describe_bucket
from vqgan.manifest import FORMAT_VERSION, bucket_names, read_buckets, read_manifest, write_buckets


def tokenize_buckets(
    config: TokenizeConfig,
    buckets: Sequence[ImageSize],
    beam_args: Sequence[str],
    record: bytes = b"",
    append: bool = False,
) -> dict[str, Any]:
    """Makes a data set for each bucket that has images, or continues a run that was interrupted.

    Args:
      config: all settings; its size is that of any bucket.
      buckets: sizes of different aspect.
      beam_args: flags for Beam; the data sets are made one after the other.
      record: the settings as a file, for each data set.
      append: the data sets are finished: add what the source has and they do not. A bucket that had no
        images gets a data set when it has some.

    Returns:
      What :func:`transforms.tokenizing.buckets.describe_buckets` tells of the output.

    Raises:
      UserError: whatever the user can put right.
    """
    if config.output == "":
        raise UserError("--output is empty: give a folder")
    planned = plan_buckets(config, buckets, append)
    publishing.make_folder(config.output)
    names = list(map(describe_bucket, buckets))
    listed = read_buckets(config.output)
    if listed is None:
        listed = {"version": FORMAT_VERSION, "buckets": names}
        write_buckets(config.output, listed)
    for run in planned.values():
        _make(run, beam_args, record, append)
    made = {*listed.get("data_sets", ()), *planned}
    document = {**listed, "data_sets": [name for name in names if name in made]}
    if document != listed:
        write_buckets(config.output, document)
    return _told(config.output, config.quiet)


def retry_buckets(output: str, given: Mapping[str, Any], beam_args: Sequence[str] = ()) -> dict[str, Any]:
    """Tries the rejects of the data sets of all buckets again, in turn.

    Arguments and errors are those of :func:`pipelines.data_sets.additions.retry_rejects`; the result is
    that of :func:`tokenize_buckets`.
    """
    require_finished_buckets(output)
    folders = [filesystems.join(output, name) for name in bucket_names(output)]
    for folder in folders:
        open_finished(folder)  # before any of them begins
    for folder in folders:
        retry_rejects(folder, given, beam_args)
    return _told(output, bool(given["quiet"]))


def _make(run: PlannedTokenize, beam_args: Sequence[str], record: bytes, append: bool) -> None:
    """Makes the data set of a bucket, or adds to it what it lacks."""
    if not append:
        carry_out(run, beam_args, record)
        return
    if read_manifest(run.output) is None:
        begun = as_begun(run)
        carry_out(begun, beam_args, record)
        if begun is run:
            return
    append_planned(run, beam_args)


def _told(output: str, quiet: bool) -> dict[str, Any]:
    """Returns what there is, and says it."""
    document = describe_buckets(output)
    counts = document["counts"]
    speaker(quiet)(
        f"{output}: {counted(counts['images'], 'image')} in {counted(len(document['data_sets']), 'bucket')}, "
        f"{counted(counts['rows'], 'row')}, {counted(counts['rejects'], 'reject')}"
    )
    return document

"""Running a job: slice by slice in this process, or by Beam so that a user sees one line for a traceback."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from pipelines.runners.dataflow import check_template
from pipelines.runners.engine_errors import answering, quiet_imports
from pipelines.runners.run_watch import watching
from pipelines.runners.runner_flags import RUNNER, RunnerFlags
from transforms.sharded.job import ShardedJob
from transforms.sharded.plan import PLAN_FOLDER, Plan
from transforms.sharded.worker import RunSettings, make_all_here
from vqgan import filesystems, publishing
from vqgan.config_json import RUN_FILE
from vqgan.presets import pretrained_names

_END_WITH_PARENT = (  # PR_SET_PDEATHSIG of prctl(2), which outlives exec; the parent may be gone already
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) and os.execvp(sys.argv[2], sys.argv[2:])"
)


def run_job(
    job: ShardedJob, plan: Plan, beam_args: Sequence[str], quiet: bool, compilation_cache: bool = False
) -> None:
    """Runs a sharded job with progress: in this process, or on Beam or Dask where flags ask for them.

    Without flags Beam would do the same as a loop over the slices, but its import takes a second.

    Args:
      job: what to do.
      plan: its plan.
      beam_args: flags for Beam.
      quiet: show no progress.
      compilation_cache: workers keep what XLA compiles.

    Raises:
      UserError: what a worker raised for the user, or a line that says how the engine has failed.
      Postponed: the flags ask for a file with the job, not for a run.
    """
    if not beam_args:
        with watching(job.task.output, plan, quiet) as watch:
            make_all_here(job, plan, RunSettings(watch.attempt, compilation_cache))
        return
    args = list(beam_args)
    if not any(arg.split("=")[0] == "--runner" for arg in args):
        args.append(f"--runner={RUNNER}")
    flags = RunnerFlags(args)
    with watching(job.task.output, plan, quiet) as watch, answering(flags.in_process):
        settings = RunSettings(watch.attempt, compilation_cache)
        if flags.runner == "dask":
            from pipelines.runners.dask_runs import DaskOptions, run_on_dask

            run_on_dask(job, plan, settings, DaskOptions.of_flags(args))
        else:
            _run_beam(job, plan, args, settings)
    check_template(flags.runner, flags.given)


def measure_graph(job: ShardedJob, plan: Plan) -> int:
    """Returns the bytes of the job graph that a runner would get; submits and writes nothing.

    They do not grow with the number of slices.

    Args:
      job: what to do.
      plan: its plan.
    """
    with quiet_imports():
        import apache_beam as beam

        from transforms.sharded.beam_graph import RunJob
    with plain_labels():
        pipeline = beam.Pipeline(runner=RUNNER)
        pipeline | RunJob(job, plan)
        return int(pipeline.to_runner_api().ByteSize())


def _run_beam(job: ShardedJob, plan: Plan, args: Sequence[str], settings: RunSettings) -> None:
    with quiet_imports():
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        from transforms.sharded.beam_graph import RunJob
    options = PipelineOptions(list(args))
    with plain_labels(), quiet_workers(), ending_with_us(), beam.Pipeline(options=options) as pipeline:
        pipeline | RunJob(job, plan, settings)


def everywhere(path: str) -> str:
    """Returns a local path as one that means the same in every working folder; URIs as they are."""
    name, mark, folder = path.partition("?data_dir=")
    if path.startswith("tfds:"):
        return f"{name}{mark}{everywhere(folder)}" if mark else path
    if "://" in filesystems.plain_uri(path):
        return path
    return os.path.abspath(os.path.expanduser(path))


def codec_everywhere(path_or_name: str) -> str:
    """Returns a codec's path, with its options, as one for every folder; names as they are."""
    from vqgan.importers.source import split_source

    path, _ = split_source(path_or_name)
    if os.path.exists(path) and not _is_name(path):
        return os.path.abspath(path) + path_or_name[len(path) :]
    return path_or_name


def _is_name(path: str) -> bool:
    """Tells whether a codec that comes with the package is meant, though a folder has that name, too."""
    in_folder = any(os.path.isfile(os.path.join(path, inner, "codec.json")) for inner in ("", "codec"))
    return path in pretrained_names() and not in_folder


def write_record(output: str, record: bytes) -> None:
    """Leaves the settings of a run beside its plan, for ``--config``; the same ones are not written again."""
    path = filesystems.join(output, f"{PLAN_FOLDER}/{RUN_FILE}")
    try:
        written = filesystems.read_bytes(path)
    except OSError:  # not there yet, or no file: writing says what is in the way
        written = b""
    if record and record != written:
        publishing.write_bytes(path, record)


@contextlib.contextmanager
def quiet_workers() -> Iterator[None]:
    """Keeps Beam's workers in this process from printing tracebacks, which come with their errors anyway."""
    from apache_beam.runners.worker import sdk_worker

    worker: Any = sdk_worker
    worker.print = lambda *_, **__: None  # found before the built-in one
    try:
        yield
    finally:
        del worker.print


@contextlib.contextmanager
def ending_with_us() -> Iterator[None]:
    """Has job servers that Beam starts end with this process, even if it is killed, on Linux."""
    if not sys.platform.startswith("linux"):
        yield
        return
    from apache_beam.utils import subprocess_server

    def start(command: Sequence[str], **options: Any) -> Any:
        return subprocess.Popen(
            [sys.executable, "-c", _END_WITH_PARENT, str(os.getpid()), *command], **options
        )

    server: Any = subprocess_server
    plain = server.subprocess
    server.subprocess = SimpleNamespace(**{**vars(plain), "Popen": start})
    try:
        yield
    finally:
        server.subprocess = plain


@contextlib.contextmanager
def plain_labels() -> Iterator[None]:
    """Keeps Beam, in a notebook, from naming steps after cells.

    It would import its data frames for that, which fails with pandas 3, and where there is no pandas.
    """
    import apache_beam.pipeline

    beam_pipeline: Any = apache_beam.pipeline
    rename = beam_pipeline.alter_label_if_ipython
    beam_pipeline.alter_label_if_ipython = lambda *_: None
    try:
        yield
    finally:
        beam_pipeline.alter_label_if_ipython = rename

"""Flags of runners: which there are, and what can be known of a runner before anything is written.

Beam's own flags are those of its option classes. A job server has further ones, which it tells when it is
asked; those of Flink's and Spark's servers are listed here, since they are often started by the run itself.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from pipelines.runners.dataflow import check_dataflow
from pipelines.runners.engine_errors import quiet_imports
from vqgan.errors import UserError

RUNNER = "FnApiRunner"  # Beam's own default tries to download a runner at every start
ANSWER_SECONDS = 10
"""How long a job server is waited for."""

FLINK_FLAGS = frozenset((
    "allow_non_restored_state", "attached_mode", "auto_balance_write_files_sharding_enabled",
    "auto_watermark_interval", "checkpoint_timeout_millis", "checkpointing_interval",
    "checkpointing_mode", "disable_metrics", "enable_stable_input_drain", "execution_mode_for_batch",
    "execution_retry_delay", "externalized_checkpoints_enabled", "fail_on_checkpointing_errors",
    "faster_copy", "file_input_split_max_size_m_b", "files_to_stage",
    "finish_bundle_before_checkpointing", "flink_conf_dir", "force_slot_sharing_group",
    "force_unaligned_checkpoint_enabled", "job_check_interval_in_secs", "latency_tracking_interval",
    "max_bundle_size", "max_bundle_time_mills", "max_parallelism", "min_pause_between_checkpoints",
    "num_concurrent_checkpoints", "number_of_execution_retries", "object_reuse", "operator_chaining",
    "parallelism", "re_iterable_group_by_key_result", "retain_externalized_checkpoints_on_cancellation",
    "savepoint_path", "shutdown_sources_after_idle_ms", "state_backend", "state_backend_storage_path",
    "tolerable_checkpoint_failure_number", "unaligned_checkpoint_enabled", "use_data_stream_for_batch",
))  # fmt: skip
"""Of Flink's job server (``FlinkPipelineOptions`` of Beam's Java SDK), as Python flags are written."""
SPARK_FLAGS = frozenset((
    "batch_interval_millis", "bundle_size", "cache_disabled", "checkpoint_dir",
    "checkpoint_duration_millis", "enable_spark_metric_sinks", "files_to_stage", "max_records_per_batch",
    "min_read_time_millis", "prefer_group_by_key_to_handle_huge_values", "read_time_percentage",
    "spark_master", "storage_level", "uses_provided_spark_context",
))  # fmt: skip
"""Of Spark's (``SparkPipelineOptions``)."""


class RunnerFlags:
    """The flags of one command that are not ours.

    Attributes:
      flags: as given.
      given: what Beam's own classes make of them.

    Raises:
      UserError: a value that Beam refuses.
    """

    def __init__(self, flags: Sequence[str]) -> None:
        self.flags = tuple(flags)
        self._parser = _make_beam_parser()
        self.given = self._parser.parse_known_args(list(flags))[0]

    @property
    def runner(self) -> str:
        """The runner's name in lower case, without its package and the word runner."""
        name = str(self.given.runner or RUNNER).lower().rpartition(".")[2]
        return name.removesuffix("runner")

    @property
    def in_process(self) -> bool:
        """Whether the workers are threads of the launcher."""
        return self.runner in ("fnapi", "direct") and self.given.direct_running_mode != "multi_processing"

    def known(self) -> set[str]:
        """Returns the flags that this runner may be given, with their dashes."""
        names = set(self._parser._option_string_actions)
        if self.runner == "dask":
            from pipelines.runners.dask_runs import make_dask_parser

            names |= set(make_dask_parser()._option_string_actions)
        of_servers = {"flink": FLINK_FLAGS, "spark": SPARK_FLAGS}.get(self.runner, frozenset())
        names |= {f"--{name}" for name in of_servers}
        given = {flag.split("=")[0] for flag in self.flags if flag.startswith("--")}
        if self._endpoint and given - names:
            names |= {f"--{name}" for name in _flags_of_server(self._endpoint)}
        return names

    def check(self) -> None:
        """Refuses a runner that cannot run, as far as that can be known before anything is written.

        Raises:
          UserError: no such runner, its packages are missing, it lacks a flag, or it does not answer.
        """
        if self.runner == "dask":
            from pipelines.runners.dask_runs import DaskOptions

            DaskOptions.of_flags(self.flags).check()
            return
        if self.runner == "dataflow":
            check_dataflow(self.given)
        _check_options(self.given.runner, self.flags)
        if self.runner == "portable" and not self._endpoint and self.given.job_endpoint is None:
            raise UserError(
                "--runner PortableRunner: needs the address of a job server, --job_endpoint=HOST:PORT"
            )
        if self._endpoint:
            _flags_of_server(self._endpoint)

    @property
    def _endpoint(self) -> str | None:
        """Address of the job server, where one is already running."""
        endpoint = self.given.job_endpoint
        return None if endpoint in (None, "embed") else str(endpoint)


def _make_beam_parser() -> argparse.ArgumentParser:
    """Makes a parser of all of Beam's flags, which raises UserError for a wrong value."""
    with quiet_imports():
        from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    parser: Any = _BeamArgumentParser(add_help=False, conflict_handler="resolve", allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    parser.error = refuse
    made: argparse.ArgumentParser = parser
    return made


def _check_options(name: str | None, flags: Sequence[str]) -> None:
    """Refuses a runner that Beam does not know, and flags that it finds missing or wrong.

    Raises:
      UserError: it cannot be made.
    """
    with quiet_imports():
        from apache_beam.options.pipeline_options import PipelineOptions, TestOptions
        from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
        from apache_beam.runners import create_runner

    try:
        runner = create_runner(name or RUNNER)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--runner {name}: {error}") from error
    # As for a dry run of Beam's: else it asks Google's storage about buckets, with minutes of retries.
    options = PipelineOptions(list(flags))
    options.view_as(TestOptions).dry_run = True
    problems = PipelineOptionsValidator(options, runner).validate()
    if problems:
        raise UserError(f"--runner {name}: {problems[0]}")


def _flags_of_server(endpoint: str) -> set[str]:
    """Asks a job server for the names of its flags.

    Raises:
      UserError: it does not answer.
    """
    with quiet_imports():
        from apache_beam.portability.api import beam_job_api_pb2
        from apache_beam.runners.portability.job_server import ExternalJobServer

    try:
        server: Any = ExternalJobServer(endpoint, ANSWER_SECONDS).start()
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        answer = server.DescribePipelineOptions(request, timeout=ANSWER_SECONDS)
    except Exception as error:  # gRPC's, a package that only Beam declares
        raise UserError(
            f"--job_endpoint {endpoint}: no job server answers there; start it, or correct the address"
        ) from error
    return {option.name for option in answer.options}

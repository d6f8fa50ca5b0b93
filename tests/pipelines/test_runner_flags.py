"""Flags of runners: those of job servers are taken, typos told, and what cannot run is refused at once."""

from collections.abc import Iterator

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability.local_job_service import LocalJobServicer

from pipelines.cli import build_parser
from pipelines.options.flags import check_flags
from pipelines.runners import dataflow, runner_flags
from pipelines.runners.runner_flags import RunnerFlags
from vqgan.errors import UserError

from .conftest import Vqgan


def check(*flags: str) -> None:
    parser = build_parser().parse_known_args(["tokenize", "--input", "i"])[0].parser
    check_flags(flags, parser, beam=True)


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=FlinkRunner", "--number_of_execution_retries=3", "--object_reuse=true"],
        ["--runner=FlinkRunner", "--checkpointing_interval", "60000", "--savepoint_path=s3://b/p"],
        ["--runner=flink", "--parallelism=4", "--execution_retry_delay=5"],
        ["--runner=SparkRunner", "--bundle_size=10", "--spark_master=local[4]"],
        ["--runner=apache_beam.runners.portability.spark_runner.SparkRunner", "--cache_disabled=true"],
    ],
)
def test_flags_of_job_servers(flags: list[str]) -> None:
    check(*flags)


@pytest.mark.parametrize(
    ("flags", "nearest"),
    [
        (["--runner=FlinkRunner", "--number_of_execution_retry=3"], "did you mean --number_of_execution_ret"),
        (["--runner=FlinkRunner", "--bundle_size=3"], "unknown flag --bundle_size"),
        (["--runner=SparkRunner", "--object_reuse=1"], "unknown flag --object_reuse"),
        (["--object_reuse=1"], "unknown flag --object_reuse"),
        (["--runner=DaskRunner", "--dask_client_adress=a:1"], "did you mean --dask_client_address"),
        (["--dask_client_address=a:1"], "unknown flag --dask_client_address"),
    ],
)
def test_typos_are_caught(flags: list[str], nearest: str) -> None:
    with pytest.raises(UserError, match=nearest):
        check(*flags)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A job server with a flag of its own."""

    class Server(LocalJobServicer):
        def DescribePipelineOptions(self, request, context=None):  # type: ignore[no-untyped-def] # noqa: N802
            option = beam_job_api_pb2.PipelineOptionDescriptor(name="flavour_of_server")
            return beam_job_api_pb2.DescribePipelineOptionsResponse(options=[option])

    made = Server()
    yield f"localhost:{made.start_grpc_server()}"
    made.stop()


def test_a_running_server_is_asked(server: str) -> None:
    where = ("--runner=PortableRunner", f"--job_endpoint={server}")
    check(*where, "--flavour_of_server=sweet")
    with pytest.raises(UserError, match="unknown flag --flavor_of_server: did you mean --flavour_of_server"):
        check(*where, "--flavor_of_server=sweet")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--runner=PortableRunner"], "needs the address of a job server, --job_endpoint"),
        (["--runner=PortableRunner", "--job_endpoint=localhost:1"], "no job server answers there"),
        (["--runner=DaskRunner"], "give --dask_client_address=HOST:8786"),
        (["--runner=DaskRunner", "--dask_npartitions=many"], "--dask_npartitions: invalid int value"),
        (["--runner=NoRunner"], "--runner NoRunner: Unexpected pipeline runner"),
        (["--runner=FlinkRunner", "--parallelism=many"], "--parallelism: invalid int value"),
    ],
)
def test_what_cannot_run_is_refused_at_once(
    flags: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_flags, "ANSWER_SECONDS", 1)
    with pytest.raises(UserError, match=line) as caught:
        check(*flags)
    assert "\n" not in str(caught.value)


def test_no_scheduler() -> None:
    with pytest.raises(UserError, match=r"no scheduler answers at 127.0.0.1:1 .* start it with"):
        check("--runner=DaskRunner", "--dask_client_address=127.0.0.1:1", "--dask_connection_timeout=0.5")


def test_nothing_is_written_before(tokenize: Vqgan, few: object, tmp_path: object) -> None:
    result = tokenize(few, "--runner=PortableRunner")
    assert result.code == 2
    assert "--job_endpoint" in result.line
    assert not (tmp_path / "out").exists()  # type: ignore[operator]


def google(*flags: str) -> None:
    dataflow.check_dataflow(RunnerFlags(["--runner=DataflowRunner", *flags]).given)


def test_google_project_and_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = ["gs://there?retry_limit_seconds=20"]
    monkeypatch.setattr(dataflow, "require_extra", lambda *_: None)
    monkeypatch.setattr(dataflow.filesystems, "exists", buckets.__contains__)
    google("--project=my-project-1", "--temp_location=gs://there/tmp")
    google("--project=example.com:my-project-1", "--temp_location=gs://there/tmp")
    with pytest.raises(UserError, match="--project My Project: is no id of a project"):
        google("--project=My Project", "--temp_location=gs://there/tmp")
    with pytest.raises(UserError, match="--temp_location gs://gone/tmp: there is no bucket gs://gone;"):
        google("--project=my-project-1", "--temp_location=gs://gone/tmp")
    with pytest.raises(UserError, match="--staging_location gs://gone/x: there is no bucket"):
        google("--project=my-project-1", "--temp_location=gs://there/t", "--staging_location=gs://gone/x")


def test_dataflow_without_its_extra() -> None:
    assert RunnerFlags(["--runner=DataflowRunner"]).runner == "dataflow"
    try:
        import google.cloud.dataflow  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"--runner DataflowRunner needs google\.cloud"):
            check("--runner=DataflowRunner", "--project=my-project-1")


def test_job_service_options_leave_beams_own_alone() -> None:
    """What was parsed here is Beam's to parse: nothing is taken out of the flags."""
    flags = ["--runner=FlinkRunner", "--object_reuse=true"]
    assert RunnerFlags(flags).flags == tuple(flags)
    assert PipelineOptions(flags)._flags == flags

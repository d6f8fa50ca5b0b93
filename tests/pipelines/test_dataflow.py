"""Dataflow as far as it goes without an account: checks, the job's size, its template file."""

import dataclasses
import importlib.util
import io
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import build_parser
from pipelines.runners import dataflow
from pipelines.runners.beam_runs import measure_graph
from pipelines.runners.runner_flags import RunnerFlags
from pipelines.tokenize_images import TokenizeConfig, plan_tokenize
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig
from transforms.sharded.plan import Plan
from transforms.sources import SourceConfig
from vqgan.errors import UserError

DOCKER = Path(__file__).parents[2] / "docker"
WHERE = ("--project=my-project-1", "--region=us-central1", "--temp_location=gs://bucket/tmp")
DATAFLOW = ("--runner=DataflowRunner", *WHERE)


def has_gcp() -> bool:
    try:
        return importlib.util.find_spec("google.cloud.dataflow") is not None
    except ModuleNotFoundError:
        return False


with_gcp = pytest.mark.skipif(
    not has_gcp(), reason="DATAFLOW'S TEMPLATE IS NOT TESTED: pip install 'apache-beam[gcp]'"
)


@pytest.fixture
def config(few: Path, codec_path: str, tmp_path: Path) -> TokenizeConfig:
    source, geometry = SourceConfig(input=str(few)), Geometry(image_size=32)
    output = str(tmp_path / "out")
    return TokenizeConfig(source, output, codec_path, geometry, DecodeConfig(), slice_size=4, quiet=True)


def test_graph_of_a_million_slices(config: TokenizeConfig) -> None:
    run = plan_tokenize(config)
    sizes = []
    for slices in (3, 1_000_000):
        job = dataclasses.replace(run.job, task=dataclasses.replace(run.task, slices=slices))
        sizes.append(measure_graph(job, Plan(run.plan.identity, slices, 4 * slices)))
    assert sizes[1] - sizes[0] < 1000  # digits of a few numbers
    assert sizes[1] < 100_000


def test_dry_run_measures_the_graph(tokenize: Callable[..., Any], few: Path, tmp_path: Path) -> None:
    result = tokenize(few, "--dry-run", "--runner=FnApiRunner")
    assert result.code == 0
    name, kilobytes = result.out.splitlines()[-1].split(": ")
    assert name == "kilobytes of the job graph"
    assert 1 < float(kilobytes) < 100
    assert not (tmp_path / "out").exists()


def test_dry_run_checks_flags_of_a_file(tokenize: Callable[..., Any], few: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("beam: {runner: FlinkRunner, paralelism: 4}\n")
    result = tokenize(few, "--dry-run", "--config", tmp_path / "run.yaml")
    assert (result.code, "unknown flag --paralelism" in result.line) == (2, True)


@pytest.mark.parametrize("lacking", ["--project", "--temp_location"])
def test_what_dataflow_needs(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataflow, "require_extra", lambda *_: None)
    given = RunnerFlags([flag for flag in DATAFLOW if not flag.startswith(lacking)]).given
    with pytest.raises(UserError, match=r"^--runner DataflowRunner: needs --project=ID and --temp_location="):
        dataflow.check_dataflow(given)


# With the extra gcp.


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What would go to Google's storage, by its address; nothing asks for credentials or buckets."""
    from apache_beam.internal.gcp import auth
    from apache_beam.options.pipeline_options import GoogleCloudOptions
    from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient

    found: dict[str, bytes] = {}

    def stage(self: Any, folder: str, name: str, stream: io.BytesIO, *_: Any, **__: Any) -> None:
        found[f"{folder}/{name}"] = stream.read()

    monkeypatch.setattr(dataflow, "_check_bucket", lambda *_: None)
    monkeypatch.setattr(auth._Credentials, "_get_service_credentials", staticmethod(lambda options: None))
    monkeypatch.setattr(GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", lambda *_: None)
    monkeypatch.setattr(DataflowApplicationClient, "stage_file", stage)
    return found


@with_gcp
@pytest.mark.filterwarnings("ignore")  # of Google's clients
def test_template(tokenize: Callable[..., Any], few: Path, tmp_path: Path, staged: dict[str, bytes]) -> None:
    """The command leaves the plan and the job's file, and is content without a manifest."""
    location = "gs://bucket/templates/job.json"
    image = "--sdk_container_image=gcr.io/my-project-1/vqgan-worker"
    gpu = "--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
    flags = (*DATAFLOW, "--no_auth", f"--template_location={location}", image, gpu)
    result = tokenize(few, *flags, "--experiments=no_use_multiple_sdk_containers")
    assert result.code == 0, result.err
    assert result.err.splitlines()[-1] == (
        f"vqgan tokenize: {location}: the job is in this file; nothing has run yet"
    )
    job = json.loads(staged[location])
    assert len(staged[location]) < 100_000
    options = job["environment"]["sdkPipelineOptions"]["options"]
    assert options["dataflow_service_options"] == [gpu.partition("=")[2]]
    assert image.partition("=")[2] in staged[location].decode()
    assert [name for name in staged if name.endswith("pipeline.pb")]
    assert (tmp_path / "out" / "plan" / "plan.json").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


@with_gcp
@pytest.mark.filterwarnings("ignore")
def test_dry_run_submits_nothing(
    tokenize: Callable[..., Any], few: Path, tmp_path: Path, staged: dict[str, bytes]
) -> None:
    result = tokenize(few, "--dry-run", *DATAFLOW)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1].startswith("kilobytes of the job graph: ")
    assert (staged, (tmp_path / "out").exists()) == ({}, False)


# The Flex Template.


def test_parameters_are_flags() -> None:
    """Each has a flag of ours, and a value that its pattern takes is one for the flag."""
    template = json.loads((DOCKER / "flex-template.json").read_text())
    flags_of = runpy.run_path(str(DOCKER / "flex_launch.py"))["flags_of"]
    values = {"input": "gs://b/in", "output": "gs://b/out", "codec": "tiny", "image_size": "64"}
    values |= {"slice_size": "9", "batch_size": "8", "input_kind": "tar"}
    values |= {"folder_labels": "true", "max_reject_rate": "0.5"}
    assert {each["name"] for each in template["parameters"]} == set(values)
    patterns = [(each["name"], *each.get("regexes", [".*"])) for each in template["parameters"]]
    assert [name for name, pattern in patterns if not re.fullmatch(pattern, values[name])] == []
    parser = build_parser()
    given, unknown = parser.parse_known_args(
        ["tokenize", *flags_of([f"--{name}={value}" for name, value in values.items()]), *DATAFLOW]
    )
    assert tuple(unknown) == DATAFLOW
    assert {name: str(getattr(given, name)).lower() for name in values} == values
    needed = [each["name"] for each in template["parameters"] if not each["isOptional"]]
    assert needed == ["input", "codec", "output"]


def test_a_switch_can_be_off() -> None:
    flags_of = runpy.run_path(str(DOCKER / "flex_launch.py"))["flags_of"]
    assert flags_of(["--folder_labels=false", "--runner=DataflowRunner"]) == [
        "--no-folder-labels",
        "--runner=DataflowRunner",
    ]

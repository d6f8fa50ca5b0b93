"""S3 and Google's storage, as emulators on this machine: input and output there, a kill, and a resume."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from pyarrow import fs

from vqgan import filesystems, publishing

from .conftest import Processes, Reference, Source, decode_command, free_port, tokenize_command, wait_for_port

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
OPTIONS = "endpoint_override=127.0.0.1:{port}&scheme=http"


def uri(store: str, name: str) -> str:
    """The address of something in the bucket: the path, then the store's options."""
    return filesystems.join(store, name)


@pytest.fixture(scope="module")
def moto(processes: Processes) -> Iterator[int]:
    """S3's port."""
    port = free_port()
    processes.start("-m", "moto.server", "-p", port)
    wait_for_port(port)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        client(port).create_bucket(Bucket=BUCKET)
        yield port


def client(port: int) -> "boto3.client":
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")


@pytest.fixture(scope="module")
def emulator(processes: Processes) -> int:
    """The port of Google's."""
    port = free_port()
    where = ("--host", "127.0.0.1", "--port", port)
    processes.start("-m", "gcp_storage_emulator", "start", *where, "--in-memory", "--default-bucket", BUCKET)
    wait_for_port(port)
    return port


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> str:
    """URI of the bucket."""
    if request.param == "s3":
        port = request.getfixturevalue("moto")
        return f"s3://{BUCKET}?{OPTIONS.format(port=port)}&region=us-east-1"
    port = request.getfixturevalue("emulator")
    return f"gs://anonymous@{BUCKET}?{OPTIONS.format(port=port)}&retry_limit_seconds=60"


def upload(folder: Path, store: str, name: str) -> None:
    for path in folder.iterdir():
        filesystem, inner = filesystems.resolve(uri(store, f"{name}/{path.name}"))
        with filesystem.open_output_stream(inner) as stream:
            stream.write(path.read_bytes())


def sums(store: str, name: str) -> dict[str, str]:
    """sha256 of shards, indices and rejects; what a killed writer has left is hidden and goes in a day."""
    filesystem, inner = filesystems.resolve(uri(store, name))
    found = filesystem.get_file_info(fs.FileSelector(inner, recursive=True))
    kinds = ("data/", "index/", "rejects/")
    names = {info.path: info.path.removeprefix(f"{inner}/") for info in found if info.is_file}
    return {
        name: hashlib.sha256(filesystem.open_input_stream(path).read()).hexdigest()
        for path, name in names.items()
        if name.startswith(kinds) and "/." not in name
    }


def local_sums(folder: Path) -> dict[str, str]:
    found = [path for kind in ("data", "index", "rejects") for path in folder.glob(f"{kind}/*")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if not path.name.startswith(".")
    }


def test_kill_and_resume(
    store: str, processes: Processes, source: Source, reference: Reference, request: pytest.FixtureRequest
) -> None:
    upload(source.images, store, "in")
    there = Source(Path("unused"), source.codec)
    command = tokenize_command(there, uri(store, "out"))
    command[command.index("unused")] = uri(store, "in")
    processes.hold("tokens-00003-of-")
    launcher = processes.start(*command)
    processes.held(launcher)
    processes.kill(launcher)
    processes.gate.unlink()
    assert not filesystems.exists(uri(store, "out/manifest.json"))
    processes.finish(processes.start(*command))
    assert sums(store, "out") == local_sums(reference.tokens)
    if store.startswith("s3:"):
        assert "Uploads" not in client(request.getfixturevalue("moto")).list_multipart_uploads(Bucket=BUCKET)


def test_decode_from_and_to(store: str, processes: Processes, reference: Reference) -> None:
    assert filesystems.exists(uri(store, "out/manifest.json")), "the test above has made it"
    processes.finish(processes.start(*decode_command(uri(store, "out"), uri(store, "images"))))
    assert sums(store, "images") == local_sums(reference.images)


def test_repair_and_retry(store: str, processes: Processes, source: Source, reference: Reference) -> None:
    """A shard that was lost comes back to the same bytes; an image that was mended goes to one of its own."""
    assert filesystems.exists(uri(store, "out/manifest.json")), "the test above has made it"
    lost = min(name for name in sums(store, "out") if name.startswith("data/"))
    publishing.delete(uri(store, f"out/{lost}"))
    run = ("-m", "pipelines.cli")
    processes.finish(processes.start(*run, "verify", uri(store, "out")), code=1)
    processes.finish(processes.start(*run, "verify", "--repair", uri(store, "out")))
    assert sums(store, "out") == local_sums(reference.tokens)
    mended = min(source.images.glob("*.png")).read_bytes()
    publishing.write_bytes(uri(store, "in/broken.jpg"), mended)
    processes.finish(processes.start(*run, "retry", uri(store, "out")))
    counts = json.loads(filesystems.read_bytes(uri(store, "out/manifest.json")))["counts"]
    assert (counts["rows"], counts["rejects"]) == (16, 0)
    made = sums(store, "out").keys() - local_sums(reference.tokens).keys()
    assert made == {"data/tokens-00000-of-00001-part-001.parquet"}
    assert "ok" in processes.finish(processes.start(*run, "verify", uri(store, "out")))


def test_a_store_that_is_not_there(processes: Processes, source: Source) -> None:
    gone = f"s3://{BUCKET}/out?{OPTIONS.format(port=1)}&region=us-east-1"
    said = processes.finish(processes.start(*tokenize_command(source, gone)), code=2)
    lines = [line for line in said.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith(f"vqgan tokenize: {gone}: cannot be")


def test_small_files_are_no_multipart_uploads(moto: int) -> None:
    """What a writer that is killed leaves of one of those is seen in no listing, and paid for."""
    filesystem, inner = filesystems.resolve(
        f"s3://{BUCKET}/small?{OPTIONS.format(port=moto)}&region=us-east-1"
    )
    with filesystem.open_output_stream(inner) as stream:
        stream.write(b"shard")
        assert "Uploads" not in client(moto).list_multipart_uploads(Bucket=BUCKET)

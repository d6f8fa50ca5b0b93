"""Foreign checkpoints wherever a codec is named: the command line, shards, the launcher, export, the Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vqgan import Codec, UserError, codec_checkpoint
from vqgan.importers.source import fetch_checkpoint

DATA = Path(__file__).parents[2] / "testdata"
GOLDEN = DATA / "golden" / "lwm"


def _cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_launcher_knows_a_foreign_codec_without_jax() -> None:
    code = (
        "import sys; from vqgan.codec_checkpoint import read_info; info = read_info(sys.argv[1]); "
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules; print(info.fingerprint)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(GOLDEN)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == codec_checkpoint.read_info(GOLDEN).fingerprint


def test_import_on_the_command_line_keeps_fingerprint_and_origin(tmp_path: Path) -> None:
    done = _cli("import", str(GOLDEN), "--output", str(tmp_path / "codec"))
    assert done.returncode == 0, done.stderr
    ours, theirs = codec_checkpoint.read_info(tmp_path / "codec"), codec_checkpoint.read_info(GOLDEN)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.card == theirs.card
    expected = np.load(GOLDEN / "expected.npz")
    tokens = Codec.load(tmp_path / "codec", batch_size=4).encode(expected["images"])
    assert (tokens == expected["tokens"]).mean() >= 0.999
    again = _cli("import", str(tmp_path / "codec"), "--output", str(tmp_path / "x"))
    assert again.returncode == 2
    assert "codec already" in again.stderr


def test_photographs_are_tokenized_and_the_shards_say_with_what(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    output = tmp_path / "tokens"
    done = _cli(
        "tokenize", "--input", str(DATA / "photos"), "--codec", str(GOLDEN), "--output", str(output),
        "--batch-size", "4", "--quiet", "--no-report",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shard = next(output.glob("data/tokens-*.parquet"))
    origin = json.loads(pq.read_metadata(shard).metadata[b"vqgan"])["codec_origin"]
    assert (origin["format"], origin["file"]) == ("lwm", "vqgan")
    assert len(origin["sha256"]) == 64


def test_without_a_decoder_there_are_tokens_and_a_report_that_says_so(foreign: Any, tmp_path: Path) -> None:
    from pipelines.decode_tokens import DecodeTokensConfig, plan_decode

    foreign.write("chameleon", tmp_path / "codec")
    (tmp_path / "codec" / "config.json").unlink()
    output = tmp_path / "tokens"
    done = _cli(
        "tokenize", "--input", str(DATA / "photos"), "--codec", str(tmp_path / "codec"), "--output",
        str(output), "--batch-size", "2", "--image-size", "32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "assumed: the nearest code, as in Chameleon" in done.stdout + done.stderr
    assert "The codec has no decoder" in (output / "report.html").read_text()
    with pytest.raises(UserError, match=r"no decoder for images; give one of the same tokens"):
        plan_decode(DecodeTokensConfig(tokens=str(output), output=str(tmp_path / "images")))
    assert not (tmp_path / "images").exists()


def test_inspect_prints_what_a_checkpoint_is(tmp_path: Path) -> None:
    done = _cli("inspect", str(DATA / "golden" / "llamagen" / "vq_model.pt"), "--json")
    described = json.loads(done.stdout)
    assert described["format"] == "llamagen"
    assert described["training step"] == 7
    assert described["input range"] == [-1.0, 1.0]
    assert described["codebook"] == "512 codes of 8, cosine"
    (tmp_path / "x.bin").write_bytes(b"nothing known")
    failed = _cli("inspect", str(tmp_path / "x.bin"))
    assert failed.returncode == 2
    assert "first bytes are" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("to", ["safetensors", "diffusers"])
@pytest.mark.parametrize("codec", ["tiny", str(DATA / "golden" / "diffusers-vq")])
def test_export_round_trips_to_the_same_fingerprint(to: str, codec: str, tmp_path: Path) -> None:
    done = _cli("export", codec, str(tmp_path / "out"), "--to", to)
    assert done.returncode == 0, done.stderr
    exported, original = codec_checkpoint.read_info(tmp_path / "out"), codec_checkpoint.read_info(codec)
    assert exported.fingerprint == original.fingerprint
    assert exported.decoder_sha256 == original.decoder_sha256


def test_damaged_metadata_of_an_export_is_an_error(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = DATA / "golden" / "diffusers-vq" / "diffusion_pytorch_model.safetensors"
    for text in ("{", "[]", '{"config": 3}', '{"config": {"ch": "x"}}'):
        save_file(load_file(source), tmp_path / "x.safetensors", metadata={"vqgan": text})
        with pytest.raises(UserError, match=r"x\.safetensors"):
            codec_checkpoint.read_info(tmp_path / "x.safetensors")


def test_export_says_what_a_format_cannot_express(tmp_path: Path) -> None:
    done = _cli("export", str(DATA / "golden" / "maskgit-vqgan"), str(tmp_path / "out"), "--to", "diffusers")
    assert done.returncode == 2
    assert "cannot express" in done.stderr


def test_exported_folder_loads_in_diffusers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("diffusers").VQModel
    done = _cli("export", str(DATA / "golden" / "diffusers-vq"), str(tmp_path / "out"), "--to", "diffusers")
    assert done.returncode == 0, done.stderr
    model = models.from_pretrained(str(tmp_path / "out"))
    expected = np.load(DATA / "golden" / "diffusers-vq" / "expected.npz")
    images = torch.from_numpy(expected["images"].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    latents = model.encode(images).latents
    tokens = model.quantize(latents)[2][2].reshape(expected["tokens"].shape)
    assert (tokens.numpy() == expected["tokens"]).mean() >= 0.999


def test_a_changed_file_is_converted_anew(foreign: Any, tmp_path: Path) -> None:
    path, *_ = foreign.write("lwm", tmp_path, seed=0)
    first = codec_checkpoint.read_info(path)
    foreign.write("lwm", tmp_path, seed=1)
    assert codec_checkpoint.read_info(path).fingerprint != first.fingerprint
    with pytest.raises(UserError, match="do not belong together"):
        codec_checkpoint.load_weights(first, ("encoder", "quantizer"))


def _hub_cache(folder: Path, commit: str = "a" * 40) -> Path:
    """A repository in the Hub's cache layout; gives the snapshot's folder."""
    repo = folder / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("vqgan", "config.json"):
        (snapshot / name).write_bytes((GOLDEN / name).read_bytes())
    return snapshot


class EntryNotFoundError(OSError):
    """Bears the name of the library's."""


def test_hub_addresses_go_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, calls = _hub_cache(tmp_path), []

    def snapshot_download(repo: str, **options: Any) -> str:
        calls.append((repo, options["revision"]))
        return str(snapshot)

    def hf_hub_download(repo: str, file: str, *, revision: str | None) -> str:
        calls.append((repo, file, revision))
        if not (snapshot / file).exists():
            raise EntryNotFoundError("not in the cache")
        return str(snapshot / file)

    library = SimpleNamespace(snapshot_download=snapshot_download, hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    fetch_checkpoint.cache_clear()
    wanted = codec_checkpoint.read_info(GOLDEN).fingerprint
    assert codec_checkpoint.read_info("hf://owner/name@main").fingerprint == wanted
    assert codec_checkpoint.read_info("hf://owner/name/vqgan@v1").fingerprint == wanted
    assert calls[:2] == [("owner/name", "codec.json", "main"), ("owner/name", "main")]
    assert ("owner/name", "vqgan", "v1") in calls
    with pytest.raises(UserError, match="unavailable"):
        codec_checkpoint.read_info("hf://owner/name/missing.pt")
    with pytest.raises(UserError, match="write it as"):
        codec_checkpoint.read_info("hf://name")
    fetch_checkpoint.cache_clear()


def test_hub_offline_from_the_cache(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    _hub_cache(tmp_path)
    code = (
        "import sys; from vqgan.codec_checkpoint import read_info; print(read_info(sys.argv[1]).fingerprint)"
    )
    library = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **library}
    for address in ("hf://owner/name", "hf://owner/name/vqgan@main"):
        command = [sys.executable, "-c", code, address]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == codec_checkpoint.read_info(GOLDEN).fingerprint, done.stderr

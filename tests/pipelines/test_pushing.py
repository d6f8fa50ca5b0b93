"""Codecs to the Hub, without a network: what is uploaded loads again, and each failure is one line."""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.pushing import push
from vqgan.codec import Codec
from vqgan.codec_checkpoint import read_info

from .fake_hub import Hub, lay_out_as_cache

Refused = Callable[[str], AbstractContextManager[None]]
GOLDEN = Path(__file__).parents[1] / "testdata" / "golden" / "lwm"


@pytest.fixture
def copied_codec(codec_path: str, tmp_path: Path) -> Path:
    """A copy, to be damaged at will."""
    return Path(shutil.copytree(codec_path, tmp_path / "codec"))


def test_what_is_uploaded_loads_again(hub: Hub, copied_codec: Path, tmp_path: Path) -> None:
    (copied_codec / "notes.txt").write_text("private")
    (copied_codec / "encoder" / ".backup").write_text("private")
    line = push(str(copied_codec), "owner/name")
    fingerprint = read_info(copied_codec).fingerprint
    assert line.startswith(f"https://hub/owner/name/commit/1: codec {fingerprint[:12]}, ")
    assert line.endswith("its name is hf://owner/name")
    assert hub.calls == [
        ("create", "owner/name", False, True),
        ("commit", "owner/name", f"Codec {fingerprint[:12]}", None),
    ]
    assert set(hub.files) == {"codec.json", "README.md", *read_info(copied_codec).files}
    snapshot = lay_out_as_cache(hub.files, tmp_path / "cache")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    before, after = Codec.load(copied_codec), Codec.load(snapshot)
    tokens = before.encode(images)
    np.testing.assert_array_equal(after.encode(images), tokens)
    np.testing.assert_array_equal(after.decode(tokens), before.decode(tokens))


def test_options_go_along(hub: Hub, codec_path: str) -> None:
    line = push(codec_path, "hf://owner/name", revision="v2", private=True, message="second")
    assert line.endswith("its name is hf://owner/name@v2")
    assert hub.calls == [
        ("create", "owner/name", True, True),
        ("branch", "owner/name", "v2", True),
        ("commit", "owner/name", "second", "v2"),
    ]


def test_files_of_an_earlier_codec_go(hub: Hub, codec_path: str, other_codec: str, tmp_path: Path) -> None:
    hub.files = {"LICENSE": b"text", "encoder": b"no folder", "encoder/d/old": b"1", "decoders/x": b"2"}
    push(other_codec, "owner/name")
    push(codec_path, "owner/name")
    kept = {"LICENSE", "encoder", "decoders/x"}
    assert set(hub.files) == {"codec.json", "README.md", *read_info(codec_path).files, *kept}
    assert json.loads(hub.files["codec.json"])["fingerprint"] == read_info(codec_path).fingerprint


def test_codecs_written_before_sizes_were_recorded(hub: Hub, copied_codec: Path) -> None:
    names = set(read_info(copied_codec).files)
    data = json.loads((copied_codec / "codec.json").read_text())
    del data["files"]
    (copied_codec / "codec.json").write_text(json.dumps(data))
    push(str(copied_codec), "owner/name")
    assert set(hub.files) == {"codec.json", "README.md", *names}


def test_names_outside_the_folder_are_not_read(hub: Hub, copied_codec: Path) -> None:
    data = json.loads((copied_codec / "codec.json").read_text())
    (copied_codec.parent / "secret").write_text("secret")
    data["files"] |= {"../secret": 6, "/etc/hostname": 1, "encoder/../../secret": 6}
    (copied_codec / "codec.json").write_text(json.dumps(data))
    push(str(copied_codec), "owner/name")
    assert not [name for name in hub.files if "secret" in name or "etc" in name]


def test_cards(hub: Hub, copied_codec: Path) -> None:
    push(str(copied_codec), "owner/name")
    assert hub.files["README.md"].startswith(b"---\nlicense: unknown\n")
    assert b"# VQGAN codec " in hub.files["README.md"]
    (copied_codec / "README.md").write_text("# Mine\n")
    push(str(copied_codec), "owner/name")
    assert hub.files["README.md"].startswith(b"---\nlicense: unknown\n")
    assert hub.files["README.md"].endswith(b"---\n\n# Mine\n")
    (copied_codec / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    push(str(copied_codec), "owner/name")
    assert hub.files["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"


def test_a_damaged_codec_is_refused(hub: Hub, copied_codec: Path, refused: Refused) -> None:
    largest = max((copied_codec / "decoder").rglob("*"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1])
    with refused(f"{largest.name} is {len(content) - 1} bytes, expected {len(content)} bytes"):
        push(str(copied_codec), "owner/name")
    largest.unlink()
    with refused("is missing"):
        push(str(copied_codec), "owner/name")
    with refused("nothing there"):
        push(str(copied_codec / "none"), "owner/name")
    assert hub.calls == []


def test_a_foreign_checkpoint_is_to_be_converted(hub: Hub, refused: Refused) -> None:
    with refused("another code base; convert it first with: vqgan import"):
        push(str(GOLDEN), "owner/name")
    assert hub.calls == []


@pytest.mark.parametrize("repo", ["name", "a/b/c", "", "owner/", "owner/na me", "../name", "owner/name@v1"])
def test_malformed_names(repo: str, hub: Hub, codec_path: str, refused: Refused) -> None:
    with refused("write the repository as owner/name"):
        push(codec_path, repo)
    assert hub.calls == []


def test_without_the_library(codec_path: str, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with refused("owner/name needs huggingface_hub .* pip install huggingface-hub"):
        push(codec_path, "owner/name")


def failure(kind: str, text: str, status: int | None = None, base: type[Exception] = Exception) -> Exception:
    """An error as the library raises it."""
    error: Exception = type(kind, (base,), {})(text)
    if status is not None:
        error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (failure("LocalTokenNotFoundError", "Token is required\nlog in", base=OSError), "hf auth login"),
        (failure("HfHubHTTPError", "401 Client Error", 401, OSError), "hf auth login, or set HF_TOKEN"),
        (failure("HfHubHTTPError", "403 Forbidden", 403, OSError), "write permission for owner"),
        (failure("OfflineModeIsEnabled", "offline", base=ConnectionError), "HF_HUB_OFFLINE"),
        (
            failure("ConnectError", "[Errno 111] refused"),
            "cannot be reached .ConnectError: .Errno 111. refused",
        ),
        (failure("ReadTimeout", "slow"), "cannot be reached"),
        (OSError("disk"), "cannot be reached .OSError: disk"),
        (
            failure("BadRequestError", "bad\nname", 400, OSError),
            "cannot be uploaded .BadRequestError: bad name",
        ),
    ],
)
def test_failures_are_one_line(
    error: Exception, message: str, hub: Hub, codec_path: str, refused: Refused
) -> None:
    hub.failure = error
    with refused(f"^owner/name: .*{message}"):
        push(codec_path, "owner/name")


def test_the_library_has_what_is_called() -> None:
    """Names and keywords, against the real one."""
    import inspect

    real = pytest.importorskip("huggingface_hub")
    wanted = {
        "create_repo": {"private", "exist_ok"},
        "create_branch": {"branch", "exist_ok"},
        "list_repo_files": {"revision"},
        "create_commit": {"operations", "commit_message", "revision"},
    }
    for name, keywords in wanted.items():
        assert keywords <= set(inspect.signature(getattr(real.HfApi, name)).parameters)
    real.HfApi(library_name="vqgan-pipelines")
    added = real.CommitOperationAdd("codec.json", b"{}")
    assert (added.path_in_repo, added.upload_info.size) == ("codec.json", 2)
    assert real.CommitOperationDelete("encoder/x", is_folder=False).path_in_repo == "encoder/x"
    assert "commit_url" in real.CommitInfo.__dataclass_fields__

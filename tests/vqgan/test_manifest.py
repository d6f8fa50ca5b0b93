"""The manifest's file: what is refused, and that nobody is told to delete what may still be good."""

from pathlib import Path
from typing import Any

import pytest

from vqgan import filesystems
from vqgan.manifest import MANIFEST_FILE, check_tokens, read_manifest


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", r"manifest.json: damaged \(.*\); restore it, or move it away and run the command that wrote"),
        ("[1]", "manifest.json: damaged"),
        ('{"name": "a web page"}', r"manifest.json: damaged \(no 'version'\); restore it, or move it away"),
        ('{"version": 1}', "manifest.json: format version 1, this release reads 2; make the data set again"),
        ('{"version": 3}', "manifest.json: format version 3, this release reads 2; upgrade"),
    ],
)
def test_damaged(text: str, match: str, tmp_path: Path, refused: Any) -> None:
    (tmp_path / MANIFEST_FILE).write_text(text)
    with refused(match):
        read_manifest(str(tmp_path))


def test_what_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MANIFEST_FILE).write_text('{"version": 2}')

    def read_bytes(path: str) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filesystems, "read_bytes", read_bytes)
    with refused(r"manifest.json: cannot be read \(.*Permission denied\); check its permissions"):
        read_manifest(str(tmp_path))


def test_images_are_no_tokens(refused: Any) -> None:
    check_tokens("set", {"version": 2})
    with refused("^set: holds images already; give the token data set"):
        check_tokens("set", {"version": 2, "kind": "images"})

"""Stands in for ``huggingface_hub``: uploads to memory, downloads through the library's cache layout."""

import fnmatch
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class EntryNotFoundError(OSError):
    """Bears the name of the library's."""


def lay_out_as_cache(files: dict[str, bytes], folder: Path, kind: str = "models") -> Path:
    """The Hub's cache: a snapshot of links to blobs. Gives the snapshot's folder."""
    repo, commit = folder / f"{kind}--owner--name", "a" * 40
    snapshot = repo / "snapshots" / commit
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    for name, content in files.items():
        blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


class Hub:
    """Stands in for ``huggingface_hub``: one repository, in memory.

    Attributes:
      cache: folder that downloads go to.
      files: contents by path.
      calls: what was asked for, in order.
      failure: raised by the next upload, or by every download.
      states: names of all files after each commit.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.files: dict[str, bytes] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.failure: Exception | None = None
        self.states: list[set[str]] = []

    def HfApi(self, library_name: str) -> "Hub":  # noqa: N802
        assert library_name == "vqgan-pipelines"
        return self

    def CommitOperationAdd(self, name: str, content: Path | bytes) -> tuple[str, bytes]:  # noqa: N802
        return name, content if isinstance(content, bytes) else content.read_bytes()

    def CommitOperationDelete(self, name: str, is_folder: bool) -> tuple[str, None]:  # noqa: N802
        assert not is_folder
        return name, None

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool, repo_type: str | None = None) -> None:
        if self.failure is not None:
            raise self.failure
        self.calls.append(("create", repo, private, exist_ok, *([repo_type] if repo_type else [])))

    def create_branch(self, repo: str, *, branch: str, exist_ok: bool, repo_type: str | None = None) -> None:
        self.calls.append(("branch", repo, branch, exist_ok, *([repo_type] if repo_type else [])))

    def list_repo_files(self, repo: str, *, revision: str | None, repo_type: str | None = None) -> list[str]:
        return sorted(self.files)

    def create_commit(
        self,
        repo: str,
        operations: list[tuple[str, bytes | None]],
        *,
        commit_message: str,
        revision: str | None,
        repo_type: str | None = None,
    ) -> SimpleNamespace:
        self.calls.append(("commit", repo, commit_message, revision, *([repo_type] if repo_type else [])))
        names = [name for name, _ in operations]
        assert len(set(names)) == len(names)
        for name, content in operations:
            if content is None:
                del self.files[name]
            else:
                self.files[name] = content
        self.states.append(set(self.files))
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")

    def hf_hub_download(
        self, repo: str, name: str, *, revision: str | None = None, repo_type: str | None = None
    ) -> str:
        self.calls.append(("file", repo, name, revision, *([repo_type] if repo_type else [])))
        if self.failure is not None:
            raise self.failure
        if name not in self.files:
            raise EntryNotFoundError(f"404: {name}")
        return name

    def snapshot_download(
        self, repo: str, *, revision: str | None, allow_patterns: list[str], repo_type: str | None = None
    ) -> str:
        self.calls.append(("snapshot", repo, revision, *([repo_type] if repo_type else [])))
        wanted = {
            name: content
            for name, content in self.files.items()
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
        }
        self.cache /= "again"
        return str(lay_out_as_cache(wanted, self.cache, "models" if repo_type is None else f"{repo_type}s"))

"""Uploads to the Hugging Face Hub: which files, in which commits, and each failure in one line."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vqgan.dataset_card import CARD_FILE
from vqgan.errors import UserError
from vqgan.hub import require_library

FILES_PER_COMMIT = 50
"""A commit of many more is slow on the Hub, and one that fails has to be made again as a whole."""
_REPO = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")


@dataclasses.dataclass(frozen=True)
class Upload:
    """What is to lie in a repository.

    Attributes:
      title: of the commit, unless the user names another.
      files: by path in the repository, in the order in which they go up.
      last: files or their contents, by path, that go up in the last commit; the last of them says that all
        is there.
      is_ours: whether a path is that of a file which an earlier upload of this kind may have left; it is
        deleted where it is in neither of the two above.
      repo_type: the Hub's; None for models.
    """

    title: str
    files: Mapping[str, Path]
    last: Mapping[str, Path | bytes]
    is_ours: Callable[[str], bool]
    repo_type: str | None = None

    @property
    def marker(self) -> str:
        """The path whose presence says that all is there."""
        return list(self.last)[-1]


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where to upload.

    Attributes:
      repo: ``owner/name``; created if it is not there.
      revision: branch, created if it is not there; None for the repository's main one.
      private: whether a repository that is created is private.
      message: of the commit; None for the upload's own.
    """

    repo: str
    revision: str | None = None
    private: bool = False
    message: str | None = None


def repository_name(repo: str) -> str:
    """``owner/name`` of a repository given with or without ``hf://``.

    Raises:
      UserError: it has another form.
    """
    match = _REPO.fullmatch(repo)
    if match is None:
        raise UserError(f"{repo}: write the repository as owner/name")
    return match[1]


def card_of(folder: Path, made: str) -> bytes:
    """The ``README.md`` of a folder, given front matter where it lacks any.

    Args:
      folder: where it lies.
      made: the card that is made of what else the folder says, with front matter; where there is no file,
        this is it.

    Raises:
      UserError: it cannot be read.
    """
    path = folder / CARD_FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        text = made
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__})") from error
    if not text.startswith("---\n"):
        front_matter = made.split("---\n", 2)[1]
        text = f"---\n{front_matter}---\n\n{text}"
    return text.encode(errors="replace")


def send(upload: Upload, destination: Destination) -> str:
    """Uploads in one commit, or in several where there are many files.

    Of several commits the first removes what says that an earlier upload is complete, and the last says so
    of this one and removes what else is left of the earlier one: in between nobody takes a part for the
    whole. What has been uploaded is not sent again when the same upload is made once more.

    Returns:
      The address of the last commit.

    Raises:
      UserError: no ``huggingface_hub``, no token, no permission, or the Hub cannot be reached.
    """
    hub = require_library(destination.repo)
    try:
        return _send(hub, upload, destination)
    except Exception as error:  # the library and its HTTP client raise many types
        raise UserError(f"{destination.repo}: {_explain(error, destination.repo)}") from error


def _send(hub: Any, upload: Upload, destination: Destination) -> str:
    api = hub.HfApi(library_name="vqgan-pipelines")
    repo, revision = destination.repo, destination.revision
    kind = {} if upload.repo_type is None else {"repo_type": upload.repo_type}
    api.create_repo(repo, private=destination.private, exist_ok=True, **kind)
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True, **kind)
    there = api.list_repo_files(repo, revision=revision, **kind)
    commit = None
    for operations in _commits(hub, upload, there):
        title = destination.message or upload.title
        commit = api.create_commit(repo, operations, commit_message=title, revision=revision, **kind)
    assert commit is not None  # there is a last commit always
    return str(commit.commit_url)


def _commits(hub: Any, upload: Upload, there: Sequence[str]) -> Iterator[list[Any]]:
    """The operations of each commit."""
    stale = [
        name
        for name in there
        if upload.is_ours(name) and name not in upload.files and name not in upload.last
    ]
    names = list(upload.files)
    starts = range(0, max(1, len(names)), FILES_PER_COMMIT)
    for start in starts:
        group = names[start : start + FILES_PER_COMMIT]
        operations = [hub.CommitOperationAdd(name, upload.files[name]) for name in group]
        if start == 0 and len(starts) > 1 and upload.marker in there:
            operations.append(hub.CommitOperationDelete(upload.marker, is_folder=False))
        if start == starts[-1]:
            operations += [hub.CommitOperationAdd(name, content) for name, content in upload.last.items()]
            operations += [hub.CommitOperationDelete(name, is_folder=False) for name in stale]
        yield operations


def _explain(error: Exception, repo: str) -> str:
    """What to do, from the status of the Hub's answer or the type of the library's error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = type(error).__name__
    if kind == "LocalTokenNotFoundError" or status == 401:
        return "the Hub wants a valid token; log in with: hf auth login, or set HF_TOKEN"
    if status == 403:
        return f"the token may not write there; use one with write permission for {repo.split('/')[0]}"
    if kind == "OfflineModeIsEnabled":
        return "offline mode is on; unset HF_HUB_OFFLINE to upload"
    reason = " ".join(str(error).split())[:300]
    if status is None and (isinstance(error, OSError) or "Connect" in kind or "Timeout" in kind):
        return f"the Hub cannot be reached ({kind}: {reason}); check the network and run it again"
    return f"cannot be uploaded ({kind}: {reason}); check the name, the branch and your permission"

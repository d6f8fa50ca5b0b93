"""``vqgan push``: a codec, a prior or a token data set to the Hugging Face Hub.

What may go up is read, checked against what its folder says of itself, and only then sent.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transforms.decoding.plan import read_token_manifest
from transforms.sharded.plan import PLAN_FILE, PLAN_FOLDER, plan_file, plan_tables, read_plan
from transforms.sharded.run import missing_files
from transforms.tokenizing.parts import retried_file
from vqgan import filesystems
from vqgan.codec_checkpoint import PARTS, CodecInfo, load_weights, read_info
from vqgan.dataset_card import CARD_FILE, render_dataset_card
from vqgan.downloads import DATASET_TYPE, DATASETS, SCHEME, require_library
from vqgan.errors import UserError, counted
from vqgan.manifest import (
    MANIFEST_FILE,
    REPORT_FILE,
    check_parts,
    damaged_manifest,
    load_token_manifest,
    manifest_fields,
    parts_of,
    refuse_buckets,
)
from vqgan.model_card import render_codec_card
from vqgan.prior.checkpoint import (
    FOLDER,
    WEIGHTS,
    find_prior,
    load_prior_weights,
    read_prior,
    render_prior_card,
)
from vqgan.shards import DATA_FOLDER, REJECTS_FOLDER

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
        """Returns the path whose presence says that all is there."""
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
    """Reads ``owner/name`` of a repository given with or without ``hf://``.

    Raises:
      UserError: it has another form.
    """
    match = _REPO.fullmatch(repo)
    if match is None:
        raise UserError(f"{repo}: write the repository as owner/name")
    return match[1]


def card_of(folder: Path, made: str) -> bytes:
    """Returns the ``README.md`` of a folder, given front matter where it lacks any.

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
    """Yields the operations of each commit."""
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
    """Says what to do, from the status of the Hub's answer or the type of the library's error."""
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


_NUMBERS = r"\d+-of-\d+(?:-part-\d+)?"
_SHARD = re.compile(rf"{DATA_FOLDER}/tokens-{_NUMBERS}\.parquet|{REJECTS_FOLDER}/rejects-{_NUMBERS}\.parquet")


def push(
    path: str,
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
) -> str:
    """Uploads what lies at a path, recognised by what it is, with a card.

    Files that an earlier upload of the same kind has left are removed from the repository; whatever else
    lies there stays. The token is the library's own (``HF_TOKEN`` or its log-in).

    Args:
      path: folder or name of a codec, of a prior, of the run that has trained either, or of a finished token
        data set.
      repo: ``owner/name``; created if it is not there, for a token data set as one of the Hub's data sets.
      revision: branch, created if it is not there; the repository's main one by default.
      private: whether a repository that is created is private.
      message: of the commit.

    Returns:
      A line that says what was uploaded where.

    Raises:
      UserError: what lies there is damaged, not finished or of another code base; a malformed name, no
        ``huggingface_hub``, no token, no permission, or the Hub cannot be reached.
    """
    destination = Destination(repository_name(repo), revision, private, message)
    require_library(repo)
    upload = _recognise(path)(path)
    url = send(upload, destination)
    scheme = SCHEME if upload.repo_type is None else DATASETS
    address = f"{scheme}{destination.repo}" + (f"@{revision}" if revision else "")
    what = upload.title[:1].lower() + upload.title[1:]
    count = len(upload.files) + len(upload.last) - 1
    return f"{url}: {what}, {counted(count, 'file')} and a card; its name is {address}"


def check_can_push(repo: str) -> None:
    """Finds before a long training what would stop the upload after it.

    Raises:
      UserError: a malformed name, or no ``huggingface_hub``.
    """
    repository_name(repo)
    require_library(repo)


def codec_upload(path: str) -> Upload:
    """Makes the upload of a codec, once all its weights have been read and agree with ``codec.json``.

    Args:
      path: its folder or name.

    Raises:
      UserError: a damaged codec, or a checkpoint of another code base.
    """
    info = read_info(path)
    if info.source is not None:
        raise UserError(
            f"{path}: a checkpoint of another code base; convert it first with: "
            f"vqgan import {path} --output DIR"
        )
    load_weights(info, PARTS)
    card = card_of(info.path, render_codec_card(info.card, info.config, info.fingerprint))
    return Upload(
        title=f"Codec {info.fingerprint[:12]}",
        files=_files_below(info.path, _names(info), PARTS),
        last={CARD_FILE: card, "codec.json": info.path / "codec.json"},
        is_ours=lambda name: _is_below(name, PARTS),
    )


def prior_upload(path: str) -> Upload:
    """Makes the upload of a prior, once its weights have been read and agree with ``prior.json``.

    Args:
      path: its folder, or that of the run that has trained it.

    Raises:
      UserError: a damaged prior.
    """
    info = read_prior(path)
    load_prior_weights(info)
    made = render_prior_card(info)
    return Upload(
        title=f"Prior {info.fingerprint[:12]}",
        files=_files_below(info.path, list(info.files), (WEIGHTS,)),
        last={CARD_FILE: card_of(info.path, made), FOLDER.document: info.path / FOLDER.document},
        is_ours=lambda name: _is_below(name, (WEIGHTS,)),
    )


def token_upload(path: str) -> Upload:
    """Makes the upload of a token data set: shards, rejects, plan, report, card and manifest.

    Args:
      path: its folder. Whatever else lies there, such as decoded images, stays.

    Raises:
      UserError: it is not finished, holds images, or a file is gone or not of the size in the manifest.
    """
    manifest = read_token_manifest(path)
    load_token_manifest(path)  # the manifest does not contradict itself
    check_parts(path, manifest)
    names = [*_listed(path, manifest), *_planned(path, manifest)]
    if wrong := missing_files(path, manifest):
        raise UserError(
            f"{filesystems.join(path, wrong[0])}: missing, or not of the size that the manifest says; "
            "restore it, or run the command that wrote the data set again"
        )
    folder = Path(path)
    report = [REPORT_FILE] if (folder / REPORT_FILE).is_file() else []
    card = card_of(folder, render_dataset_card(manifest))
    return Upload(
        title=f"Tokens {manifest['plan_hash'][:12]}",
        files={name: folder / name for name in [*names, *report]},
        last={CARD_FILE: card, MANIFEST_FILE: folder / MANIFEST_FILE},
        is_ours=_is_of_data_set,
        repo_type=DATASET_TYPE,
    )


def _recognise(path: str) -> Callable[[str], Upload]:
    """Returns what makes an upload of what lies there; names, and whatever is nothing else, are codecs."""
    if "://" in path:
        raise UserError(f"{path}: only what lies on this machine can be uploaded; copy it to a local folder")
    if any((Path(path) / name).is_file() for name in (MANIFEST_FILE, PLAN_FILE)):  # finished or not
        return token_upload
    refuse_buckets(path)
    return codec_upload if find_prior(path) is None else prior_upload


def _names(info: CodecInfo) -> Sequence[str]:
    """Returns paths of the files of a codec's parts, also where it was written before sizes were recorded."""
    return list(info.files) or [
        file.relative_to(info.path).as_posix()
        for part in PARTS
        for file in sorted((info.path / part).rglob("*"))
        if file.is_file()
    ]


def _files_below(folder: Path, names: Sequence[str], parts: Sequence[str]) -> Mapping[str, Path]:
    """Keeps those names that lie in these parts of a folder; notes beside them are not among them."""
    return {name: folder / name for name in names if _is_below(name, parts) and ".." not in name.split("/")}


def _is_below(name: str, parts: Sequence[str]) -> bool:
    return "/" in name and name.split("/")[0] in parts


def _listed(path: str, manifest: Mapping[str, Any]) -> Iterable[str]:
    """Yields the files that the manifest names; all of them are shards or rejects, in their folders."""
    for entry in (*manifest["shards"], *manifest["rejects"]):
        name = str(entry["name"])
        if _SHARD.fullmatch(name) is None:
            raise damaged_manifest(path, f"{name} is no name of a shard")
        yield name


def _planned(path: str, manifest: Mapping[str, Any]) -> Iterable[str]:
    """Returns the files of the plan that the manifest is of."""
    found: list[str] = []
    for number, part in enumerate(parts_of(manifest_fields(path, manifest))):
        plan = read_plan(path, number)
        if plan is None or plan.hash != part.plan_hash:
            raise UserError(
                f"{path}: {plan_file(number)} is missing, or not that of the manifest; restore it"
            )
        found += [plan_file(number), *plan_tables(path, number)]
        found += [retried_file(number)] if part.retries else []
    for name in found:
        if not (Path(path) / name).is_file():
            raise UserError(f"{path}: {name} is missing; restore it")
    return found


def _is_of_data_set(name: str) -> bool:
    return _SHARD.fullmatch(name) is not None or name.startswith(f"{PLAN_FOLDER}/") or name == REPORT_FILE

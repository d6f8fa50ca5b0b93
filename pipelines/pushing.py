"""``vqgan push``: a codec to the Hugging Face Hub, through ``huggingface_hub``."""

import re
from pathlib import Path
from typing import Any

from vqgan.checkpoint import PARTS, CodecInfo, load_weights, read_info
from vqgan.errors import UserError
from vqgan.model_card import front_matter, render_card

CARD_FILE = "README.md"
_REPO = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")


def push_codec(
    codec_path: str,
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
) -> str:
    """Uploads a codec folder in one commit, with a card.

    Files of an earlier codec's parts are removed from the repository in the same commit; whatever else
    lies there stays. The token is the library's own (``HF_TOKEN`` or its log-in).

    Args:
      codec_path: a codec's folder or name.
      repo: ``owner/name``; created if it is not there.
      revision: branch, created if it is not there; the repository's main one by default.
      private: whether a repository that is created is private.
      message: of the commit.

    Returns:
      A line that says what was uploaded where.

    Raises:
      UserError: a damaged codec or a checkpoint of another code base, a malformed name, no
        ``huggingface_hub``, no token, no permission, or the Hub cannot be reached.
    """
    name, hub = repository_name(repo), _library(repo)
    info = _checked(codec_path)
    files = codec_files(info)
    message = message or f"Codec {info.fingerprint[:12]}"
    try:
        url = _upload(hub, name, files, codec_card(info), revision, private, message)
    except Exception as error:  # the library and its HTTP client raise many types
        raise UserError(f"{name}: {_explain(error, name)}") from error
    address = f"hf://{name}" + (f"@{revision}" if revision else "")
    return f"{url}: codec {info.fingerprint[:12]}, {len(files)} files and a card; its name is {address}"


def repository_name(repo: str) -> str:
    """``owner/name`` of a repository given with or without ``hf://``.

    Raises:
      UserError: it has another form.
    """
    match = _REPO.fullmatch(repo)
    if match is None:
        raise UserError(f"{repo}: write the repository as owner/name")
    return match[1]


def check_can_push(repo: str) -> None:
    """Finds before a long training what would stop the upload after it.

    Raises:
      UserError: a malformed name, or no ``huggingface_hub``.
    """
    repository_name(repo)
    _library(repo)


def codec_files(info: CodecInfo) -> dict[str, Path]:
    """The files that make a codec, by path in its folder; notes beside them are not among them."""
    names = list(info.files) or [
        file.relative_to(info.path).as_posix()
        for part in PARTS
        for file in sorted((info.path / part).rglob("*"))
        if file.is_file()
    ]
    parts = [name for name in names if name.split("/")[0] in PARTS and ".." not in name.split("/")]
    return {name: info.path / name for name in ("codec.json", *parts)}


def codec_card(info: CodecInfo) -> str:
    """The folder's ``README.md``, given front matter if it lacks it, or one made from the card."""
    try:
        text = (info.path / CARD_FILE).read_text()
    except FileNotFoundError:
        return render_card(info.card, info.config, info.fingerprint)
    except (OSError, ValueError) as error:
        raise UserError(f"{info.path / CARD_FILE}: cannot be read ({type(error).__name__})") from error
    return text if text.startswith("---\n") else f"{front_matter(info.card)}\n{text}"


def _checked(codec_path: str) -> CodecInfo:
    """What ``codec.json`` says, once all weights have been read and agree with it."""
    info = read_info(codec_path)
    if info.source is not None:
        raise UserError(
            f"{codec_path}: a checkpoint of another code base; convert it first with: "
            f"vqgan import {codec_path} --output DIR"
        )
    load_weights(info, PARTS)
    return info


def _library(repo: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{repo}: needs huggingface_hub; install it with: pip install 'vqgan-pipelines[hub]'"
        ) from None
    return huggingface_hub


def _upload(
    hub: Any,
    repo: str,
    files: dict[str, Path],
    card: str,
    revision: str | None,
    private: bool,
    message: str,
) -> str:
    api = hub.HfApi(library_name="vqgan-pipelines")
    api.create_repo(repo, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
    there = api.list_repo_files(repo, revision=revision)
    stale = [name for name in there if name.split("/")[0] in PARTS and "/" in name and name not in files]
    operations = [hub.CommitOperationAdd(name, path) for name, path in files.items()]
    operations.append(hub.CommitOperationAdd(CARD_FILE, card.encode(errors="replace")))
    operations += [hub.CommitOperationDelete(name, is_folder=False) for name in stale]
    commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    return str(commit.commit_url)


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

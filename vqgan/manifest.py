"""The manifest's file. It is written last: its presence means that a data set is complete."""

import json
from collections.abc import Mapping
from typing import Any

from vqgan import filesystems
from vqgan.errors import UserError, first_line

FORMAT_VERSION = 2
"""Of a data set: its layout, manifest, plan, shards and indices."""
MANIFEST_FILE = "manifest.json"
IMAGES_KIND = "images"
"""``kind`` in the manifest of decoded pictures; that of tokens has none."""
PARTS = (
    "plan_hash", "identity", "codec", "grid", "counts", "shards", "rejects", "reject_reasons", "codebook",
    "storage", "throughput", "versions", "finished",
)  # fmt: skip
"""What every manifest holds, beside its version."""
AGAIN = "restore it, or move it away and run the command that wrote the data set again"
"""What to do about a file that is not as it was written. Nothing is lost by it, whoever reads the file."""


def write_manifest(output: str, manifest: Mapping[str, Any]) -> None:
    """Publishes the manifest."""
    text = json.dumps(manifest, indent=1) + "\n"
    filesystems.write_bytes(filesystems.join(output, MANIFEST_FILE), text.encode())


def read_manifest(output: str) -> dict[str, Any] | None:
    """The manifest of a data set, or None where it is not complete.

    Raises:
      UserError: it cannot be read, is damaged, or of another format version.
    """
    path = filesystems.join(output, MANIFEST_FILE)
    if not filesystems.exists(path):
        return None
    try:
        manifest = json.loads(filesystems.read_bytes(path))
        version = manifest["version"]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); check its permissions") from error
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(output, error) from error
    check_version(path, version)
    return manifest


def check_version(where: str, version: Any) -> None:
    """Refuses files of another format version.

    Args:
      where: the file, for the message.
      version: that it says it has.

    Raises:
      UserError: another version, and what to do about it.
    """
    if version == FORMAT_VERSION:
        return
    older = isinstance(version, int) and version < FORMAT_VERSION
    advice = "make the data set again, in a new folder" if older else "upgrade vqgan-pipelines"
    raise UserError(f"{where}: format version {version}, this release reads {FORMAT_VERSION}; {advice}")


def check_tokens(path: str, manifest: Mapping[str, Any]) -> None:
    """That a data set holds tokens.

    Args:
      path: its folder.
      manifest: of it.

    Raises:
      UserError: it holds decoded pictures.
    """
    if manifest.get("kind") == IMAGES_KIND:
        raise UserError(f"{path}: holds pictures already; give the token data set that they were made of")


def check_parts(output: str, manifest: Mapping[str, Any]) -> None:
    """That a manifest has all the parts that :func:`write_manifest` was given.

    Raises:
      UserError: one is missing.
    """
    for name in PARTS:
        if name not in manifest:
            raise damaged(output, KeyError(name))


def damaged(output: str, error: Exception) -> UserError:
    """What is wrong with the manifest of a data set, and what to do about it."""
    what = f"no {error}" if isinstance(error, KeyError) else first_line(error)
    return UserError(f"{filesystems.join(output, MANIFEST_FILE)}: damaged ({what}); {AGAIN}")

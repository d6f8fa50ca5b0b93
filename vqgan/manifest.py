"""The manifest's file. It is written last: its presence means that a data set is complete."""

import json
from collections.abc import Mapping
from typing import Any

from vqgan import filesystems
from vqgan.errors import UserError

MANIFEST_VERSION = 1
MANIFEST_FILE = "manifest.json"


def write_manifest(output: str, manifest: Mapping[str, Any]) -> None:
    """Publishes the manifest."""
    text = json.dumps(manifest, indent=1) + "\n"
    filesystems.write_bytes(filesystems.join(output, MANIFEST_FILE), text.encode())


def read_manifest(output: str) -> dict[str, Any] | None:
    """The manifest of a data set, or None where it is not complete.

    Raises:
      UserError: damaged, or of another format version.
    """
    path = filesystems.join(output, MANIFEST_FILE)
    if not filesystems.exists(path):
        return None
    try:
        manifest = json.loads(filesystems.read_bytes(path))
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); delete it and run the command that has made it again"
        ) from error
    if version != MANIFEST_VERSION:
        raise UserError(f"{path}: format version {version}, this release reads {MANIFEST_VERSION}")
    return manifest

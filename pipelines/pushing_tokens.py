"""A finished token data set as an upload: which of its files, once they are those of its manifest."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.planned_runs import missing_files
from pipelines.uploads import Upload, card_of
from transforms.plan import KEYS_FILE, PLAN_FILE, PLAN_FOLDER, read_plan
from transforms.rendering.plan import read_token_manifest
from transforms.report import REPORT_FILE
from vqgan import filesystems
from vqgan.data.contract import read_contract
from vqgan.dataset_card import CARD_FILE, render_dataset_card
from vqgan.errors import UserError
from vqgan.hub import DATASET_TYPE
from vqgan.manifest import MANIFEST_FILE, check_parts, damaged
from vqgan.shards import DATA_FOLDER, REJECTS_FOLDER

_SHARD = re.compile(rf"{DATA_FOLDER}/tokens-\d+-of-\d+\.parquet|{REJECTS_FOLDER}/rejects-\d+-of-\d+\.parquet")


def holds_tokens(path: str) -> bool:
    """Whether a folder is that of a data set, be it finished or not."""
    return any((Path(path) / name).is_file() for name in (MANIFEST_FILE, PLAN_FILE))


def token_upload(path: str) -> Upload:
    """The upload of a token data set: its shards, rejects and plan, the report, the card and the manifest.

    Args:
      path: its folder. Whatever else lies there, such as pictures, stays.

    Raises:
      UserError: it is not finished, holds pictures, or a file is gone or not of the size in the manifest.
    """
    manifest = read_token_manifest(path)
    read_contract(path)  # the manifest does not contradict itself
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
        is_ours=_is_ours,
        repo_type=DATASET_TYPE,
    )


def _listed(path: str, manifest: Mapping[str, Any]) -> Iterable[str]:
    """The files that the manifest names, all of which are in their place."""
    for entry in (*manifest["shards"], *manifest["rejects"]):
        name = str(entry["name"])
        if _SHARD.fullmatch(name) is None:
            raise damaged(path, f"{name} is no name of a shard")
        yield name


def _planned(path: str, manifest: Mapping[str, Any]) -> Iterable[str]:
    """The files of the plan that the manifest is of."""
    plan = read_plan(path)
    if plan is None or plan.hash != manifest["plan_hash"]:
        raise UserError(f"{path}: {PLAN_FILE} is missing, or not that of the manifest; restore it")
    if not (Path(path) / KEYS_FILE).is_file():
        raise UserError(f"{path}: {KEYS_FILE} is missing; restore it")
    return (PLAN_FILE, KEYS_FILE)


def _is_ours(name: str) -> bool:
    return _SHARD.fullmatch(name) is not None or name.startswith(f"{PLAN_FOLDER}/") or name == REPORT_FILE

"""Token data sets and priors to the Hub and back, without a network."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import pushing
from pipelines.pushing import push
from vqgan.codec_checkpoint import read_info
from vqgan.config_json import to_dict
from vqgan.data.tokens import open_tokens
from vqgan.prior.checkpoint import CodecIdentity, load_prior_weights, read_prior, save_prior
from vqgan.prior.config import PriorConfig, prior_parameter_shapes

from .conftest import Vqgan
from .fake_hub import Hub, lay_out_as_cache

Refused = Callable[[str], AbstractContextManager[None]]
ADDRESS = "hf://datasets/owner/name"
SHARDS = {f"data/tokens-0000{number}-of-00004.parquet" for number in range(4)}
OTHERS = {"manifest.json", "README.md", "plan/plan.json", "plan/keys-00000.parquet", "report.html"}


def expected_files(folder: Path) -> set[str]:
    rejects = {f"rejects/{path.name}" for path in (folder / "rejects").iterdir()}
    assert len(rejects) == 1
    return SHARDS | OTHERS | rejects


def test_what_is_uploaded_is_read_again(hub: Hub, copied: Path) -> None:
    for name in ("notes.txt", "data/.tokens-00000-of-00004.parquet.tmp", "plan/notes", "images/a.png"):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text("private")
    line = push(str(copied), "owner/name")
    plan = json.loads((copied / "manifest.json").read_text())["plan_hash"][:12]
    assert (
        line == f"https://hub/owner/name/commit/1: tokens {plan}, 9 files and a card; its name is {ADDRESS}"
    )
    assert hub.calls == [
        ("create", "owner/name", False, True, "dataset"),
        ("commit", "owner/name", f"Tokens {plan}", None, "dataset"),
    ]
    assert set(hub.files) == expected_files(copied)
    assert hub.files["README.md"] == (copied / "README.md").read_bytes()
    before, after = open_tokens(str(copied), columns=["key"]), open_tokens(ADDRESS, columns=["key"])
    assert hub.calls[2:] == [
        ("file", "owner/name", "manifest.json", None, "dataset"),
        ("snapshot", "owner/name", None, "dataset"),
    ]
    assert (after.path, after.fingerprint) == (ADDRESS, before.fingerprint)
    assert after.folder != ADDRESS
    rows = np.arange(len(before))
    np.testing.assert_array_equal(after.take(rows).tokens, before.take(rows).tokens)
    assert after.take(rows).columns["key"] == before.take(rows).columns["key"]
    assert not (Path(after.folder) / "report.html").exists()  # nobody who reads tokens needs it


def test_options_and_revision_go_along(hub: Hub, copied: Path) -> None:
    line = push(str(copied), "owner/name", revision="v2", private=True, message="second")
    assert line.endswith(f"its name is {ADDRESS}@v2")
    assert hub.calls == [
        ("create", "owner/name", True, True, "dataset"),
        ("branch", "owner/name", "v2", True, "dataset"),
        ("commit", "owner/name", "second", "v2", "dataset"),
    ]
    open_tokens(f"{ADDRESS}@v2")
    assert hub.calls[-1] == ("snapshot", "owner/name", "v2", "dataset")


def test_commands_take_what_lies_on_the_hub(
    hub: Hub, finished: Path, codec_path: str, tmp_path: Path, vqgan: Vqgan
) -> None:
    pushed = vqgan("push", finished / "out", "owner/name")
    assert pushed.code == 0, pushed.err
    assert pushed.out.endswith(f"its name is {ADDRESS}\n")
    verified = vqgan("verify", ADDRESS, "--codec", codec_path, "--input", finished / "in")
    assert (verified.code, verified.out.splitlines()[-1]) == (0, "ok")
    inspected = json.loads(vqgan("inspect", ADDRESS, "--json").out)
    assert (inspected["kind"], inspected["path"], inspected["images"]) == ("data set", ADDRESS, 40)
    for tokens, output in ((ADDRESS, "from-hub"), (finished / "out", "from-folder")):
        flags = ("--tokens", tokens, "--output", tmp_path / output, "--limit", 5, "--quiet", "--no-report")
        decoded = vqgan("decode", *flags, "--batch-size", 4)
        assert (decoded.code, decoded.err) == (0, "")
    images = sorted((tmp_path / "from-folder" / "images").glob("*.png"))
    assert len(images) == 5
    for image in images:
        assert (tmp_path / "from-hub" / "images" / image.name).read_bytes() == image.read_bytes()
    settings = ("model.layers=1", "model.heads=2", "model.width=16", "model.hidden=16", "train.steps=1",
                "train.batch_size=4", "data.holdout=5", "data.samples=0")  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    trained = vqgan("train-prior", "--tokens", ADDRESS, "--output", tmp_path / "run", *sets, "--quiet")
    assert trained.code == 0, trained.err
    card = read_prior(tmp_path / "run").card
    assert card["data"]["source"] == ADDRESS


def test_many_files_go_in_several_commits(hub: Hub, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "FILES_PER_COMMIT", 3)
    hub.files = dict.fromkeys(
        ("manifest.json", "data/tokens-00000-of-00001.parquet", "rejects/rejects-00000-of-00001.parquet",
         "data/mine.parquet", ".gitattributes"), b"old"
    )  # fmt: skip
    push(str(copied), "owner/name")
    wanted = expected_files(copied)
    assert len(hub.states) == 3
    assert ["manifest.json" in state for state in hub.states] == [False, False, True]
    assert hub.states[-1] == wanted | {"data/mine.parquet", ".gitattributes"}
    push(str(copied), "owner/name")
    assert ["manifest.json" in state for state in hub.states[3:]] == [False, False, True]
    assert hub.states[-1] == hub.states[2]


def test_stale_shards_of_an_earlier_data_set_go(hub: Hub, copied: Path) -> None:
    stale = [
        "data/tokens-00004-of-00005.parquet",
        "rejects/rejects-00004-of-00005.parquet",
        "plan/shards.parquet",
    ]
    hub.files = dict.fromkeys([*stale, "LICENSE"], b"old")
    push(str(copied), "owner/name")
    assert set(hub.files) == expected_files(copied) | {"LICENSE"}


def test_cards(hub: Hub, copied: Path) -> None:
    made = (copied / "README.md").read_bytes()
    (copied / "README.md").unlink()
    push(str(copied), "owner/name")
    assert hub.files["README.md"] == made
    (copied / "README.md").write_text("# Mine\n")
    push(str(copied), "owner/name")
    assert hub.files["README.md"] == b"---\n" + made.split(b"---\n", 2)[1] + b"---\n\n# Mine\n"
    (copied / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    push(str(copied), "owner/name")
    assert hub.files["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"


def _cut(folder: Path) -> None:
    shard = folder / "data" / "tokens-00001-of-00004.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])


def _change_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))

    return change


def _name_outside(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["rejects"].append({"name": "../secret", "rows": 0, "bytes": 6, "sha256": ""})
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "not finished .no manifest.json."),
        (_cut, "tokens-00001-of-00004.parquet: missing, or not of the size that the manifest says"),
        (lambda folder: next((folder / "rejects").iterdir()).unlink(), "rejects-.*: missing, or not of the"),
        (_name_outside, r"manifest.json: damaged .*\.\./secret., expected a path inside of the folder"),
        (lambda folder: (folder / "plan" / "keys-00000.parquet").unlink(), "keys-00000.parquet is missing"),
        (lambda folder: (folder / "plan" / "plan.json").unlink(), "plan.json is missing"),
        (_change_manifest(plan_hash="0" * 64), "plan.json is missing, or not that of the manifest"),
        (_change_manifest(kind="images"), "holds images already"),
        (_change_manifest(counts={"rows": 7}), "it contradicts itself"),
    ],
)
def test_what_is_not_whole_is_refused(
    change: Callable[[Path], None], message: str, hub: Hub, copied: Path, refused: Refused
) -> None:
    change(copied)
    with refused(message):
        push(str(copied), "owner/name")
    assert hub.calls == []


def test_only_local_folders_are_uploaded(hub: Hub, refused: Refused) -> None:
    for path in (ADDRESS, "hf://owner/name", "s3://bucket/tokens"):
        with refused("only what lies on this machine can be uploaded"):
            push(path, "owner/other")
    assert hub.calls == []


def test_a_data_set_that_has_changed_on_the_way(hub: Hub, copied: Path, refused: Refused) -> None:
    push(str(copied), "owner/name")
    hub.files["data/tokens-00001-of-00004.parquet"] = b"short"
    with refused("tokens-00001-of-00004.parquet: 5 bytes, but the manifest says"):
        open_tokens(ADDRESS)


def test_offline_from_the_real_cache(hub: Hub, copied: Path, tmp_path: Path) -> None:
    """With the library itself: nothing but its cache, and no network."""
    push(str(copied), "owner/name")
    code = (
        "import sys; from vqgan.data.tokens import open_tokens; print(len(open_tokens(sys.argv[1])));"
        "print(any(name.split('.')[0] in ('jax', 'apache_beam') for name in sys.modules))"
    )
    lay_out_as_cache(hub.files, tmp_path / "real", "datasets")
    library = {"HF_HUB_CACHE": str(tmp_path / "real"), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **library}
    for address in (ADDRESS, f"{ADDRESS}@main", f"{ADDRESS}@{'a' * 40}"):
        command = [sys.executable, "-c", code, address]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.stdout.split() == ["40", "False"], done.stderr


def test_priors_go_and_come_back(hub: Hub, codec_path: str, tmp_path: Path) -> None:
    config = PriorConfig(codebook_size=64, grid=(4, 4), layers=1, heads=2, width=16)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in prior_parameter_shapes(config).items()
    }
    codec = read_info(codec_path)
    identity = CodecIdentity(codec.fingerprint, "tiny", to_dict(codec.config), 8)
    info = save_prior(tmp_path / "run" / "prior", config, weights, codec=identity)
    hub.files = {"weights/old": b"1", "LICENSE": b"2"}
    line = push(str(tmp_path / "run"), "owner/name")
    assert f": prior {info.fingerprint[:12]}, " in line
    assert line.endswith("its name is hf://owner/name")
    assert set(hub.files) == {"prior.json", "README.md", "LICENSE", *info.files}
    shutil.rmtree(tmp_path / "run")
    again = read_prior("hf://owner/name")
    assert again.fingerprint == info.fingerprint
    assert load_prior_weights(again).keys() == weights.keys()

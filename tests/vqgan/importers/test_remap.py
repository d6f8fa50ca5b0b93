"""taming's ``remap``: tokens are places in a list of used codes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqgan import Codec, UserError
from vqgan.importers import import_checkpoint

USED = np.asarray([7, 49, 0, 12, 33, 3, 8, 21])


def write(
    folder: Path,
    foreign: Any,
    kind: str = "taming",
    used: Any = USED,
    config: Any = None,
    inside: bool = True,
) -> dict[str, np.ndarray]:
    """A model whose tokens are remapped; the list in the file, or beside it as used.npy."""
    folder.mkdir(exist_ok=True)
    architecture = foreign.config_for(kind)
    tensors = foreign.foreign_tensors(kind, architecture, foreign.random_weights(architecture))
    extra = {"quantize.used": np.asarray(used)} if inside else {}
    foreign.write_torch_zip(folder / "last.ckpt", {"state_dict": tensors | extra})
    sizes = {"embed_dim": architecture.embed_dim, "n_embed": 50}
    names = ("resolution", "ch", "ch_mult", "num_res_blocks", "z_channels", "attn_resolutions")
    dd = {name: getattr(architecture, name) for name in names}
    params = {"ddconfig": dd, **sizes, "remap": "data/used.npy", **(config or {})}
    (folder / "config.json").write_text(json.dumps({"model": {"params": params}}))
    if not inside:
        np.save(folder / "used.npy", np.asarray(used))
    found: dict[str, np.ndarray] = tensors
    return found


@pytest.mark.parametrize("kind", ["taming", "gumbel"])
def test_tokens_are_places_in_the_list(kind: str, foreign: Any, tmp_path: Path) -> None:
    write(tmp_path / "list", foreign, kind)
    write(tmp_path / "all", foreign, kind, config={"remap": None})
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    listed, whole = (Codec.load(tmp_path / name, batch_size=4) for name in ("list", "all"))
    codes, places = whole.encode(images), listed.encode(images)
    known = np.isin(codes, USED)
    assert known.any()
    assert not known.all()
    np.testing.assert_array_equal(USED[places[known]], codes[known])
    assert places.max() < len(USED) == listed.config.codebook_size
    np.testing.assert_array_equal(listed.decode(places), whole.decode(USED[places].astype(np.int32)))


def test_the_list_is_found_and_said(foreign: Any, tmp_path: Path) -> None:
    said = {"codes": 8, "of": 50, "outside_of_the_list": "the nearest in it; the reference draws one"}
    table = write(tmp_path / "a", foreign)["quantize.embedding.weight"]
    write(tmp_path / "b", foreign, inside=False)
    write(tmp_path / "c", foreign)
    (tmp_path / "c" / "config.json").unlink()
    for name, file in (("a", {"file": "data/used.npy"}), ("b", {"file": "data/used.npy"}), ("c", {})):
        found = import_checkpoint(str(tmp_path / name))
        np.testing.assert_array_equal(found.weights["quantizer"]["codebook"], table[USED])
        assert found.origin["remap"] == {**said, **file}
    write(tmp_path / "d", foreign, config={"remap": None})
    found = import_checkpoint(str(tmp_path / "d"))
    np.testing.assert_array_equal(found.weights["quantizer"]["codebook"], table)
    assert "remap" not in found.origin


@pytest.mark.parametrize(
    ("used", "config", "says"),
    [
        (USED, {"unknown_index": "extra"}, "unknown_index is 'extra'"),
        (USED, {"unknown_index": 3}, "unknown_index is 3"),
        ([], {}, "list of used codes is none"),
        ([1, 50], {}, "list of used codes is none"),
        ([-1, 3], {}, "list of used codes is none"),
        ([[1, 2]], {}, "list of used codes is none"),
        ([0.5, 1.0], {}, "list of used codes is none"),
        (USED, {"n_embed": 51}, "do not fit the architecture"),
    ],
)
def test_lists_that_do_not_fit(used: Any, config: Any, says: str, foreign: Any, tmp_path: Path) -> None:
    write(tmp_path, foreign, used=used, config=config, inside=False)
    with pytest.raises(UserError, match=says) as caught:
        import_checkpoint(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_list_that_is_missing_or_no_list(foreign: Any, tmp_path: Path) -> None:
    write(tmp_path, foreign, inside=False)
    (tmp_path / "used.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(UserError, match=r"used\.npy: not a list of used codes"):
        import_checkpoint(str(tmp_path))
    np.save(tmp_path / "used.npy", np.asarray([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"used\.npy: not a list of used codes"):
        import_checkpoint(str(tmp_path))
    (tmp_path / "used.npy").unlink()
    with pytest.raises(UserError, match=r"the list of used codes data/used\.npy is missing"):
        import_checkpoint(str(tmp_path))

"""Captions matched to rows of token sets by key."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vqgan.data.captions import Captions, read_captions
from vqgan.data.tokens import TokenBatch
from vqgan.errors import UserError
from vqgan.prior.config import PriorConfig
from vqgan.training.prior.caption_rows import CaptionRows, open_caption_rows
from vqgan.training.prior.prior_rows import PriorBatches, PriorRows

KEYS = ["a", "b", "c"]


def captions(folder: Path, values: list[Any], kind: pa.DataType, keys: list[str] = KEYS) -> Captions:
    path = folder / "captions.parquet"
    pq.write_table(pa.table({"key": keys[: len(values)], "caption": pa.array(values, kind)}), path)
    return read_captions(f"{path}:caption", vectors=not pa.types.is_string(kind.value_type))


def batch(keys: list[str]) -> TokenBatch:
    count = len(keys)
    columns: dict[str, Any] = {"key": keys, "view": np.zeros(count, np.int32)}
    return TokenBatch(np.zeros((count, 4), np.int32), np.full(count, -1, np.int32), columns)


@pytest.fixture
def rows(tmp_path: Path) -> CaptionRows:
    texts = [["a red circle", "red"], None, ["a blue square, quite large"]]
    return CaptionRows(captions(tmp_path, texts, pa.list_(pa.string())), KEYS, KEYS[:1])


def test_words_are_of_what_is_trained_on(rows: CaptionRows) -> None:
    assert rows.words == ("red", "a", "circle")
    assert (rows.model.text_length, rows.model.text_words, rows.model.text_width) == (6, 4, 0)
    assert rows.fit(PriorConfig(layers=3)).layers == 3
    assert str(rows) == (
        "texts of up to 6 positions, 3 words; 1 of 3 images have no caption and are trained without"
    )


def test_each_row_has_the_caption_of_its_key(rows: CaptionRows) -> None:
    text = rows.of(batch(["c", "a", "b", "a"]))
    np.testing.assert_array_equal(text.mask.sum(axis=1), [6, 3, 0, 3])
    np.testing.assert_array_equal(text.values[1], [0, 0, 0, 2, 1, 3])
    np.testing.assert_array_equal(text.values[0], [2, 0, 0, 0, 0, 0])  # words of other images are unknown


def test_one_of_several_captions_is_drawn_by_the_seed(rows: CaptionRows) -> None:
    lengths = [int(rows.of(batch(["a"]), (5, position)).mask.sum()) for position in range(60)]
    assert set(lengths) == {1, 3}
    assert lengths == [int(rows.of(batch(["a"]), (5, position)).mask.sum()) for position in range(60)]
    assert 15 < lengths.count(1) < 45


def test_a_resumed_stream_draws_the_same_captions(rows: CaptionRows) -> None:
    class Stream:
        """As of token sets: a position, and a batch of it."""

        position = 0

        def get_state(self) -> dict[str, Any]:
            return {"position": self.position}

        def set_state(self, state: dict[str, Any]) -> None:
            self.position = state["position"]

        def __next__(self) -> TokenBatch:
            self.position += 4
            return batch(["a"] * 4)

    def drawn(start: int, count: int) -> list[np.ndarray]:
        batches = PriorBatches(Stream(), False, None, rows, 7)  # type: ignore[arg-type]
        batches.set_state({"position": start})
        found: list[PriorRows] = [next(batches) for _ in range(count)]
        return [part.text.mask for part in found if part.text is not None]

    whole = drawn(0, 6)
    assert len(whole) == 6
    np.testing.assert_array_equal(whole[3:], drawn(12, 3))
    assert not np.array_equal(whole[0], whole[1]) or not np.array_equal(whole[1], whole[2])


def test_vectors(tmp_path: Path) -> None:
    kind = pa.list_(pa.list_(pa.float32(), 2))
    rows = CaptionRows(captions(tmp_path, [[[1, 2]], [[3, 4], [5, 6]]], kind), KEYS[:2], KEYS)
    text = rows.of(batch(["a", "b"]))
    np.testing.assert_array_equal(text.values, [[[0, 0], [1, 2]], [[3, 4], [5, 6]]])
    assert rows.model.text_width == 2
    assert rows.words == ()
    assert str(rows) == "texts of up to 2 positions, vectors of 2"


def test_refused(tmp_path: Path) -> None:
    found = captions(tmp_path, [["x"]], pa.list_(pa.string()), ["other"])
    with pytest.raises(UserError, match="its keys are such as 'other', those of the tokens such as 'a'"):
        CaptionRows(found, KEYS, KEYS)
    with pytest.raises(UserError, match="a prior takes one of them"):
        open_caption_rows("a.parquet:x", "b.parquet:y", [], 0)
    assert open_caption_rows(None, None, [], 0) is None
    long = captions(tmp_path, [["x " * 1025]], pa.list_(pa.string()))
    with pytest.raises(UserError, match="a text of 1,025 positions; at most 1,024: shorten it"):
        CaptionRows(long, KEYS, KEYS)


def test_captions_of_validation_alone_teach_nothing(tmp_path: Path, refused: Any) -> None:
    with refused("no caption of any image that is trained on"):
        CaptionRows(captions(tmp_path, [["red"]], pa.list_(pa.string())), KEYS, KEYS[1:])

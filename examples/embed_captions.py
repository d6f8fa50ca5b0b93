"""Captions to vectors, for ``vqgan train-prior --condition-embeddings`` and ``vqgan sample``.

    python examples/embed_captions.py captions.parquet:caption vectors.parquet:vectors

:func:`embed` is the encoder. This one needs no weights and no network: each word is the sum of hashed vectors
of its runs of three characters, so that words that are written alike lie near each other, which is all that
it knows of their meaning. Put CLIP, T5 or any other encoder of texts in its place: what follows takes any
sequence of vectors of one width. With T5 of ``transformers``, say, loaded once::

    tokenizer = AutoTokenizer.from_pretrained("google/flan-t5-xl")
    encoder = T5EncoderModel.from_pretrained("google/flan-t5-xl")

    def embed(caption):
        inputs = tokenizer(caption, return_tensors="pt", truncation=True, max_length=120)
        return encoder(**inputs).last_hidden_state[0].detach().float().numpy()

A column of captions is ``string`` or ``list<string>``; that of vectors is
``list<list<fixed_size_list<float>>>``: several captions an image, each a sequence of vectors.
"""

import re
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WIDTH = 64
RUN = 3  # characters


def embed(caption: str) -> np.ndarray:
    """Encodes a caption, a vector for each word: float32 ``[t, WIDTH]``, numbers of about 1."""
    words = re.findall(r"\w+", caption.lower())
    return np.stack([_embed_word(word) for word in words]) if words else np.zeros((0, WIDTH), np.float32)


def _embed_word(word: str) -> np.ndarray:
    framed = f"<{word}>"
    runs = [framed[start : start + RUN] for start in range(max(1, len(framed) - RUN + 1))]
    total = sum(np.random.default_rng(zlib.crc32(run.encode())).normal(size=WIDTH) for run in runs)
    return np.asarray(total / np.sqrt(len(runs)), np.float32)


def embed_column(source: str, column: str, target: str, name: str) -> None:
    """Encodes a column of captions, and writes their vectors beside the keys of their images."""
    table = pq.read_table(source)
    rows = [[value] if isinstance(value, str) else value or [] for value in table.column(column).to_pylist()]
    kind = pa.list_(pa.list_(pa.list_(pa.float32(), WIDTH)))
    encoded = ([embed(caption).tolist() for caption in row] for row in rows)
    vectors = pa.array(list(encoded), kind)
    pq.write_table(pa.table({"key": table.column("key"), name: vectors}), target)


def main() -> None:
    """Encodes what the command line names."""
    if len(sys.argv) != 3 or not all(":" in argument for argument in sys.argv[1:]):
        sys.exit("usage: embed_captions.py CAPTIONS.parquet:COLUMN VECTORS.parquet:COLUMN")
    (source, _, column), (target, _, name) = (argument.rpartition(":") for argument in sys.argv[1:])
    embed_column(source, column, target, name)


if __name__ == "__main__":
    main()

"""Priors of *Taming Transformers* (arXiv 2012.09841): checkpoints of its Net2NetTransformer as ours.

That model is a GPT after minGPT: learned positions, LayerNorm before each part, exact GELU. One table of
embeddings serves the tokens of the image, those of a condition, class ids and the start token, by the same
numbers; ours has a table for each, so rows are copied. NumPy does the conversion; nothing in a file is
executed.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.errors import UserError
from vqgan.importers.containers import READERS, sniff
from vqgan.importers.native_config import find_native
from vqgan.importers.pickle_objects import PickleError
from vqgan.importers.source import find_weights, parse_source
from vqgan.importers.tensors import as_float32
from vqgan.importers.text_files import describe_unknown
from vqgan.prior.config import PriorConfig, prior_parameter_shapes
from vqgan.prior.net2net import TOKENS, Gpt, Net2NetSettings, find_gpt, find_settings

FORMAT = "taming-transformers Net2NetTransformer"
CODEBOOK_TOLERANCE = 2e-3  # of the largest value: a codec may have been stored in float16
_MASK = re.compile(r"blocks\.\d+\.attn\.mask")
_CODEBOOKS = ("first_stage_model.quantize.embedding.weight", "first_stage_model.quantize.embed.weight")
_PERMUTATION = "permuter.forward_shuffle_idx"
_LISTED = 3

# Ours to theirs, inside a block and outside of blocks.
_BLOCK = {
    "attention_norm": "ln1",
    "attention.query": "attn.query",
    "attention.key": "attn.key",
    "attention.value": "attn.value",
    "attention.out": "attn.proj",
    "feed_forward_norm": "ln2",
    "feed_forward.up": "mlp.0",
    "feed_forward.down": "mlp.2",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclass(frozen=True)
class PriorSpec:
    """What a file of weights does not say of the prior in it.

    Attributes:
      codebook_size: codes of the codec, K.
      grid: ``(h, w)`` of the tokens.
      classes: number of classes; 0 for a prior without labels.
      condition_codebook_size: codes of the condition's tokens; 0 for a prior without a condition grid.
      condition_grid: ``(h, w)`` of the condition's tokens; both 0 without one.
      heads: attention heads; None to read them from the model's configuration.
      codebook: float32 ``[K, D]`` codes of the codec, to be compared with those of a first stage in the file;
        None not to compare.
      config: the model's own configuration file, if it lies elsewhere than beside the file.
    """

    codebook_size: int
    grid: tuple[int, int]
    classes: int = 0
    condition_codebook_size: int = 0
    condition_grid: tuple[int, int] = (0, 0)
    heads: int | None = None
    codebook: np.ndarray | None = None
    config: str | None = None


@dataclass(frozen=True)
class ImportedPrior:
    """A converted prior.

    Attributes:
      config: architecture.
      weights: parameters by our names, float32.
      origin: JSON data: format, file, sha256, and what else is known of where it came from.
      notes: what differs from the original, a sentence each.
    """

    config: PriorConfig
    weights: dict[str, np.ndarray]
    origin: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class OpenedPrior:
    """A checkpoint of another code base, opened.

    Attributes:
      file: for messages.
      tree: what it holds; tensors are read when they are asked for.
      config: the model's own configuration file, where the source's name gives one.
    """

    file: Path
    tree: Any
    config: str | None


@contextlib.contextmanager
def opened_prior(source: str) -> Iterator[OpenedPrior]:
    """Opens a checkpoint; what reading its tensors raises becomes one line, too.

    Raises:
      UserError: no file, not a checkpoint, or a damaged one.
    """
    path, options = parse_source(source)
    file = find_weights(path)
    try:
        container = sniff(file)
        if container is None:
            raise UserError(f"{file}: not a checkpoint that we know: {describe_unknown(file)}")
        yield OpenedPrior(file, READERS[container](file), options.config)
    except PickleError as error:
        raise UserError(f"{file}: the checkpoint is damaged ({error}); download or copy it again") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def import_taming_prior(source: str, spec: PriorSpec) -> ImportedPrior:
    """Reads and converts a checkpoint.

    Args:
      source: file, folder or Hub address.
      spec: what the file does not say.

    Raises:
      UserError: it is no such checkpoint, damaged, hostile, or not of the form that was asked for.
    """
    with opened_prior(source) as opened:
        file, tree = opened.file, opened.tree
        native = find_native(file, spec.config or opened.config)
        settings = find_settings(native.data if native else None) or find_settings(tree)
        gpt = find_gpt(file, tree)
        _check_conditioning(file, spec, settings)
        _check_attention(gpt)
        _check_codebook(gpt, spec)
        config = _config(gpt, spec, settings)
        start = settings.start_token if settings else 0
        weights, notes = _convert(gpt, config, start)
    origin = {"format": FORMAT, "file": file.name, "sha256": file_sha256(file), "heads": config.heads}
    if isinstance(tree, dict) and type(tree.get("global_step")) is int:
        origin["training_step"] = tree["global_step"]
    return ImportedPrior(config, weights, {**origin, "notes": list(notes)}, notes)


def _check_conditioning(file: Path, spec: PriorSpec, settings: Net2NetSettings | None) -> None:
    """Compares what was asked for with what the model's configuration says, where there is one."""
    if settings is None or settings.conditioned is None:
        return
    is_conditioned = spec.classes > 0 or spec.condition_codebook_size > 0
    if settings.conditioned and not is_conditioned:
        raise UserError(
            f"{file}: this prior was trained with a condition ({settings.condition}); "
            "give --classes for labels, or --condition-codes and --condition-grid for another token grid"
        )
    if is_conditioned and not settings.conditioned:
        raise UserError(f"{file}: this prior was trained without a condition; leave its flags out")
    if settings.classes is not None and settings.classes != spec.classes:
        raise UserError(
            f"{file}: this prior was trained with {settings.classes} classes, not {spec.classes}; "
            f"give --classes {settings.classes}"
        )


def _check_attention(gpt: Gpt) -> None:
    """Refuses what our transformer does not compute: attention that looks ahead, another order."""
    for name in filter(_MASK.fullmatch, gpt.tensors):
        mask = np.asarray(gpt.tensors[name].read())
        side = mask.shape[-1] if mask.ndim else 0
        if mask.size != side * side or not np.array_equal(mask.reshape(side, side) != 0, np.tri(side) != 0):
            raise UserError(
                f"{gpt.file}: {name} lets positions attend to later ones (n_unmasked); that is not supported"
            )
    order = gpt.others.get(_PERMUTATION)
    if order is not None and not np.array_equal(order.read(), np.arange(np.prod(order.shape))):
        raise UserError(
            f"{gpt.file}: its tokens are in another order than row by row ({_PERMUTATION}); "
            "that is not supported"
        )


def _check_codebook(gpt: Gpt, spec: PriorSpec) -> None:
    """Compares the codebook that the file brings along with the codec's."""
    name = next(filter(gpt.others.get, _CODEBOOKS), None)
    if name is None or spec.codebook is None:
        return
    found, expected = gpt.others[name], spec.codebook
    if found.shape == expected.shape:
        difference = np.abs(as_float32(found.read(), name, str(gpt.file)) - expected).max()
        if difference <= CODEBOOK_TOLERANCE * np.abs(expected).max():
            return
    raise UserError(
        f"{gpt.file}: its first stage ({list(found.shape)} codebook) is another one than --codec "
        f"({list(expected.shape)}); give the codec that the prior was trained with, which may be this file"
    )


def _config(gpt: Gpt, spec: PriorSpec, settings: Net2NetSettings | None) -> PriorConfig:
    vocabulary, width = gpt.shape(TOKENS, 2)
    needed_rows = {
        "codes of the codec": spec.codebook_size,
        "classes": spec.classes,
        "codes of the condition": spec.condition_codebook_size,
    }
    for what, rows in needed_rows.items():
        if rows > vocabulary:
            raise UserError(
                f"{gpt.file}: its vocabulary is {vocabulary}, too small for {rows} {what}; give what it was "
                "trained with"
            )
    blocks = {int(name.split(".")[1]) for name in gpt.tensors if re.match(r"blocks\.\d+\.", name)}
    hidden = gpt.shape("blocks.0.mlp.0.weight", 2)[0]
    return PriorConfig(
        block="gpt",
        codebook_size=spec.codebook_size,
        grid=spec.grid,
        classes=spec.classes,
        condition_codebook_size=spec.condition_codebook_size,
        condition_grid=spec.condition_grid,
        start_token=not spec.condition_codebook_size,
        layers=len(blocks),
        heads=_heads(gpt, spec, settings),
        width=width,
        hidden=0 if hidden == 4 * width else hidden,
    )


def _heads(gpt: Gpt, spec: PriorSpec, settings: Net2NetSettings | None) -> int:
    known = settings.heads if settings else None
    if spec.heads is None and known is None:
        raise UserError(
            f"{gpt.file}: the number of attention heads is not in the file; give --heads, "
            "the n_head of the model's configuration"
        )
    if None not in (spec.heads, known) and spec.heads != known:
        raise UserError(
            f"{gpt.file}: the model's configuration says {known} heads, not {spec.heads}; leave --heads out"
        )
    return int(spec.heads or known or 0)


def _convert(
    gpt: Gpt, config: PriorConfig, start_token: int
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns our weights, and what is to be said of them."""
    own = {
        "token_embedding", "class_embedding", "condition_embedding", "position_embedding", "head.kernel",
    }  # fmt: skip
    expected = prior_parameter_shapes(config)
    linear = {ours: _their_name(ours) for ours in expected if ours not in own}
    _check_names(gpt, {*linear.values(), TOKENS, "pos_emb", "head.weight"})
    table, head, positions = gpt.read(TOKENS), gpt.read("head.weight"), gpt.read("pos_emb")
    _check_tables(gpt, config, table, head, positions)
    weights = {ours: _transposed(ours, gpt.read(theirs)) for ours, theirs in linear.items()}
    weights |= {
        "token_embedding": table[: config.codebook_size],
        "class_embedding": _class_rows(gpt, config, table, start_token),
        "position_embedding": _position_rows(config, positions.reshape(-1, config.width)),
        "head.kernel": np.ascontiguousarray(head[: config.codebook_size].T),
    }
    if config.condition_codebook_size:
        weights["condition_embedding"] = table[: config.condition_codebook_size]
    wrong = [
        f"{linear.get(n, n)} is {list(weights[n].shape)}" for n in expected if weights[n].shape != expected[n]
    ]
    if wrong:
        raise UserError(f"{gpt.file}: shapes that do not go together: {', '.join(wrong[:_LISTED])}")
    return weights, tuple(_notes(config, len(table), positions.size // config.width))


def _their_name(ours: str) -> str:
    """Returns the name of a tensor in a block, or of the last normalisation."""
    layer, _, leaf = ours.rpartition(".")
    if layer == "norm":
        return f"ln_f.{_LEAVES[leaf]}"
    blocks, index, inner = layer.split(".", 2)
    return f"{blocks}.{index}.{_BLOCK[inner]}.{_LEAVES[leaf]}"


def _transposed(ours: str, value: np.ndarray) -> np.ndarray:
    """Turns a kernel: torch's linear layers hold ``[outputs, inputs]``."""
    return np.ascontiguousarray(value.T) if ours.endswith(".kernel") else value


def _check_names(gpt: Gpt, expected: set[str]) -> None:
    found = {name for name in gpt.tensors if not _MASK.fullmatch(name)}
    problems = [f"missing {name}" for name in sorted(expected - found)]
    problems += [f"unknown {name}" for name in sorted(found - expected)]
    if problems:
        more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise UserError(
            f"{gpt.file}: not the parameters of a GPT of Taming Transformers: "
            f"{', '.join(problems[:_LISTED])}{more}"
        )


def _check_tables(
    gpt: Gpt, config: PriorConfig, table: np.ndarray, head: np.ndarray, positions: np.ndarray
) -> None:
    if head.shape != table.shape:
        raise UserError(
            f"{gpt.file}: tok_emb is {list(table.shape)} and head {list(head.shape)}: both must have a row "
            "for each id of one vocabulary"
        )
    needed = config.prefix + config.length - 1
    if positions.ndim != 3 or positions.shape[::2] != (1, config.width) or positions.shape[1] < needed:
        raise UserError(
            f"{gpt.file}: pos_emb is {list(positions.shape)}, but a grid of {config.grid[0]} x "
            f"{config.grid[1]} tokens needs {needed} positions; "
            "give the image size and condition that it was trained with"
        )


def _class_rows(gpt: Gpt, config: PriorConfig, table: np.ndarray, start_token: int) -> np.ndarray:
    """Returns rows of the classes, and one for no class: ``[classes + 1, D]``."""
    if config.classes:
        classes = table[: config.classes]
        return np.concatenate([classes, classes.mean(axis=0, keepdims=True)])
    if not config.start_token:
        return np.zeros((1, config.width), np.float32)  # never read
    if not 0 <= start_token < len(table):
        raise UserError(f"{gpt.file}: its start token {start_token} is not in its vocabulary of {len(table)}")
    return table[start_token : start_token + 1]


def _position_rows(config: PriorConfig, rows: np.ndarray) -> np.ndarray:
    """Returns ``[P + L, D]``; the last is that of the last token, after which nothing is predicted."""
    needed = config.prefix + config.length
    missing = max(0, needed - len(rows))
    return np.concatenate([rows[:needed], np.zeros((missing, config.width), np.float32)])


def _notes(config: PriorConfig, vocabulary: int, positions: int) -> list[str]:
    notes = []
    if vocabulary > config.codebook_size:
        notes.append(
            f"the original could also give the ids {config.codebook_size} to {vocabulary - 1}, "
            "which are no codes; they are cut off"
        )
    if config.classes:
        notes.append("it knows no sample without a class: the mean of all classes stands for none")
    needed = config.prefix + config.length
    if positions > needed:
        notes.append(f"{positions} positions in the file, of which the first {needed} are kept")
    return notes


def file_sha256(path: Path) -> str:
    """Returns the sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

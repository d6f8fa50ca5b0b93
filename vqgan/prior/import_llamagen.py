"""Priors of LlamaGen (arXiv 2406.06525): checkpoints of its class- and text-conditional GPT as ours.

Its blocks are those of ``llama`` but that queries and keys are not normalised, and that those of the prefix
are zero: the published table of rotary positions has zeros for sine and cosine there. Rotary pairs are
neighbours in the file and halves of a head in ours, so rows are permuted. NumPy does the conversion; nothing
in a file is executed.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vqgan.errors import UserError
from vqgan.importers.containers import subtrees
from vqgan.importers.pickle_constructors import flatten_tensors
from vqgan.importers.tensors import Tensor, as_float32
from vqgan.prior.config import PriorConfig, prior_parameter_shapes
from vqgan.prior.import_taming import ImportedPrior, PriorSpec, file_sha256, opened_prior

FORMAT = "LlamaGen GPT"
TOKENS = "tok_embeddings.weight"
CLASSES = "cls_embedding.embedding_table.weight"
NULL = "cls_embedding.uncond_embedding"
HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2560: 40, 2048: 32, 3200: 32, 4096: 32}
"""Attention heads of the published sizes, from GPT-B to GPT-7B, by their width."""

_STATE = re.compile(r"(?:.*\.)?(?:kv_cache\.\w+|freqs_cis|causal_mask)")  # of sampling, and no weights
_PARTS = ("model", "module", "state_dict")
# Ours to theirs, inside a block.
_BLOCK = {
    "attention_norm.scale": "attention_norm.weight",
    "attention.out.kernel": "attention.wo.weight",
    "feed_forward_norm.scale": "ffn_norm.weight",
    "feed_forward.gate.kernel": "feed_forward.w1.weight",
    "feed_forward.up.kernel": "feed_forward.w3.weight",
    "feed_forward.down.kernel": "feed_forward.w2.weight",
}
_OUTSIDE = {
    "token_embedding": TOKENS,
    "class_embedding": CLASSES,
    "text.inner.kernel": "cls_embedding.cap_proj.fc1.weight",
    "text.outer.kernel": "cls_embedding.cap_proj.fc2.weight",
    "text.null": NULL,
    "norm.scale": "norm.weight",
    "head.kernel": "output.weight",
}
_QKV = "attention.wqkv.weight"

Tensors = Mapping[str, Tensor]


def is_llamagen(source: str) -> bool:
    """Tells whether a checkpoint is of LlamaGen's GPT, by the names in it.

    Raises:
      UserError: there is no file, or none that can be read.
    """
    with opened_prior(source) as opened:
        return _find(opened.tree) is not None


def import_llamagen_prior(source: str, spec: PriorSpec) -> ImportedPrior:
    """Reads and converts a checkpoint, class- or text-conditional.

    Args:
      source: file, folder or Hub address.
      spec: what the file does not say.

    Raises:
      UserError: it is no such checkpoint, damaged, hostile, or not of the form that was asked for.
    """
    with opened_prior(source) as opened:
        file, tensors = opened.file, _find(opened.tree)
        if tensors is None:
            raise UserError(f"{file}: no transformer of LlamaGen in it (no {TOKENS})")
        config = _config(file, tensors, spec)
        weights, notes = _convert(file, tensors, config)
    origin = {"format": FORMAT, "file": file.name, "sha256": file_sha256(file), "heads": config.heads}
    return ImportedPrior(config, weights, {**origin, "notes": list(notes)}, notes)


def _find(tree: object) -> Tensors | None:
    """Returns the transformer's tensors by their names inside of it; None where there is none."""
    for _, subtree in subtrees(tree, _PARTS):
        tensors = flatten_tensors(subtree)
        prefix = next((name.removesuffix(TOKENS) for name in tensors if name.endswith(TOKENS)), None)
        if prefix is not None:
            inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            return {name: tensor for name, tensor in inside.items() if not _STATE.fullmatch(name)}
    return None


def _config(file: Path, tensors: Tensors, spec: PriorSpec) -> PriorConfig:
    vocabulary, width = _shape(file, tensors, TOKENS)
    if vocabulary != spec.codebook_size:
        raise UserError(
            f"{file}: it has {vocabulary} codes, --codec {spec.codebook_size}; give the codec that it was "
            "trained with"
        )
    if spec.condition_codebook_size:
        raise UserError(f"{file}: a prior of LlamaGen has no condition grid; leave its flags out")
    rows = _shape(file, tensors, _name(0, _QKV))[0]
    if rows != 3 * width:
        raise UserError(f"{file}: keys of fewer heads than queries ({rows} rows) are not supported")
    is_text = NULL in tensors
    length, features = _shape(file, tensors, NULL) if is_text else (0, 0)
    return PriorConfig(
        block="llama",
        codebook_size=vocabulary,
        grid=spec.grid,
        classes=0 if is_text else _classes(file, tensors, spec),
        start_token=not is_text,
        layers=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers.")),
        heads=_heads(file, width, spec),
        width=width,
        hidden=_shape(file, tensors, _name(0, _BLOCK["feed_forward.up.kernel"]))[0],
        text_length=length,
        text_width=features,
        text_null=is_text,
        query_key_norm=False,
        blank_prefix=True,
    )


def _classes(file: Path, tensors: Tensors, spec: PriorSpec) -> int:
    """Returns the number of classes: the table's last row is no class, but where it was trained without."""
    rows = _shape(file, tensors, CLASSES)[0]
    if spec.classes not in (0, rows - 1, rows):
        raise UserError(f"{file}: this prior was trained with {rows - 1} classes; give --classes {rows - 1}")
    return spec.classes or rows - 1


def _heads(file: Path, width: int, spec: PriorSpec) -> int:
    heads = spec.heads or HEADS.get(width)
    if heads is None:
        raise UserError(
            f"{file}: the number of attention heads is not in the file, and its width, {width}, is of no "
            "published size; give --heads"
        )
    return heads


def _convert(
    file: Path, tensors: Tensors, config: PriorConfig
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns our weights, and what is to be said of them."""
    expected = prior_parameter_shapes(config)
    theirs = {_their_name(ours) for ours in expected}
    if config.text_length:
        theirs.remove(CLASSES)
    problems = [f"missing {name}" for name in sorted(theirs - tensors.keys())]
    problems += [f"unknown {name}" for name in sorted(tensors.keys() - theirs)]
    if problems:
        raise UserError(f"{file}: not the parameters of a GPT of LlamaGen: {', '.join(problems[:3])}")
    weights, notes = {}, []
    for ours, shape in expected.items():
        if ours == "class_embedding" and config.text_length:
            weights[ours] = np.zeros(shape, np.float32)  # never read
            continue
        name = _their_name(ours)
        value = _part(ours, as_float32(tensors[name].read(), name, str(file)), config)
        if ours == "class_embedding" and len(value) == config.classes:
            value = np.concatenate([value, value.mean(axis=0, keepdims=True)])
            notes.append("it knows no sample without a class: the mean of all classes stands for none")
        if value.shape != shape:
            raise UserError(f"{file}: {name} is {list(tensors[name].shape)}, which the others do not go with")
        weights[ours] = np.ascontiguousarray(value)
    return weights, tuple(notes)


def _their_name(ours: str) -> str:
    if ours in _OUTSIDE:
        return _OUTSIDE[ours]
    _, index, inner = ours.split(".", 2)
    return _name(int(index), _BLOCK.get(inner, _QKV))


def _name(index: int, inner: str) -> str:
    return f"layers.{index}.{inner}"


def _part(ours: str, value: np.ndarray, config: PriorConfig) -> np.ndarray:
    """Returns what of a tensor is ours: a third of queries, keys and values; a linear layer turned."""
    for number, layer in enumerate(("query", "key", "value")):
        if ours.endswith(f"attention.{layer}.kernel"):
            value = value[number * config.width : (number + 1) * config.width]
            value = value if layer == "value" else _halved(value, config)
    return value.T if ours.endswith(".kernel") else value


def _halved(value: np.ndarray, config: PriorConfig) -> np.ndarray:
    """Moves the first of each rotary pair to the first half of its head, the second to the second half."""
    pairs = value.reshape(config.heads, config.head_width // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(value.shape)


def _shape(file: Path, tensors: Tensors, name: str) -> tuple[int, int]:
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        found = "is missing" if tensor is None else f"is {list(tensor.shape)}"
        raise UserError(f"{file}: {name} {found}; this is no GPT of LlamaGen")
    return tensor.shape[0], tensor.shape[1]

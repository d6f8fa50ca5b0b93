"""A prior as a folder that Hugging Face's transformers opens: ``LlamaForCausalLM`` or ``GPT2LMHeadModel``.

There is one vocabulary there: codes keep their numbers, behind them stand the classes (the last one is none,
the start token), behind these the codes of a condition grid. Logits of the codes are ours; those of other ids
are zero, and ``generation_config.json`` keeps them from being drawn.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.errors import UserError
from vqgan.extras import require_extra
from vqgan.folders import new_folder
from vqgan.prior.building_blocks import EPSILON, ROTARY_BASE
from vqgan.prior.checkpoint import PriorInfo, Weights, load_prior_weights
from vqgan.prior.config import PriorConfig

Named = Iterator[tuple[str, np.ndarray]]

_EXPRESSED = frozenset(
    {
        *("kind", "block", "codebook_size", "grid", "classes", "condition_codebook_size", "condition_grid"),
        *("start_token", "layers", "heads", "width", "hidden", "dropout", "query_key_norm", "rotary"),
    }
)
"""Fields of a configuration that are taken account of here; others must have their default."""


@dataclasses.dataclass(frozen=True)
class TransformersFormat:
    """One class of transformers.

    Attributes:
      block: of the priors that it can be.
      config: the fields of ``config.json``, but for those of the vocabulary.
      tensors: parameters by their names there, but for the embedding and the head.
      embedding: name of the token embedding.
    """

    block: str
    config: Callable[[PriorConfig], dict[str, Any]]
    tensors: Callable[[PriorConfig, Weights], Named]
    embedding: str


def write_transformers(folder: Path, info: PriorInfo, to: str) -> None:
    """Writes ``config.json``, ``generation_config.json``, ``model.safetensors`` and a README.

    Args:
      folder: where to; it must not exist yet, or be empty. It is there whole or not at all.
      info: of the prior.
      to: key of :data:`TRANSFORMERS`.

    Raises:
      UserError: the prior is none that this class can be, or there is something in the folder already.
    """
    require_extra("import", "export", "safetensors")
    from safetensors.numpy import save_file

    form, config = TRANSFORMERS[to], info.config
    if lacking := lacks_in_transformers(config, to):
        raise UserError(f"--to {to} cannot express this prior: {lacking}")
    with new_folder(folder) as new:
        weights = load_prior_weights(info)
        tensors = dict(form.tensors(config, weights)) | _vocabulary(form, config, weights)
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(contiguous, new / "model.safetensors", metadata={"format": "pt"})
        rows = len(tensors[form.embedding])
        documents = {
            "config.json": form.config(config) | _shared(info, rows),
            "generation_config.json": _generation(config, rows),
        }
        for name, document in documents.items():
            (new / name).write_text(json.dumps(document, indent=2) + "\n")
        (new / "README.md").write_text(_readme(info, rows))


def lacks_in_transformers(config: PriorConfig, to: str) -> str | None:
    """Returns why a prior cannot be that class, and what would be one; None where it can."""
    if config.text_length:
        return "it reads texts, which have no place there"
    for field in dataclasses.fields(config):
        if field.name not in _EXPRESSED and getattr(config, field.name) != field.default:
            return f"model.{field.name} is {getattr(config, field.name)}"
    if not config.is_causal:
        return f"it is {config.kind}, and does not predict one token after the other"
    if config.block != TRANSFORMERS[to].block:
        other = next(name for name, form in TRANSFORMERS.items() if form.block == config.block)
        return f"its blocks are {config.block}; give --to {other}"
    if config.block == "llama" and (config.rotary != "sequence" or config.query_key_norm):
        return (
            f"model.rotary is {config.rotary}, query_key_norm {config.query_key_norm}; train one with "
            "model.rotary=sequence and model.query_key_norm=false"
        )
    return None


def _vocabulary(form: TransformersFormat, config: PriorConfig, weights: Weights) -> dict[str, np.ndarray]:
    """Joins the embeddings to one table ``[V, D]``, and fills the head up with zeros to ``[V, D]``."""
    tables = [weights["token_embedding"], weights["class_embedding"]]
    if config.condition_codebook_size:
        tables.append(weights["condition_embedding"])
    table = np.concatenate(tables)
    head = np.zeros_like(table)
    head[: config.codebook_size] = weights["head.kernel"].T
    return {form.embedding: table, "lm_head.weight": head}


def _shared(info: PriorInfo, rows: int) -> dict[str, Any]:
    config = info.config
    return {
        "vocab_size": rows,
        "bos_token_id": config.codebook_size + config.classes,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "vqgan": {
            "prior_fingerprint": info.fingerprint,
            "codec_fingerprint": info.codec.fingerprint,
            "grid": list(config.grid),
            "codebook_size": config.codebook_size,
            "classes": config.classes,
            "class_names": list(info.class_names),
            "condition_grid": list(config.condition_grid),
        },
    }


def _generation(config: PriorConfig, rows: int) -> dict[str, Any]:
    return {
        "do_sample": True,
        "max_new_tokens": config.length,
        "bos_token_id": config.codebook_size + config.classes,
        "eos_token_id": None,
        "suppress_tokens": list(range(config.codebook_size, rows)),
    }


def _llama_config(config: PriorConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.prefix + config.length,
        "rope_theta": ROTARY_BASE,
        "rms_norm_eps": EPSILON,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def _llama_tensors(config: PriorConfig, weights: Weights) -> Named:
    linear = {f"attention.{ours}": f"self_attn.{theirs}_proj" for ours, theirs in _ATTENTION.items()}
    linear |= {f"feed_forward.{layer}": f"mlp.{layer}_proj" for layer in ("gate", "up", "down")}
    for index in range(config.layers):
        ours, theirs = f"blocks.{index}", f"model.layers.{index}"
        for layer, name in linear.items():
            yield f"{theirs}.{name}.weight", weights[f"{ours}.{layer}.kernel"].T
        yield f"{theirs}.input_layernorm.weight", weights[f"{ours}.attention_norm.scale"]
        yield f"{theirs}.post_attention_layernorm.weight", weights[f"{ours}.feed_forward_norm.scale"]
    yield "model.norm.weight", weights["norm.scale"]


_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}


def _gpt2_config(config: PriorConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.width,
        "n_inner": config.feed_forward_width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.prefix + config.length,
        "layer_norm_epsilon": EPSILON,
        "activation_function": "gelu",
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout),
    }


def _gpt2_tensors(config: PriorConfig, weights: Weights) -> Named:
    """Names parameters as GPT-2 does, whose kernels are ``[in, out]`` as ours."""
    yield "transformer.wpe.weight", weights["position_embedding"]
    linear = {
        "attention.out": "attn.c_proj",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    for index in range(config.layers):
        ours, theirs = f"blocks.{index}", f"transformer.h.{index}"
        for leaf, name in (("kernel", "weight"), ("bias", "bias")):
            parts = [weights[f"{ours}.attention.{layer}.{leaf}"] for layer in ("query", "key", "value")]
            yield f"{theirs}.attn.c_attn.{name}", np.concatenate(parts, axis=-1)
            for layer, other in linear.items():
                yield f"{theirs}.{other}.{name}", weights[f"{ours}.{layer}.{leaf}"]
        for layer, other in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            yield from _layer_norm(f"{theirs}.{other}", f"{ours}.{layer}", weights)
    yield from _layer_norm("transformer.ln_f", "norm", weights)


def _layer_norm(theirs: str, ours: str, weights: Weights) -> Named:
    yield f"{theirs}.weight", weights[f"{ours}.scale"]
    yield f"{theirs}.bias", weights[f"{ours}.bias"]


TRANSFORMERS: Mapping[str, TransformersFormat] = {
    "llama": TransformersFormat("llama", _llama_config, _llama_tensors, "model.embed_tokens.weight"),
    "gpt2": TransformersFormat("gpt", _gpt2_config, _gpt2_tensors, "transformer.wte.weight"),
}


def _readme(info: PriorInfo, rows: int) -> str:
    config, (height, width) = info.config, info.config.grid
    none = config.codebook_size + config.classes
    ids = [(0, config.codebook_size, f"codes of the codec `{info.codec.fingerprint}`")]
    ids += [(config.codebook_size, none, "classes")] if config.classes else []
    ids += [(none, none + 1, "no class: the start token")]
    ids += [(none + 1, rows, "codes of the condition grid")] if config.condition_codebook_size else []
    table = "\n".join(f"| {first} to {end - 1} | {what} |" for first, end, what in ids)
    example = [none + 1] * config.condition_length + [none] * config.start_token
    condition = f"{config.condition_length} codes of the condition" if config.condition_length else ""
    prompt = " and ".join(filter(None, [condition, "a class or none" if config.start_token else ""]))
    return f"""A prior over grids of {height} by {width} tokens.

| ids | |
|---|---|
{table}

A sequence is {prompt}, then {config.length} codes, row by row.

```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".")
prompt = torch.tensor([{example}])
codes = model.generate(prompt)[:, {config.prefix}:].reshape(-1, {height}, {width})
```
"""

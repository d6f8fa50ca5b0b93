"""Priors as folders of transformers: what its models compute, in NumPy, and by itself where it is there."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.importing import export_codec
from tests.vqgan.prior.test_transformer import GPT, LLAMA, forward, random_params, structure
from vqgan.exporters.transformers_folder import TRANSFORMERS, lacks_in_transformers
from vqgan.prior.checkpoint import CodecIdentity, save_prior
from vqgan.prior.config import PriorConfig

TRUE_LLAMA = dataclasses.replace(LLAMA, layers=2, rotary="sequence", query_key_norm=False)
PLAIN_LLAMA = dataclasses.replace(
    TRUE_LLAMA, classes=0, condition_codebook_size=0, condition_grid=(0, 0), codebook_size=30, grid=(3, 4)
)
WITHOUT_START = dataclasses.replace(GPT, classes=0, start_token=False)
CONFIGS = {
    "llama": ("llama", TRUE_LLAMA),
    "llama-plain": ("llama", PLAIN_LLAMA),
    "gpt2": ("gpt2", dataclasses.replace(GPT, layers=2)),
    "gpt2-without-start": ("gpt2", WITHOUT_START),
}
CAN_RUN = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def write(folder: Path, config: PriorConfig) -> Path:
    weights = {name: np.asarray(value) for name, value in random_params(config).items()}
    codec = CodecIdentity("ab" * 32, "somewhere", {}, 0)
    return save_prior(folder / "prior", config, weights, codec=codec, class_names=["a", "b", "c"]).path


def example(config: PriorConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Tokens, labels, conditions, and the same as ids of the one vocabulary."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.codebook_size, (3, config.length))
    labels = np.arange(3) % (config.classes + 1)
    parts, condition = [], None
    if config.condition_length:
        condition = rng.integers(0, config.condition_codebook_size, (3, config.condition_length))
        parts.append(condition + config.codebook_size + config.classes + 1)
    parts += [labels[:, None] + config.codebook_size] if config.start_token else []
    return tokens, labels, condition, np.concatenate([*parts, tokens[:, :-1]], axis=1)


def our_logits(config: PriorConfig, tokens: Any, labels: Any, condition: Any) -> np.ndarray:
    given = None if condition is None else jnp.asarray(condition)
    return np.asarray(forward(config)(jnp.asarray(tokens), jnp.asarray(labels), given))


def rms_norm(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def layer_norm(x: np.ndarray, weights: Any, name: str, epsilon: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    normal = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + epsilon)
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention over ``[B, T, H, D]``."""
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", shares, v).reshape(*q.shape[:2], -1)


def rotate(x: np.ndarray, theta: float) -> np.ndarray:
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[None, :, None], np.sin(angles)[None, :, None]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def run_llama(said: dict[str, Any], weights: Any, ids: np.ndarray) -> np.ndarray:
    epsilon, heads = said["rms_norm_eps"], (said["num_attention_heads"], said["head_dim"])
    x = weights["model.embed_tokens.weight"][ids]
    for index in range(said["num_hidden_layers"]):
        layer = {
            name.removeprefix(f"model.layers.{index}.").removesuffix(".weight"): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{index}.")
        }
        normal = rms_norm(x, layer["input_layernorm"], epsilon)
        q, k, v = (
            (normal @ layer[f"self_attn.{part}_proj"].T).reshape(*x.shape[:2], *heads) for part in "qkv"
        )
        q, k = (rotate(each, said["rope_theta"]) for each in (q, k))
        x = x + attend(q, k, v) @ layer["self_attn.o_proj"].T
        normal = rms_norm(x, layer["post_attention_layernorm"], epsilon)
        gate = normal @ layer["mlp.gate_proj"].T
        inner = gate / (1 + np.exp(-gate)) * (normal @ layer["mlp.up_proj"].T)
        x = x + inner @ layer["mlp.down_proj"].T
    return rms_norm(x, weights["model.norm.weight"], epsilon) @ weights["lm_head.weight"].T


def run_gpt2(said: dict[str, Any], weights: Any, ids: np.ndarray) -> np.ndarray:
    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    epsilon, heads = said["layer_norm_epsilon"], (said["n_head"], said["n_embd"] // said["n_head"])
    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][: ids.shape[1]]
    for index in range(said["n_layer"]):
        name = f"transformer.h.{index}"
        q, k, v = np.split(
            linear(layer_norm(x, weights, f"{name}.ln_1", epsilon), f"{name}.attn.c_attn"), 3, -1
        )
        q, k, v = (each.reshape(*x.shape[:2], *heads) for each in (q, k, v))
        x = x + linear(attend(q, k, v), f"{name}.attn.c_proj")
        up = linear(layer_norm(x, weights, f"{name}.ln_2", epsilon), f"{name}.mlp.c_fc")
        x = x + linear(up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2))), f"{name}.mlp.c_proj")
    return layer_norm(x, weights, "transformer.ln_f", epsilon) @ weights["lm_head.weight"].T


RUN = {"llama": run_llama, "gpt2": run_gpt2}


def assert_ours(logits: np.ndarray, expected: np.ndarray, config: PriorConfig) -> None:
    first = config.prefix - 1
    np.testing.assert_allclose(logits[:, first:, : config.codebook_size], expected, rtol=0, atol=1e-4)
    assert np.abs(logits[..., config.codebook_size :]).max() == 0
    assert np.ptp(expected) > 1


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_ours(name: str, tmp_path: Path) -> None:
    to, config = CONFIGS[name]
    said = export_codec(str(write(tmp_path, config)), str(tmp_path / "out"), to)
    assert said.startswith(f"{tmp_path / 'out'}: 0.0")
    tokens, labels, condition, ids = example(config)
    documents = json.loads((tmp_path / "out" / "config.json").read_text())
    weights = load_file(tmp_path / "out" / "model.safetensors")
    logits = RUN[to](documents, weights, ids)
    assert logits.shape[-1] == documents["vocab_size"]
    assert_ours(logits, our_logits(config, tokens, labels, condition), config)


@pytest.mark.skipif(not CAN_RUN, reason="NOT CHECKED: torch and transformers are not installed")
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_gives_our_logits(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    to, config = CONFIGS[name]
    export_codec(str(write(tmp_path, config)), str(tmp_path / "out"), to)
    tokens, labels, condition, ids = example(config)
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(ids)).logits.numpy()
    assert_ours(logits, our_logits(config, tokens, labels, condition), config)
    drawn = model.generate(torch.from_numpy(ids[:, : config.prefix]))[:, config.prefix :]
    assert drawn.shape == tokens.shape
    assert int(drawn.max()) < config.codebook_size


def test_a_llama_reads_piece_by_piece_what_it_reads_at_once() -> None:
    tokens, labels, condition, _ = example(TRUE_LLAMA)
    model = structure(TRUE_LLAMA).bind(random_params(TRUE_LLAMA), {})
    prefix = model.prefix_inputs(3, jnp.asarray(labels), jnp.asarray(condition))
    features, cache = model.prefill(prefix, model.empty_cache(3))
    found = [model.logits(features[:, -1:])]
    for place in range(TRUE_LLAMA.length - 1):
        step = model.token_inputs(jnp.asarray(tokens[:, place : place + 1]), place)
        logits, cache = model.decode_step(step, TRUE_LLAMA.prefix + place, cache)
        found.append(logits)
    expected = our_logits(TRUE_LLAMA, tokens, labels, condition)
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("to", "config", "says"),
    [
        ("llama", LLAMA, "model.rotary is grid, query_key_norm True; train one with model.rotary=sequence"),
        ("llama", dataclasses.replace(TRUE_LLAMA, text_length=2, text_words=3), "it reads texts, which have"),
        ("llama", GPT, "its blocks are gpt; give --to gpt2$"),
        ("gpt2", TRUE_LLAMA, "its blocks are llama; give --to llama$"),
        ("llama", dataclasses.replace(TRUE_LLAMA, kind="masked"), "it is masked, and does not predict one"),
    ],
)
def test_what_they_cannot_be_is_said(
    to: str, config: PriorConfig, says: str, tmp_path: Path, refused: Any
) -> None:
    with refused(f"^--to {to} cannot express this prior: {says}"):
        export_codec(str(write(tmp_path, config)), str(tmp_path / "out"), to)
    assert not (tmp_path / "out").exists()


def test_formats_of_codecs_are_not_those_of_priors(tmp_path: Path, refused: Any) -> None:
    prior = write(tmp_path, GPT)
    for path, to, says in [
        (str(prior), "onnx", "is a prior, and --to onnx is for codecs; give --to llama or gpt2"),
        ("tiny", "llama", "is a codec, and --to llama is for priors; give another format"),
    ]:
        with refused(f"^{path}: {says}"):
            export_codec(path, str(tmp_path / "out"), to)
    assert not (tmp_path / "out").exists()


def test_a_field_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vqgan.exporters import transformers_folder

    monkeypatch.setattr(transformers_folder, "_EXPRESSED", frozenset({"kind", "block"}))
    for to, form in TRANSFORMERS.items():
        lacking = lacks_in_transformers(PriorConfig(block=form.block, codebook_size=9), to)
        assert lacking == "model.codebook_size is 9"


def test_rotary_belongs_to_llama(refused: Any) -> None:
    with refused("model.rotary and query_key_norm are of block llama"):
        dataclasses.replace(GPT, rotary="sequence")
    with refused("model.rotary is 'rows': give one of grid, sequence"):
        dataclasses.replace(LLAMA, rotary="rows")

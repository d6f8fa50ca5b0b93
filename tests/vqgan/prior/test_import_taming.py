"""Priors of Taming Transformers give the same logits here; what would not is refused.

The reference is a forward pass in NumPy alone, after the description of minGPT: embeddings and learned
positions, blocks of causal attention and an exact GELU behind LayerNorms, a linear head.
"""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.functional import take_apart
from vqgan.prior.import_taming import ImportedPrior, PriorSpec, import_taming_prior
from vqgan.prior.sampling.config import SamplingConfig
from vqgan.prior.sampling.request import Request
from vqgan.prior.sampling.sampler import PriorSampler
from vqgan.prior.transformer import PriorTransformer

VOCABULARY, CODES, GRID, WIDTH, HEADS = 20, 16, (2, 3), 8, 2
LENGTH = 6
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def foreign() -> ModuleType:
    """The module that writes torch checkpoints without torch."""
    path = Path(__file__).parents[1] / "importers" / "foreign.py"
    spec = importlib.util.spec_from_file_location("vqgan_tests_foreign", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    spec.loader.exec_module(module)
    return module


def net2net(positions: int = LENGTH, layers: int = 2, hidden: int = 4 * WIDTH) -> Tensors:
    """Random tensors under the reference's names; none is zero."""
    rng = np.random.default_rng(3)
    shapes = {"tok_emb.weight": (VOCABULARY, WIDTH), "pos_emb": (1, positions, WIDTH)}
    for index in range(layers):
        block = f"blocks.{index}"
        for norm in ("ln1", "ln2"):
            shapes |= {f"{block}.{norm}.weight": (WIDTH,), f"{block}.{norm}.bias": (WIDTH,)}
        for layer in ("key", "query", "value", "proj"):
            shapes |= {f"{block}.attn.{layer}.weight": (WIDTH, WIDTH), f"{block}.attn.{layer}.bias": (WIDTH,)}
        shapes |= {f"{block}.mlp.0.weight": (hidden, WIDTH), f"{block}.mlp.0.bias": (hidden,)}
        shapes |= {f"{block}.mlp.2.weight": (WIDTH, hidden), f"{block}.mlp.2.bias": (WIDTH,)}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,), "head.weight": (VOCABULARY, WIDTH)}
    tensors = {
        f"transformer.{name}": rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()
    }
    mask = np.tri(positions, dtype=np.float32)[None, None]
    return tensors | {f"transformer.blocks.{index}.attn.mask": mask for index in range(layers)}


def layer_norm(x: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return normal * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(x: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def attention(x: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    batch, length, width = x.shape
    shape = (batch, length, HEADS, width // HEADS)
    query, key, value = (
        linear(x, tensors, f"{name}.{layer}").reshape(shape).transpose(0, 2, 1, 3)
        for layer in ("query", "key", "value")
    )
    scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(width // HEADS)
    scores = np.where(np.tri(length) > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return linear((weights @ value).transpose(0, 2, 1, 3).reshape(x.shape), tensors, f"{name}.proj")


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gpt(tensors: Tensors, ids: np.ndarray) -> np.ndarray:
    """Logits ``[B, T, V]`` of the id after each of ``[B, T]``, in float64."""
    inner = {name.removeprefix("transformer."): value.astype(np.float64) for name, value in tensors.items()}
    x = inner["tok_emb.weight"][ids] + inner["pos_emb"][:, : ids.shape[1]]
    for index in range(sum(name.endswith("ln1.weight") for name in inner)):
        block = f"blocks.{index}"
        x = x + attention(layer_norm(x, inner, f"{block}.ln1"), inner, f"{block}.attn")
        hidden = gelu(linear(layer_norm(x, inner, f"{block}.ln2"), inner, f"{block}.mlp.0"))
        x = x + linear(hidden, inner, f"{block}.mlp.2")
    return layer_norm(x, inner, "ln_f") @ inner["head.weight"].T


def logits(
    prior: ImportedPrior,
    tokens: np.ndarray,
    labels: np.ndarray | None = None,
    condition: np.ndarray | None = None,
) -> np.ndarray:
    """What our transformer gives with the imported weights."""
    functional = take_apart(lambda: PriorTransformer(prior.config, rngs=nnx.Rngs(0)))
    params = {name: jnp.asarray(value) for name, value in prior.weights.items()}
    model = functional.bind(params, {})
    return np.asarray(jax.jit(model)(tokens, labels, condition))


TOKENS = np.random.default_rng(5).integers(0, CODES, (3, LENGTH)).astype(np.int32)


def write(foreign: ModuleType, folder: Path, tensors: Tensors, **others: Any) -> str:
    path = folder / "last.ckpt"
    foreign.write_torch_zip(path, {"state_dict": tensors, "global_step": 11, **others})
    return str(path)


def config_file(folder: Path, **params: Any) -> None:
    """The project's YAML beside the checkpoint; JSON is YAML."""
    transformer = {"target": "taming.modules.transformer.mingpt.GPT", "params": {"n_head": HEADS}}
    params = {"transformer_config": transformer, **params}
    (folder / "project.yaml").write_text(json.dumps({"model": {"params": params}}))


def wanted(**changes: Any) -> PriorSpec:
    return PriorSpec(**{"codebook_size": CODES, "grid": GRID, "heads": HEADS, **changes})


# Parity


def test_unconditional(foreign: ModuleType, tmp_path: Path) -> None:
    tensors = net2net()
    prior = import_taming_prior(write(foreign, tmp_path, tensors), wanted())
    ids = np.concatenate([np.zeros((3, 1), np.int32), TOKENS[:, :-1]], axis=1)
    expected = gpt(tensors, ids)[..., :CODES]
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits(prior, TOKENS), expected, atol=1e-4)
    assert (prior.config.layers, prior.config.hidden, prior.config.block) == (2, 0, "gpt")
    assert prior.notes == (
        "the original could also give the ids 16 to 19, which are no codes; they are cut off",
    )
    assert prior.origin["training_step"] == 11
    assert prior.origin["notes"] == list(prior.notes)


def test_start_token_heads_and_spare_positions(foreign: ModuleType, tmp_path: Path) -> None:
    """As a configuration beside the file says; the feed-forward part is of an unusual width."""
    tensors = net2net(positions=LENGTH + 4, layers=1, hidden=12)
    config_file(tmp_path, sos_token=17, cond_stage_config="__is_unconditional__")
    prior = import_taming_prior(write(foreign, tmp_path, tensors), wanted(heads=None))
    ids = np.concatenate([np.full((3, 1), 17, np.int32), TOKENS[:, :-1]], axis=1)
    np.testing.assert_allclose(logits(prior, TOKENS), gpt(tensors, ids)[..., :CODES], atol=1e-4)
    assert prior.config.hidden == 12
    assert "10 positions in the file, of which the first 7 are kept" in prior.notes


def test_class_conditional(foreign: ModuleType, tmp_path: Path) -> None:
    tensors = net2net()
    prior = import_taming_prior(write(foreign, tmp_path, tensors), wanted(classes=5))
    labels = np.array([4, 0, 2], np.int32)
    ids = np.concatenate([labels[:, None], TOKENS[:, :-1]], axis=1)
    expected = gpt(tensors, ids)[..., :CODES]
    np.testing.assert_allclose(logits(prior, TOKENS, labels), expected, atol=1e-4)
    table = tensors["transformer.tok_emb.weight"]
    np.testing.assert_allclose(prior.weights["class_embedding"][5], table[:5].mean(axis=0), rtol=1e-5)
    assert any("mean of all classes" in note for note in prior.notes)


@pytest.fixture
def conditioned(foreign: ModuleType, tmp_path: Path) -> tuple[Tensors, ImportedPrior]:
    """A prior of 4 tokens of a condition, of 18 codes, before the 6 of the image."""
    tensors = net2net(positions=4 + LENGTH - 1)
    path = write(foreign, tmp_path, tensors)
    return tensors, import_taming_prior(path, wanted(condition_codebook_size=18, condition_grid=(2, 2)))


CONDITION = np.random.default_rng(6).integers(0, 18, (3, 4)).astype(np.int32)


def test_condition_grid(conditioned: tuple[Tensors, ImportedPrior]) -> None:
    """The condition's tokens stand before those of the image, with no start token between."""
    tensors, prior = conditioned
    ids = np.concatenate([CONDITION, TOKENS[:, :-1]], axis=1)
    expected = gpt(tensors, ids)[:, 3:, :CODES]
    np.testing.assert_allclose(logits(prior, TOKENS, condition=CONDITION), expected, atol=1e-4)


def test_sampling_with_a_condition_grid(conditioned: tuple[Tensors, ImportedPrior]) -> None:
    """Greedily, with the cache, against the reference that is run anew for every token."""
    tensors, prior = conditioned
    ids = CONDITION
    for _ in range(LENGTH):
        ids = np.concatenate([ids, gpt(tensors, ids)[:, -1:, :CODES].argmax(-1)], axis=1)
    params = {name: jnp.asarray(value) for name, value in prior.weights.items()}
    sampler = PriorSampler(prior.config, params, batch_size=3)
    request = Request(np.arange(3, dtype=np.uint32), None, CONDITION, None)
    sampled = sampler.sample(request, SamplingConfig(temperature=0.0))
    np.testing.assert_array_equal(sampled.reshape(3, LENGTH), ids[:, 4:])


def test_heads_in_hyperparameters(foreign: ModuleType, tmp_path: Path) -> None:
    hyper = {"transformer_config": {"params": {"n_head": 4}}}
    path = write(foreign, tmp_path, net2net(), hyper_parameters=hyper)
    assert import_taming_prior(path, wanted(heads=None)).config.heads == 4


# What is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heads": None}, "number of attention heads is not in the file; give --heads"),
        ({"heads": 3}, "heads is 3: it must divide"),
        ({"codebook_size": 21}, "vocabulary is 20, too small for 21 codes of the codec"),
        ({"classes": 21}, "vocabulary is 20, too small for 21 classes"),
        (
            {"condition_codebook_size": 21, "condition_grid": (1, 1)},
            "vocabulary is 20, too small for 21 codes of the condition",
        ),
        (
            {"condition_codebook_size": 9, "condition_grid": (2, 2)},
            "a grid of 2 x 3 tokens needs 9 positions; give the image size and condition",
        ),
        ({"grid": (3, 3)}, r"pos_emb is \[1, 6, 8\], but a grid of 3 x 3 tokens needs 9 positions"),
    ],
)
def test_another_model_than_was_asked_for(
    changes: dict[str, Any], says: str, foreign: ModuleType, tmp_path: Path, refused: Any
) -> None:
    with refused(says):
        import_taming_prior(write(foreign, tmp_path, net2net()), wanted(**changes))


@pytest.mark.parametrize(
    ("params", "changes", "says"),
    [
        ({}, {"heads": 4}, "configuration says 2 heads, not 4; leave --heads out"),
        ({"cond_stage_config": "__is_unconditional__"}, {"classes": 3}, "without a condition; leave its"),
        (
            {"unconditional": True},
            {"condition_codebook_size": 3, "condition_grid": (2, 2)},
            "without a condition; leave its flags out",
        ),
        ({"cond_stage_config": {"target": "a.Labels"}}, {}, r"with a condition \(a.Labels\); give"),
        (
            {"cond_stage_config": {"target": "a.Labels", "params": {"n_classes": 7}}},
            {"classes": 3},
            "with 7 classes, not 3; give --classes 7",
        ),
        ({"sos_token": 20}, {}, "start token 20 is not in its vocabulary of 20"),
    ],
)
def test_configuration_that_disagrees(
    params: dict[str, Any],
    changes: dict[str, Any],
    says: str,
    foreign: ModuleType,
    tmp_path: Path,
    refused: Any,
) -> None:
    config_file(tmp_path, **params)
    with refused(says):
        import_taming_prior(write(foreign, tmp_path, net2net()), wanted(**changes))


def spoilt(name: str, value: np.ndarray | None) -> Tensors:
    """The tensors with one of another value, or without it."""
    tensors = net2net() | ({} if value is None else {name: value})
    return tensors if value is not None else {key: tensors[key] for key in tensors if key != name}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("transformer.blocks.1.ln2.bias", None, "missing blocks.1.ln2.bias"),
        ("transformer.extra", np.ones(3, np.float32), "unknown extra"),
        ("transformer.tok_emb.weight", None, "no transformer of Taming Transformers in it"),
        ("other.tok_emb.weight", np.ones((2, 2), np.float32), "several transformers"),
        ("transformer.pos_emb", np.ones((6, 8), np.float32), r"pos_emb is \[6, 8\]"),
        ("transformer.head.weight", np.ones((16, 8), np.float32), "must have a row for each id"),
        ("transformer.tok_emb.weight", np.ones(8, np.float32), r"tok_emb.weight is \[8\]; this is no"),
        ("transformer.blocks.0.mlp.0.weight", None, r"blocks.0.mlp.0.weight is missing; this is no"),
        (
            "transformer.blocks.1.attn.key.bias",
            np.ones(9, np.float32),
            r"not go together: blocks.1.attn.key.bias is \[9\]",
        ),
        ("transformer.ln_f.bias", np.full(8, np.nan, np.float32), "ln_f.bias holds numbers that are not fin"),
        ("transformer.blocks.1.attn.mask", np.ones((1, 1, 6, 6), np.float32), "attend to later ones"),
        ("permuter.forward_shuffle_idx", np.array([0, 2, 1, 3, 4, 5]), "in another order than row by row"),
        ("first_stage_model.quantize.embedding.weight", np.ones((CODES, 4), np.float32), "another one than"),
        ("first_stage_model.quantize.embed.weight", np.ones((9, 4), np.float32), r"\[9, 4\] codebook"),
    ],
)
def test_tensors_that_are_not_as_expected(
    name: str, value: np.ndarray | None, says: str, foreign: ModuleType, tmp_path: Path, refused: Any
) -> None:
    codebook = np.zeros((CODES, 4), np.float32)
    with refused(says):
        import_taming_prior(write(foreign, tmp_path, spoilt(name, value)), wanted(codebook=codebook))


def test_what_a_whole_checkpoint_brings_along(foreign: ModuleType, tmp_path: Path) -> None:
    """A first stage whose codebook is the codec's, rounded to float16, and tokens in raster order."""
    codebook = np.random.default_rng(1).normal(size=(CODES, 4)).astype(np.float32)
    others = {
        "first_stage_model.quantize.embedding.weight": codebook,
        "permuter.forward_shuffle_idx": np.arange(LENGTH),
    }
    rounded = codebook.astype(np.float16).astype(np.float32)
    assert not np.array_equal(rounded, codebook)
    path = write(foreign, tmp_path, net2net() | others)
    assert import_taming_prior(path, wanted(codebook=rounded)).config.codebook_size == CODES


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "it is empty"), (b"nonsense" * 40, "not a checkpoint that we know"), (None, "damaged")],
)
def test_files_that_are_none(
    content: bytes | None, says: str, foreign: ModuleType, tmp_path: Path, refused: Any
) -> None:
    path = Path(write(foreign, tmp_path, net2net()))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with refused(says):
        import_taming_prior(str(path), wanted())
    with refused("nothing there"):
        import_taming_prior(str(tmp_path / "nothing"), wanted())


def test_a_pickle_that_names_code(foreign: ModuleType, tmp_path: Path, refused: Any) -> None:
    call = foreign.Call(foreign.Ref("os", "system"), (f"touch {tmp_path}/run",))
    with refused("last.ckpt"):
        import_taming_prior(write(foreign, tmp_path, net2net(), hook=call), wanted())
    assert not (tmp_path / "run").exists()

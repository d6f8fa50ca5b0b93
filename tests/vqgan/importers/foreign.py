"""Writes random models in the key layouts and containers of other code bases, without their code."""

import io
import json
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.config import ModelConfig
from vqgan.importers.formats import (
    chameleon,
    diffusers,
    llamagen,
    lwm,
    maskgit,
    seed_voken,
    taming,
    vqgan_jax,
)
from vqgan.importers.layout import parse_parameter
from vqgan.model.parameters import codec_parameter_shapes

BASE = {
    "resolution": 32,
    "ch": 32,
    "ch_mult": (1, 2, 2),
    "num_res_blocks": 2,
    "attn_resolutions": (),
    "z_channels": 24,
    "embed_dim": 12,
    "codebook_size": 50,
}
MASKGIT: dict[str, Any] = {
    "input_range": (0.0, 1.0),
    "mid_attention": False,
    "quant_conv": False,
    "bias": False,
    "shortcut_from_branch": True,
    "pool_downsample": True,
    "encoder_out_kernel": 1,
    "mid_blocks": 2,
    "decoder_res_blocks": 2,
    "embed_dim": 24,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "taming": {"attn_resolutions": (16, 8)},
    "gumbel": {"quantizer": "gumbel", "embed_dim": 24, "attn_resolutions": (8,)},
    "ldm": {"z_channels": 3, "embed_dim": 3},
    "ldm-noattn": {"mid_attention": False},
    "ldm-linear": {"attention": "linear", "attn_resolutions": (8,)},
    "llamagen": {"quantizer": "cosine", "attn_resolutions": (8,)},
    "diffusers": {"attn_resolutions": (16,), "ch_mult": (2, 3, 1), "stem_channels": 64},
    "vqgan-jax": {"attn_resolutions": (8,)},
    "lwm": {"mid_attention": False, "clip_output": True},
    "maskgit": MASKGIT,
    "maskgit-torch": MASKGIT,
    "open-magvit2": {
        "quantizer": "lfq",
        "mid_attention": False,
        "quant_conv": False,
        "bias": False,
        "encoder_out_kernel": 1,
        "mid_blocks": 2,
        "decoder_res_blocks": 2,
        "z_channels": 6,
        "embed_dim": 6,
        "codebook_size": 64,
        "symmetric_downsample": True,
        "depth_to_space": True,
        "adaptive_norm": True,
    },
    "ibq": {"quantizer": "inner_product", "attn_resolutions": (8,)},
    "chameleon": {"has_decoder": False},
    "janus": {"quantizer": "nearest_unit", "attn_resolutions": (8,)},
    "janus-original": {"quantizer": "cosine", "attn_resolutions": (8,)},
}
LAYOUTS = {
    "taming": taming.LAYOUT,
    "gumbel": taming.LAYOUT,
    "ldm": taming.LAYOUT,
    "ldm-noattn": taming.LAYOUT,
    "ldm-linear": taming.LAYOUT,
    "llamagen": llamagen.LAYOUT,
    "diffusers": diffusers.LAYOUT,
    "vqgan-jax": vqgan_jax.LAYOUT,
    "lwm": lwm.LAYOUT,
    "maskgit": maskgit.LAYOUT,
    "maskgit-torch": maskgit.TORCH_LAYOUT,
    "open-magvit2": seed_voken.OPEN_MAGVIT2,
    "ibq": seed_voken.IBQ,
    "chameleon": chameleon.CHAMELEON,
    "janus": chameleon.JANUS,
    "janus-original": llamagen.JANUS,
}
# What is beside the tokenizer in a language model, by what stands before its names.
PREFIXES = {"chameleon": "model.vqmodel.", "janus": "model.vqmodel.", "janus-original": "gen_vision_model."}


def config_for(kind: str) -> ModelConfig:
    """A small architecture of that kind."""
    return ModelConfig(**{**BASE, **CONFIGS[kind]})


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Random parameters by part and our names, of a size that keeps activations moderate."""
    rng = np.random.default_rng(seed)
    return {
        part: {
            name: (rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[:-1])))).astype(np.float32)
            if len(shape) > 1
            else (rng.standard_normal(shape) * 0.1 + name.endswith("scale")).astype(np.float32)
            for name, shape in named.items()
        }
        for part, named in codec_parameter_shapes(config).items()
    }


def foreign_tensors(kind: str, config: ModelConfig, weights: Any) -> dict[str, np.ndarray]:
    """Our parameters under foreign names and in foreign shapes."""
    layout = LAYOUTS[kind]
    found = {}
    for named in weights.values():
        for name, value in named.items():
            names = layout.names(parse_parameter(name), len(config.ch_mult), config.num_res_blocks)
            second = (kind == "gumbel" and name == "codebook") or (
                config.attention == "linear" and "attention" in name and ".out." in name
            )
            found[names[1] if second else names[0]] = _stored(kind, name, value)
    return found


def _stored(kind: str, name: str, value: np.ndarray) -> np.ndarray:
    if not LAYOUTS[kind].from_torch or not name.endswith(".kernel"):
        return value
    if value.ndim == 2:
        value = value[None, None]
    if kind == "diffusers" and "attention" in name:
        return value[0, 0].T
    if ".adaptive." in name:
        return value[0, 0].T
    return value.transpose(3, 2, 0, 1)


def write(kind: str, folder: Path, seed: int = 0) -> tuple[Path, ModelConfig, Any]:
    """A checkpoint of that kind in its usual container; gives path, configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_for(kind)
    weights = random_weights(config, seed)
    tensors = foreign_tensors(kind, config, weights)
    if kind in ("vqgan-jax", "maskgit"):
        path = folder / "flax_model.msgpack"
        path.write_bytes(msgpack_bytes(nest(tensors) if kind == "vqgan-jax" else {"params": nest(tensors)}))
    elif kind == "lwm":
        path = folder / "vqgan"
        path.write_bytes(pickle.dumps(nest(tensors)))
    elif kind == "diffusers":
        path = folder / "diffusion_pytorch_model.safetensors"
        write_safetensors(path, tensors)
    elif kind in PREFIXES:
        path = folder / "model.safetensors"
        whole = {f"{PREFIXES[kind]}{name}": value for name, value in tensors.items()}
        write_safetensors(path, whole | {"lm_head.weight": np.zeros((2, 2), np.float32)})
    else:
        path = folder / "model.ckpt"
        member = "model" if kind == "llamagen" else "state_dict"
        write_torch_zip(
            path, {member: tensors, "global_step": 7, "callbacks": {Ref("x.y", "ModelCheckpoint"): 1}}
        )
    name, native = native_config(kind, config)
    (folder / name).write_text(json.dumps(native))  # JSON is YAML
    return path, config, weights


def native_config(kind: str, config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Name and contents of the configuration that lies beside a checkpoint of that kind."""
    if kind in ("ibq", "open-magvit2"):
        return "config.yaml", _seed_voken_config(kind, config)
    if kind in ("chameleon", "janus"):
        return "config.json", _transformers_config(kind, config)
    if kind == "janus-original":
        params = {"image_token_size": config.codebook_size, "n_embed": config.embed_dim}
        return "config.json", {
            "architectures": ["MultiModalityCausalLM"],
            "model_type": "multi_modality",
            "gen_vision_config": {"cls": "VQ-16", "params": params},
            "vision_config": {"params": {"image_size": 32}},
        }
    if kind == "maskgit-torch":
        sizes = {"num_embeddings": config.codebook_size, "quantized_embed_dim": config.embed_dim}
        shape = {"hidden_channels": config.ch, "channel_mult": list(config.ch_mult), "resolution": 32}
        blocks = {"num_res_blocks": config.num_res_blocks, "z_channels": config.z_channels}
        return "config.json", {
            "_class_name": "MaskGitVQGAN",
            "attn_resolutions": [16],
        } | sizes | shape | blocks
    return "config.json", {"resolution": 32, "sample_size": 32}


def _seed_voken_config(kind: str, config: ModelConfig) -> dict[str, Any]:
    dd = {name: getattr(config, name) for name in ("resolution", "ch", "num_res_blocks", "z_channels")}
    dd |= {"ch_mult": list(config.ch_mult), "double_z": False, "in_channels": 3, "out_ch": 3}
    dd |= {"attn_resolutions": list(config.attn_resolutions), "dropout": 0.0} if kind == "ibq" else {}
    arguments = {"ddconfig": dd, "n_embed": config.codebook_size, "embed_dim": config.embed_dim}
    arguments |= {"learning_rate": 1e-4, "sample_minimization_weight": 1.0, "use_ema": False}
    path = "IBQ.models.ibqgan.IBQ" if kind == "ibq" else "Open_MAGVIT2.models.lfqgan.VQModel"
    return {"model": {"class_path": f"src.{path}", "init_args": arguments}}


def _transformers_config(kind: str, config: ModelConfig) -> dict[str, Any]:
    part = {"base_channels": config.ch, "channel_multiplier": list(config.ch_mult)}
    part |= {"num_res_blocks": config.num_res_blocks, "latent_channels": config.z_channels}
    part |= {"embed_dim": config.embed_dim, "num_embeddings": config.codebook_size}
    part |= {"resolution": config.resolution, "attn_resolutions": None} if kind == "chameleon" else {}
    return {
        "architectures": [f"{kind.capitalize()}ForConditionalGeneration"],
        "model_type": kind,
        "vocab_size": 9,
        "vision_config": {"image_size": 40, "patch_size": 5},  # 8 patches a side: 4 pixels each here
        "vq_config": {**part, "model_type": f"{kind}_vqgan"},
    }


def nest(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Dotted names to nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, value in tensors.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def msgpack_bytes(tree: Any) -> bytes:
    """As flax.serialization writes it."""
    import msgpack

    def default(value: np.ndarray) -> Any:
        inner = msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
        return msgpack.ExtType(1, inner)

    return msgpack.packb(tree, default=default, strict_types=True)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)


@dataclass(frozen=True)
class Ref:
    """A global in a pickle."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A REDUCE in a pickle."""

    function: Ref
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Persistent:
    """A persistent id in a pickle."""

    value: Any


@dataclass(frozen=True)
class Module:
    """A module in the pickle of a TorchScript archive: an object with attributes."""

    attributes: dict[str, Any]


def pickle_bytes(value: Any) -> bytes:
    """A protocol 2 pickle of plain data, globals, calls and persistent ids."""
    return b"\x80\x02" + _ops(value) + b"."


def _ops(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"I%d\n" % value
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_ops, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_ops, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_ops(key) + _ops(item) for key, item in value.items()) + b"u"
    if isinstance(value, Ref):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Module):
        return b"c__torch__.___torch_mangle_1\nHolder\n)\x81" + _ops(value.attributes) + b"b"
    if isinstance(value, Call):
        return _ops(value.function) + _ops(value.arguments) + b"R"
    if isinstance(value, Persistent):
        return _ops(value.value) + b"Q"
    raise TypeError(type(value))


_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
}


class Storages:
    """Collects storages while a structure is put together."""

    def __init__(self) -> None:
        self.data: list[np.ndarray] = []

    def tensor(self, array: np.ndarray) -> Call:
        """The call that rebuilds an array from a storage of its own."""
        array = np.ascontiguousarray(array)
        strides = tuple(stride // array.itemsize for stride in array.strides)
        return self.view(self.add(array), 0, array.shape, strides)

    def add(self, array: np.ndarray) -> int:
        """A new storage; gives its key."""
        self.data.append(np.ravel(array))
        return len(self.data) - 1

    def view(self, key: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Call:
        """The call that makes a view of a storage."""
        storage = self.data[key]
        kind = Ref("torch", _STORAGES[storage.dtype.name])
        persistent = Persistent(("storage", kind, str(key), "cpu", len(storage)))
        hooks = Call(Ref("collections", "OrderedDict"), ())
        arguments = (persistent, offset, tuple(shape), tuple(strides), False, hooks)
        return Call(Ref("torch._utils", "_rebuild_tensor_v2"), arguments)

    def replace(self, value: Any) -> Any:
        """Arrays in nested dictionaries become calls."""
        if isinstance(value, np.ndarray):
            return self.tensor(value)
        if isinstance(value, Module):
            return Module(self.replace(value.attributes))
        return {k: self.replace(v) for k, v in value.items()} if isinstance(value, dict) else value


def write_torch_zip(path: Path, tree: Any, storages: Storages | None = None) -> None:
    """A checkpoint as torch 1.6 and later write it."""
    storages = storages or Storages()
    structure = pickle_bytes(storages.replace(tree))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", structure)
        archive.writestr("archive/byteorder", "little")
        for key, data in enumerate(storages.data):
            archive.writestr(f"archive/data/{key}", data.tobytes())
        archive.writestr("archive/version", "3\n")


def write_torch_script(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A TorchScript archive of modules that hold these tensors."""

    def module(tree: dict[str, Any]) -> Module:
        parts = {name: module(part) if isinstance(part, dict) else part for name, part in tree.items()}
        return Module({"training": False, **parts})

    write_torch_zip(path, module(nest(tensors)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", pickle_bytes(()))
        archive.writestr("archive/code/__torch__/___torch_mangle_1.py", "class Holder(Module): ...")


def write_torch_legacy(path: Path, tree: Any) -> None:
    """A checkpoint as torch before 1.6 wrote it."""
    storages = Storages()
    replaced = storages.replace(tree)
    file = io.BytesIO()
    file.write(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
    file.write(pickle.dumps(1001, 2))
    file.write(pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, 2))
    file.write(pickle_bytes(replaced))
    file.write(pickle.dumps([str(key) for key in range(len(storages.data))], 2))
    for data in storages.data:
        file.write(struct.pack("<q", len(data)) + data.tobytes())
    path.write_bytes(file.getvalue())

"""``vqgan inspect``: what a codec, a prior, a data set or one shard is."""

import os
from pathlib import Path
from typing import Any

from transforms.decoding.index import index_folder
from transforms.decoding.verify import ImageVerifier
from transforms.sharded.plan import Plan, read_plan
from transforms.sharded.verify import Verifier, require_manifest
from transforms.tokenizing.buckets import describe_buckets
from transforms.tokenizing.verify import SampleVerifier, TokenVerifier
from transforms.tokenizing.verify_parts import unfinished_part, verify_parts
from vqgan import filesystems
from vqgan.codec_checkpoint import pretrained_names, read_info
from vqgan.config import ModelConfig
from vqgan.config_json import to_dict
from vqgan.downloads import is_dataset
from vqgan.errors import UserError
from vqgan.importers import is_foreign_source, looks_foreign
from vqgan.manifest import (
    BUCKETS_FILE,
    IMAGES_KIND,
    bucket_names,
    check_parts,
    read_buckets,
    read_manifest,
    resolve_dataset,
)
from vqgan.model.parameters import codec_parameter_count
from vqgan.model_card import ModelCard
from vqgan.prior.checkpoint import find_prior, read_prior
from vqgan.prior.config import prior_parameter_count
from vqgan.shards import DATA_FOLDER, open_shard
from vqgan.token_layouts import GRID, describe_layout, layout_of


def describe(path: str) -> dict[str, Any]:
    """Describes what lies at a path, as JSON data.

    Raises:
      UserError: nothing there that we know.
    """
    if is_dataset(path):
        return describe_data_set(resolve_dataset(path)) | {"path": path}
    if (path in pretrained_names() and not os.path.exists(path)) or is_foreign_source(path):
        return describe_codec(path)
    if not filesystems.exists(path):
        raise UserError(f"{path}: nothing there; give a codec, a prior, a data set's folder or a shard")
    if filesystems.file_info(path).is_file:
        return describe_shard(path) if _is_parquet(path) else describe_codec(path)
    if filesystems.exists(filesystems.join(path, "codec.json")):
        return describe_codec(path)
    if find_prior(path) is not None:
        return describe_prior(path)
    if read_plan(path) is not None:
        return describe_data_set(path)
    if read_buckets(path) is not None:
        return _describe_buckets(path)
    if looks_foreign(Path(path)):
        return describe_codec(path)
    raise UserError(
        f"{path}: neither a codec (codec.json) nor a data set (plan/plan.json) nor a prior (prior.json) nor "
        "a checkpoint that we know"
    )


def _describe_buckets(path: str) -> dict[str, Any]:
    """Describes a folder of data sets of several sizes, by their manifests."""
    found = describe_buckets(path)
    kind = "data sets of buckets"
    return {"kind": f"unfinished {kind}" if "unfinished" in found else kind, "path": path, **found}


def _is_parquet(path: str) -> bool:
    if path.endswith(".parquet") or "://" in path:
        return True
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def describe_codec(path: str) -> dict[str, Any]:
    """Describes a codec: architecture, size, fingerprint, card; for a foreign checkpoint also its format."""
    info = read_info(path)
    origin = ModelCard.from_json(info.card).origin
    return {
        "kind": "codec" if info.source is None else "checkpoint of another code base",
        "path": str(info.path),
        **{name: origin[name] for name in ("format", "assumed") if name in origin},
        "parameters": codec_parameter_count(info.config),
        "input range": list(info.config.channels.input_ranges or info.config.input_range),
        "codebook": f"{info.config.codebook_size} codes of {info.config.embed_dim}, {info.config.quantizer}",
        **({"training step": origin["training_step"]} if "training_step" in origin else {}),
        "fingerprint": info.fingerprint,
        "config": to_dict(info.config),
        **_layout(info.config),
        "card": dict(info.card),
    }


def _layout(config: ModelConfig) -> dict[str, Any]:
    if config.length is None:
        return {"downsampling": config.downsampling}
    side, _ = config.image_shape((1, config.length))
    return {"layout": f"{describe_layout(config.layout, (1, config.length))}, images of {side} x {side}"}


def describe_prior(path: str) -> dict[str, Any]:
    """Describes a prior, or that of the run that trained it: architecture, size, fingerprint, codec, card."""
    info = read_prior(path)
    shown = describe_layout(layout_of(info.codec.config), info.config.grid, " x ")
    return {
        "kind": "prior",
        "path": str(info.path),
        "model": info.config.kind,
        "parameters": prior_parameter_count(info.config),
        "grid": f"{shown} of {info.config.codebook_size} codes",
        "classes": info.config.classes,
        "class names": list(info.class_names),
        "fingerprint": info.fingerprint,
        "codec": {
            "name": info.codec.name,
            "fingerprint": info.codec.fingerprint,
            "image size": to_dict(info.codec)["image_size"],
        },
        "config": to_dict(info.config),
        "card": dict(info.card),
    }


def describe_data_set(path: str) -> dict[str, Any]:
    """Describes a data set: its counts, or how far it is."""
    manifest = read_manifest(path)
    plan = read_plan(path)
    if manifest is None:
        assert plan is not None  # the caller has seen it
        images = plan.identity.get("kind") == IMAGES_KIND
        folder = index_folder(plan.identity["form"]["container"]) if images else DATA_FOLDER
        found = filesystems.list_names(filesystems.join(path, folder))
        shards = [name for name in found if name.startswith("images-" if images else "tokens-")]
        return {
            "kind": "unfinished images" if images else "unfinished data set",
            "path": path,
            "planned": plan.entries,
            "shards": f"{len(shards)} of {plan.slices}",
        }
    check_parts(path, manifest)
    codebook = {name: value for name, value in manifest["codebook"].items() if name != "histogram"}
    return {
        "kind": "images of a token data set" if manifest.get("kind") == IMAGES_KIND else "data set",
        "path": path,
        "grid": manifest["grid"],
        **({"layout": manifest["layout"]} if "layout" in manifest else {}),
        **manifest["counts"],
        "shards": len(manifest["shards"]),
        **({"parts": [part["made"] for part in manifest["parts"]]} if "parts" in manifest else {}),
        "reject_reasons": manifest["reject_reasons"],
        "codebook": codebook,
        "storage": manifest["storage"],
        "throughput": manifest["throughput"],
        "codec": {name: manifest["codec"][name] for name in ("name", "fingerprint")},
        **({"engine": manifest["identity"]["engine"]} if "engine" in manifest["identity"] else {}),
        "preprocessing": manifest["identity"]["preprocessing"],
        "versions": manifest["versions"],
        "finished": manifest["finished"],
    }


def describe_shard(path: str) -> dict[str, Any]:
    """Describes one shard: footer and columns."""
    with open_shard(path) as shard:
        metadata = shard.metadata
        for _ in shard.batches(["tokens"]):
            pass  # damage shows here, before their size is asked for
        return {
            "kind": "shard",
            "path": path,
            "rows": shard.rows,
            "images": metadata.images,
            "rejects": metadata.rejects,
            "slice": f"{metadata.slice_number} of {metadata.slices}",
            "grid": list(metadata.grid),
            **({} if metadata.layout == GRID else {"layout": metadata.layout}),
            "codebook_size": metadata.codebook_size,
            "token_bytes": shard.token_bytes(),
            "columns": {field.name: str(field.type) for field in shard.schema},
            "fingerprint": metadata.fingerprint,
            "codec_origin": dict(metadata.codec_origin),
            "plan_hash": metadata.plan_hash,
            **({} if metadata.engine is None else {"engine": metadata.engine}),
            "preprocessing": dict(metadata.preprocessing),
            **({} if metadata.sampling is None else {"sampling": dict(metadata.sampling)}),
        }


def format_description(description: dict[str, Any], indent: str = "") -> str:
    """Writes a description as aligned lines; nested parts are indented."""
    width = max((len(name) for name in description), default=0)
    lines = []
    for name, value in description.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{name}:")
            lines.append(format_description(value, indent + "  "))
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            lines.append(f"{indent}{name:<{width}}  {shown}")
    return "\n".join(line for line in lines if line)


def verify_data_set(output: str) -> tuple[list[str], str]:
    """Checks files, footers, counts, keys and token range, or every image, of a data set.

    Args:
      output: its folder or URI, or ``hf://datasets/owner/name[@revision]``.

    Returns:
      Problems, one line each, and one line that says what was checked.

    Raises:
      UserError: there is no data set, or it is not finished.
    """
    output = resolve_dataset(output)
    manifest = require_manifest(output)
    if "parts" in manifest:
        problems, summary = verify_parts(output, manifest)
        return [*unfinished_part(output, manifest), *problems], summary
    plan = read_plan(output)
    if plan is None:
        raise UserError(f"{output}: plan/plan.json is missing; nothing can be checked against it")
    kind = manifest.get("kind")
    if (kind == IMAGES_KIND) != (plan.identity.get("kind") == IMAGES_KIND):
        return ["manifest.json and plan/plan.json are of different kinds"], "nothing else was checked"
    verifier = _verifier_of(kind, plan)(output, manifest, plan)
    try:
        verifier.check_plan()
    except UserError as error:
        return [str(error)], "nothing else was checked"
    problems, summary = verifier.verify()
    if plan.hash != manifest["plan_hash"]:
        problems.insert(0, "manifest.json and plan/plan.json are of different plans")
    return [*unfinished_part(output, manifest), *problems], summary


def missing_buckets(output: str) -> dict[str, str]:
    """Returns what is wrong with a folder of buckets beside its data sets, by the name of what is not there.

    Raises:
      UserError: its list of buckets is damaged.
    """
    is_listed = "data_sets" in (read_buckets(output) or {})
    why = "problem: it is gone" if is_listed else "not begun, or no image is nearest to it"
    found = {
        name: why
        for name in bucket_names(output)
        if not filesystems.list_entries(filesystems.join(output, name))
    }
    if not is_listed:
        found[BUCKETS_FILE] = "not finished; run the command that makes it again"
    return found


def _verifier_of(kind: str | None, plan: Plan) -> type[Verifier]:
    """Returns what checks a data set of this kind."""
    if kind == IMAGES_KIND:
        return ImageVerifier
    return SampleVerifier if "sampling" in plan.identity else TokenVerifier

"""Checking any finished data set of ours: of tokens, tokenized or sampled, or of decoded images."""

from transforms.decoding.verify import ImageVerifier
from transforms.sharded.plan import read_plan
from transforms.sharded.verify import Verifier, require_manifest
from transforms.tokenizing.verify import TokenVerifier
from vqgan.errors import UserError
from vqgan.manifest import IMAGES_KIND, resolve_dataset


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
    plan = read_plan(output)
    if plan is None:
        raise UserError(f"{output}: plan/plan.json is missing; nothing can be checked against it")
    kind = manifest.get("kind")
    if (kind == IMAGES_KIND) != (plan.identity.get("kind") == IMAGES_KIND):
        return ["manifest.json and plan/plan.json are of different kinds"], "nothing else was checked"
    verifier: type[Verifier] = ImageVerifier if kind == IMAGES_KIND else TokenVerifier
    problems, summary = verifier(output, manifest, plan).verify()
    if plan.hash != manifest["plan_hash"]:
        problems.insert(0, "manifest.json and plan/plan.json are of different plans")
    return problems, summary

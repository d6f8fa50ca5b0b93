"""Checkpoints of other models than codecs: what is used of them, or why nothing is."""

from collections.abc import Sequence

# First parts of names in Net2Net and diffusion checkpoints, beside those of the image tokenizer.
_PRIOR_PARTS = {
    "transformer", "cond_stage_model", "first_stage_model", "model", "model_ema", "denoise_fn", "permuter",
    "loss", "logvar", "cond_ids", "scale_factor", "lvlb_weights", "betas",
}  # fmt: skip
# The noise schedule of a diffusion model: alphas_cumprod, sqrt_recip_alphas_cumprod, posterior_variance, ...
_SCHEDULE = ("alphas_", "sqrt_", "log_one_minus_", "posterior_")
_EXAMPLES = 5


def is_prior_part(name: str) -> bool:
    """Whether a parameter belongs to the model around a first stage (a transformer, a diffusion model)."""
    first = name.split(".")[0]
    return first in _PRIOR_PARTS or first.startswith(_SCHEDULE)


def explain_other_model(container: str, names: Sequence[str]) -> str:
    """Why a readable file is no codec, with what was seen in it."""
    if not names:
        return f"a {container} file without tensors; give a checkpoint of a VQGAN"
    shown = ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
    if any(_is_transformer(name) for name in names):
        return (
            f"a transformer prior ({len(names)} tensors: {shown}) without its first stage: it models tokens "
            "and cannot make them; give the VQGAN checkpoint that it was trained with (vqgan import-prior "
            "reads a prior of taming-transformers itself)"
        )
    return (
        f"a {container} file whose {len(names)} tensors are those of no VQGAN that we know; it has {shown}; "
        "known: taming-transformers, latent-diffusion, llamagen, diffusers, vqgan-jax, lwm, maskgit"
    )


def _is_transformer(name: str) -> bool:
    parts = name.removeprefix("module.").split(".")
    return parts[0] in ("transformer", "tok_emb", "gpt") or (parts[0] == "blocks" and "attn" in parts)

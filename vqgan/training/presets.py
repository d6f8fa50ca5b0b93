"""Named training runs: an architecture of :mod:`vqgan.presets` and how it is trained."""

from vqgan.config import ModelConfig
from vqgan.presets import PRESETS
from vqgan.training.config import LoopConfig, OptimizerConfig
from vqgan.training.tokenizer_config import (
    AdversarialConfig,
    CodebookConfig,
    DataConfig,
    DiscriminatorConfig,
    LossConfig,
    TokenizerConfig,
)

# Half an hour on two CPU cores: AlexNet as the perceptual network, a small discriminator.
_CPU_64 = TokenizerConfig(
    model=PRESETS["f4-512"],
    train=LoopConfig(
        steps=2400, batch_size=16, ema_decay=0.995, log_every=25, evaluate_every=200, save_every=200,
        best="lpips",
    ),
    data=DataConfig(crop_size=64, threads=2),
    optimizer=OptimizerConfig(learning_rate=1e-3, b1=0.9, b2=0.99),
    loss=LossConfig(l2=1.0, perceptual=0.5, perceptual_network="alex"),
    codebook=CodebookConfig(autoencoder_steps=200, revive_every=50),
    adversarial=AdversarialConfig(weight=0.25, start=1500, lecam=0.03),
    discriminator=DiscriminatorConfig(channels=32, layers=2),
    discriminator_optimizer=OptimizerConfig(learning_rate=2.5e-4, schedule="constant"),
)  # fmt: skip

_TINY = TokenizerConfig(
    model=PRESETS["tiny"],
    train=LoopConfig(
        steps=6000, batch_size=16, ema_decay=0.999, log_every=25, evaluate_every=500, save_every=500
    ),
    data=DataConfig(crop_size=64, validation_size=128, threads=2),
    optimizer=OptimizerConfig(learning_rate=1e-3, b1=0.9, b2=0.99),
    loss=LossConfig(l2=1.0, perceptual=0.0),
    codebook=CodebookConfig(autoencoder_steps=600, revive_every=50),
    adversarial=AdversarialConfig(weight=0.0),
)


def _published(model: ModelConfig) -> TokenizerConfig:
    """Losses and weights of arXiv 2012.09841, section 3.1 and appendix, for one accelerator or more."""
    return TokenizerConfig(
        model=model,
        train=LoopConfig(steps=200_000, batch_size=32, dtype="bfloat16", best="lpips"),
        data=DataConfig(crop_size=256, threads=16, max_short_side=640),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000, final_share=0.1),
        codebook=CodebookConfig(autoencoder_steps=1000),
        adversarial=AdversarialConfig(start=20_000),
        discriminator_optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant"),
    )


TRAINING_PRESETS: dict[str, TokenizerConfig] = {
    "cpu-64": _CPU_64,
    "tiny": _TINY,
    **{name: _published(model) for name, model in PRESETS.items() if name.startswith(("f8-", "f16-"))},
}

"""Training steps in torch to compare ours with, of the same architecture, batch and losses.

A decoder-only transformer as nanoGPT has it, and stage 1 as *Taming Transformers* (arXiv 2012.09841) has
it. Written here after the published descriptions; nothing in the package needs torch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqgan.config import ModelConfig
from vqgan.discriminators.architecture import DiscriminatorConfig
from vqgan.training.codec.config import CodecTrainConfig


class Attention(nn.Module):
    """Causal self-attention: one product for queries, keys and values, then torch's fused attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attends within ``[B, T, D]``."""
        parts = self.qkv(x).split(x.shape[-1], dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward part with an exact GELU, each added to its input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Transforms ``[B, T, D]``."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Gpt(nn.Module):
    """Tokens ``[B, T]`` to the loss of each being predicted from those before it."""

    def __init__(self, codes: int, length: int, layers: int, heads: int, width: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(codes + 1, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codes, bias=False)
        self.start = codes

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the mean cross-entropy."""
        read = torch.cat([torch.full_like(tokens[:, :1], self.start), tokens[:, :-1]], dim=1)
        x = self.tokens(read) + self.positions.weight[None]
        logits = self.head(self.norm(self.blocks(x)))
        return functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


class GptStep:
    """One update of a :class:`Gpt`: AdamW with its loops fused, gradients clipped to a norm of 1."""

    def __init__(self, codes: int, length: int, layers: int, heads: int, width: int):
        torch.manual_seed(0)
        self.model = Gpt(codes, length, layers, heads, width)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 3e-4, betas=(0.9, 0.95), fused=True)

    def __call__(self, tokens: Tensor) -> float:
        """Returns the loss before the update."""
        loss = self.model(tokens)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, inputs, 1e-6), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = (
            nn.GroupNorm(groups, outputs, 1e-6),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Transforms ``[B, C, h, w]``."""
        h = self.conv1(functional.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(functional.silu(self.norm2(h)))


class Down(nn.Module):
    """Halves height and width; padded on the right and bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms ``[B, C, h, w]``."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


def encoder(model: ModelConfig) -> nn.Sequential:
    """The encoder of a configuration without attention, with the convolution to the codebook's dimension."""
    widths, groups = [model.ch * multiple for multiple in model.ch_mult], model.norm_groups
    layers: list[nn.Module] = [nn.Conv2d(3, model.ch, 3, padding=1)]
    channels = model.ch
    for level, width in enumerate(widths):
        for _ in range(model.num_res_blocks):
            layers.append(ResBlock(channels, width, groups))
            channels = width
        if level < len(widths) - 1:
            layers.append(Down(channels))
    layers += [ResBlock(channels, channels, groups) for _ in range(model.mid_blocks)]
    layers += [
        nn.GroupNorm(groups, channels, 1e-6),
        nn.SiLU(),
        nn.Conv2d(channels, model.z_channels, 3, padding=1),
    ]
    return nn.Sequential(*layers, nn.Conv2d(model.z_channels, model.embed_dim, 1))


def decoder(model: ModelConfig) -> nn.Sequential:
    """The decoder of such a configuration; its last layer is the one that the adaptive weight looks at."""
    widths, groups = [model.ch * multiple for multiple in model.ch_mult], model.norm_groups
    channels = widths[-1]
    layers: list[nn.Module] = [
        nn.Conv2d(model.embed_dim, model.z_channels, 1),
        nn.Conv2d(model.z_channels, channels, 3, padding=1),
    ]
    layers += [ResBlock(channels, channels, groups) for _ in range(model.mid_blocks)]
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(model.decoder_blocks):
            layers.append(ResBlock(channels, width, groups))
            channels = width
        if level:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1)]
    layers += [nn.GroupNorm(groups, channels, 1e-6), nn.SiLU(), nn.Conv2d(channels, 3, 3, padding=1)]
    return nn.Sequential(*layers)


def patch_discriminator(config: DiscriminatorConfig) -> nn.Sequential:
    """PatchGAN with BatchNorm (arXiv 1611.07004)."""
    widths = [config.channels * min(2**level, 8) for level in range(config.layers + 1)]
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for level in range(1, config.layers + 1):
        stride = 2 if level < config.layers else 1
        convolution = nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(widths[level]), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))


_ALEX: list[list[tuple[int, int, int, int, int]]] = [
    [(3, 64, 11, 4, 2)], [(64, 192, 5, 1, 2)], [(192, 384, 3, 1, 1)], [(384, 256, 3, 1, 1)],
    [(256, 256, 3, 1, 1)],
]  # fmt: skip
_VGG_WIDTHS = [(64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3]


class Perceptual(nn.Module):
    """LPIPS (arXiv 1801.03924) with random weights: as fast as the learned ones. Nothing of it is trained."""

    def __init__(self, network: str):
        super().__init__()
        self.pools = (0, 3, 3, 0, 0) if network == "alex" else (0, 2, 2, 2, 2)
        shapes = _ALEX if network == "alex" else _vgg_shapes()
        self.stages = nn.ModuleList(
            nn.Sequential(*(part for shape in stage for part in (nn.Conv2d(*shape), nn.ReLU())))
            for stage in shapes
        )
        self.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the mean distance; the features of ``y`` need no gradient."""
        with torch.no_grad():
            targets = self.features(y)
        pairs = zip(self.features(x), targets, strict=True)
        return sum((((a - b) ** 2).sum(1).mean() for a, b in pairs), start=torch.zeros(()))

    def features(self, x: Tensor) -> list[Tensor]:
        """Returns the compared layers, of length 1 over channels."""
        found = []
        for pool, stage in zip(self.pools, self.stages, strict=True):
            x = stage(functional.max_pool2d(x, pool, 2) if pool else x)
            found.append(functional.normalize(x, dim=1, eps=1e-10))
        return found


def _vgg_shapes() -> list[list[tuple[int, int, int, int, int]]]:
    shapes, inputs = [], 3
    for widths in _VGG_WIDTHS:
        stage = []
        for width in widths:
            stage.append((inputs, width, 3, 1, 1))
            inputs = width
        shapes.append(stage)
    return shapes


class CodecStep:
    """One adversarial update of stage 1: the generator's, then the discriminator's.

    Args:
      config: of the run, whose model has no attention and whose quantizer is ``nearest``.
      twice: the discriminator's update runs the autoencoder again, as the published code does.
    """

    def __init__(self, config: CodecTrainConfig, twice: bool):
        torch.manual_seed(0)
        self.config, self.twice = config, twice
        self.encoder, self.decoder = encoder(config.model), decoder(config.model)
        self.codebook = nn.Embedding(config.model.codebook_size, config.model.embed_dim)
        self.discriminator = patch_discriminator(config.discriminator)
        self.perceptual = Perceptual(config.loss.perceptual_network)
        parts = (self.encoder, self.decoder, self.discriminator, self.perceptual)
        for part in parts:
            part.to(memory_format=torch.channels_last)
        learned = [*self.encoder.parameters(), *self.decoder.parameters(), *self.codebook.parameters()]
        self.optimizer = torch.optim.Adam(learned, 1e-4, betas=(0.5, 0.9), fused=True)
        self.critic_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), 1e-4, betas=(0.5, 0.9), fused=True
        )

    def __call__(self, images: Tensor) -> float:
        """Updates both sides from ``[B, 3, H, W]`` in [-1, 1]; returns the generator's loss."""
        images = images.contiguous(memory_format=torch.channels_last)
        reconstruction, vq = self.reconstruct(images)
        loss = self.generator_loss(reconstruction, images) + vq
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.twice:
            reconstruction, _ = self.reconstruct(images)
        real, fake = self.discriminator(images), self.discriminator(reconstruction.detach())
        critic = 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
        self.critic_optimizer.zero_grad(set_to_none=True)
        critic.backward()
        self.critic_optimizer.step()
        return loss.item()

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the decoded images and the quantizer's loss."""
        latents = self.encoder(images).permute(0, 2, 3, 1)  # (B, h, w, D)
        flat, codes = latents.reshape(-1, latents.shape[-1]), self.codebook.weight
        distances = codes.square().sum(1)[None] - 2 * flat @ codes.T
        quantized = self.codebook(distances.argmin(1)).view_as(latents)
        vq = functional.mse_loss(quantized, latents.detach()) + 0.25 * functional.mse_loss(
            latents, quantized.detach()
        )
        straight = latents + (quantized - latents).detach()
        return self.decoder(straight.permute(0, 3, 1, 2)), vq

    def generator_loss(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Returns pixel, perceptual and adversarial loss with the adaptive weight (equation 7)."""
        nll = functional.l1_loss(reconstruction, images) + self.config.loss.perceptual * self.perceptual(
            reconstruction, images
        )
        adversarial = -self.discriminator(reconstruction).mean()
        kernel = self.decoder[-1].weight
        norms = [
            torch.autograd.grad(part, kernel, retain_graph=True)[0].norm() for part in (nll, adversarial)
        ]
        weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
        return nll + self.config.adversarial.weight * weight * adversarial

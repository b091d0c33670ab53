"""Exact: up to the first cross-attention the branches of a guided step are the same, so that part runs once.

Latents, time and condition are common to both branches; only the prompts differ. In both networks the first
convolution, the first residual block and the first self-attention need no second run: 2.7% fewer multiplications in
a guided step at the official size.
"""

from __future__ import annotations

from torch import Tensor, nn

from featinv_fast.models import Denoiser
from featinv_fast.models.layers import Transformer
from featinv_fast.models.unet import Block, Encoder, EncoderLevel
from featinv_fast.rewrites.constant_prompts import Branched


class Fork(Branched, nn.Module):
    """What the branches have in common, once for each."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [groups * B, ...]."""
        return x.repeat(self.groups, *[1] * (x.ndim - 1))


class ForkedTransformer(Transformer):
    """A transformer that takes what the branches have in common and gives each its own."""

    def __init__(self, transformer: Transformer, groups: int) -> None:
        nn.Module.__init__(self)
        take_children(self, transformer)
        self.fork = Fork(groups)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """[B, C, H, W] -> [groups * B, C, H, W]."""
        h = self.before_prompt(x)  # [B, H * W, C]
        return self.with_prompt(self.fork(x), self.fork(h), context)


class ForkedEncoder(Encoder):
    """An encoder with a forked transformer.

    Attributes:
        shared: how many of the activations are made before the fork.
    """

    def __init__(self, encoder: Encoder, groups: int) -> None:
        nn.Module.__init__(self)
        take_children(self, encoder)
        self.fork = Fork(groups)
        block, self.shared = _first_prompt(encoder)
        assert type(block.transformer) is Transformer, "the rewrite was applied before"
        block.transformer = ForkedTransformer(block.transformer, groups)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None, condition: Tensor | None = None) -> list[Tensor]:
        """`x` [B, 4, h, w] -> the 13 activations of `Encoder.forward` for groups * B items."""
        activations = super().forward(x, time, context, condition)
        shared = [self.fork(a) for a in activations[: self.shared]]
        return shared + activations[self.shared :]


class ForkedDenoiser(Denoiser):
    """A denoiser whose encoders multiply the batch themselves."""

    def __init__(self, denoiser: Denoiser, groups: int) -> None:
        nn.Module.__init__(self)
        take_children(self, denoiser)
        for network in (self.controlnet, self.unet):
            network.encoder = ForkedEncoder(network.encoder, groups)

    def for_branches(self, x: Tensor, branches: int) -> Tensor:  # noqa: ARG002
        """[B, ...], as it is."""
        return x


def shared_prefix(denoiser: Denoiser, groups: int) -> ForkedDenoiser:
    """`denoiser` for `groups` branches, taken apart and put together again with the parts before the prompts shared.

    Args:
        denoiser: with constant prompts and time rows; do not use it afterwards.
        groups: the number of branches; `use_prompts` changes it.
    """
    return ForkedDenoiser(denoiser, groups)


def _first_prompt(encoder: Encoder) -> tuple[Block, int]:
    """The first block with a transformer, and how many activations the encoder makes before it."""
    shared = 1  # the first convolution's
    for level in encoder.levels:
        assert isinstance(level, EncoderLevel)
        for block in level.blocks:
            assert isinstance(block, Block)
            if block.transformer is not None:
                return block, shared
            shared += 1
        shared += level.downsample is not None
    return encoder.middle.block_in, shared


def take_children(module: nn.Module, other: nn.Module) -> None:
    """Make the submodules of `other` those of `module`, which is put in its place."""
    for name, child in other.named_children():
        module.add_module(name, child)

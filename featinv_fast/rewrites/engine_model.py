"""A FeatInv model as the five graphs of an engine: all structural rewrites applied.

The parameter names of `EngineModel` are the tensor names of an engine's weight file; a graph is a view of it that
takes its inputs in the order of its GraphSpec.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from featinv_fast.config import ModelConfig, Precision
from featinv_fast.models import FeatInv
from featinv_fast.models.layers import ResidualBlock
from featinv_fast.rewrites.constant_prompts import constant_prompts, use_prompts
from featinv_fast.rewrites.shared_prefix import shared_prefix
from featinv_fast.rewrites.time_rows import time_rows
from featinv_fast.rewrites.upsample_products import is_kernel, upsample_products

M = TypeVar("M", bound=nn.Module)

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


class ConditionGraph(nn.Module):
    """features -> condition."""

    def __init__(self, condition_encoder: nn.Module) -> None:
        super().__init__()
        self.condition_encoder = condition_encoder

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, h, w]."""
        return self.condition_encoder(features)


class TimeGraph(nn.Module):
    """timesteps (and guidance) -> time_bias."""

    def __init__(self, time_embedding: nn.Module) -> None:
        super().__init__()
        self.time_embedding = time_embedding

    def forward(self, timesteps: Tensor, guidance: Tensor | None = None) -> Tensor:
        """[S] -> [S, T]."""
        return self.time_embedding(timesteps, guidance)


class GuidedGraph(nn.Module):
    """latents, condition, time_bias, guidance_scale, control_scales -> eps, two branches."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self, latents: Tensor, condition: Tensor, time_bias: Tensor, guidance_scale: Tensor, control_scales: Tensor
    ) -> Tensor:
        """[B, 4, h, w], [B, channels, h, w], [T], [], [2, 13] -> [B, 4, h, w]."""
        return self.denoiser(latents, condition, time_bias, None, control_scales, guidance_scale)


class UnguidedGraph(nn.Module):
    """latents, condition, time_bias, control_scales -> eps, the conditional branch alone."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, latents: Tensor, condition: Tensor, time_bias: Tensor, control_scales: Tensor) -> Tensor:
        """[B, 4, h, w], [B, channels, h, w], [T], [1, 13] -> [B, 4, h, w]."""
        return self.denoiser(latents, condition, time_bias, None, control_scales)


class DecoderGraph(nn.Module):
    """latents -> image."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latents: Tensor) -> Tensor:
        """[B, 4, h, w] -> [B, 3, 8h, 8w]."""
        return self.decoder(latents)


class EngineModel(nn.Module):
    """What an engine stores: condition encoder, time table, denoiser with constant prompts, decoder.

    Args:
        model: a plain model; it is left as it was and shares its weights.
        prompts: [2, T, D] embeddings, the prompt first and the empty prompt second.

    Attributes:
        rewrites: what was done to the plain model, by name. All of it is exact.
    """

    def __init__(self, model: FeatInv, prompts: Tensor) -> None:
        super().__init__()
        denoiser, decoder = share_copy(model.denoiser), share_copy(model.autoencoder.decoder)
        self.condition_encoder = model.condition_encoder
        attentions = constant_prompts(denoiser, prompts)
        blocks = sum(isinstance(module, ResidualBlock) for module in denoiser.modules())
        self.time_embedding = time_rows(denoiser)
        upsamples = upsample_products(denoiser), upsample_products(decoder)
        self.denoiser = shared_prefix(denoiser, len(prompts))
        self.decoder = decoder
        self.rewrites = {
            "condition once": "the condition encoder is a graph of its own and runs once per image, not twice per step",
            "constant prompts": f"keys and values of {attentions} cross-attentions are stored, the text encoder is not",
            "time rows": f"the time projections of {blocks} residual blocks are one matrix, a row of biases per step",
            "guidance in one batch": "the conditional and the unconditional branch run as one batch",
            "shared prefix": "both branches share what comes before the first cross-attention, in both networks",
            "upsample products": "doubling and convolving takes 9 products in place of 36 in "
            f"{upsamples[0]} layers of the U-Net and {upsamples[1]} of the decoder",
        }

    @classmethod
    def empty(cls, config: ModelConfig) -> EngineModel:
        """The structure without weights, on the meta device, to load an engine's weight file into."""
        with torch.device("meta"):
            return cls(FeatInv(config), torch.empty(2, config.context_tokens, config.context_channels))

    def graphs(self) -> dict[str, nn.Module]:
        """The graphs by their GraphSpec names. They share this model's weights."""
        unguided = share_copy(self.denoiser)
        use_prompts(unguided, 1)
        return {
            "condition_encoder": ConditionGraph(self.condition_encoder),
            "time_embedding": TimeGraph(self.time_embedding),
            "denoiser": GuidedGraph(self.denoiser),
            "denoiser_unguided": UnguidedGraph(unguided),
            "decoder": DecoderGraph(self.decoder),
        }


def share_copy(module: M) -> M:
    """A copy of the module tree whose leaves are the very same parameters."""
    return copy.deepcopy(module, memo={id(p): p for p in module.parameters()})


def storage_dtype(name: str, precision: Precision, kept_fp32: tuple[str, ...] = ()) -> torch.dtype:
    """In which dtype a tensor of an engine is stored.

    Half precision leaves in fp32 what runs once per call (the time embedding), what other forms of a layer are derived
    from (the kernels beside their products), and what does not fit (`kept_fp32`).
    """
    always = name.startswith("time_embedding.") or is_kernel(name)
    return torch.float32 if always or name in kept_fp32 else DTYPES[precision]


def storage_dtypes(model: EngineModel, precision: Precision, kept_fp32: tuple[str, ...] = ()) -> dict[str, torch.dtype]:
    """In which dtype each tensor of an engine is stored: `storage_dtype` by name."""
    return {name: storage_dtype(name, precision, kept_fp32) for name in model.state_dict()}

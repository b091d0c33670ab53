"""The straightforward loop that the benchmarks compare with: what the public FeatInv code does at each step.

Two network passes, one after the other: the prompt's and the empty prompt's. Each runs the condition encoder, the
ControlNet and the U-Net, with the text's keys and values projected anew. It runs the same plain torch modules that
the engine is made from, with the same threads and without gradients: it is slow by its structure alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featinv_fast.models import FeatInv
from featinv_fast.samplers.ddim import official_times
from featinv_fast.samplers.schedule import OFFICIAL_SCHEDULE


def predict_noise(model: FeatInv, latents: Tensor, features: Tensor, time: Tensor, context: Tensor) -> Tensor:
    """One branch: `latents` [B, 4, h, w], `features` [B, C, H, W], `time` [B], `context` [1, T, D] -> eps."""
    dtype = model.denoiser.unet.conv_out.weight.dtype
    x, context = latents.to(dtype), context.to(dtype)
    condition = model.condition_encoder(features).to(dtype)  # [B, channels, h, w]
    residuals = model.denoiser.controlnet(x, condition, time, context)
    return model.denoiser.unet(x, time, context, residuals).to(latents.dtype)


@torch.inference_mode()
def sample(
    model: FeatInv, prompts: Tensor, features: Tensor, latents: Tensor, *, steps: int, guidance_scale: float
) -> Tensor:
    """DDIM (arXiv 2010.02502, eq. 12) without noise, guided (arXiv 2207.12598).

    Args:
        model: the plain networks.
        prompts: [2, T, D], the prompt first and the empty prompt second.
        features: [B, C, H, W].
        latents: start noise [B, 4, h, w].
        steps: of the official time grid.
        guidance_scale: 1 would be no guidance.

    Returns:
        The final latents [B, 4, h, w].
    """
    times = official_times(steps, OFFICIAL_SCHEDULE.training_steps).tolist()
    alphas = OFFICIAL_SCHEDULE.alphas_cumprod
    for time, next_time in zip(times, [*times[1:], 0], strict=True):
        t = torch.full((len(latents),), float(time), device=latents.device)  # [B]
        conditional = predict_noise(model, latents, features, t, prompts[:1])
        unconditional = predict_noise(model, latents, features, t, prompts[1:])
        eps = unconditional + guidance_scale * (conditional - unconditional)
        a, a_next = float(alphas[time]), float(alphas[next_time])
        clean = (latents - (1 - a) ** 0.5 * eps) / a**0.5
        latents = a_next**0.5 * clean + (1 - a_next) ** 0.5 * eps
    return latents

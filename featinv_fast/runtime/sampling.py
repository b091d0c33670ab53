"""The sampling loop: one loop and one fused step for every sampler and every backend."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from featinv_fast.backends import Session
from featinv_fast.config import ModelConfig
from featinv_fast.samplers import StepTable, branches
from featinv_kernels import sampler_step

# Triton compiles a kernel once more for addresses that are not multiples of so many bytes, and cannot within a capture.
ALIGNMENT = 16
# Guess mode weakens the residuals towards the finest level (ControlNet, arXiv 2302.05543, public code).
GUESS_DECAY = 0.825


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything about a sampling run that is the same for all items. Tensors live on the session's device.

    Attributes:
        table: the sampler's steps.
        time_bias: [S, T], a row for each step; see `aligned_rows`.
        coefficients: [S, 6], of the table; likewise.
        control_scales: [2, 13] or, for one branch, [1, 13].
        guidance_scale: [] for two branches; None for one.
    """

    table: StepTable
    time_bias: Tensor
    coefficients: Tensor
    control_scales: Tensor
    guidance_scale: Tensor | None


def make_plan(
    session: Session,
    config: ModelConfig,
    table: StepTable,
    *,
    guidance_scale: float,
    strength: float,
    guess_mode: bool,
    unconditional_strength: float = 1.0,
) -> Plan:
    """Compute the constants of a run.

    A U-Net with a guidance embedding takes the scale as an input.
    """
    timesteps = torch.tensor(table.timesteps, dtype=torch.float32, device=session.device)
    embedded = config.guidance_embedding_channels > 0
    step_inputs = (timesteps, torch.full_like(timesteps, guidance_scale)) if embedded else (timesteps,)
    passes = branches(config, guidance_scale)
    return Plan(
        table=table,
        time_bias=aligned_rows(session.run("time_embedding", *step_inputs)),
        coefficients=aligned_rows(torch.tensor(table.coefficients, dtype=torch.float32, device=session.device)),
        control_scales=control_scales(
            config.control_count,
            branches=passes,
            strength=strength,
            guess_mode=guess_mode,
            unconditional_strength=unconditional_strength,
        ).to(session.device),
        guidance_scale=None if passes == 1 else torch.tensor(guidance_scale, device=session.device),
    )


def aligned_rows(values: Tensor) -> Tensor:
    """The same values [S, ...] with each row contiguous and at a multiple of `ALIGNMENT` bytes: one kernel serves all.

    Rows of a sampler's six coefficients, one behind the other, would be 24 bytes apart.
    """
    size = math.prod(values.shape[1:])
    unit = ALIGNMENT // values.element_size()
    rows = values.new_empty(len(values), -(-size // unit) * unit)[:, :size]
    return rows.view(values.shape).copy_(values)


def control_scales(
    count: int, *, branches: int, strength: float, guess_mode: bool, unconditional_strength: float = 1.0
) -> Tensor:
    """Strength of each of the `count` ControlNet residuals in each branch: [branches, count].

    In guess mode the unconditional branch is not controlled at all, so that guidance amplifies the features.
    """
    scales = torch.full((branches, count), strength)
    scales[1:] *= unconditional_strength
    if guess_mode:
        scales[0] = strength * GUESS_DECAY ** torch.arange(count - 1, -1, -1)
        scales[1:] = 0.0
    return scales


def start_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """N(0, 1) from each item's own generator on the CPU: [N, *shape], whatever the batch or the device."""
    return torch.stack([torch.randn(*shape, generator=g) for g in generators])


def sample(
    session: Session,
    plan: Plan,
    condition: Tensor,
    latents: Tensor,
    generators: Sequence[torch.Generator],
    on_step: Callable[[], object],
) -> Tensor:
    """Run all steps on one batch.

    Args:
        session: the engine.
        plan: the run's constants.
        condition: [B, channels, h, w].
        latents: start noise [B, 4, h, w].
        generators: one for each item, for samplers that add noise.
        on_step: called after each step.

    Returns:
        The final latents [B, 4, h, w].
    """
    history: Tensor | None = None
    for step in range(len(plan.table)):
        noise = None
        if plan.table.C[step] != 0.0:
            noise = start_noise(generators, latents.shape[1:]).to(session.device)
        latents, history = denoise(session, plan, step, condition, latents, noise, history)
        on_step()
    return latents


def denoise(
    session: Session,
    plan: Plan,
    step: int,
    condition: Tensor,
    latents: Tensor,
    noise: Tensor | None,
    history: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step: the next latents and the next history, [B, 4, h, w] each, from those before and fresh noise."""
    row = plan.time_bias[step]
    if plan.guidance_scale is None:
        eps = session.run("denoiser_unguided", latents, condition, row, plan.control_scales)
    else:
        eps = session.run("denoiser", latents, condition, row, plan.guidance_scale, plan.control_scales)
    return sampler_step(latents, eps, plan.coefficients[step], noise, history)

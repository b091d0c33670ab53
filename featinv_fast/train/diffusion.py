"""The diffusion process in torch: noising for training, and a plain sampling loop for previews and tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from featinv_fast.samplers import OFFICIAL_SCHEDULE, StepTable
from featinv_fast.train.randomness import of_items
from featinv_fast.train.settings import Times, Weighting

# x -> eps at one timestep, for a whole batch: (latents [B, 4, h, w], time [1]) -> [B, 4, h, w].
Predictor = Callable[[Tensor, Tensor], Tensor]


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) of the shape, dtype and device of `like`, drawn on the CPU."""
    return of_items(lambda n: torch.randn(n, *like.shape[1:], generator=generator), len(like), generator).to(like)


def random_times(count: int, generator: torch.Generator, times: Times = Times.UNIFORM) -> Tensor:
    """Training times, 0 ... 999: int64 [count]."""
    if times is Times.UNIFORM:
        end = OFFICIAL_SCHEDULE.training_steps
        return of_items(lambda n: torch.randint(end, (n,), generator=generator), count, generator)
    u = of_items(lambda n: torch.rand(n, generator=generator, dtype=torch.float64), count, generator)
    return ((1 - u**3) * OFFICIAL_SCHEDULE.training_steps).long().clamp_max(OFFICIAL_SCHEDULE.training_steps - 1)


def signal_share(times: Tensor) -> Tensor:
    """alphas_cumprod at integer `times` [B], for maps: [B, 1, 1, 1] in float32 on the CPU."""
    return torch.tensor(OFFICIAL_SCHEDULE.alphas_cumprod)[times].float()[:, None, None, None]


def add_noise(latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """q(x_t | x_0) (arXiv 2006.11239, eq. 4): latents and noise [B, 4, h, w], integer times [B] on the CPU."""
    a = signal_share(times).to(latents)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def predicted_x0(x: Tensor, eps: Tensor, a: Tensor) -> Tensor:
    """The clean latents that `x` and its noise `eps` [B, 4, h, w] imply at signal shares `a` [B, 1, 1, 1]."""
    return (x - (1 - a).sqrt() * eps) / a.sqrt()


def own_stops(times: Tensor, most: int, generator: torch.Generator) -> list[Tensor]:
    """From the noisiest time to `times` [B] in equal steps, as many as drawn, `most` at most. See `OwnPathConfig`."""
    last, jumps = OFFICIAL_SCHEDULE.training_steps - 1, int(torch.randint(1, most + 1, (1,), generator=generator))
    return [last - (last - times) * i // jumps for i in range(jumps + 1)]


def ddim_step(x: Tensor, eps: Tensor, a: Tensor, a_next: Tensor) -> Tensor:
    """Deterministic DDIM (arXiv 2010.02502, eq. 12) between signal shares `a` and `a_next`, [B, 1, 1, 1] or numbers."""
    return a_next.sqrt() * predicted_x0(x, eps, a) + (1 - a_next).sqrt() * eps


def losses(eps: Tensor, noise: Tensor, times: Tensor, weighting: Weighting) -> dict[str, Tensor]:
    """Mean squared error of predicted noise [B, 4, h, w] at `times` [B]: "loss" as weighted, and "eps" as it is."""
    errors = (eps.float() - noise).square()
    if weighting is Weighting.EPS:
        return {"loss": errors.mean()}
    return {"loss": (errors / signal_share(times).to(errors)).mean(), "eps": errors.detach().mean()}


@torch.no_grad()
def sample(table: StepTable, predict: Predictor, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Run a sampler without history (DDIM, LCM) from start noise [B, 4, h, w] to the final latents."""
    assert not table.uses_history, "previews are made with single-step samplers"
    for i, time in enumerate(table.timesteps):
        eps = predict(latents, torch.tensor([time], dtype=torch.float32, device=latents.device))
        latents = float(table.A[i]) * latents + float(table.B[i]) * eps
        if table.C[i] != 0.0:
            assert generator is not None, "this sampler adds noise"
            latents = latents + float(table.C[i]) * normal(latents, generator)
    return latents

"""The noise schedule of the diffusion process that the models were trained on."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from featinv_fast.errors import ArgumentError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """A variance-preserving schedule: `x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise`, with `a` = `alphas_cumprod`.

    The square root of beta grows linearly ("scaled linear", Rombach et al., arXiv 2112.10752). The
    defaults are those of Stable Diffusion 1.x, which the official FeatInv models share.

    Attributes:
        training_steps: number T of discrete times; the times are 0 ... T - 1.
        beta_start: variance added at time 0.
        beta_end: variance added at time T - 1.

    Raises:
        ArgumentError: no training step, or not `0 < beta_start <= beta_end < 1`.
    """

    training_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.0120

    def __post_init__(self) -> None:
        if self.training_steps < 1 or not 0 < self.beta_start <= self.beta_end < 1:
            raise ArgumentError(
                "this is no noise schedule",
                given=self,
                expected="training_steps >= 1 and 0 < beta_start <= beta_end < 1",
                remedy="use NoiseSchedule() for the official models",
            )

    @functools.cached_property
    def betas(self) -> npt.NDArray[np.float64]:
        """Variance added at each time, read-only. [T]."""
        betas = np.square(np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.training_steps))  # [T]
        betas.setflags(write=False)
        return betas

    @functools.cached_property
    def alphas_cumprod(self) -> npt.NDArray[np.float64]:
        """Share of the signal's variance that is left at each time, falling from almost 1, read-only. [T]."""
        alphas_cumprod = np.cumprod(1 - self.betas, dtype=np.float64)  # [T]
        alphas_cumprod.setflags(write=False)
        return alphas_cumprod


OFFICIAL_SCHEDULE = NoiseSchedule()

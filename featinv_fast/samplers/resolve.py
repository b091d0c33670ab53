"""What a call samples with: as asked, by the engine's defaults where nothing is; what would have no effect is refused.

Needs no torch, so that a command line knows before anything is loaded.
"""

from __future__ import annotations

import dataclasses

from featinv_fast.checks.options import without_effect
from featinv_fast.checks.values import choice, finite
from featinv_fast.config import ModelConfig, SamplingConfig
from featinv_fast.errors import ArgumentError, ArgumentTypeError
from featinv_fast.samplers.registry import SAMPLERS, build
from featinv_fast.samplers.table import StepTable

# Steps of a sampler where neither the user nor the engine names a number.
USUAL_STEPS = {"ddim": 50, "dpm++2m": 20, "lcm": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How to sample. None stands for the engine's default."""

    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None

    @classmethod
    def parse(cls, text: str) -> Setting:
        """The setting written as "sampler", "sampler:steps" or "sampler:steps:guidance"; an empty part is None.

        Raises:
            ArgumentError: another form.
        """
        parts = text.split(":")
        try:
            sampler, steps, guidance = (*parts, *[""] * (3 - len(parts)))
            return cls(
                sampler=sampler or None,
                steps=int(steps) if steps else None,
                guidance_scale=float(guidance) if guidance else None,
            )
        except ValueError:
            raise ArgumentError(
                "unreadable setting",
                given=repr(text),
                expected="sampler:steps:guidance, such as ddim:50:1.75 or lcm:4",
                remedy="write it so",
            ) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a call samples with; see `Runtime.invert`."""

    sampler: str
    table: StepTable
    guidance_scale: float
    strength: float
    guess_mode: bool
    unconditional_strength: float

    @property
    def draws_noise(self) -> bool:
        """Whether a step adds noise, or a seed tells the start noise alone."""
        return bool(self.table.C.any())


def branches(model: ModelConfig, guidance_scale: float) -> int:
    """Passes of the U-Net in a step: guidance 1 needs no unconditional one, a guidance embedding takes its place."""
    return 1 if model.guidance_embedding_channels > 0 or guidance_scale == 1.0 else 2


def resolve(
    defaults: SamplingConfig,
    model: ModelConfig,
    *,
    steps: int | None = None,
    sampler: str | None = None,
    guidance_scale: float | None = None,
    strength: float = 1.0,
    guess_mode: bool = False,
    unconditional_strength: float | None = None,
    eta: float = 0.0,
) -> Sampling:
    """See `Runtime.invert` for the arguments.

    Raises:
        ArgumentError: a value out of its range, or one that would have no effect.
        ArgumentTypeError: a value of another type.
    """
    name = choice("sampler", defaults.sampler if sampler is None else sampler, SAMPLERS)
    if steps is None:
        steps = defaults.steps if name == defaults.sampler else USUAL_STEPS[name]
    scale = finite("guidance_scale", defaults.guidance_scale if guidance_scale is None else guidance_scale)
    if not isinstance(guess_mode, bool):
        raise ArgumentTypeError(
            "guess_mode is neither True nor False", given=repr(guess_mode), expected="a bool", remedy="pass one"
        )
    share = defaults.unconditional_strength if unconditional_strength is None else unconditional_strength
    share = finite("unconditional_strength", share)
    if share not in (1.0, defaults.unconditional_strength):
        if branches(model, scale) == 1:
            raise without_effect(
                {"unconditional_strength": share},
                f"there is no unconditional branch with guidance_scale={scale:g}"
                if scale == 1.0
                else "this engine's U-Net takes the guidance scale as an input and has no unconditional branch",
                expected="guidance in two branches",
            )
        if guess_mode:
            raise without_effect(
                {"unconditional_strength": share},
                "guess mode gives the unconditional branch no features at all",
                expected="one of the two",
            )
    return Sampling(
        sampler=name,
        table=build(name, steps, eta=eta),
        guidance_scale=scale,
        strength=finite("strength", strength),
        guess_mode=guess_mode,
        unconditional_strength=share,
    )

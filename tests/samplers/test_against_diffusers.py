"""Every sampler against diffusers' scheduler: whole trajectories in float64, compared after each step.

diffusers computes its schedule in float32. Here its schedulers are given our float64 `alphas_cumprod`, so that what
is left is float64 rounding: 6e-15 at most when this was written. `test_schedule.py` compares the schedules themselves.
"""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler

from featinv_fast.samplers import OFFICIAL_SCHEDULE, StepTable, build

SHAPE = (2, 4, 8, 8)
TOLERANCE = 1e-12  # relative norm
OFFICIAL = {"beta_start": 0.00085, "beta_end": 0.0120, "beta_schedule": "scaled_linear"}
ALPHAS_CUMPROD = torch.from_numpy(OFFICIAL_SCHEDULE.alphas_cumprod.copy())


def start_latents() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def step_noise(step: int) -> torch.Generator:
    """A generator whose first draw is the noise of `step`."""
    return torch.Generator().manual_seed(1000 + step)


def draw(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def predict_eps(x: torch.Tensor, time: int) -> torch.Tensor:
    """A fixed nonlinear stand-in for the network: depends on the latents, the time and the position."""
    mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    mixed = torch.einsum("oc,bchw->bohw", mixing, torch.tanh(x))
    bias = torch.arange(64, dtype=torch.float64).reshape(8, 8) / 64
    return 0.7 * mixed + torch.sin(time / 90 + bias) + 0.2 * x.roll(1, -1)


def our_trajectory(table: StepTable) -> list[torch.Tensor]:
    x, h = start_latents(), torch.zeros(SHAPE, dtype=torch.float64)
    states = []
    for step, (time, (A, B, C, D, P, Q)) in enumerate(zip(table.timesteps, table.coefficients, strict=True)):
        eps, z = predict_eps(x, int(time)), draw(step_noise(step))
        x, h = A * x + B * eps + C * z + D * h, P * x + Q * eps
        states.append(x)
    return states


def their_trajectory(scheduler, times: list[int], **step_options) -> list[torch.Tensor]:
    x = start_latents()
    states = []
    for step, time in enumerate(times):
        options = {name: make(step) for name, make in step_options.items()}
        x = scheduler.step(predict_eps(x, time), time, x, return_dict=False, **options)[0]
        states.append(x)
    return states


def assert_equal_at_each_step(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float = TOLERANCE):
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)]
    assert max(errors) <= tolerance, f"step {int(np.argmax(errors))}: {max(errors):.2e}"


def times_of(table: StepTable) -> list[int]:
    return [int(time) for time in table.timesteps]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 10, 20, 30, 50, 100, 200])
def test_ddim(steps, eta):
    scheduler = DDIMScheduler(
        **OFFICIAL, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )
    scheduler.alphas_cumprod = ALPHAS_CUMPROD
    scheduler.final_alpha_cumprod = ALPHAS_CUMPROD[0]
    scheduler.set_timesteps(steps)
    table = build("ddim", steps, eta=eta)
    if 1000 % steps == 0:
        assert times_of(table) == scheduler.timesteps.tolist()
    # For other numbers of steps diffusers cuts the official grid off at the noisy end; its steps still apply.
    theirs = their_trajectory(
        scheduler,
        times_of(table),
        eta=lambda _: eta,
        variance_noise=lambda step: draw(step_noise(step)) if eta else None,
    )
    assert_equal_at_each_step(our_trajectory(table), theirs)


LCM_CASES = [*((steps, 50) for steps in range(1, 9)), (25, 50), (50, 50), (4, 100), (6, 30), (3, 7)]


@pytest.mark.parametrize(("steps", "original_inference_steps"), LCM_CASES)
def test_lcm(steps, original_inference_steps):
    scheduler = LCMScheduler(**OFFICIAL, clip_sample=False)
    scheduler.alphas_cumprod = ALPHAS_CUMPROD
    scheduler.set_timesteps(steps, original_inference_steps=original_inference_steps)
    table = build("lcm", steps, original_inference_steps=original_inference_steps)
    assert times_of(table) == scheduler.timesteps.tolist()
    theirs = their_trajectory(scheduler, times_of(table), generator=step_noise)
    assert_equal_at_each_step(our_trajectory(table), theirs)


@pytest.mark.parametrize("original_inference_steps", [1, 7, 30, 50, 100])
def test_lcm_times_for_all_steps(original_inference_steps):
    scheduler = LCMScheduler(**OFFICIAL)
    for steps in range(1, original_inference_steps + 1):
        scheduler.set_timesteps(steps, original_inference_steps=original_inference_steps)
        table = build("lcm", steps, original_inference_steps=original_inference_steps)
        assert times_of(table) == scheduler.timesteps.tolist()


class DoublePrecisionSolver(DPMSolverMultistepScheduler):
    """diffusers' solver without its two roundings to float32: of the sigmas, and of the latents at each step."""

    def set_timesteps(self, num_inference_steps):
        super().set_timesteps(num_inference_steps)
        variance = ALPHAS_CUMPROD[self.timesteps]
        last_sigma = torch.zeros(1, dtype=torch.float64)
        self.sigmas = torch.cat([((1 - variance) / variance).sqrt(), last_sigma])

    def step(self, model_output, timestep, sample, **options):
        self.unrounded = sample
        return super().step(model_output, timestep, sample, **options)

    def dpm_solver_first_order_update(self, model_output, **options):
        return super().dpm_solver_first_order_update(model_output, **{**options, "sample": self.unrounded})

    def multistep_dpm_solver_second_order_update(self, model_outputs, **options):
        return super().multistep_dpm_solver_second_order_update(model_outputs, **{**options, "sample": self.unrounded})


SOLVER_OPTIONS = {
    **OFFICIAL,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "timestep_spacing": "linspace",
}


# As it comes, diffusers' solver was 1.2e-6 away at most (999 steps), 6e-7 up to 50 steps.
@pytest.mark.parametrize(
    ("solver", "tolerance"), [(DoublePrecisionSolver, TOLERANCE), (DPMSolverMultistepScheduler, 5e-6)]
)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 14, 15, 20, 25, 50, 999])
def test_dpm_solver_plus_plus_2m(steps, solver, tolerance):
    scheduler = solver(**SOLVER_OPTIONS)
    scheduler.set_timesteps(steps)
    table = build("dpm++2m", steps)
    assert times_of(table) == scheduler.timesteps.tolist()
    assert_equal_at_each_step(our_trajectory(table), their_trajectory(scheduler, times_of(table)), tolerance)


def test_the_comparison_sees_a_wrong_coefficient():
    """Changing any scalar of any kind that matters by 1e-6 must break the agreement that the tests above demand."""
    for name, column in itertools.product(["ddim", "lcm", "dpm++2m"], "ABCDPQ"):
        table = build(name, 4, eta=0.5 if name == "ddim" else 0.0)
        changed = np.array(getattr(table, column))
        if not changed.any() or (column in "PQ" and not table.uses_history):
            continue
        columns = {key: getattr(table, key) for key in ("timesteps", *"ABCDPQ")}
        wrong = StepTable(**{**columns, column: changed * (1 + 1e-6)})
        with pytest.raises(AssertionError):
            assert_equal_at_each_step(our_trajectory(wrong), our_trajectory(table))

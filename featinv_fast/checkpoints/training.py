"""How a checkpoint was trained, held against what the samplers assume.

Weights do not tell whether they predict noise or velocity, and on which noise schedule: sampled in another way they
give images that look almost right. So whatever says it is read, wherever a tool may have put it, and must agree:

- `scheduler_config.json` of diffusers (in a FeatInv folder, a base model's, a latent consistency model's);
- the metadata of safetensors files: kohya's `ss_*`, the `modelspec.*` of Stability AI;
- tensors without weights that other tools look for by name, such as `v_pred`;
- the noise schedule that the latent-diffusion code base stores beside its weights (`betas`, `alphas_cumprod`, ...);
- Lightning's `hyper_parameters`, and the `.yaml` of the same name beside a file.

What is not said is taken to be as in Stable Diffusion 1.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from featinv_fast.checkpoints.listing import listed, short
from featinv_fast.checkpoints.reader import HYPER_PARAMETERS, SCHEDULER, YAML, Raw
from featinv_fast.errors import CheckpointMismatchError

STEPS, FIRST, LAST = 1000, 0.00085, 0.0120
NOISE_PREDICTION = ("eps", "epsilon")
# Tensors without weights that tools look for by name.
MARKERS = {
    r"v_?pred(iction)?": "it predicts velocity",
    r"z(ero_?terminal_?|t)?snr": "its schedule ends without signal",
    r"edm_.*": "it was trained in the parametrisation of EDM",
}

# Schedulers of diffusers for models on discrete times of a variance-preserving schedule.
SCHEDULERS = (
    "DDIMInverse", "DDIMParallel", "DDIM", "DDPMParallel", "DDPM", "DEISMultistep", "DPMSolverMultistepInverse",
    "DPMSolverMultistep", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete",
    "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD",
    "UniPCMultistep",
)  # fmt: skip
# What a scheduler's configuration says of the training, with every value that agrees.
TRAINING: dict[str, tuple[object, ...]] = {
    "_class_name": tuple(f"{flax}{name}Scheduler" for name in SCHEDULERS for flax in ("", "Flax")),
    "beta_start": (FIRST,),
    "beta_end": (LAST,),
    "beta_schedule": ("scaled_linear",),
    "num_train_timesteps": (STEPS,),
    "prediction_type": ("epsilon",),
    "rescale_betas_zero_snr": (False, None),
    # Models that begin at the last time were trained for it: DDIM and LCM here begin earlier.
    "timestep_spacing": ("leading", "linspace"),
    "timestep_type": ("discrete",),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "shift_terminal": (None,),
    # Of latent consistency models (arXiv 2310.04378), as `samplers.lcm` has them.
    "timestep_scaling": (10.0,),
    "original_inference_steps": (50,),
}
# What it says of sampling alone: how we sample is told by `SamplingConfig`.
SAMPLING_ALONE = frozenset(
    {"algorithm_type", "clip_sample", "clip_sample_range", "corrector_order", "disable_corrector", "eta"}
    | {"final_sigmas_type"}
    | {"dynamic_thresholding_ratio", "euler_at_final", "flow_shift", "interpolation_type", "lambda_min_clipped"}
    | {"lower_order_final", "noise_sampler_seed", "predict_x0", "predictor_order", "sample_max_value"}
    | {"set_alpha_to_one", "sigma_max", "sigma_min", "skip_prk_steps", "solver_order", "solver_p", "solver_type"}
    | {"steps_offset", "tau_func", "thresholding", "time_shift_type", "use_beta_sigmas", "use_exponential_sigmas"}
    | {"use_karras_sigmas", "use_lu_lambdas"}
)  # fmt: skip


def check_training(raw: Raw) -> None:
    """Refuse a checkpoint that says of itself that it was trained in another way than the samplers assume.

    Raises:
        CheckpointMismatchError: it says so; the message names where, and what the samplers assume.
    """
    check_metadata(raw.metadata)
    _check_scheduler(raw.configs.get(SCHEDULER, {}))
    _check_markers(raw.tensors)
    _check_buffers(raw.tensors)
    _check_hyper_parameters("hyper-parameter", raw.configs.get(HYPER_PARAMETERS, {}))
    _check_hyper_parameters(".yaml file's entry", raw.configs.get(YAML, {}))


@functools.cache
def schedule_buffers() -> Mapping[str, Tensor]:
    """What the latent-diffusion code base stores of the schedule, [1000] each; its other buffers follow from these."""
    betas = torch.linspace(FIRST**0.5, LAST**0.5, STEPS, dtype=torch.float64, device="cpu") ** 2
    signal = torch.cumprod(1 - betas, dim=0)
    return {
        "betas": betas,
        "alphas_cumprod": signal,
        "alphas_cumprod_prev": torch.cat([signal.new_ones(1), signal[:-1]]),
        "sqrt_alphas_cumprod": signal.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - signal).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - signal).log(),
        "sqrt_recip_alphas_cumprod": signal.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / signal - 1).sqrt(),
    }


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Refuse metadata of a model, or of a LoRA for a model, that was trained in another way.

    Raises:
        CheckpointMismatchError: see `check_training`.
    """
    for key, agrees in METADATA.items():
        if key in metadata and not agrees(metadata[key].strip().lower()):
            raise _otherwise(f"metadata '{key}'", metadata[key])


def _off(text: str) -> bool:
    return text in {"", "false", "0", "none", "null", "no"}


def _no_velocity_model(text: str) -> bool:
    return re.search(r"(^|[-_/])v([-_/]|$)|v[-_]?pred|velocity|flow|edm", text) is None


METADATA: dict[str, Callable[[str], bool]] = {
    "modelspec.prediction_type": lambda text: text in NOISE_PREDICTION,
    "modelspec.architecture": _no_velocity_model,
    "prediction_type": lambda text: text in NOISE_PREDICTION,
    "ss_base_model_version": _no_velocity_model,
    "ss_v_parameterization": _off,
    "ss_v_prediction": _off,
    "ss_zero_terminal_snr": _off,
    "ss_flow_matching": _off,
    "v_parameterization": _off,
    "zero_terminal_snr": _off,
}


def _check_scheduler(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key == "trained_betas":
            if value is not None and not _is_the_schedule(value):
                raise _otherwise("scheduler_config.json: 'trained_betas'", value)
        elif key in TRAINING:
            if not any(_same(value, agreeing) for agreeing in TRAINING[key]):
                raise _otherwise(f"scheduler_config.json: '{key}'", value, TRAINING[key])
        elif key not in SAMPLING_ALONE and not key.startswith("_") and value is not None and value is not False:
            raise _otherwise(f"scheduler_config.json: '{key}', an option that is not known here", value)


def _check_markers(tensors: Mapping[str, Tensor]) -> None:
    for name in tensors:
        for pattern, meaning in MARKERS.items():
            if re.fullmatch(pattern, name.rpartition("model.")[2]):
                raise _otherwise(f"the tensor '{name}'", f"its presence tells other tools that {meaning}")


def _check_buffers(tensors: Mapping[str, Tensor]) -> None:
    for name, expected in schedule_buffers().items():
        stored = tensors.get(name)
        if stored is not None and not _close(stored, expected):
            raise _otherwise(f"the noise schedule '{name}'", _range(stored))


def _check_hyper_parameters(where: str, stated: Mapping[str, Any]) -> None:
    """The arguments of the latent-diffusion code base's model, under its names; "linear" there is in the root."""
    wanted: dict[str, tuple[object, ...]] = {
        "parameterization": NOISE_PREDICTION,
        "prediction_type": NOISE_PREDICTION,
        "beta_schedule": ("linear", "scaled_linear"),
        "timesteps": (STEPS,),
        "linear_start": (FIRST,),
        "linear_end": (LAST,),
        "zero_terminal_snr": (False, None),
        "rescale_betas_zero_snr": (False, None),
        "learn_logvar": (False, None),
    }
    for key, agreeing in wanted.items():
        if key in stated and not any(_same(stated[key], value) for value in agreeing):
            raise _otherwise(f"the {where} '{key}'", stated[key], agreeing)
    given = stated.get("given_betas")
    if given is not None and not _is_the_schedule(given):
        raise _otherwise(f"the {where} 'given_betas'", given)


def _same(given: object, expected: object) -> bool:
    """Equal, numbers up to the rounding of a text or of fp32, and in no other type."""
    if isinstance(given, bool) or isinstance(expected, bool) or not isinstance(given, int | float):
        return type(given) is type(expected) and given == expected
    return isinstance(expected, int | float) and math.isclose(given, expected, rel_tol=1e-6)


def _is_the_schedule(betas: object) -> bool:
    if isinstance(betas, Tensor):
        return _close(betas, schedule_buffers()["betas"])
    numbers = betas if isinstance(betas, list | tuple) else []
    if len(numbers) != STEPS or not all(isinstance(beta, int | float) and abs(beta) < 1e9 for beta in numbers):
        return False
    return _close(torch.tensor(numbers, dtype=torch.float64, device="cpu"), schedule_buffers()["betas"])


def _close(stored: Tensor, expected: Tensor) -> bool:
    if stored.shape != expected.shape or not stored.is_floating_point():
        return False
    rounding = max(1e-3, 2 * torch.finfo(stored.dtype).eps)
    return torch.allclose(stored.double(), expected, rtol=rounding, atol=1e-12)


def _range(stored: Tensor) -> str:
    if not stored.is_floating_point() or not stored.numel():
        return f"{list(stored.shape)} {stored.dtype}"
    return f"{stored.numel()} values from {stored.flatten()[0]:.6f} to {stored.flatten()[-1]:.6f}"


def _otherwise(where: str, given: object, agreeing: tuple[object, ...] = ()) -> CheckpointMismatchError:
    wanted = f"; here {listed(map(str, agreeing))}" if agreeing else ""
    return CheckpointMismatchError(
        f"the checkpoint was trained in another way than the samplers assume: {where}",
        given=short(given) if isinstance(given, str) else short(repr(given)),
        expected=f"noise prediction on Stable Diffusion 1's schedule, {STEPS} betas from {FIRST} to {LAST}, linear in "
        f"their square root{wanted}",
        remedy="use a checkpoint that was trained so; if this one was, correct what it says of itself",
    )

"""The sampler step as an op: arguments are checked, a provider is chosen, graphs keep one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from featinv_kernels.arguments import CONVERT
from featinv_kernels.dispatch import AUTO, choose
from featinv_kernels.errors import KernelArgumentError
from featinv_kernels.library import define_op
from featinv_kernels.native import native_provider
from featinv_kernels.ops.sampler_step import reference
from featinv_kernels.ops.sampler_step.cases import CASES, make_inputs
from featinv_kernels.providers import reference_provider, triton_provider
from featinv_kernels.spec import OpSpec, Request, register


def sampler_step(
    latents: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    noise: Tensor | None = None,
    history: Tensor | None = None,
    *,
    provider: str = AUTO,
) -> tuple[Tensor, Tensor]:
    """One step of a diffusion sampler: x' = A x + B eps + C z + D h and h' = P x + Q eps, in fp32.

    DDIM (arXiv 2010.02502, eq. 12), DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) and LCM (arXiv 2310.04378) are of
    this form with scalars that only depend on the step. The op has no gradient.

    Args:
        latents: x, float32, [N, ...]. Any strides; tensors that are not contiguous are copied.
        eps: the predicted noise, any floating-point dtype, [N, ...].
        coefficients: A, B, C, D, P, Q, float32, [6], on the same device: a row of a sampler's table.
        noise: z, float32, [N, ...], or None, which leaves C z out.
        history: h, float32, [N, ...], or None, which leaves D h out.
        provider: "auto", "triton", "native" or "reference"; an explicit one is used or refused.

    Returns:
        x' and h', float32, [N, ...], contiguous.

    Raises:
        KernelArgumentError: shapes, dtypes or devices that do not fit, or an unknown provider.
        ProviderUnavailableError: the provider cannot serve; the message lists why, for each candidate.
    """
    new_latents, new_history = _op(latents, eps, coefficients, noise, history, provider)
    return new_latents, new_history


def _compute(
    latents: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    history: Tensor | None,
    provider: str,
) -> tuple[Tensor, Tensor]:
    _check_arguments(latents, eps, coefficients, noise, history)
    request = Request(device=latents.device, dtype=eps.dtype, shape=tuple(latents.shape))
    implementation = choose(SPEC, request, provider).load()
    tensors = (latents, eps, coefficients, noise, history)
    new_latents, new_history = implementation(*(None if t is None else t.contiguous() for t in tensors))
    return new_latents, new_history


def _fake(
    latents: Tensor, eps: Tensor, coefficients: Tensor, noise: Tensor | None, history: Tensor | None, provider: str
) -> tuple[Tensor, Tensor]:
    # The provider is chosen where the graph runs, which need not be where it is traced.
    del provider
    _check_arguments(latents, eps, coefficients, noise, history)
    return latents.new_empty(latents.shape), latents.new_empty(latents.shape)


def _check_arguments(
    latents: Tensor, eps: Tensor, coefficients: Tensor, noise: Tensor | None, history: Tensor | None
) -> None:
    if coefficients.shape != (6,):
        raise KernelArgumentError(
            "coefficients of a sampler step are A, B, C, D, P, Q",
            given=list(coefficients.shape),
            expected=[6],
            remedy="pass one row of a step table",
        )
    if not eps.dtype.is_floating_point:
        raise KernelArgumentError(
            "eps is not floating-point", given=eps.dtype, expected="a floating-point dtype", remedy=CONVERT
        )
    tensors = {"latents": latents, "eps": eps, "coefficients": coefficients, "noise": noise, "history": history}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device != latents.device:
            raise KernelArgumentError(
                f"{name} and latents are on different devices",
                given=tensor.device,
                expected=latents.device,
                remedy=CONVERT,
            )
        if name != "coefficients" and tensor.shape != latents.shape:
            raise KernelArgumentError(
                f"{name} and latents differ in shape",
                given=list(tensor.shape),
                expected=list(latents.shape),
                remedy="pass tensors of one batch",
            )
        if name != "eps" and tensor.dtype != torch.float32:
            raise KernelArgumentError(
                f"{name} has the wrong dtype", given=tensor.dtype, expected=torch.float32, remedy=CONVERT
            )


def _load_triton() -> Callable[..., Any]:
    from featinv_kernels.ops.sampler_step import triton_kernel

    return triton_kernel.sampler_step


_op = define_op("sampler_step", _compute, _fake)

SPEC = register(
    OpSpec(
        name="sampler_step",
        function=sampler_step,
        providers=(
            triton_provider(_load_triton),
            native_provider("sampler_step", _load_triton),
            reference_provider(reference.sampler_step),
        ),
        cases=CASES,
        make_inputs=make_inputs,
    )
)

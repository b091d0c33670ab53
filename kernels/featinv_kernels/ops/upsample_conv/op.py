"""Doubling and convolution as an op: arguments are checked, a provider is chosen, graphs keep one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from featinv_kernels.arguments import check_shape, check_tensors
from featinv_kernels.dispatch import AUTO, choose
from featinv_kernels.errors import KernelArgumentError
from featinv_kernels.library import define_op
from featinv_kernels.native import native_provider
from featinv_kernels.ops.upsample_conv import reference
from featinv_kernels.ops.upsample_conv.cases import CASES, make_inputs
from featinv_kernels.providers import reference_provider, torch_provider, triton_provider
from featinv_kernels.spec import OpSpec, Request, register

# Of a grid's second axis, along which blocks of 32 or more output channels lie.
MOST_OUT_CHANNELS = 65_535 * 32


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor, *, provider: str = AUTO) -> Tensor:
    """Double a map by nearest neighbours and apply a 3x3 convolution with padding 1, channels last.

    Of the nine pixels below a 3x3 kernel on the doubled map at most four are different ones, so this is four 2x2
    convolutions of the small map, one for each parity of row and column. The op has no gradient.

    Args:
        x: [B, H, W, C], any floating-point dtype. Tensors that are not contiguous are copied.
        weight: [2, 2, 2, 2, C, C'], same dtype: `phase_weights` of the 3x3 convolution's weight.
        bias: [C'], any floating-point dtype.
        provider: "auto", "triton", "native", "torch" or "reference"; an explicit one is used or refused.

    Returns:
        [B, 2H, 2W, C'], contiguous, in the dtype of `x`.

    Raises:
        KernelArgumentError: shapes, dtypes or devices that do not fit, or an unknown provider.
        ProviderUnavailableError: the provider cannot serve; the message lists why, for each candidate.
    """
    output: Tensor = _op(x, weight, bias, provider)
    return output


def _compute(x: Tensor, weight: Tensor, bias: Tensor, provider: str) -> Tensor:
    _check_arguments(x, weight, bias)
    request = Request(device=x.device, dtype=x.dtype, shape=(*x.shape, weight.shape[-1]))
    implementation = choose(SPEC, request, provider).load()
    output: Tensor = implementation(x.contiguous(), weight.contiguous(), bias.contiguous())
    return output


def _fake(x: Tensor, weight: Tensor, bias: Tensor, provider: str) -> Tensor:
    # The provider is chosen where the graph runs, which need not be where it is traced.
    del provider
    _check_arguments(x, weight, bias)
    batch, height, width, _ = x.shape
    return x.new_empty((batch, 2 * height, 2 * width, weight.shape[-1]))


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    check_tensors("x", {"x": x, "weight": weight, "bias": bias}, same_dtype=("weight",))
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise KernelArgumentError(
            "x is not a batch of maps with the channels last",
            given=list(x.shape),
            expected="[B, H, W, C], none empty",
            remedy="pass the channels last, as x.permute(0, 2, 3, 1) gives them",
        )
    check_shape("weight", weight, (2, 2, 2, 2, x.shape[-1], weight.shape[-1] if weight.ndim else 0))
    check_shape("bias", bias, (weight.shape[-1],))


def _load_triton() -> Callable[..., Any]:
    from featinv_kernels.ops.upsample_conv import triton_kernel

    return triton_kernel.upsample_conv


def _triton_limits(request: Request) -> list[str]:
    batch, height, width, channels, out_channels = request.shape
    reasons = []
    if batch * height * width >= 2**31:
        reasons.append(f"it takes less than 2**31 positions, given {batch * height * width}")
    if 4 * channels * out_channels >= 2**31:
        reasons.append(f"it takes phases of less than 2**31 weights, given {4 * channels * out_channels}")
    if out_channels > MOST_OUT_CHANNELS:
        reasons.append(f"it takes at most {MOST_OUT_CHANNELS} output channels, given {out_channels}")
    return reasons


def _triton_not_preferred(request: Request) -> list[str]:
    if request.dtype == torch.float32:
        return ["it computes fp32 without matrix units"]
    return ["no measurement has it ahead of torch's own convolutions"]


_op = define_op("upsample_conv", _compute, _fake)

SPEC = register(
    OpSpec(
        name="upsample_conv",
        function=upsample_conv,
        providers=(
            triton_provider(_load_triton, limits=_triton_limits, not_preferred_reasons=_triton_not_preferred),
            native_provider("upsample_conv", _load_triton, limits=_triton_limits),
            torch_provider(reference.upsample_conv_of_torch),
            reference_provider(reference.upsample_conv),
        ),
        cases=CASES,
        make_inputs=make_inputs,
    )
)

"""Enlargement and convolution as an op: arguments are checked, a provider is chosen, graphs keep one node."""

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
from featinv_kernels.ops.resize_conv import reference
from featinv_kernels.ops.resize_conv.cases import CASES, make_inputs
from featinv_kernels.providers import reference_provider, torch_provider, triton_provider
from featinv_kernels.spec import OpSpec, Request, register

# Of a grid's second axis, along which blocks of 64 output channels lie.
MOST_OUT_CHANNELS = 65_535 * 64


def resize_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    *,
    silu: bool = True,
    provider: str = AUTO,
) -> Tensor:
    """silu(conv3x3(bilinear resize of x)), channels last: the first layer of the condition encoder.

    Resizing and convolution are linear, so the map is multiplied with the nine taps before it is enlarged. The resize
    is that of `F.interpolate(mode="bilinear", align_corners=False)`, without antialiasing; the convolution pads by 1.
    The op has no gradient.

    Args:
        x: [B, h, w, C], any floating-point dtype. Tensors that are not contiguous are copied.
        weight: [3, 3, C, C'], same dtype: `tap_weights` of the convolution's weight.
        bias: [C'], any floating-point dtype.
        height: H, of the result.
        width: W, of the result.
        silu: False leaves the activation out.
        provider: "auto", "triton", "native", "torch" or "reference"; an explicit one is used or refused.

    Returns:
        [B, H, W, C'], contiguous, in the dtype of `x`.

    Raises:
        KernelArgumentError: shapes, sizes, dtypes or devices that do not fit, or an unknown provider.
        ProviderUnavailableError: the provider cannot serve; the message lists why, for each candidate.
    """
    output: Tensor = _op(x, weight, bias, height, width, silu, provider)
    return output


def _compute(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, silu: bool, provider: str) -> Tensor:
    _check_arguments(x, weight, bias, height, width)
    request = Request(device=x.device, dtype=x.dtype, shape=(*x.shape, height, width, weight.shape[-1]))
    implementation = choose(SPEC, request, provider).load()
    output: Tensor = implementation(x.contiguous(), weight.contiguous(), bias.contiguous(), height, width, silu)
    return output


def _fake(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, silu: bool, provider: str) -> Tensor:
    # The provider is chosen where the graph runs, which need not be where it is traced.
    del silu, provider
    _check_arguments(x, weight, bias, height, width)
    return x.new_empty((x.shape[0], height, width, weight.shape[-1]))


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> None:
    check_tensors("x", {"x": x, "weight": weight, "bias": bias}, same_dtype=("weight",))
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise KernelArgumentError(
            "x is not a batch of maps with the channels last",
            given=list(x.shape),
            expected="[B, h, w, C], none empty",
            remedy="pass the channels last, as x.permute(0, 2, 3, 1) gives them",
        )
    check_shape("weight", weight, (3, 3, x.shape[-1], weight.shape[-1] if weight.ndim else 0))
    check_shape("bias", bias, (weight.shape[-1],))
    if height < 1 or width < 1:
        raise KernelArgumentError(
            "the new size is empty",
            given=f"{height} x {width}",
            expected="at least 1 x 1",
            remedy="choose a larger one",
        )


def _load_triton() -> Callable[..., Any]:
    from featinv_kernels.ops.resize_conv import triton_kernel

    return triton_kernel.resize_conv


def _triton_limits(request: Request) -> list[str]:
    batch, small_height, small_width, channels, height, width, out_channels = request.shape
    taps = small_height * small_width * 9 * out_channels
    reasons = []
    if max(taps, height * width, channels * out_channels, batch * small_height * small_width) >= 2**31:
        reasons.append("it takes items, maps and weights of less than 2**31 values")
    if out_channels > MOST_OUT_CHANNELS:
        reasons.append(f"it takes at most {MOST_OUT_CHANNELS} output channels, given {out_channels}")
    return reasons


def _triton_not_preferred(request: Request) -> list[str]:
    _, small_height, small_width, _, height, width, _ = request.shape
    reasons = []
    if small_height * small_width >= height * width:
        reasons.append("the map does not grow, so products on the small map save nothing")
    if request.dtype == torch.float32:
        reasons.append("it computes fp32 without matrix units")
    return reasons or ["no measurement has it ahead of torch's own convolution"]


_op = define_op("resize_conv", _compute, _fake)

SPEC = register(
    OpSpec(
        name="resize_conv",
        function=resize_conv,
        providers=(
            triton_provider(_load_triton, limits=_triton_limits, not_preferred_reasons=_triton_not_preferred),
            native_provider("resize_conv", _load_triton, limits=_triton_limits),
            torch_provider(reference.resize_conv_of_torch),
            reference_provider(reference.resize_conv),
        ),
        cases=CASES,
        make_inputs=make_inputs,
    )
)

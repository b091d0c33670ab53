"""GroupNorm + SiLU as an op: arguments are checked, a provider is chosen, graphs keep one node."""

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
from featinv_kernels.ops.group_norm_silu import reference
from featinv_kernels.ops.group_norm_silu.cases import CASES, make_inputs
from featinv_kernels.providers import reference_provider, torch_provider, triton_provider
from featinv_kernels.spec import OpSpec, Request, register

# Of a grid's second axis, along which the items of a batch lie.
LARGEST_BATCH = 65_535


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    channel_bias: Tensor | None = None,
    *,
    groups: int = 32,
    eps: float = 1e-5,
    silu: bool = True,
    provider: str = AUTO,
) -> Tensor:
    """silu(group_norm(x + channel_bias)), channels last: what stands before every convolution of a residual block.

    Group normalisation is arXiv 1803.08494; statistics are two-pass and in fp32. The op has no gradient.

    Args:
        x: [B, ..., C], any floating-point dtype. A channels-last map [B, C, H, W] is `x.permute(0, 2, 3, 1)`, which
            copies nothing. Tensors that are not contiguous are copied.
        weight: [C], any floating-point dtype.
        bias: [C], any floating-point dtype.
        channel_bias: [C] or [B, C], added to x before the norm: the time bias. None leaves it out.
        groups: how many groups the channels are divided into.
        eps: added to the variance.
        silu: False leaves the activation out.
        provider: "auto", "triton", "native", "torch" or "reference"; an explicit one is used or refused.

    Returns:
        [B, ..., C], contiguous, in the dtype of `x`.

    Raises:
        KernelArgumentError: shapes, dtypes or devices that do not fit, or an unknown provider.
        ProviderUnavailableError: the provider cannot serve; the message lists why, for each candidate.
    """
    output: Tensor = _op(x, weight, bias, channel_bias, groups, eps, silu, provider)
    return output


def _compute(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    channel_bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    provider: str,
) -> Tensor:
    _check_arguments(x, weight, bias, channel_bias, groups)
    request = Request(device=x.device, dtype=x.dtype, shape=(*x.shape, groups))
    implementation = choose(SPEC, request, provider).load()
    tensors = (None if t is None else t.contiguous() for t in (x, weight, bias, channel_bias))
    output: Tensor = implementation(*tensors, groups, eps, silu)
    return output


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    channel_bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    provider: str,
) -> Tensor:
    # The provider is chosen where the graph runs, which need not be where it is traced.
    del eps, silu, provider
    _check_arguments(x, weight, bias, channel_bias, groups)
    return x.new_empty(x.shape)


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor, channel_bias: Tensor | None, groups: int) -> None:
    check_tensors("x", {"x": x, "weight": weight, "bias": bias, "channel_bias": channel_bias})
    if x.ndim < 3 or 0 in x.shape[1:]:
        raise KernelArgumentError(
            "x is not a batch of maps with the channels last",
            given=list(x.shape),
            expected="[B, ..., C], none empty",
            remedy="pass the channels last, as x.permute(0, 2, 3, 1) gives them",
        )
    channels = x.shape[-1]
    if groups < 1 or channels % groups != 0:
        raise KernelArgumentError(
            "the channels cannot be divided into groups",
            given=f"{channels} channels, {groups} groups",
            expected="a number of groups that divides the channels",
            remedy="choose another",
        )
    check_shape("weight", weight, (channels,))
    check_shape("bias", bias, (channels,))
    if channel_bias is not None:
        check_shape("channel_bias", channel_bias, (channels,) if channel_bias.ndim == 1 else (x.shape[0], channels))


def _load_triton() -> Callable[..., Any]:
    from featinv_kernels.ops.group_norm_silu import triton_kernel

    return triton_kernel.group_norm_silu


def _triton_limits(request: Request) -> list[str]:
    batch, *rest = request.shape[:-1]
    values = torch.Size(rest).numel()
    reasons = []
    if batch > LARGEST_BATCH:
        reasons.append(f"it takes at most {LARGEST_BATCH} items, given {batch}")
    if values >= 2**31:
        reasons.append(f"it takes items of less than 2**31 values, given {values}")
    return reasons


_op = define_op("group_norm_silu", _compute, _fake)

SPEC = register(
    OpSpec(
        name="group_norm_silu",
        function=group_norm_silu,
        providers=(
            triton_provider(_load_triton, limits=_triton_limits),
            native_provider("group_norm_silu", _load_triton, limits=_triton_limits),
            torch_provider(reference.group_norm_silu_of_torch),
            reference_provider(reference.group_norm_silu),
        ),
        cases=CASES,
        make_inputs=make_inputs,
    )
)

"""Attention as an op: arguments are checked, a provider is chosen, graphs keep one node."""

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
from featinv_kernels.ops.attention import reference
from featinv_kernels.ops.attention.cases import CASES, make_inputs
from featinv_kernels.providers import reference_provider, torch_provider, triton_provider, xformers_provider
from featinv_kernels.spec import OpSpec, Request, register

LARGEST_HEAD = 256
# Of a grid's second axis, along which the heads of all items lie.
MOST_HEADS = 65_535


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, *, provider: str = AUTO) -> Tensor:
    """softmax(q k^T scale) v for each head, with the softmax in fp32 and tensors as projections leave them.

    arXiv 1706.03762, eq. 1. The op has no gradient.

    Args:
        q: [B, N, H, d], any floating-point dtype. The last stride must be 1, or the tensor is copied; the others may be
            anything, e.g. those of a slice of a packed projection [B, N, 3, H, d].
        k: [G, M, H, d], same dtype, strides as of `q`. B is a multiple of G: the first B / G items attend to the first
            group and so on. G = B is self-attention, G = 1 one prompt for all, G = 2 a guided batch.
        v: [G, M, H, d], same dtype, strides as of `q`.
        scale: of the scores; None is 1 / sqrt(d).
        provider: "auto", "triton", "native", "torch", "xformers" or "reference"; an explicit one is used or refused.

    Returns:
        [B, N, H, d], contiguous, in the dtype of `q`.

    Raises:
        KernelArgumentError: shapes, dtypes or devices that do not fit, or an unknown provider.
        ProviderUnavailableError: the provider cannot serve; the message lists why, for each candidate.
    """
    output: Tensor = _op(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, provider)
    return output


def _compute(q: Tensor, k: Tensor, v: Tensor, scale: float, provider: str) -> Tensor:
    _check_arguments(q, k, v)
    request = Request(device=q.device, dtype=q.dtype, shape=(*q.shape, *k.shape[:2]))
    implementation = choose(SPEC, request, provider).load()
    tensors = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    output: Tensor = implementation(*tensors, scale)
    return output


def _fake(q: Tensor, k: Tensor, v: Tensor, scale: float, provider: str) -> Tensor:
    # The provider is chosen where the graph runs, which need not be where it is traced.
    del scale, provider
    _check_arguments(q, k, v)
    return q.new_empty(q.shape)


def _check_arguments(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_tensors("q", {"q": q, "k": k, "v": v}, same_dtype=("k", "v"))
    for name, tensor in (("q", q), ("k", k)):
        if tensor.ndim != 4 or 0 in tensor.shape[1:]:
            raise KernelArgumentError(
                f"{name} is not tokens by heads",
                given=list(tensor.shape),
                expected="[B, N, H, d], only B may be 0",
                remedy="reshape it",
            )
    groups, keys = k.shape[:2]
    check_shape("k", k, (groups, keys, *q.shape[2:]))
    check_shape("v", v, k.shape)
    if groups == 0 or q.shape[0] % groups != 0:
        raise KernelArgumentError(
            "the items of q cannot be divided among the groups of k",
            given=f"{q.shape[0]} items, {groups} groups",
            expected="a multiple of the number of groups",
            remedy="pass keys and values for each item, or for each group of as many items",
        )


def _load_triton() -> Callable[..., Any]:
    from featinv_kernels.ops.attention import triton_kernel

    return triton_kernel.attention


def _triton_limits(request: Request) -> list[str]:
    batch, _, heads, head_size, *_ = request.shape
    reasons = []
    if head_size > LARGEST_HEAD:
        reasons.append(f"it takes heads of at most {LARGEST_HEAD} channels, given {head_size}")
    if batch * heads > MOST_HEADS:
        reasons.append(f"it takes at most {MOST_HEADS} heads of all items together, given {batch * heads}")
    return reasons


def _triton_not_preferred(request: Request) -> list[str]:
    if request.dtype == torch.float32:
        return ["it computes fp32 without matrix units"]
    return ["no measurement has it ahead of torch's own attention"]


_op = define_op("attention", _compute, _fake)

SPEC = register(
    OpSpec(
        name="attention",
        function=attention,
        providers=(
            triton_provider(_load_triton, limits=_triton_limits, not_preferred_reasons=_triton_not_preferred),
            native_provider("attention", _load_triton, limits=_triton_limits),
            torch_provider(reference.attention_of_torch),
            xformers_provider(reference.load_attention_of_xformers, dtypes=(torch.float16, torch.bfloat16)),
            reference_provider(reference.attention),
        ),
        cases=CASES,
        make_inputs=make_inputs,
    )
)

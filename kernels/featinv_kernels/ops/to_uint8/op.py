"""The conversion of images to bytes as an op: arguments are checked, a provider is chosen, graphs keep one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from featinv_kernels.arguments import check_tensors
from featinv_kernels.dispatch import AUTO, choose
from featinv_kernels.errors import KernelArgumentError
from featinv_kernels.library import define_op
from featinv_kernels.native import native_provider
from featinv_kernels.ops.to_uint8 import reference
from featinv_kernels.ops.to_uint8.cases import CASES, make_inputs
from featinv_kernels.providers import reference_provider, triton_provider
from featinv_kernels.spec import OpSpec, Request, register


def to_uint8(image: Tensor, *, provider: str = AUTO) -> Tensor:
    """Images to bytes: x * 127.5 + 127.5 in fp32, clipped to [0, 255] and truncated, as the official code does.

    NaN becomes 0, +inf 255 and -inf 0: a caller for whom that matters looks for them before.

    Args:
        image: [N, 3, H, W], nominally in [-1, 1], any floating-point dtype and any strides.
        provider: "auto", "triton", "native" or "reference"; an explicit one is used or refused.

    Returns:
        uint8, [N, H, W, 3], contiguous.

    Raises:
        KernelArgumentError: a shape or dtype that does not fit, or an unknown provider.
        ProviderUnavailableError: the provider cannot serve; the message lists why, for each candidate.
    """
    output: Tensor = _op(image, provider)
    return output


def _compute(image: Tensor, provider: str) -> Tensor:
    _check_arguments(image)
    request = Request(device=image.device, dtype=image.dtype, shape=tuple(image.shape))
    output: Tensor = choose(SPEC, request, provider).load()(image)
    return output


def _fake(image: Tensor, provider: str) -> Tensor:
    # The provider is chosen where the graph runs, which need not be where it is traced.
    del provider
    _check_arguments(image)
    n, channels, height, width = image.shape
    return image.new_empty((n, height, width, channels), dtype=torch.uint8)


def _check_arguments(image: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3:
        raise KernelArgumentError(
            "not a batch of RGB images",
            given=list(image.shape),
            expected="[N, 3, H, W]",
            remedy="pass such a batch, of one image as image[None]",
        )
    check_tensors("the image", {"the image": image})


def _load_triton() -> Callable[..., Any]:
    from featinv_kernels.ops.to_uint8 import triton_kernel

    return triton_kernel.to_uint8


def _triton_limits(request: Request) -> list[str]:
    # Positions inside an image are 32-bit: dividing 64-bit numbers would cost more than the memory traffic.
    _, channels, height, width = request.shape
    values = channels * height * width
    return [f"it takes images of less than 2**31 values, given {values}"] if values >= 2**31 else []


_op = define_op("to_uint8", _compute, _fake)

SPEC = register(
    OpSpec(
        name="to_uint8",
        function=to_uint8,
        providers=(
            triton_provider(_load_triton, limits=_triton_limits),
            native_provider("to_uint8", _load_triton, limits=_triton_limits),
            reference_provider(reference.to_uint8),
        ),
        cases=CASES,
        make_inputs=make_inputs,
    )
)

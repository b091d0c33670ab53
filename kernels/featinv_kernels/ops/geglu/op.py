"""GEGLU as an op: arguments are checked, a provider is chosen, graphs keep one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from featinv_kernels.arguments import check_tensors
from featinv_kernels.dispatch import AUTO, choose
from featinv_kernels.errors import KernelArgumentError
from featinv_kernels.library import define_op
from featinv_kernels.native import native_provider
from featinv_kernels.ops.geglu import reference
from featinv_kernels.ops.geglu.cases import CASES, make_inputs
from featinv_kernels.providers import reference_provider, torch_provider, triton_provider
from featinv_kernels.spec import OpSpec, Request, register

# Of a grid's second axis, along which blocks of 256 columns lie.
LARGEST_WIDTH = 65_535 * 256


def geglu(x: Tensor, *, provider: str = AUTO) -> Tensor:
    """Compute value * gelu(gate), [value, gate] = x: the activation of a transformer's feed-forward layer.

    arXiv 2002.05202, sec. 2; gelu is the exact one, with the error function. The op has no gradient.

    Args:
        x: [..., 2 D], any floating-point dtype. A tensor that is not contiguous is copied.
        provider: "auto", "triton", "native", "torch" or "reference"; an explicit one is used or refused.

    Returns:
        [..., D], contiguous, in the dtype of `x`.

    Raises:
        KernelArgumentError: a shape or dtype that does not fit, or an unknown provider.
        ProviderUnavailableError: the provider cannot serve; the message lists why, for each candidate.
    """
    output: Tensor = _op(x, provider)
    return output


def _compute(x: Tensor, provider: str) -> Tensor:
    _check_arguments(x)
    request = Request(device=x.device, dtype=x.dtype, shape=_output_shape(x))
    output: Tensor = choose(SPEC, request, provider).load()(x.contiguous())
    return output


def _fake(x: Tensor, provider: str) -> Tensor:
    # The provider is chosen where the graph runs, which need not be where it is traced.
    del provider
    _check_arguments(x)
    return x.new_empty(_output_shape(x))


def _output_shape(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:-1], x.shape[-1] // 2)


def _check_arguments(x: Tensor) -> None:
    check_tensors("x", {"x": x})
    if x.ndim == 0 or x.shape[-1] == 0 or x.shape[-1] % 2 != 0:
        raise KernelArgumentError(
            "x does not divide into values and gates",
            given=list(x.shape),
            expected="[..., 2 D], D at least 1",
            remedy="pass values and gates one behind the other",
        )


def _load_triton() -> Callable[..., Any]:
    from featinv_kernels.ops.geglu import triton_kernel

    return triton_kernel.geglu


def _triton_limits(request: Request) -> list[str]:
    width = request.shape[-1]
    return [f"it takes a width of at most {LARGEST_WIDTH}, given {width}"] if width > LARGEST_WIDTH else []


_op = define_op("geglu", _compute, _fake)

SPEC = register(
    OpSpec(
        name="geglu",
        function=geglu,
        providers=(
            triton_provider(_load_triton, limits=_triton_limits),
            native_provider("geglu", _load_triton, limits=_triton_limits),
            torch_provider(reference.geglu_of_torch),
            reference_provider(reference.geglu),
        ),
        cases=CASES,
        make_inputs=make_inputs,
    )
)

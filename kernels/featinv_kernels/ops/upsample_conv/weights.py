"""The four 2x2 kernels that a 3x3 kernel becomes on a doubled map."""

from __future__ import annotations

import torch
from torch import Tensor

from featinv_kernels.arguments import check_tensors
from featinv_kernels.errors import KernelArgumentError

# Which of a kernel's three rows (or columns) fall on the first and the second small pixel, for even and odd positions.
_PARTS = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float64)  # [phase, tap, 3]


def phase_weights(weight: Tensor) -> Tensor:
    """The weights that `upsample_conv` takes. Sums are in float64 and rounded once: make them before casting down.

    Args:
        weight: of the 3x3 convolution, [C', C, 3, 3], floating-point.

    Returns:
        [2, 2, 2, 2, C, C'], contiguous, in the dtype of `weight`: for even and odd rows, even and odd columns,
        the upper and the lower row of small pixels, the left and the right column.

    Raises:
        KernelArgumentError: a shape or dtype that does not fit.
    """
    check_tensors("weight", {"weight": weight})
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise KernelArgumentError(
            "not a 3x3 convolution",
            given=list(weight.shape),
            expected="[C', C, 3, 3]",
            remedy="pass the weight of a Conv2d with kernel_size=3 and groups=1",
        )
    parts = _PARTS.to(weight.device)
    phases = torch.einsum("auy,bvx,ocyx->abuvco", parts, parts, weight.double())
    return phases.to(weight.dtype).contiguous()

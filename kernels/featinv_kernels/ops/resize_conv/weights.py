"""The layout in which the small map is multiplied with a 3x3 convolution's weights."""

from __future__ import annotations

from torch import Tensor

from featinv_kernels.errors import KernelArgumentError


def tap_weights(weight: Tensor) -> Tensor:
    """The weights that `resize_conv` takes.

    Args:
        weight: of the 3x3 convolution, [C', C, 3, 3].

    Returns:
        [3, 3, C, C'], contiguous.

    Raises:
        KernelArgumentError: a shape that does not fit.
    """
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise KernelArgumentError(
            "not a 3x3 convolution",
            given=list(weight.shape),
            expected="[C', C, 3, 3]",
            remedy="pass the weight of a Conv2d with kernel_size=3 and groups=1",
        )
    return weight.permute(2, 3, 1, 0).contiguous()

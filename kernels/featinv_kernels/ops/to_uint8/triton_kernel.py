"""The conversion as one Triton kernel: scaled, clipped, truncated and interleaved on the way from memory to memory."""

# mypy: allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
from torch import Tensor

from featinv_kernels import launches
from featinv_kernels.toolchain import tl, triton

# Four bytes a thread, written as one word; 192 programs for one 256x256 image.
BLOCK = 1024
# Without fused multiply-adds the kernel rounds as plain torch does: one unit in the last place decides a truncation.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def to_uint8_kernel(
    p_image,
    p_bytes,
    size,
    blocks,
    stride_image,
    stride_channel,
    stride_pixel,
    BLOCK: tl.constexpr,
):
    """Images of `size` = 3 H W values, `blocks` programs each; the bytes are contiguous, [N, H, W, 3]."""
    i_program = tl.program_id(0)
    i_image = (i_program // blocks).to(tl.int64)
    o_value = (i_program % blocks) * BLOCK + tl.arange(0, BLOCK)
    m_value = o_value < size
    o_pixel = (o_value // 3).to(tl.int64)
    o_channel = (o_value % 3).to(tl.int64)
    o_source = i_image * stride_image + o_channel * stride_channel + o_pixel * stride_pixel

    b_value = tl.load(p_image + o_source, mask=m_value, other=0.0).to(tl.float32) * 127.5 + 127.5
    # NaN compares as not positive and becomes 0, as in the reference.
    b_value = tl.minimum(tl.where(b_value > 0.0, b_value, 0.0), 255.0)
    tl.store(p_bytes + i_image * size + o_value, b_value.to(tl.uint8), mask=m_value)


def launch(image: Tensor, *, out: Tensor) -> None:
    """Run the kernel, writing every byte of `out`, which is contiguous, uint8, [N, H, W, 3]."""
    # [N, 3, H*W]: a view of contiguous and channels-last images, a copy where rows have gaps between them
    pixels = image.flatten(2)
    size = pixels.shape[1] * pixels.shape[2]
    blocks = triton.cdiv(size, BLOCK)
    stride_image, stride_channel, stride_pixel = pixels.stride()
    launches.launch(
        to_uint8_kernel,
        (pixels.shape[0] * blocks,),
        pixels,
        out,
        size=size,
        blocks=blocks,
        stride_image=stride_image,
        stride_channel=stride_channel,
        stride_pixel=stride_pixel,
        BLOCK=BLOCK,
        options=OPTIONS,
    )


def to_uint8(image: Tensor) -> Tensor:
    """As `reference.to_uint8`, for images of any strides."""
    n, channels, height, width = image.shape
    out = torch.empty((n, height, width, channels), dtype=torch.uint8, device=image.device)
    launch(image, out=out)
    return out

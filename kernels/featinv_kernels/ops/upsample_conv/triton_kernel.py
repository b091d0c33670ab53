"""The four phases as one implicit matrix product: patches are gathered while they are multiplied, and never stored."""

# mypy: allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
from torch import Tensor

from featinv_kernels.launches import launch
from featinv_kernels.toolchain import tl, triton

# The smallest side of a matrix product in Triton.
SMALLEST = 16


@triton.jit
def upsample_conv_kernel(
    p_x,
    p_weight,
    p_bias,
    p_y,
    positions,
    height,
    width,
    channels,
    out_channels,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Small positions (axis 0) x output channels (axis 1) of one phase (axis 2); everything is contiguous."""
    odd_row = tl.program_id(2) // 2
    odd_column = tl.program_id(2) % 2
    o_position = tl.program_id(0) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    o_column = o_position % width
    o_row = (o_position // width) % height
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    o_channel = tl.arange(0, BLOCK_CHANNELS)
    m_position = o_position < positions
    m_out = (o_out < out_channels)[None, :]
    o_weight = o_channel[:, None] * out_channels + o_out[None, :]
    p_weight += tl.program_id(2).to(tl.int64) * 4 * channels * out_channels

    b_y = tl.zeros([BLOCK_POSITIONS, BLOCK_OUT], dtype=tl.float32)
    # One loop over taps and channels, so that the loads of a tap overlap the products of the one before.
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    for i_step in range(4 * channel_blocks):
        i_tap = i_step // channel_blocks
        i_channel = (i_step % channel_blocks) * BLOCK_CHANNELS
        shift_row = odd_row - 1 + i_tap // 2
        shift_column = odd_column - 1 + i_tap % 2
        m_row = (o_row + shift_row >= 0) & (o_row + shift_row < height)
        m_column = (o_column + shift_column >= 0) & (o_column + shift_column < width)
        m_channel = i_channel + o_channel < channels
        o_source = (o_position + shift_row * width + shift_column).to(tl.int64) * channels + i_channel
        m_source = (m_position & m_row & m_column)[:, None] & m_channel[None, :]
        b_x = tl.load(p_x + o_source[:, None] + o_channel[None, :], mask=m_source, other=0.0)
        p_tap = p_weight + (i_tap * channels + i_channel) * out_channels
        b_weight = tl.load(p_tap + o_weight, mask=m_channel[:, None] & m_out, other=0.0)
        # "ieee" concerns fp32 alone, which would be rounded to 10 bits otherwise.
        b_y = tl.dot(b_x, b_weight, b_y, input_precision="ieee")
    b_y += tl.load(p_bias + o_out, mask=o_out < out_channels, other=0.0).to(tl.float32)[None, :]

    # The position of a small pixel's upper left one on the doubled map, and from there to this phase's.
    o_doubled = 4 * (o_position - o_column).to(tl.int64) + 2 * o_column + odd_row * 2 * width + odd_column
    p_out = p_y + o_doubled[:, None] * out_channels + o_out[None, :]
    tl.store(p_out, b_y.to(p_y.dtype.element_ty), mask=m_position[:, None] & m_out)


def configuration(dtype: torch.dtype, positions: int, channels: int) -> tuple[dict[str, int], dict[str, int]]:
    """Blocks and Triton's options. Few positions take small blocks, so that more programs share reading the weights."""
    if positions >= 2048:
        block_positions, block_out, warps = 128, 128, 8
    elif positions >= 64:
        block_positions, block_out, warps = 64, 64, 4
    else:
        block_positions, block_out, warps = max(SMALLEST, triton.next_power_of_2(positions)), 32, 4
    block_channels = 64
    if dtype == torch.float32:  # no matrix units: operands pass through registers
        block_positions, block_out, block_channels, warps = min(block_positions, 64), min(block_out, 64), 16, 4
    block_channels = max(SMALLEST, min(block_channels, triton.next_power_of_2(channels)))
    blocks = {"BLOCK_POSITIONS": block_positions, "BLOCK_OUT": block_out, "BLOCK_CHANNELS": block_channels}
    return blocks, {"num_warps": warps, "num_stages": 3}


def launch_upsample_conv(x: Tensor, weight: Tensor, bias: Tensor, *, out: Tensor) -> None:
    """Run the kernel on contiguous tensors, writing every element of `out`."""
    batch, height, width, channels = x.shape
    out_channels = weight.shape[-1]
    positions = batch * height * width
    blocks, options = configuration(x.dtype, positions, channels)
    grid = (
        triton.cdiv(positions, blocks["BLOCK_POSITIONS"]),
        triton.cdiv(out_channels, blocks["BLOCK_OUT"]),
        4,
    )
    launch(
        upsample_conv_kernel,
        grid,
        x,
        weight,
        bias,
        out,
        positions=positions,
        height=height,
        width=width,
        channels=channels,
        out_channels=out_channels,
        **blocks,
        options={**options, "enable_fp_fusion": True},
    )


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `reference.upsample_conv`, for contiguous tensors."""
    batch, height, width, _ = x.shape
    out = torch.empty((batch, 2 * height, 2 * width, weight.shape[-1]), dtype=x.dtype, device=x.device)
    launch_upsample_conv(x, weight, bias, out=out)
    return out

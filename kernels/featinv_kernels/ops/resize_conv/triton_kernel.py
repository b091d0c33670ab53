"""Two kernels: the small map times the nine taps, in fp32, and the sum of the taps where they fall on the large map."""

# mypy: allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
from torch import Tensor

from featinv_kernels.launches import launch
from featinv_kernels.toolchain import tl, triton

# The smallest side of a matrix product in Triton.
SMALLEST = 16
# Of the sum: 8 fp32 values a thread. Neighbouring positions lie between the same small pixels, whose taps are cached.
BLOCK_POSITIONS = 16
BLOCK_SUMMED = 64
SUM_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def taps_kernel(
    p_x,
    p_weight,
    p_taps,
    positions,
    channels,
    out_channels,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """`x` [positions, C] times one tap (axis 2) of `weight` [9, C, C'] -> `taps` [positions, 9, C'], fp32."""
    i_tap = tl.program_id(2)
    o_position = tl.program_id(0) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    o_channel = tl.arange(0, BLOCK_CHANNELS)
    m_position = (o_position < positions)[:, None]
    m_out = (o_out < out_channels)[None, :]
    p_source = p_x + o_position.to(tl.int64)[:, None] * channels + o_channel[None, :]
    p_weight += i_tap.to(tl.int64) * channels * out_channels
    o_weight = o_channel[:, None] * out_channels + o_out[None, :]

    b_y = tl.zeros([BLOCK_POSITIONS, BLOCK_OUT], dtype=tl.float32)
    for i_channel in range(0, channels, BLOCK_CHANNELS):
        m_channel = i_channel + o_channel < channels
        b_x = tl.load(p_source + i_channel, mask=m_position & m_channel[None, :], other=0.0)
        b_weight = tl.load(p_weight + i_channel * out_channels + o_weight, mask=m_channel[:, None] & m_out, other=0.0)
        # "ieee" concerns fp32 alone, which would be rounded to 10 bits otherwise.
        b_y = tl.dot(b_x, b_weight, b_y, input_precision="ieee")
    o_tap = (o_position.to(tl.int64) * 9 + i_tap)[:, None] * out_channels + o_out[None, :]
    tl.store(p_taps + o_tap, b_y, mask=m_position & m_out)


@triton.jit
def lower_and_fraction(o_large, scale):
    """Where positions of the large map lie on the small one: the lower neighbour and the weight of the upper one."""
    b_place = tl.maximum((o_large.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    o_lower = b_place.to(tl.int32)
    return o_lower, b_place - o_lower.to(tl.float32)


@triton.jit
def sum_taps_kernel(
    p_taps,
    p_bias,
    p_y,
    small_height,
    small_width,
    height,
    width,
    out_channels,
    blocks,
    row_scale,
    column_scale,
    SILU: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """Large positions of one item (axis 0, `blocks` programs for each item) x output channels (axis 1)."""
    i_item = (tl.program_id(0) // blocks).to(tl.int64)
    o_position = (tl.program_id(0) % blocks) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    o_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    m_position = o_position < height * width
    m_out = o_out < out_channels
    p_item = p_taps + i_item * small_height * small_width * 9 * out_channels
    b_y = tl.zeros([BLOCK_POSITIONS, BLOCK_OUT], dtype=tl.float32)
    for i_tap in range(9):
        o_row = o_position // width + i_tap // 3 - 1
        o_column = o_position % width + i_tap % 3 - 1
        # Beyond the border the convolution sees zeros.
        m_tap = m_position & (o_row >= 0) & (o_row < height) & (o_column >= 0) & (o_column < width)
        m_value = m_tap[:, None] & m_out[None, :]
        o_top, b_down = lower_and_fraction(o_row, row_scale)
        o_left, b_right = lower_and_fraction(o_column, column_scale)
        o_bottom = tl.minimum(o_top + 1, small_height - 1)
        o_beside = tl.minimum(o_left + 1, small_width - 1)
        p_tap = p_item + i_tap * out_channels + o_out[None, :]
        for i_corner in tl.static_range(4):
            o_y = o_top if i_corner < 2 else o_bottom
            b_weight = 1.0 - b_down if i_corner < 2 else b_down
            o_x = o_left if i_corner % 2 == 0 else o_beside
            b_weight *= 1.0 - b_right if i_corner % 2 == 0 else b_right
            o_corner = (o_y * small_width + o_x) * 9 * out_channels
            b_y += tl.load(p_tap + o_corner[:, None], mask=m_value, other=0.0) * b_weight[:, None]
    b_y += tl.load(p_bias + o_out, mask=m_out, other=0.0).to(tl.float32)[None, :]
    if SILU:
        b_y = b_y / (1.0 + tl.exp(-b_y))
    o_y = (i_item * height * width + o_position)[:, None] * out_channels + o_out[None, :]
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_position[:, None] & m_out[None, :])


def configuration(dtype: torch.dtype, positions: int, channels: int) -> tuple[dict[str, int], dict[str, int]]:
    """Blocks of the product and Triton's options."""
    block_positions, block_out, warps = (128, 128, 8) if positions >= 2048 else (64, 64, 4)
    block_channels = 64
    if dtype == torch.float32:  # no matrix units: operands pass through registers
        block_positions, block_out, block_channels, warps = 64, 64, 16, 4
    block_positions = max(SMALLEST, min(block_positions, triton.next_power_of_2(positions)))
    block_channels = max(SMALLEST, min(block_channels, triton.next_power_of_2(channels)))
    blocks = {"BLOCK_POSITIONS": block_positions, "BLOCK_OUT": block_out, "BLOCK_CHANNELS": block_channels}
    return blocks, {"num_warps": warps, "num_stages": 3}


def launch_taps(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    """The small map [B, h, w, C] times nine taps, to `out` [B, h, w, 9, C'], fp32, contiguous as everything is."""
    positions, channels, out_channels = x.shape[:-1].numel(), x.shape[-1], weight.shape[-1]
    blocks, options = configuration(x.dtype, positions, channels)
    launch(
        taps_kernel,
        (triton.cdiv(positions, blocks["BLOCK_POSITIONS"]), triton.cdiv(out_channels, blocks["BLOCK_OUT"]), 9),
        x,
        weight,
        out,
        positions=positions,
        channels=channels,
        out_channels=out_channels,
        **blocks,
        options={**options, "enable_fp_fusion": True},
    )


def launch_sum(taps: Tensor, bias: Tensor, *, out: Tensor, silu: bool) -> None:
    """Taps [B, h, w, 9, C'] to `out` [B, H, W, C'], every element of which is written."""
    batch, height, width, out_channels = out.shape
    small_height, small_width = taps.shape[1:3]
    blocks = triton.cdiv(height * width, BLOCK_POSITIONS)
    launch(
        sum_taps_kernel,
        (batch * blocks, triton.cdiv(out_channels, BLOCK_SUMMED)),
        taps,
        bias,
        out,
        small_height=small_height,
        small_width=small_width,
        height=height,
        width=width,
        out_channels=out_channels,
        blocks=blocks,
        row_scale=small_height / height,
        column_scale=small_width / width,
        SILU=silu,
        BLOCK_POSITIONS=BLOCK_POSITIONS,
        BLOCK_OUT=BLOCK_SUMMED,
        options=SUM_OPTIONS,
    )


def resize_conv(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, silu: bool) -> Tensor:
    """As `reference.resize_conv`, for contiguous tensors."""
    out_channels = weight.shape[-1]
    taps = torch.empty((*x.shape[:3], 9, out_channels), dtype=torch.float32, device=x.device)
    out = torch.empty((x.shape[0], height, width, out_channels), dtype=x.dtype, device=x.device)
    launch_taps(x, weight, out=taps)
    launch_sum(taps, bias, out=out, silu=silu)
    return out

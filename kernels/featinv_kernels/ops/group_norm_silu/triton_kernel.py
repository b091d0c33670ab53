"""GroupNorm + SiLU in Triton: one kernel where a group fits into registers, three where it does not.

Statistics are two-pass in fp32 everywhere: squares of differences from a mean, never a difference of squares. Parts of
a group are merged by the exact formula for the union of samples (Chan, Golub and LeVeque, "Algorithms for computing the
sample variance", 1983), and the mean's own rounding is found in the second pass and taken off, as in that paper.
"""

# mypy: allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
from torch import Tensor

from featinv_kernels.launches import launch
from featinv_kernels.toolchain import tl, triton

# A group of at most this many values (padded to powers of two) is held by one program: 32 fp32 values a thread. With 64
# the compiled kernels spill.
ONE_TILE = 16_384
VALUES_A_WARP = 1024
# A tile of the three kernels: 32 fp32 values a thread; 64 channels are 128 bytes in half precision, a whole line.
BLOCK_POSITIONS = 128
BLOCK_CHANNELS = 64
TILE_OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
# Tiles whose statistics are merged at once.
BLOCK_PARTS = 128
MERGE_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def silu_of(b_y):
    """SiLU in fp32."""
    return b_y / (1.0 + tl.exp(-b_y))


@triton.jit
def group_norm_one_tile_kernel(
    p_x,
    p_weight,
    p_bias,
    p_channel_bias,
    p_y,
    positions,
    channels,
    stride_channel_bias,
    count,
    eps,
    SILU: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """One program for each group (axis 0) of each item (axis 1): x is read once and y written once.

    With the group's channels known, so is the alignment of its first one: values are loaded in vectors, and their
    addresses need few registers.
    """
    i_item = tl.program_id(1).to(tl.int64)
    o_position = tl.arange(0, BLOCK_POSITIONS)
    o_in_group = tl.arange(0, BLOCK_CHANNELS)
    o_channel = tl.program_id(0) * GROUP_CHANNELS + o_in_group
    m_channel = o_in_group < GROUP_CHANNELS
    m_value = (o_position < positions)[:, None] & m_channel[None, :]
    o_value = o_position[:, None] * channels + o_channel[None, :]
    o_item = i_item * positions * channels

    b_x = tl.load(p_x + o_item + o_value, mask=m_value, other=0.0).to(tl.float32)  # [positions, channels of the group]
    if p_channel_bias is not None:
        p_row = p_channel_bias + i_item * stride_channel_bias
        b_x += tl.load(p_row + o_channel, mask=m_channel, other=0.0).to(tl.float32)[None, :]
    mean = tl.sum(tl.sum(tl.where(m_value, b_x, 0.0), axis=0), axis=0) / count
    b_centred = tl.where(m_value, b_x - mean, 0.0)
    rest = tl.sum(tl.sum(b_centred, axis=0), axis=0) / count
    b_centred = tl.where(m_value, b_centred - rest, 0.0)
    variance = tl.sum(tl.sum(b_centred * b_centred, axis=0), axis=0) / count
    b_weight = tl.load(p_weight + o_channel, mask=m_channel, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_channel, mask=m_channel, other=0.0).to(tl.float32)
    b_y = b_centred * (tl.rsqrt(variance + eps) * b_weight)[None, :] + b_bias[None, :]
    if SILU:
        b_y = silu_of(b_y)
    tl.store(p_y + o_item + o_value, b_y.to(p_y.dtype.element_ty), mask=m_value)


@triton.jit
def group_norm_parts_kernel(
    p_x,
    p_channel_bias,
    p_parts,
    positions,
    channels,
    parts,
    stride_channel_bias,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Mean and sum of squared differences of each channel in each tile, to `parts` [B, parts, 2, C], fp32."""
    i_tile = tl.program_id(0)
    i_item = (i_tile // parts).to(tl.int64)
    i_part = i_tile % parts
    o_position = i_part * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    o_channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    m_channel = o_channel < channels
    m_value = (o_position < positions)[:, None] & m_channel[None, :]
    o_value = o_position[:, None] * channels + o_channel[None, :]
    o_item = i_item * positions * channels

    b_x = tl.load(p_x + o_item + o_value, mask=m_value, other=0.0).to(tl.float32)  # [positions, channels]
    if p_channel_bias is not None:
        p_row = p_channel_bias + i_item * stride_channel_bias
        b_x += tl.load(p_row + o_channel, mask=m_channel, other=0.0).to(tl.float32)[None, :]
    count = tl.minimum(positions - i_part * BLOCK_POSITIONS, BLOCK_POSITIONS).to(tl.float32)
    b_mean = tl.sum(tl.where(m_value, b_x, 0.0), axis=0) / count  # [channels]
    b_centred = tl.where(m_value, b_x - b_mean[None, :], 0.0)
    p_part = p_parts + i_tile.to(tl.int64) * 2 * channels + o_channel
    tl.store(p_part, b_mean, mask=m_channel)
    tl.store(p_part + channels, tl.sum(b_centred * b_centred, axis=0), mask=m_channel)


@triton.jit
def group_norm_merge_kernel(
    p_parts,
    p_statistics,
    positions,
    channels,
    parts,
    group_channels,
    count,
    eps,
    TILE_POSITIONS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """One program for each group (axis 0) of each item: mean, its rounding and 1 / deviation to [B, 3, G], fp32."""
    i_group = tl.program_id(0)
    i_item = tl.program_id(1).to(tl.int64)
    o_in_group = tl.arange(0, BLOCK_CHANNELS)
    m_channel = o_in_group < group_channels
    p_item = p_parts + i_item * parts * 2 * channels + i_group * group_channels + o_in_group

    b_sum = tl.zeros([BLOCK_PARTS, BLOCK_CHANNELS], dtype=tl.float32)
    for i_block in range(0, parts, BLOCK_PARTS):
        o_part = i_block + tl.arange(0, BLOCK_PARTS)
        m_value = (o_part < parts)[:, None] & m_channel[None, :]
        b_count = tl.minimum(positions - o_part * TILE_POSITIONS, TILE_POSITIONS).to(tl.float32)
        b_mean = tl.load(p_item[None, :] + o_part[:, None] * 2 * channels, mask=m_value, other=0.0)
        b_sum += b_mean * (b_count / count)[:, None]
    mean = tl.sum(tl.sum(b_sum, axis=0), axis=0)

    b_rest = tl.zeros([BLOCK_PARTS, BLOCK_CHANNELS], dtype=tl.float32)
    b_squares = tl.zeros([BLOCK_PARTS, BLOCK_CHANNELS], dtype=tl.float32)
    for i_block in range(0, parts, BLOCK_PARTS):
        o_part = i_block + tl.arange(0, BLOCK_PARTS)
        m_value = (o_part < parts)[:, None] & m_channel[None, :]
        b_count = tl.minimum(positions - o_part * TILE_POSITIONS, TILE_POSITIONS).to(tl.float32)
        p_value = p_item[None, :] + o_part[:, None] * 2 * channels
        b_difference = tl.where(m_value, tl.load(p_value, mask=m_value, other=0.0) - mean, 0.0)
        b_rest += b_difference * (b_count / count)[:, None]
        b_squares += tl.load(p_value + channels, mask=m_value, other=0.0)
        b_squares += b_difference * b_difference * b_count[:, None]
    rest = tl.sum(tl.sum(b_rest, axis=0), axis=0)
    variance = tl.sum(tl.sum(b_squares, axis=0), axis=0) / count - rest * rest

    groups = channels // group_channels
    p_group = p_statistics + i_item * 3 * groups + i_group
    tl.store(p_group, mean)
    tl.store(p_group + groups, rest)
    tl.store(p_group + 2 * groups, tl.rsqrt(variance + eps))


@triton.jit
def group_norm_apply_kernel(
    p_x,
    p_weight,
    p_bias,
    p_channel_bias,
    p_statistics,
    p_y,
    positions,
    channels,
    parts,
    group_channels,
    stride_channel_bias,
    SILU: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Normalise the tiles of `group_norm_parts_kernel` with the merged statistics."""
    i_tile = tl.program_id(0)
    i_item = (i_tile // parts).to(tl.int64)
    o_position = (i_tile % parts) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    o_channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    m_channel = o_channel < channels
    m_value = (o_position < positions)[:, None] & m_channel[None, :]
    o_value = o_position[:, None] * channels + o_channel[None, :]
    o_item = i_item * positions * channels

    groups = channels // group_channels
    p_group = p_statistics + i_item * 3 * groups + o_channel // group_channels
    b_mean = tl.load(p_group, mask=m_channel, other=0.0)
    b_rest = tl.load(p_group + groups, mask=m_channel, other=0.0)
    b_scale = tl.load(p_group + 2 * groups, mask=m_channel, other=0.0)
    b_scale *= tl.load(p_weight + o_channel, mask=m_channel, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_channel, mask=m_channel, other=0.0).to(tl.float32)

    b_x = tl.load(p_x + o_item + o_value, mask=m_value, other=0.0).to(tl.float32)
    if p_channel_bias is not None:
        p_row = p_channel_bias + i_item * stride_channel_bias
        b_x += tl.load(p_row + o_channel, mask=m_channel, other=0.0).to(tl.float32)[None, :]
    b_y = ((b_x - b_mean[None, :]) - b_rest[None, :]) * b_scale[None, :] + b_bias[None, :]
    if SILU:
        b_y = silu_of(b_y)
    tl.store(p_y + o_item + o_value, b_y.to(p_y.dtype.element_ty), mask=m_value)


def launch_one_tile(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    channel_bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    *,
    out: Tensor,
) -> None:
    """One kernel, for groups of at most ONE_TILE values (padded)."""
    batch, positions, channels = x.shape
    block_positions, block_channels = _padded_group(positions, channels // groups)
    launch(
        group_norm_one_tile_kernel,
        (groups, batch),
        x,
        weight,
        bias,
        channel_bias,
        out,
        positions=positions,
        channels=channels,
        stride_channel_bias=_item_stride(channel_bias),
        count=float(positions * (channels // groups)),
        eps=eps,
        SILU=silu,
        GROUP_CHANNELS=channels // groups,
        BLOCK_POSITIONS=block_positions,
        BLOCK_CHANNELS=block_channels,
        options={"num_warps": max(4, block_positions * block_channels // VALUES_A_WARP), "enable_fp_fusion": True},
    )


def launch_many_tiles(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    channel_bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    *,
    out: Tensor,
) -> None:
    """Three kernels, for groups of any size."""
    batch, positions, channels = x.shape
    group_channels = channels // groups
    parts = triton.cdiv(positions, BLOCK_POSITIONS)
    grid = (batch * parts, triton.cdiv(channels, BLOCK_CHANNELS))
    part_statistics = torch.empty((batch, parts, 2, channels), dtype=torch.float32, device=x.device)
    statistics = torch.empty((batch, 3, groups), dtype=torch.float32, device=x.device)
    sizes = {"positions": positions, "channels": channels, "parts": parts}
    stride = _item_stride(channel_bias)
    blocks = {"BLOCK_POSITIONS": BLOCK_POSITIONS, "BLOCK_CHANNELS": BLOCK_CHANNELS}
    launch(
        group_norm_parts_kernel,
        grid,
        x,
        channel_bias,
        part_statistics,
        **sizes,
        stride_channel_bias=stride,
        **blocks,
        options=TILE_OPTIONS,
    )
    launch(
        group_norm_merge_kernel,
        (groups, batch),
        part_statistics,
        statistics,
        **sizes,
        group_channels=group_channels,
        count=float(positions * group_channels),
        eps=eps,
        TILE_POSITIONS=BLOCK_POSITIONS,
        BLOCK_PARTS=min(BLOCK_PARTS, triton.next_power_of_2(parts)),
        BLOCK_CHANNELS=triton.next_power_of_2(group_channels),
        options=MERGE_OPTIONS,
    )
    launch(
        group_norm_apply_kernel,
        grid,
        x,
        weight,
        bias,
        channel_bias,
        statistics,
        out,
        **sizes,
        group_channels=group_channels,
        stride_channel_bias=stride,
        SILU=silu,
        **blocks,
        options=TILE_OPTIONS,
    )


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, channel_bias: Tensor | None, groups: int, eps: float, silu: bool
) -> Tensor:
    """As `reference.group_norm_silu`, for contiguous tensors."""
    out = torch.empty_like(x)
    block_positions, block_channels = _padded_group(x.shape[1:-1].numel(), x.shape[-1] // groups)
    run = launch_one_tile if block_positions * block_channels <= ONE_TILE else launch_many_tiles
    run(x.flatten(1, -2), weight, bias, channel_bias, groups, eps, silu, out=out.flatten(1, -2))
    return out


def _padded_group(positions: int, group_channels: int) -> tuple[int, int]:
    return triton.next_power_of_2(positions), triton.next_power_of_2(group_channels)


def _item_stride(channel_bias: Tensor | None) -> int:
    """The distance between the bias rows of two items: 0 where all share one."""
    return 0 if channel_bias is None or channel_bias.ndim == 1 else channel_bias.shape[1]

"""Attention as one Triton kernel with an online softmax (arXiv 2205.14135) and head sizes that are no powers of two.

A head is held in two parts, each a power of two: 40 = 32 + 8 (of 16), 80 = 64 + 16, 160 = 128 + 32. One padded part
would be 64, 128 or 256 wide: 33% more arithmetic at 40, 60% more at 80 and 160, and registers to match.
"""

# mypy: allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import math

import torch
from torch import Tensor

from featinv_kernels.launches import launch
from featinv_kernels.toolchain import tl, triton

# The smallest side of a matrix product in Triton.
SMALLEST = 16


@triton.jit
def attention_kernel(
    p_q,
    p_k,
    p_v,
    p_y,
    q_item,
    q_token,
    Q_HEAD: tl.constexpr,
    k_group,
    k_token,
    K_HEAD: tl.constexpr,
    v_group,
    v_token,
    V_HEAD: tl.constexpr,
    heads,
    queries,
    keys,
    items_per_group,
    scale,
    HEAD_SIZE: tl.constexpr,
    PART_1: tl.constexpr,
    PART_2: tl.constexpr,
    MASK_KEYS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """A block of queries (axis 0) of one head of one item (axis 1); `scale` includes log2(e), `y` is contiguous.

    The other integers are the strides of q [B, N, H, d], k and v [G, M, H, d], whose last stride is 1. A layer's heads
    always lie as far apart; known when the kernel is compiled, that distance lets them be loaded in vectors.
    """
    i_head = tl.program_id(1) % heads
    i_item = (tl.program_id(1) // heads).to(tl.int64)
    i_group = i_item // items_per_group
    o_query = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    o_key = tl.arange(0, BLOCK_KEYS)
    o_1 = tl.arange(0, PART_1)
    m_query = (o_query < queries)[:, None]
    m_1 = (o_1 < HEAD_SIZE)[None, :]

    p_q += i_item * q_item + i_head * Q_HEAD + o_query[:, None] * q_token
    # The pointers stay scalars and the offsets 32 bits: a 64-bit pointer for each value would take most registers.
    p_k += i_group * k_group + i_head * K_HEAD
    p_v += i_group * v_group + i_head * V_HEAD
    o_k = o_key[:, None] * k_token
    o_v = o_key[:, None] * v_token
    b_q1 = tl.load(p_q + o_1[None, :], mask=m_query & m_1, other=0.0)
    b_y1 = tl.zeros([BLOCK_QUERIES, PART_1], dtype=tl.float32)
    if PART_2:
        o_2 = PART_1 + tl.arange(0, PART_2)
        m_2 = (o_2 < HEAD_SIZE)[None, :]
        b_q2 = tl.load(p_q + o_2[None, :], mask=m_query & m_2, other=0.0)
        b_y2 = tl.zeros([BLOCK_QUERIES, PART_2], dtype=tl.float32)
    b_max = tl.full([BLOCK_QUERIES], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_QUERIES], dtype=tl.float32)

    for i_key in range(0, keys, BLOCK_KEYS):
        m_key = (i_key + o_key < keys)[:, None] if MASK_KEYS else (o_key >= 0)[:, None]
        b_k1 = tl.load(p_k + (o_k + o_1[None, :]), mask=m_key & m_1, other=0.0)
        # "ieee" concerns fp32 alone, which would be rounded to 10 bits otherwise.
        b_score = tl.dot(b_q1, tl.trans(b_k1), input_precision="ieee")  # [queries, keys]
        if PART_2:
            b_k2 = tl.load(p_k + (o_k + o_2[None, :]), mask=m_key & m_2, other=0.0)
            b_score = tl.dot(b_q2, tl.trans(b_k2), b_score, input_precision="ieee")
        b_score *= scale
        if MASK_KEYS:
            b_score = tl.where((i_key + o_key < keys)[None, :], b_score, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_score, axis=1))
        b_weight = tl.exp2(b_score - b_new_max[:, None])
        b_shrink = tl.exp2(b_max - b_new_max)
        b_sum = b_sum * b_shrink + tl.sum(b_weight, axis=1)
        b_max = b_new_max
        b_v1 = tl.load(p_v + (o_v + o_1[None, :]), mask=m_key & m_1, other=0.0)
        b_weight = b_weight.to(b_v1.dtype)
        b_y1 = tl.dot(b_weight, b_v1, b_y1 * b_shrink[:, None], input_precision="ieee")
        if PART_2:
            b_v2 = tl.load(p_v + (o_v + o_2[None, :]), mask=m_key & m_2, other=0.0)
            b_y2 = tl.dot(b_weight, b_v2, b_y2 * b_shrink[:, None], input_precision="ieee")
        p_k += BLOCK_KEYS * k_token
        p_v += BLOCK_KEYS * v_token

    p_y += ((i_item * queries + o_query)[:, None] * heads + i_head) * HEAD_SIZE
    tl.store(p_y + o_1[None, :], (b_y1 / b_sum[:, None]).to(p_y.dtype.element_ty), mask=m_query & m_1)
    if PART_2:
        tl.store(p_y + o_2[None, :], (b_y2 / b_sum[:, None]).to(p_y.dtype.element_ty), mask=m_query & m_2)


def head_parts(head_size: int) -> tuple[int, int]:
    """The powers of two in which a head is held; the second is 0 where one is as good."""
    padded = max(SMALLEST, triton.next_power_of_2(head_size))
    first = padded // 2
    if first < SMALLEST or head_size == padded:
        return padded, 0
    second = max(SMALLEST, triton.next_power_of_2(head_size - first))
    return (first, second) if second < first else (padded, 0)


def configuration(dtype: torch.dtype, head_size: int, queries: int, keys: int) -> tuple[int, int, dict[str, int]]:
    """Block of queries, block of keys and Triton's options: what compiles without spilling on every target."""
    most_queries, most_keys = (128, 64) if head_size <= 128 else (64, 32)
    if dtype == torch.float32:  # no matrix units: operands pass through registers
        most_queries, most_keys = 32, 32
    stages = 2
    if keys % most_keys != 0 and keys < 256:
        most_keys //= 2  # 77 keys are then padded to 96, or to 80
        stages = 3  # all their blocks at once
    block_queries = max(SMALLEST, min(most_queries, triton.next_power_of_2(queries)))
    block_keys = max(SMALLEST, min(most_keys, triton.next_power_of_2(keys)))
    warps = 8 if block_queries * head_size > 64 * 64 else 4
    return block_queries, block_keys, {"num_warps": warps, "num_stages": stages}


def launch_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, *, out: Tensor) -> None:
    """Run the kernel on tensors whose last stride is 1, writing every element of `out`, which is contiguous."""
    batch, queries, heads, head_size = q.shape
    groups, keys = k.shape[:2]
    part_1, part_2 = head_parts(head_size)
    block_queries, block_keys, options = configuration(q.dtype, head_size, queries, keys)
    strides = {
        parameter: stride
        for parameters, tensor in (
            (("q_item", "q_token", "Q_HEAD"), q),
            (("k_group", "k_token", "K_HEAD"), k),
            (("v_group", "v_token", "V_HEAD"), v),
        )
        for parameter, stride in zip(parameters, tensor.stride(), strict=False)
    }
    launch(
        attention_kernel,
        (triton.cdiv(queries, block_queries), batch * heads),
        q,
        k,
        v,
        out,
        **strides,
        heads=heads,
        queries=queries,
        keys=keys,
        items_per_group=max(1, batch // groups),
        scale=scale * math.log2(math.e),
        HEAD_SIZE=head_size,
        PART_1=part_1,
        PART_2=part_2,
        MASK_KEYS=keys % block_keys != 0,
        BLOCK_QUERIES=block_queries,
        BLOCK_KEYS=block_keys,
        options={**options, "enable_fp_fusion": True},
    )


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """As `reference.attention`, for tensors whose last stride is 1."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    launch_attention(q, k, v, scale, out=out)
    return out

"""GEGLU as one Triton kernel: each value is read once, each result written once."""

# mypy: allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
from torch import Tensor

from featinv_kernels.launches import launch
from featinv_kernels.toolchain import tl, triton

# The widths of Stable Diffusion 1.x (1280, 2560, 5120) are multiples of 256.
BLOCK_ROWS = 4
BLOCK_COLUMNS = 256
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def geglu_kernel(p_x, p_y, rows, width, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Contiguous `x` [rows, 2 width] and `y` [rows, width]."""
    o_row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    m_value = (o_row < rows)[:, None] & (o_column < width)[None, :]
    o_row = o_row.to(tl.int64)[:, None]
    p_value = p_x + o_row * (2 * width) + o_column[None, :]
    b_value = tl.load(p_value, mask=m_value, other=0.0).to(tl.float32)
    b_gate = tl.load(p_value + width, mask=m_value, other=0.0).to(tl.float32)
    b_y = b_value * (0.5 * b_gate * (1.0 + tl.erf(b_gate * 0.7071067811865476)))
    tl.store(p_y + o_row * width + o_column[None, :], b_y.to(p_y.dtype.element_ty), mask=m_value)


def launch_geglu(x: Tensor, *, out: Tensor) -> None:
    """Run the kernel on a contiguous tensor, writing every element of `out`."""
    width = out.shape[-1]
    rows = out.numel() // width
    launch(
        geglu_kernel,
        (triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(width, BLOCK_COLUMNS)),
        x,
        out,
        rows=rows,
        width=width,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_COLUMNS=BLOCK_COLUMNS,
        options=OPTIONS,
    )


def geglu(x: Tensor) -> Tensor:
    """As `reference.geglu`, for a contiguous tensor."""
    out = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
    launch_geglu(x, out=out)
    return out

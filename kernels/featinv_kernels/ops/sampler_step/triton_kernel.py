"""The sampler step as one Triton kernel: each tensor is read or written once."""

# mypy: allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
from torch import Tensor

from featinv_kernels import launches
from featinv_kernels.toolchain import tl, triton

# Four fp32 values a thread, one 16-byte access per tensor; 8 programs for one 4x32x32 latent.
BLOCK = 512
# Without fused multiply-adds the kernel rounds as plain torch does and agrees with it bit for bit; memory is the limit.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def sampler_step_kernel(
    p_latents,
    p_eps,
    p_coefficients,
    p_noise,
    p_history,
    p_new_latents,
    p_new_history,
    size,
    BLOCK: tl.constexpr,
):
    """Contiguous tensors of `size` elements; `p_noise` and `p_history` may be None, which is a compile-time fact."""
    o_element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_element = o_element < size

    b_latents = tl.load(p_latents + o_element, mask=m_element, other=0.0)
    b_eps = tl.load(p_eps + o_element, mask=m_element, other=0.0).to(tl.float32)
    b_new = tl.load(p_coefficients) * b_latents + tl.load(p_coefficients + 1) * b_eps
    if p_noise is not None:
        b_new += tl.load(p_coefficients + 2) * tl.load(p_noise + o_element, mask=m_element, other=0.0)
    if p_history is not None:
        b_new += tl.load(p_coefficients + 3) * tl.load(p_history + o_element, mask=m_element, other=0.0)
    tl.store(p_new_latents + o_element, b_new, mask=m_element)

    b_history = tl.load(p_coefficients + 4) * b_latents + tl.load(p_coefficients + 5) * b_eps
    tl.store(p_new_history + o_element, b_history, mask=m_element)


def launch(
    latents: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    history: Tensor | None,
    *,
    new_latents: Tensor,
    new_history: Tensor,
) -> None:
    """Run the kernel on contiguous tensors, writing every element of `new_latents` and `new_history`."""
    size = latents.numel()
    tensors = (latents, eps, coefficients, noise, history, new_latents, new_history)
    grid = (triton.cdiv(size, BLOCK),)
    launches.launch(sampler_step_kernel, grid, *tensors, size=size, BLOCK=BLOCK, options=OPTIONS)


def sampler_step(
    latents: Tensor, eps: Tensor, coefficients: Tensor, noise: Tensor | None, history: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `reference.sampler_step`, for contiguous tensors."""
    new_latents, new_history = torch.empty_like(latents), torch.empty_like(latents)
    launch(latents, eps, coefficients, noise, history, new_latents=new_latents, new_history=new_history)
    return new_latents, new_history

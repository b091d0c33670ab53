"""Operations with a plain torch reference and fused kernels, chosen by device, dtype and shape.

Importing this package imports torch and nothing else; a kernel's toolchain is imported when the kernel first runs.
"""

from featinv_kernels.dispatch import choose, not_supported_reasons, support_table
from featinv_kernels.errors import KernelArgumentError, KernelError, ProviderUnavailableError
from featinv_kernels.ops.attention.op import attention
from featinv_kernels.ops.geglu.op import geglu
from featinv_kernels.ops.group_norm_silu.op import group_norm_silu
from featinv_kernels.ops.resize_conv.op import resize_conv
from featinv_kernels.ops.resize_conv.weights import tap_weights
from featinv_kernels.ops.sampler_step.op import sampler_step
from featinv_kernels.ops.to_uint8.op import to_uint8
from featinv_kernels.ops.upsample_conv.op import upsample_conv
from featinv_kernels.ops.upsample_conv.weights import phase_weights
from featinv_kernels.spec import OPS, Case, OpSpec, Provider, Request

__all__ = [
    "OPS",
    "Case",
    "KernelArgumentError",
    "KernelError",
    "OpSpec",
    "Provider",
    "ProviderUnavailableError",
    "Request",
    "attention",
    "choose",
    "geglu",
    "group_norm_silu",
    "not_supported_reasons",
    "phase_weights",
    "resize_conv",
    "sampler_step",
    "support_table",
    "tap_weights",
    "to_uint8",
    "upsample_conv",
]

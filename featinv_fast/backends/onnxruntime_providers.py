"""Execution providers of onnxruntime: which of them a session asks for, with which options.

Names of options are those of onnxruntime's documentation of the CUDA and TensorRT execution providers.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from featinv_fast.config import Precision
from featinv_fast.engine.graphs import GraphSpec

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

# The graphs that run in every step.
LOOP_GRAPHS = ("denoiser", "denoiser_unguided")
# What a GPU session may leave to the CPU: arithmetic on shapes, which are known there.
SHAPE_OPERATORS = frozenset(
    {"Shape", "Concat", "Slice", "Gather", "Cast", "Constant", "Identity", "Squeeze", "Unsqueeze", "Reshape"}
)


class Variant(enum.StrEnum):
    """The ways in which onnxruntime serves an engine; each is a backend of its own."""

    STANDARD = "onnxruntime"
    CUDA_GRAPHS = "onnxruntime-cuda-graphs"  # the CUDA provider replays a step as one captured graph
    TENSORRT = "onnxruntime-tensorrt"  # TensorRT inside onnxruntime, which builds its plans when it loads a graph

    def provider(self, device: torch.device) -> str | None:
        """The provider that serves this variant on a device; `None` where none does."""
        if device.type == "cuda":
            return TENSORRT if self is Variant.TENSORRT else CUDA
        return CPU if device.type == "cpu" and self is Variant.STANDARD else None


def provider_chain(
    variant: Variant, spec: GraphSpec, *, device: torch.device, precision: Precision, stream: int
) -> list[tuple[str, dict[str, str]]]:
    """Providers and their options for one graph, the wanted one first.

    Args:
        variant: the way of serving.
        spec: the graph's declaration.
        device: where to run.
        precision: of the graph.
        stream: handle of the CUDA stream to run on; not used on a CPU.
    """
    if device.type == "cpu":
        return [(CPU, {})]
    shared = {"device_id": str(device.index or 0), "user_compute_stream": str(stream)}
    cuda = dict(shared)
    if variant is Variant.CUDA_GRAPHS and spec.name in LOOP_GRAPHS:
        cuda["enable_cuda_graph"] = "1"
    if variant is not Variant.TENSORRT:
        return [(CUDA, cuda)]
    tensorrt = {
        **shared,
        "has_user_compute_stream": "1",
        "trt_fp16_enable": str(int(precision is Precision.FP16)),
        "trt_bf16_enable": str(int(precision is Precision.BF16)),
        "trt_profile_min_shapes": _profile(spec, "min"),
        "trt_profile_opt_shapes": _profile(spec, "opt"),
        "trt_profile_max_shapes": _profile(spec, "max"),
    }
    # Nodes that TensorRT does not take go to CUDA, not to the CPU.
    return [(TENSORRT, tensorrt), (CUDA, cuda)]


def _profile(spec: GraphSpec, which: Literal["min", "opt", "max"]) -> str:
    """The shapes of the inputs with dimensions that vary, as "latents:1x4x32x32,condition:1x320x32x32"."""
    shapes = spec.profile(which)
    varying = [tensor.name for tensor in spec.inputs if tensor.dynamic_axes]
    return ",".join(f"{name}:{'x'.join(map(str, shapes[name]))}" for name in varying)


def misplaced(nodes: Iterable[tuple[str, str, str]], wanted: Sequence[str]) -> list[str]:
    """Names of the nodes (provider, name, operator) that compute elsewhere than on the wanted providers."""
    return [name for provider, name, operator in nodes if provider not in wanted and operator not in SHAPE_OPERATORS]

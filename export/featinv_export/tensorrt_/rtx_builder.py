"""One ONNX graph to one plan of TensorRT for RTX, for several generations of GPUs, on any machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from featinv_export.tensorrt_.builder import build
from featinv_fast.backends.tensorrt_plan import RTX, Messages
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.plans import RtxPlanInfo


def build_rtx_plan(
    graph_file: Path, spec: GraphSpec, info: RtxPlanInfo, *, report: Callable[[str], None] = lambda _: None
) -> bytes:
    """Build a plan of TensorRT for RTX, for every GPU that `info` names; see `build_plan`. No GPU is needed."""
    messages = Messages(RTX)
    tensorrt_rtx = messages.tensorrt

    def configure(config: Any) -> None:
        config.clear_flag(tensorrt_rtx.BuilderFlag.TF32)  # it would round what is fp32 to 10 bits
        config.num_compute_capabilities = len(info.capabilities)
        for place, capability in enumerate(info.capabilities):
            generation = getattr(tensorrt_rtx.ComputeCapability, f"SM{capability.replace('.', '')}")
            config.set_compute_capability(generation, place)

    return build(messages, graph_file, spec, info, flags=0, configure=configure, report=report)

"""What an engine may hold beside its weights. A new target is a file here and a line in `TARGETS`."""

from collections.abc import Iterable, Sequence
from typing import Any

from featinv_export.options import ExportOptions
from featinv_export.parity import Candidate, Case, Comparison, compare_torch
from featinv_export.progress import Steps
from featinv_export.targets.aoti_ import AotiTarget
from featinv_export.targets.base import PlansTarget, Target
from featinv_export.targets.onnx_ import OnnxTarget
from featinv_export.targets.tensorrt_ import TensorrtTarget
from featinv_export.targets.tensorrt_rtx import TensorrtRtxTarget
from featinv_fast.engine import EngineFolder

# In the order in which they are made: plans are built of graphs.
TARGETS: tuple[type[Target], ...] = (OnnxTarget, AotiTarget, TensorrtTarget, TensorrtRtxTarget)


def asked(options: ExportOptions) -> list[Target]:
    """The targets of an export."""
    return [target for kind in TARGETS if (target := kind.asked(options)) is not None]


def carried(engine: EngineFolder) -> list[Target]:
    """What an engine has."""
    return [target for kind in TARGETS if (target := kind.carried(engine)) is not None]


def compare(
    candidate: Candidate, cases: Sequence[Case], targets: Iterable[Target], steps: Steps
) -> tuple[Comparison, ...]:
    """Run the cases on torch, with the weights as they are stored, and on every target: one step and those of these."""
    steps.begin("checking torch")
    results = compare_torch(candidate, cases)
    for target in targets:
        results += target.compare(candidate, cases, steps)
    return tuple(results)


def entries(targets: Iterable[Target]) -> dict[str, Any]:
    """The manifest's fields on the files of `targets`."""
    return {name: value for target in targets for name, value in target.entries().items()}


def tools(targets: Iterable[Target]) -> dict[str, str]:
    """The versions of what made the files of `targets`, by name."""
    return {name: version for target in targets for name, version in target.tools().items()}


__all__ = ["TARGETS", "PlansTarget", "Target", "asked", "carried", "compare", "entries", "tools"]

"""What an engine may hold beside its weights. A new target is a file here and a line in `TARGETS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featinv_export.options import ExportOptions
from featinv_export.progress import Steps
from featinv_export.targets.aoti_ import AotiTarget
from featinv_export.targets.base import PlansTarget, Target
from featinv_export.targets.onnx_ import OnnxTarget
from featinv_export.targets.tensorrt_ import TensorrtTarget
from featinv_export.targets.tensorrt_rtx import TensorrtRtxTarget
from featinv_fast.engine import EngineFolder, Manifest
from featinv_fast.errors import ArgumentError

if TYPE_CHECKING:
    from featinv_export.parity import Candidate, Case, Comparison

# In the order in which they are made: plans are built of graphs.
TARGETS: tuple[type[Target], ...] = (OnnxTarget, AotiTarget, TensorrtTarget, TensorrtRtxTarget)


def asked(options: ExportOptions) -> list[Target]:
    """The targets of an export.

    Raises:
        ArgumentError: there is no such target, or it is made of ONNX graphs, and these are not asked for.
    """
    unknown = sorted({*options.targets} - {kind.option for kind in TARGETS})
    if unknown:
        raise ArgumentError(
            "no such target",
            given=", ".join(unknown),
            expected=", ".join(kind.option for kind in TARGETS),
            remedy="name one of these",
        )
    chosen = [target for kind in TARGETS if (target := kind.asked(options)) is not None]
    alone = [target.option for target in chosen if target.of_graphs and not options.onnx]
    if alone:
        raise ArgumentError(
            f"{', '.join(alone)} is made of ONNX graphs",
            given="no ONNX graphs",
            expected="onnx=True as well",
            remedy="add it",
        )
    return chosen


def made_of_graphs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of these options that ask for targets which are made of ONNX graphs."""
    return {kind.option: given[kind.option] for kind in TARGETS if kind.of_graphs and kind.option in given}


def carried(engine: EngineFolder) -> list[Target]:
    """What an engine has."""
    return [target for kind in TARGETS if (target := kind.carried(engine)) is not None]


def compare(
    candidate: Candidate, cases: Sequence[Case], targets: Iterable[Target], steps: Steps
) -> tuple[Comparison, ...]:
    """Run the cases on torch, with the weights as they are stored, and on every target: one step and those of these."""
    from featinv_export.parity import compare_torch

    steps.begin("checking torch")
    results = compare_torch(candidate, cases)
    for target in targets:
        results += target.compare(candidate, cases, steps)
    return tuple(results)


def entered(manifest: Manifest, targets: Sequence[Target]) -> Manifest:
    """`manifest` with the fields on the files of `targets`, in place of what it said of these."""
    own = {target.suffix for target in targets}
    fields: dict[str, Any] = {"targets": tuple(info for info in manifest.targets if info.suffix not in own)}
    for target in targets:
        entries = target.entries()
        fields |= entries | {"targets": fields["targets"] + entries.get("targets", ())}
    return dataclasses.replace(manifest, **fields)


def tools(targets: Iterable[Target]) -> dict[str, str]:
    """The versions of what made the files of `targets`, by name."""
    return {name: version for target in targets for name, version in target.tools().items()}


__all__ = ["TARGETS", "PlansTarget", "Target", "asked", "carried", "compare", "entered", "made_of_graphs", "tools"]

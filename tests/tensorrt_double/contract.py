"""Which names of TensorRT our sources use, and plans to try them with."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import featinv_export.tensorrt_ as exporter
from featinv_fast import backends
from featinv_fast.config import Precision
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.plans import BatchProfile, HardwareCompatibility, PlanInfo, PlanTarget, PlanWeights

SOURCES = [
    *sorted(Path(exporter.__file__).parent.glob("*.py")),
    *sorted(Path(backends.__file__).parent.glob("tensorrt_*.py")),
]
TARGET = PlanTarget(tensorrt="10.16.1.11", cuda="13.0", gpu="Simulated H100", compute_capability="9.0")


def names_used(source: str) -> Iterator[str]:
    """`tensorrt.A` and `tensorrt.A.B` wherever they stand in a source, without the `tensorrt`."""
    for node in ast.walk(ast.parse(source)):
        path = []
        while isinstance(node, ast.Attribute):
            path.append(node.attr)
            node = node.value
        pythons = any(name.startswith("__") for name in path)  # what is Python's, not TensorRT's
        if path and not pythons and isinstance(node, ast.Name) and node.id == "tensorrt":
            yield ".".join(reversed(path))


def unknown_names(source: str, description: dict[str, Any]) -> list[str]:
    """The names of a source that the bindings do not have."""

    def is_known(name: str) -> bool:
        owner, _, member = name.rpartition(".")
        classes = description["classes"]
        inside = classes.get(owner, {})
        return name in classes or any(member in inside.get(k, ()) for k in ("enum", "methods"))

    return [name for name in names_used(source) if not is_known(name)]


def plan_info(spec: GraphSpec, **changes: Any) -> PlanInfo:
    """A plan of the graph that is declared so."""
    profiles = (BatchProfile(minimum=1, optimum=2, maximum=4),) if spec.name != "time_embedding" else ()
    values = {
        "graph": spec.name,
        "target": TARGET,
        "precision": Precision.FP32,
        "profiles": profiles,
        "graph_sha256": "0" * 64,
        "weights_sha256": "1" * 64,
    }
    return PlanInfo(**values | changes)


def everything(spec: GraphSpec) -> PlanInfo:
    """A plan that needs every flag of the builder."""
    return plan_info(
        spec,
        weights=PlanWeights.STRIPPED,
        hardware=HardwareCompatibility.AMPERE_PLUS,
        version_compatible=True,
        workspace_mib=256,
        optimization_level=5,
    )

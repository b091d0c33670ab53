"""The graphs as ONNX, which read their weights from the engine's one weight file."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featinv_export.progress import Steps
from featinv_export.targets.base import Target
from featinv_fast.config import Precision
from featinv_fast.engine import EngineFolder, Manifest
from featinv_fast.engine.manifest import ONNX_SUFFIX as SUFFIX
from featinv_fast.errors import MissingPackageError

if TYPE_CHECKING:
    from featinv_export.parity import Candidate, Case, Comparison
    from featinv_fast.backends import Session

PACKAGES = ("onnx", "onnxscript")


@dataclasses.dataclass(frozen=True)
class OnnxTarget(Target):
    """`--onnx`.

    Attributes:
        parsers: which releases of TensorRT read the graphs, in words; `None` while there are none.
    """

    parsers: str | None = None

    option = "onnx"
    help = "ONNX graphs, for onnxruntime and others"
    title = "ONNX graphs"
    suffix = SUFFIX
    backend = "onnxruntime"

    @classmethod
    def carried(cls, engine: EngineFolder) -> OnnxTarget | None:
        manifest = engine.manifest
        return cls(manifest.tensorrt_parsers) if cls.lies_in(manifest.files) else None

    @classmethod
    def content(cls, manifest: Manifest) -> str:
        return "ONNX, weights in `weights.safetensors`"

    @classmethod
    def described(cls, manifest: Manifest) -> list[str]:
        parsers = manifest.tensorrt_parsers
        return [] if parsers is None else [f"graphs are read by the ONNX parser of TensorRT {parsers}"]

    def require(self, destination: Path) -> None:
        for name in PACKAGES:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise MissingPackageError(
                    f"writing ONNX graphs needs the package {name}",
                    given=error,
                    remedy="pip install 'featinv-fast[export]', or export without --onnx",
                ) from error

    def problems(self, precision: Precision) -> list[str]:
        from featinv_export.parity import CPU
        from featinv_fast.backends import provider_problems

        problems = provider_problems(CPU)
        if precision is Precision.BF16:
            problems.append("onnxruntime has no bf16 kernels for the CPU")
        return problems

    def steps(self, graphs: int) -> tuple[int, int]:
        return graphs, graphs

    def make(self, candidate: Candidate, steps: Steps) -> OnnxTarget:
        write_graphs(candidate, steps.begin)
        return dataclasses.replace(self, parsers=tensorrt_parsers(candidate))

    def run(self, candidate: Candidate, cases: Sequence[Case], steps: Steps) -> list[Comparison]:
        from featinv_export.parity import run_all

        results: list[Comparison] = []
        # One session at a time: each may keep a copy of its weights.
        for name in candidate.specs:
            steps.begin(f"checking {name}{SUFFIX}")
            own = [case for case in cases if case.graph == name]
            results += run_all(candidate, self.backend, own, functools.partial(_session, candidate, name))
        return results

    def entries(self) -> dict[str, Any]:
        return {"tensorrt_parsers": self.parsers}

    def tools(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in PACKAGES}


def write_graphs(candidate: Candidate, report: Callable[[str], object]) -> None:
    """Write each graph beside the weight file in the candidate's folder; `report` is told what comes next."""
    import onnx_ir

    from featinv_export.onnx_graphs import export_graph
    from featinv_export.weights import weight_index
    from featinv_fast.rewrites.engine_model import EngineModel, storage_dtypes

    structure = EngineModel.empty(candidate.config)  # on the meta device: no weight is read
    dtypes = storage_dtypes(structure, candidate.precision, candidate.kept_fp32)  # of the arithmetic
    for name, parameter in structure.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    index = weight_index(candidate.folder)
    graphs = structure.graphs()
    for name, spec in candidate.specs.items():
        report(f"writing {name}{SUFFIX}")
        onnx_ir.save(export_graph(graphs[name], spec, index), candidate.folder / (name + SUFFIX))


def tensorrt_parsers(candidate: Candidate) -> str:
    """Which releases of TensorRT read the graphs; an engine without plans may be given some later."""
    from featinv_export.trt_parser_support import reading_releases

    return reading_releases([candidate.folder / (name + SUFFIX) for name in candidate.specs])


def _session(candidate: Candidate, graph: str) -> Session:
    from featinv_export.parity import CPU
    from featinv_fast.backends.onnxruntime_ import OnnxruntimeSession

    return OnnxruntimeSession(
        {graph: candidate.folder / (graph + SUFFIX)},
        {graph: candidate.specs[graph]},
        device=CPU,
        precision=candidate.precision,
    )

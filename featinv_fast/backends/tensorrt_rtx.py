"""The backend of TensorRT for RTX: plans for several generations of GPUs, whose kernels are compiled at first use.

What was compiled is kept on disk, so that only the first process on a machine waits for it. Checked against the real
bindings of TensorRT for RTX 1.7 and a double made from them; not yet run on a GPU.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from featinv_fast.backends.base import Request
from featinv_fast.backends.tensorrt_ import TensorrtBackend, TensorrtSession
from featinv_fast.backends.tensorrt_plan import RTX, Flavour, compute_capability, deserialize
from featinv_fast.config import Precision
from featinv_fast.engine.folder import EngineFolder
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.engine.plans import RtxPlanInfo
from featinv_fast.engine.trust import cache_folder

logger = logging.getLogger(__name__)

# Plans and GPUs whose compiled kernels are kept, some megabytes each; those used least make room.
KERNEL_FILES = 64


class RtxSession(TensorrtSession):
    """An engine's plans of TensorRT for RTX; see `TensorrtSession`.

    A call is captured as a CUDA graph by us, as all our work is, so TensorRT captures none itself. A graph keeps the
    kernels that it was captured with, so these are compiled for their shapes before: "auto" is eager.

    Args:
        specialization: when kernels are compiled for the shapes at hand: "eager" at the first call of a shape; "lazy"
            beside the calls, which run general kernels meanwhile; "none" never.
        arguments: of `TensorrtSession`.
    """

    backend = "tensorrt-rtx"
    flavour: ClassVar[Flavour] = RTX

    def __init__(
        self,
        folder: Path,
        plans: Mapping[str, RtxPlanInfo],
        specs: Mapping[str, GraphSpec],
        hashes: Mapping[str, str],
        *,
        device: torch.device,
        precision: Precision,
        check: Callable[..., None] = lambda *_: None,
        specialization: str = "auto",
    ) -> None:
        super().__init__(folder, plans, specs, hashes, device=device, precision=precision, check=check)
        self.specialization = "eager" if specialization == "auto" else specialization
        gpu = torch.cuda.get_device_properties(device).name
        self._files = {graph: KernelFile(f"{hashes[graph]} {plan.tensorrt_rtx} {gpu}") for graph, plan in plans.items()}
        self._kernels: dict[str, Any] = {}  # graph -> its `IRuntimeCache`, which all contexts of a plan share
        self._known: set[tuple[str, tuple[torch.Size, ...]]] = set()

    def run(self, graph: str, *inputs: Tensor) -> Tensor:
        """Run a graph; see `Session.run`. Kernels that were compiled for new shapes are kept on disk."""
        output = super().run(graph, *inputs)
        shapes = (graph, tuple(x.shape for x in inputs))
        if shapes not in self._known:
            self._known.add(shapes)
            with self._loading:
                self._files[graph].write(bytes(memoryview(self._kernels[graph].serialize())))
        return output

    def _read_by_tensorrt(self, info: Any) -> list[str]:  # noqa: ARG002 -- its plans hold their weights
        return []

    def _opened(self, content: bytes, info: Any) -> Any:
        return deserialize(content, self._messages, info.file_name)

    def _context(self, graph: str, engine: Any) -> Any:
        tensorrt_rtx = self._messages.tensorrt
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = tensorrt_rtx.CudaGraphStrategy.DISABLED
        strategies = tensorrt_rtx.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, str(self.specialization).upper())
        if graph not in self._kernels:
            kernels = self._kernels[graph] = config.create_runtime_cache()
            content = self._files[graph].read()
            if content and not kernels.deserialize(content):
                logger.info("kernels of %s that were compiled earlier do not fit this driver: compiling others", graph)
        if not config.set_runtime_cache(self._kernels[graph]):
            logger.warning("TensorRT for RTX takes no kernels of %s that were compiled earlier", graph)
        return engine.create_execution_context(config)


class TensorrtRtxBackend(TensorrtBackend):
    """Serves engines with plans of TensorRT for RTX for this generation of GPUs."""

    name = "tensorrt-rtx"
    flavour = RTX
    session = RtxSession

    def plans(self, engine: EngineFolder) -> dict[str, Any]:
        """The plans of an engine by graph."""
        return {plan.graph: plan for plan in engine.manifest.rtx_plans if plan.file_name in engine.manifest.files}

    def options(self, request: Request) -> dict[str, Any]:
        """What its session is told beside the plans."""
        return {"specialization": request.specialization}

    def plan_problems(self, plan: Any, device: torch.device) -> list[str]:
        """Why a plan does not run on a GPU that is here."""
        return plan.problems_on(compute_capability(device), RTX.load().__version__)


class KernelFile:
    """Kernels that were compiled for one plan and one GPU: a file in the user's cache folder, replaced in one step.

    They are machine code, so they lie where nobody else writes, and not in the engine's folder, whose every byte is
    checked. A file that cannot be read or written costs time and nothing else.

    Args:
        content: what the kernels depend on: they are found by it.
    """

    def __init__(self, content: str) -> None:
        self._path = cache_folder() / "rtx-kernels" / f"{hashlib.sha256(content.encode()).hexdigest()}.bin"

    def read(self) -> bytes:
        """What was kept; nothing where there is no such file."""
        try:
            os.utime(self._path)  # used last
            return self._path.read_bytes()
        except OSError:
            return b""

    def write(self, kernels: bytes) -> None:
        """Replace what was kept, and remove what was used least where there are more files than are kept."""
        partial = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with partial.open("wb") as file:
                    file.write(kernels)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(self._path)
            finally:
                partial.unlink(missing_ok=True)
            used = sorted(self._path.parent.glob("*.bin"), key=lambda path: path.stat().st_mtime)
            for path in used[:-KERNEL_FILES]:
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("compiled kernels are not kept, and compiled again next time: %s", error)

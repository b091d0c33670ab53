"""The graphs as plans of TensorRT for RTX, which are built without a GPU, for several generations of GPUs in one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from featinv_export.options import ExportOptions
from featinv_export.parity import Candidate, Case, Comparison, not_run
from featinv_export.progress import Steps
from featinv_export.targets.base import PlansTarget
from featinv_export.tensorrt_ import plans
from featinv_fast.backends import Request
from featinv_fast.backends.tensorrt_plan import RTX
from featinv_fast.backends.tensorrt_rtx import RtxSession, TensorrtRtxBackend
from featinv_fast.config import Precision
from featinv_fast.engine import EngineFolder
from featinv_fast.engine.manifest import BUILT
from featinv_fast.engine.plans import RTX_PLAN_SUFFIX
from featinv_fast.errors import MissingPackageError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TensorrtRtxTarget(PlansTarget):
    """`--trt-rtx`. Its plans are no reason to refuse an engine where they cannot run: their graphs were compared."""

    title = "plans of TensorRT for RTX"
    suffix = RTX_PLAN_SUFFIX
    backend = "tensorrt-rtx"
    field = "rtx_plans"
    session = RtxSession

    @classmethod
    def asked(cls, options: ExportOptions) -> TensorrtRtxTarget | None:
        if options.trt_rtx is None:
            return None
        return cls(options.trt_rtx).for_batches(options.optimal_batch, options.max_batch)

    @classmethod
    def carried(cls, engine: EngineFolder) -> TensorrtRtxTarget | None:
        built = engine.manifest.rtx_plans
        reasons = TensorrtRtxBackend().not_supported_reasons(Request(engine=engine, device=plans.GPU)) if built else []
        return cls(plans=built, reasons=tuple(reasons)) if built else None

    def require(self, destination: Path) -> None:
        if problems := RTX.import_problems():
            raise MissingPackageError(
                "plans of TensorRT for RTX cannot be built without it",
                given="; ".join(problems),
                expected="the package tensorrt-rtx-cu13",
                remedy=f"pip install {RTX.install}, or export without --trt-rtx",
            )

    def space(self, weights: int) -> int:
        # Code for the generations comes to some megabytes a plan.
        return super().space(weights) + 64 * 2**20

    def problems(self, precision: Precision) -> list[str]:
        return []

    def make(self, candidate: Candidate, steps: Steps) -> TensorrtRtxTarget:
        built = plans.write_rtx_plans(candidate, self.options, self.profiles, steps)
        backend = TensorrtRtxBackend()
        reasons = backend.problems_here(plans.GPU) or backend.plan_problems(built[0], plans.GPU)
        return dataclasses.replace(self, plans=built, reasons=tuple(reasons))

    def refit(self, engine: EngineFolder, candidate: Candidate) -> TensorrtRtxTarget:
        # They hold the old weights.
        logger.warning(
            "%s are left out, because they hold the old weights: build others with `featinv-export --from-onnx DIR "
            "--trt-rtx`",
            ", ".join(plan.file_name for plan in self.plans),
        )
        return dataclasses.replace(self, plans=())

    def run(self, candidate: Candidate, cases: Sequence[Case], steps: Steps) -> list[Comparison]:
        if self.reasons:
            steps.begin(f"checking the {self.title}")
            return not_run(self.backend, cases, f"{BUILT}: {'; '.join(self.reasons)}")
        return super().run(candidate, cases, steps)

    def tools(self) -> dict[str, str]:
        return {self.backend: self.plans[0].tensorrt_rtx} if self.plans else {}

"""The graphs as plans of TensorRT for RTX, which are built without a GPU, for several generations of GPUs in one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featinv_export.progress import Steps
from featinv_export.targets.base import PlansTarget
from featinv_fast.engine import EngineFolder, Manifest
from featinv_fast.engine.manifest import BUILT
from featinv_fast.engine.plans import RTX_PLAN_SUFFIX
from featinv_fast.errors import MissingPackageError

if TYPE_CHECKING:
    from featinv_export.parity import Candidate, Case, Comparison
    from featinv_fast.backends.tensorrt_rtx import RtxSession

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TensorrtRtxTarget(PlansTarget):
    """`--trt-rtx`. Its plans are no reason to refuse an engine where they cannot run: their graphs were compared."""

    option = "trt_rtx"
    help = "plans of TensorRT for RTX, for which no GPU is needed; implies --onnx"
    title = "plans of TensorRT for RTX"
    suffix = RTX_PLAN_SUFFIX
    backend = "tensorrt-rtx"
    field = "rtx_plans"

    @classmethod
    def session(cls) -> type[RtxSession]:
        from featinv_fast.backends.tensorrt_rtx import RtxSession

        return RtxSession

    @classmethod
    def content(cls, manifest: Manifest) -> str:
        return "TensorRT for RTX: code for the GPUs and the version that the manifest names"

    @classmethod
    def described(cls, manifest: Manifest) -> list[str]:
        lines = []
        for plan in manifest.rtx_plans:
            built = f" ({BUILT})" if plan.file_name in manifest.unexecuted() else ""
            flavour, gpus = f"TensorRT for RTX {plan.tensorrt_rtx}", ", ".join(plan.capabilities)
            lines.append(f"{plan.file_name} is for {flavour} on compute capability {gpus}{built}")
        return lines

    @classmethod
    def carried(cls, engine: EngineFolder) -> TensorrtRtxTarget | None:
        from featinv_export.tensorrt_.plans import GPU
        from featinv_fast.backends import Request
        from featinv_fast.backends.tensorrt_rtx import TensorrtRtxBackend

        built = engine.manifest.rtx_plans
        if not built:
            return None
        reasons = TensorrtRtxBackend().not_supported_reasons(Request(engine=engine, device=GPU))
        return cls(plans=built, reasons=tuple(reasons))

    def require(self, destination: Path) -> None:
        from featinv_fast.backends.tensorrt_plan import RTX

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

    def make(self, candidate: Candidate, steps: Steps) -> TensorrtRtxTarget:
        from featinv_export.tensorrt_ import plans
        from featinv_fast.backends.tensorrt_rtx import TensorrtRtxBackend

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
            from featinv_export.parity import not_run

            steps.begin(f"checking the {self.title}")
            return not_run(self.backend, cases, f"{BUILT}: {'; '.join(self.reasons)}")
        return super().run(candidate, cases, steps)

    def tools(self) -> dict[str, str]:
        return {self.backend: self.plans[0].tensorrt_rtx} if self.plans else {}

"""The graphs as TensorRT plans, built of the ONNX graphs on the machine that runs them."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featinv_export.progress import Steps
from featinv_export.targets.base import PlansTarget
from featinv_fast.config import Precision
from featinv_fast.engine import EngineFolder, Manifest
from featinv_fast.engine.files import hash_files
from featinv_fast.engine.manifest import ONNX_SUFFIX
from featinv_fast.engine.plans import PLAN_SUFFIX, PlanInfo, PlanWeights
from featinv_fast.engine.trust import distrust, note_built_here

if TYPE_CHECKING:
    from featinv_export.parity import Candidate
    from featinv_fast.backends.tensorrt_ import TensorrtSession

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TensorrtTarget(PlansTarget):
    """`--trt`.

    Attributes:
        refit_reasons: why those plans of an engine that hold no weights, and stay whatever these are, do not run here.
    """

    refit_reasons: tuple[str, ...] = ()

    option = "trt"
    help = "TensorRT plans of the ONNX graphs, on the machine with the GPU; implies --onnx"
    title = "TensorRT plans"
    suffix = PLAN_SUFFIX
    backend = "tensorrt"
    field = "plans"

    @classmethod
    def session(cls) -> type[TensorrtSession]:
        from featinv_fast.backends.tensorrt_ import TensorrtSession

        return TensorrtSession

    @classmethod
    def content(cls, manifest: Manifest) -> str:
        return "TensorRT: native code for the GPU and the version that the manifest names"

    @classmethod
    def described(cls, manifest: Manifest) -> list[str]:
        return [
            f"{plan.file_name} is for TensorRT {plan.target.tensorrt} on {plan.target.gpu}" for plan in manifest.plans
        ]

    @classmethod
    def carried(cls, engine: EngineFolder) -> TensorrtTarget | None:
        from featinv_export.tensorrt_.plans import GPU
        from featinv_fast.backends import Request
        from featinv_fast.backends.tensorrt_ import TensorrtBackend, stale_reasons

        built = engine.manifest.plans
        if not built:
            return None
        reasons = TensorrtBackend().not_supported_reasons(Request(engine=engine, device=GPU))
        kept = [plan for plan in built if plan.weights is PlanWeights.STRIPPED and not stale_reasons(plan, engine)]
        refit_reasons = _problems(engine, kept) if kept else []
        return cls(plans=built, reasons=tuple(reasons), refit_reasons=tuple(refit_reasons))

    def require(self, destination: Path) -> None:
        from featinv_export.tensorrt_ import plans

        plans.require_tensorrt(destination, self.options)

    def problems(self, precision: Precision) -> list[str]:
        return [*self.reasons]

    def refit_problems(self, precision: Precision) -> list[str]:
        return [*self.refit_reasons]

    def make(self, candidate: Candidate, steps: Steps) -> TensorrtTarget:
        from featinv_export.tensorrt_ import plans

        built = plans.write_plans(candidate, self.options, self.profiles, steps)
        return dataclasses.replace(self, plans=built)

    def refit(self, engine: EngineFolder, candidate: Candidate) -> TensorrtTarget:
        """Write those plans that can take other weights; of the rest, say why they are left out."""
        kept = _refit_plans(engine, candidate.folder)
        return dataclasses.replace(self, plans=kept, reasons=tuple(_problems(engine, kept)))

    def tools(self) -> dict[str, str]:
        return {self.backend: self.plans[0].target.tensorrt} if self.plans else {}


def _refit_plans(engine: EngineFolder, folder: Path) -> tuple[PlanInfo, ...]:
    """Write to `folder` those plans that can take its weights; of the others, say why they are left out."""
    from featinv_export.external_data import require_own_weights
    from featinv_export.tensorrt_.builder import refitted_plan
    from featinv_export.tensorrt_.plans import GPU
    from featinv_fast.backends.tensorrt_ import stale_reasons
    from featinv_fast.backends.tensorrt_plan import PROPER, plan_target
    from featinv_fast.backends.torch_ import WEIGHT_FILE

    weights = hash_files(folder, [WEIGHT_FILE])[WEIGHT_FILE].sha256
    kept = []
    for plan in engine.manifest.plans:
        reasons = stale_reasons(plan, engine)
        if plan.weights is PlanWeights.FIXED:
            reasons.append("it was not built with --refittable or --stripped")
        elif plan.weights is PlanWeights.REFITTABLE:
            reasons += PROPER.problems(GPU) or plan.problems_on(plan_target(GPU))
            reasons += distrust(engine, [plan.file_name])
        if reasons:
            logger.warning("%s is left out: %s", plan.file_name, "; ".join(reasons))
            continue
        destination = folder / plan.file_name
        if plan.weights is PlanWeights.STRIPPED:  # it has none of its own
            shutil.copyfile(engine.file(plan.file_name), destination)
        else:
            graph = folder / (plan.graph + ONNX_SUFFIX)
            require_own_weights(graph)
            destination.write_bytes(refitted_plan(engine.file(plan.file_name).read_bytes(), graph, plan))
            note_built_here([hash_files(folder, [plan.file_name])[plan.file_name].sha256])
        kept.append(dataclasses.replace(plan, weights_sha256=weights))
    return tuple(kept)


def _problems(engine: EngineFolder, own: Sequence[PlanInfo]) -> list[str]:
    """Why these plans of an engine, refitted or not, cannot be run here to check them, or must not be."""
    from featinv_export.tensorrt_.plans import GPU
    from featinv_fast.backends.tensorrt_plan import PROPER, plan_target

    problems = PROPER.problems(GPU)
    if not problems:
        target = plan_target(GPU)
        problems = [f"{plan.file_name}: {reason}" for plan in own for reason in plan.problems_on(target)]
    return [*problems, *distrust(engine, [plan.file_name for plan in own])]

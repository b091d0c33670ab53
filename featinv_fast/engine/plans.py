"""What a TensorRT plan was built for, and why it does not serve elsewhere. Standard library only."""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import Annotated

from featinv_fast.config import Between, Limited, Precision
from featinv_fast.errors import ConfigError

PLAN_SUFFIX = ".plan"
RTX_PLAN_SUFFIX = ".rtxplan"
# The compute capabilities that TensorRT for RTX 1.7 builds our graphs for: A100, Ampere, Ada, Blackwell (RTX and GB10).
# For Turing (7.5) it has no fp32 matrix products, and the time embedding is fp32 in every precision.
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
# Images in one call: far beyond what any memory holds.
BATCHES = Between(1, 65_536)


class PlanWeights(enum.StrEnum):
    """Where a plan's weights are and whether others may take their place."""

    FIXED = "fixed"  # in the plan, part of how it was optimised
    REFITTABLE = "refittable"  # in the plan, replaceable
    STRIPPED = "stripped"  # not in the plan: read from the engine's weight file whenever it is loaded


class HardwareCompatibility(enum.StrEnum):
    """On which GPUs a plan runs besides the model that it was built on."""

    NONE = "none"
    SAME_COMPUTE_CAPABILITY = "same_compute_capability"
    AMPERE_PLUS = "ampere_plus"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchProfile(Limited):
    """A range of batch sizes that a plan is tuned for, both ends included."""

    minimum: Annotated[int, BATCHES]
    optimum: Annotated[int, BATCHES]
    maximum: Annotated[int, BATCHES]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise ConfigError(
                "a profile's batch sizes are not ordered",
                given=str(self),
                expected="1 <= minimum <= optimum <= maximum",
                remedy="put them in this order",
            )

    def __str__(self) -> str:
        return f"{self.minimum}:{self.optimum}:{self.maximum}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanTarget:
    """The machine that a plan is built on or is to run on.

    Attributes:
        tensorrt: version, e.g. "10.16.1.11".
        cuda: version of the CUDA runtime, e.g. "13.0".
        gpu: name of the GPU.
        compute_capability: of the GPU, e.g. "9.0".
    """

    tensorrt: str
    cuda: str
    gpu: str
    compute_capability: str


def refit_problems(weights: PlanWeights, tensorrt: str) -> list[str]:
    """Why a plan with these weights of this release computes something else than its graph; empty otherwise.

    A known issue of TensorRT 11.3.0, by its release notes: with the builder's flag REFIT, which both kinds of
    replaceable weights need, the bias of a matrix product may be lost, even before a refit. 11.4 has it no more.
    """
    if weights is not PlanWeights.FIXED and _numbers(tensorrt)[:3] == (11, 3, 0):
        return ["TensorRT 11.3.0 may lose biases in plans whose weights can be replaced; 11.4 does not"]
    return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanInfo(Limited):
    """One plan: everything that its content depends on.

    Attributes:
        graph: name of the graph.
        target: where it was built.
        precision: of the graph.
        profiles: batch sizes; the order is that of the plan's optimisation profiles. Empty for a graph without a batch.
        graph_sha256: of the `.onnx` file.
        weights_sha256: of the weight file.
        weights: where its weights are.
        hardware: GPUs that it runs on beside `target.gpu`.
        version_compatible: whether newer versions of TensorRT run it, too.
        workspace_mib: most scratch memory that a kernel may take; `None` is all of the GPU's.
        optimization_level: 0 to 5, how long the builder searched.
    """

    graph: str
    target: PlanTarget
    precision: Precision
    profiles: tuple[BatchProfile, ...]
    graph_sha256: str
    weights_sha256: str
    weights: PlanWeights = PlanWeights.FIXED
    hardware: HardwareCompatibility = HardwareCompatibility.NONE
    version_compatible: bool = False
    workspace_mib: Annotated[int, Between(1, 2**24)] | None = None
    optimization_level: Annotated[int, Between(0, 5)] = 3

    @property
    def file_name(self) -> str:
        """The plan's name in an engine folder."""
        return self.graph + PLAN_SUFFIX

    def problems_on(self, target: PlanTarget) -> list[str]:
        """Why this plan does not run on `target`; empty when it does. Each reason names the field that differs."""
        built, reasons = self.target, refit_problems(self.weights, self.target.tensorrt)
        if target.tensorrt != built.tensorrt and not (
            self.version_compatible and _numbers(target.tensorrt) > _numbers(built.tensorrt)
        ):
            newer = " or newer" if self.version_compatible else ""
            reasons.append(f"it is for TensorRT {built.tensorrt}{newer}, this is {target.tensorrt}")
        # CUDA promises that what was built for a major version runs with all of its releases.
        if _numbers(target.cuda)[:1] != _numbers(built.cuda)[:1]:
            reasons.append(f"it is for CUDA {built.cuda}, this is {target.cuda}")
        wanted, given = _numbers(built.compute_capability), _numbers(target.compute_capability)
        if self.hardware is HardwareCompatibility.AMPERE_PLUS:
            if given < (8, 0):
                reasons.append(f"it is for compute capability 8.0 or newer, this is {target.compute_capability}")
        elif given != wanted:
            reasons.append(
                f"it is for compute capability {built.compute_capability}, this is {target.compute_capability}"
            )
        elif self.hardware is HardwareCompatibility.NONE and target.gpu != built.gpu:
            reasons.append(f"it is for the GPU {built.gpu}, this is {target.gpu}")
        return reasons

    def staleness(self, *, precision: Precision, graph_sha256: str | None, weights_sha256: str | None) -> list[str]:
        """Why this plan is not one of an engine with these files any more; empty when it is."""
        # One that is stripped takes whatever weights lie beside it.
        own = self.weights_sha256 if self.weights is PlanWeights.STRIPPED else weights_sha256
        return _staleness(self, precision, graph_sha256, own)

    def differences(self, other: PlanInfo | RtxPlanInfo) -> list[str]:
        """The fields in which two plans differ, each with both values."""
        return _differences(self, other)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RtxPlanInfo(Limited):
    """One plan of TensorRT for RTX: everything that its content depends on. It needs no GPU to be built.

    Attributes:
        graph: name of the graph.
        tensorrt_rtx: version of the library, e.g. "1.7.1.116".
        capabilities: compute capabilities of the GPUs that it is for, of `RTX_CAPABILITIES`, in that order.
        precision: of the graph.
        profiles: batch sizes; the order is that of the plan's optimisation profiles. Empty for a graph without a batch.
        graph_sha256: of the `.onnx` file that it was built from, which is the one that was compared with the model.
        weights_sha256: of the weight file.
    """

    graph: str
    tensorrt_rtx: str
    capabilities: tuple[str, ...]
    precision: Precision
    profiles: tuple[BatchProfile, ...]
    graph_sha256: str
    weights_sha256: str

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered = tuple(name for name in RTX_CAPABILITIES if name in self.capabilities)
        if not self.capabilities or self.capabilities != ordered:
            raise ConfigError(
                "TensorRT for RTX has no plans for these GPUs",
                given=", ".join(self.capabilities) or "none",
                expected=f"compute capabilities of {', '.join(RTX_CAPABILITIES)}, each once and in this order",
                remedy="name some of these",
            )

    @property
    def file_name(self) -> str:
        """The plan's name in an engine folder."""
        return self.graph + RTX_PLAN_SUFFIX

    def problems_on(self, capability: str, version: str) -> list[str]:
        """Why this plan does not run on a GPU of this compute capability with this release; empty when it does."""
        reasons = []
        if capability not in self.capabilities:
            known = ", ".join(self.capabilities)
            proper = "" if capability in RTX_CAPABILITIES else ", which TensorRT proper serves (--trt)"
            reasons.append(f"it is for compute capability {known}, this is {capability}{proper}")
        if version != self.tensorrt_rtx:
            reasons.append(f"it is for TensorRT for RTX {self.tensorrt_rtx}, this is {version}")
        return reasons

    def staleness(self, *, precision: Precision, graph_sha256: str | None, weights_sha256: str | None) -> list[str]:
        """Why this plan is not one of an engine with these files any more; empty when it is."""
        return _staleness(self, precision, graph_sha256, weights_sha256)

    def differences(self, other: PlanInfo | RtxPlanInfo) -> list[str]:
        """The fields in which two plans differ, each with both values."""
        return _differences(self, other)


def _staleness(
    plan: PlanInfo | RtxPlanInfo, precision: Precision, graph_sha256: str | None, weights_sha256: str | None
) -> list[str]:
    reasons = []
    if plan.precision != precision:
        reasons.append(f"it computes in {plan.precision}, the engine in {precision}")
    if graph_sha256 is not None and plan.graph_sha256 != graph_sha256:
        reasons.append("it was built from another graph")
    if plan.weights_sha256 != weights_sha256:
        reasons.append("it was built from other weights")
    return reasons


def _differences(one: PlanInfo | RtxPlanInfo, other: PlanInfo | RtxPlanInfo) -> list[str]:
    mine, others = _flat(one), _flat(other)
    return [f"{name} {others[name]} instead of {value}" for name, value in mine.items() if others[name] != value]


def _flat(info: PlanInfo | RtxPlanInfo) -> dict[str, str]:
    values = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    target = dataclasses.asdict(values.pop("target")) if "target" in values else {}
    values["profiles"] = " ".join(map(str, info.profiles)) or "none"
    return {name: str(value) for name, value in (target | values).items()}


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, for comparing."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()

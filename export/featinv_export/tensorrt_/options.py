"""How TensorRT plans are built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from featinv_fast.checks.options import without_effect
from featinv_fast.engine.plans import RTX_CAPABILITIES, BatchProfile, HardwareCompatibility, PlanWeights
from featinv_fast.errors import ArgumentError, ConfigError

LEVELS = range(6)  # as TensorRT counts them: longer searches, faster plans
# The cards that most researchers own: RTX 30, 40 and 50, and the professional ones of their generations.
DEFAULT_CAPABILITIES = ("8.6", "8.9", "12.0")
# Why TensorRT for RTX has nothing for others.
UNSERVED = {
    "7.5": "it has no fp32 matrix products for Turing, which every engine needs",
    "9.0": "H100 and H200 are served by TensorRT proper (--trt)",
    "10.0": "B200 is served by TensorRT proper (--trt)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """What plans of every kind are asked for.

    Attributes:
        min_batch: smallest batch; what is smaller is filled up.
        optimal_batch: the batch that kernels are tuned for; `None` is the engine's.
        max_batch: largest batch; `None` is the engine's.
        profiles: ranges of batch sizes in place of the one that these three make, one for each optimisation profile.
        cache: folder of plans and timings that were made before; `None` is the user's own.
        build: build what the cache does not have; without it that is an error.

    Raises:
        ArgumentError: values outside their range.
    """

    min_batch: int = 1
    optimal_batch: int | None = None
    max_batch: int | None = None
    profiles: tuple[BatchProfile, ...] = ()
    cache: Path | None = None
    build: bool = True

    def __post_init__(self) -> None:
        if self.profiles and (self.min_batch, self.optimal_batch, self.max_batch) != (1, None, None):
            raise ArgumentError(
                "batch sizes were given twice",
                given="profiles and single batch sizes",
                expected="one of the two",
                remedy="leave one out",
            )

    def batch_profiles(self, optimal_batch: int, max_batch: int) -> tuple[BatchProfile, ...]:
        """The profiles, for an engine of these batch sizes.

        Raises:
            ArgumentError: the batch sizes are not ordered.
        """
        if self.profiles:
            return self.profiles
        largest = self.max_batch or max_batch
        optimum = self.optimal_batch or min(max(optimal_batch, self.min_batch), largest)
        try:
            return (BatchProfile(minimum=self.min_batch, optimum=optimum, maximum=largest),)
        except ConfigError as error:
            raise ArgumentError(
                error.problem, given=error.given, expected=error.expected, remedy="choose ordered batch sizes"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions(BatchOptions):
    """What TensorRT plans are asked for.

    Attributes:
        workspace_mib: most scratch memory that a kernel may take, in MiB; `None` is all of the GPU's.
        optimization_level: 0 to 5; TensorRT's default is 3.
        weights: whether they are part of the plans, replaceable, or left out.
        hardware: GPUs that the plans must run on beside this one; costs speed.
        version_compatible: newer versions of TensorRT must run the plans, too; costs speed.
        timing_cache: file of measured kernel times, read and extended; `None` is one in `cache`.

    Raises:
        ArgumentError: values outside their range.
    """

    workspace_mib: int | None = None
    optimization_level: int = 3
    weights: PlanWeights = PlanWeights.FIXED
    hardware: HardwareCompatibility = HardwareCompatibility.NONE
    version_compatible: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.build and self.timing_cache is not None:
            raise without_effect(
                {"timing_cache": str(self.timing_cache)},
                "nothing is built, and so nothing is timed",
                expected="building, which no_build (build=False) forbids",
            )
        if self.optimization_level not in LEVELS:
            raise ArgumentError(
                "the optimisation level is out of range",
                given=self.optimization_level,
                expected="0 to 5",
                remedy="choose one of these",
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ArgumentError(
                "the workspace is out of range",
                given=self.workspace_mib,
                expected="a number of MiB from 1 on",
                remedy="choose one",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RtxOptions(BatchOptions):
    """What plans of TensorRT for RTX are asked for.

    Attributes:
        capabilities: compute capabilities of the GPUs that every plan is for; none is the GPU that is here, or else
            `DEFAULT_CAPABILITIES`.

    Raises:
        ArgumentError: a GPU that TensorRT for RTX does not serve.
    """

    capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        foreign = [name for name in self.capabilities if name not in RTX_CAPABILITIES]
        if foreign:
            why = "; ".join(f"{name}: {UNSERVED.get(name, 'it is not known to it')}" for name in foreign)
            raise ArgumentError(
                "TensorRT for RTX has no plans for these GPUs",
                given=f"compute capability {why}",
                expected=f"of {', '.join(RTX_CAPABILITIES)}",
                remedy="leave them out; TensorRT proper (--trt) builds plans on the machine with the GPU",
            )
        ordered = tuple(name for name in RTX_CAPABILITIES if name in self.capabilities)
        object.__setattr__(self, "capabilities", ordered)

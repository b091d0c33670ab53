"""How TensorRT plans are built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from featinv_fast.engine.plans import BatchProfile, HardwareCompatibility, PlanWeights
from featinv_fast.errors import ArgumentError

LEVELS = range(6)  # as TensorRT counts them: longer searches, faster plans


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What TensorRT plans are asked for.

    Attributes:
        profiles: batch sizes that the plans are tuned for, one range for each optimisation profile.
        workspace_mib: most scratch memory that a kernel may take, in MiB; `None` is all of the GPU's.
        optimization_level: 0 to 5; TensorRT's default is 3.
        weights: whether they are part of the plans, replaceable, or left out.
        hardware: GPUs that the plans must run on beside this one; costs speed.
        version_compatible: newer versions of TensorRT must run the plans, too; costs speed.
        timing_cache: file of measured kernel times, read and extended; `None` is one in `cache`.
        cache: folder of plans and timings that were made before; `None` is the user's own.
        build: build what the cache does not have; without it that is an error.

    Raises:
        ArgumentError: values outside their range.
    """

    profiles: tuple[BatchProfile, ...] = (BatchProfile(minimum=1, optimum=1, maximum=64),)
    workspace_mib: int | None = None
    optimization_level: int = 3
    weights: PlanWeights = PlanWeights.FIXED
    hardware: HardwareCompatibility = HardwareCompatibility.NONE
    version_compatible: bool = False
    timing_cache: Path | None = None
    cache: Path | None = None
    build: bool = True

    def __post_init__(self) -> None:
        if not self.profiles:
            raise ArgumentError("there is no profile", given="none", expected="at least one range of batch sizes")
        if self.optimization_level not in LEVELS:
            raise ArgumentError(
                "the optimisation level is out of range", given=self.optimization_level, expected="0 to 5"
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ArgumentError(
                "the workspace is out of range", given=self.workspace_mib, expected="a number of MiB from 1 on"
            )

    @property
    def max_batch(self) -> int:
        """The largest batch of all profiles."""
        return max(profile.maximum for profile in self.profiles)

    @property
    def optimal_batch(self) -> int:
        """The batch that the first profile is tuned for."""
        return self.profiles[0].optimum

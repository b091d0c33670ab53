"""What every sampler boils down to: six scalars a step."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from featinv_fast.errors import ArgumentError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StepTable:
    """The steps of a sampler, in the order in which they are executed.

    Step `i` evaluates the model at `timesteps[i]` and then applies

        x' = A[i] x + B[i] eps + C[i] z + D[i] h
        h' = P[i] x + Q[i] eps

    where `x` are the latents, `eps` the model's noise prediction for them, `z` fresh N(0, 1) noise and `h` the
    history that multistep samplers keep, zeros at the start. Both lines read the old `x`. The first `x` is N(0, 1).

    Attributes:
        timesteps: training times, strictly descending. [S]
        A: factor of the latents. [S]
        B: factor of the noise prediction. [S]
        C: factor of fresh noise. [S]
        D: factor of the history. [S]
        P: factor of the latents in the next history. [S]
        Q: factor of the noise prediction in the next history. [S]

    All arrays become read-only float64 copies of what was passed. Tables compare by identity.

    Raises:
        ArgumentError: the arrays are not one-dimensional, of one length S >= 1 and finite, or the times do not
            descend.
    """

    timesteps: npt.NDArray[np.float64]
    A: npt.NDArray[np.float64]
    B: npt.NDArray[np.float64]
    C: npt.NDArray[np.float64]
    D: npt.NDArray[np.float64]
    P: npt.NDArray[np.float64]
    Q: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            column = np.array(getattr(self, field.name), dtype=np.float64)  # [S]
            column.setflags(write=False)
            object.__setattr__(self, field.name, column)
        shapes = {field.name: getattr(self, field.name).shape for field in dataclasses.fields(self)}
        if self.timesteps.ndim != 1 or len(self.timesteps) == 0 or len(set(shapes.values())) != 1:
            raise ArgumentError(
                "the columns of a step table differ in shape",
                given=shapes,
                expected="seven arrays of one shape [S] with S >= 1",
                remedy="give every column one value per step; use zeros for a term that the sampler lacks",
            )
        infinite = [name for name in shapes if not np.isfinite(getattr(self, name)).all()]
        if infinite:
            raise ArgumentError(
                "a step table holds NaN or infinite values",
                given=f"columns {', '.join(infinite)}",
                expected="finite scalars",
                remedy="check the schedule for repeated times and for times without noise",
            )
        if (np.diff(self.timesteps) >= 0).any():
            raise ArgumentError(
                "the times of a step table do not descend",
                given=self.timesteps.tolist(),
                expected="strictly descending times",
                remedy="list the steps in the order in which they are executed, each time once",
            )

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def uses_noise(self) -> bool:
        """Whether any step adds fresh noise; if not, `z` need not be drawn."""
        return bool(self.C.any())

    @property
    def uses_history(self) -> bool:
        """Whether any step reads the history; if not, `h` need not be kept."""
        return bool(self.D.any())

    @property
    def coefficients(self) -> npt.NDArray[np.float64]:
        """All scalars, columns in the order A, B, C, D, P, Q. [S, 6]."""
        return np.stack([self.A, self.B, self.C, self.D, self.P, self.Q], axis=1)

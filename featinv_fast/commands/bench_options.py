"""What `featinv bench` is asked for. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featinv_fast.checks import choice, count
from featinv_fast.checks.options import AUTO, BACKENDS, RTX, TORCH, WITHOUT_THREADS, check_running, options_of_torch
from featinv_fast.errors import ArgumentError
from featinv_fast.samplers import Setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure.

    Attributes:
        backends: names, the first one is what speed-ups compare with; empty for all that can run.
        batch_sizes: images of a call.
        settings: samplers, steps and guidance.
        rounds: timed calls of each contender.
        warm_up: calls before that.
        device, precision, threads: as of `Runtime`.
        kernels, cuda_graphs, compiled, two_streams: as of `Runtime`, for the torch backend alone.
        specialization: as of `Runtime`, for the backend tensorrt-rtx alone.
        out: a JSONL file that rows are appended to.
        progress: show what is running on stderr.

    Raises:
        ArgumentError: a value out of its range or named twice, an unknown backend, or options that none of the
            backends obeys.
    """

    backends: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = (1, 8)
    settings: tuple[Setting, ...] = (Setting(),)
    rounds: int = 5
    warm_up: int = 1
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    kernels: str | Mapping[str, str] = "auto"
    cuda_graphs: str = "auto"
    compiled: bool = False
    two_streams: bool = False
    specialization: str = "auto"
    out: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for size in self.batch_sizes:
            count("a batch size", size)
        for backend in self.backends:
            choice("a backend", backend, BACKENDS)
        for name, values in (
            ("a batch size", self.batch_sizes),
            ("a backend", self.backends),
            ("a setting", self.settings),
        ):
            _refuse_repetition(name, values)
        count("the number of rounds", self.rounds, 2)
        count("the number of warm-up calls", self.warm_up)
        asked = self.backends or BACKENDS
        named = options_of_torch(**self.of_torch)
        if named and TORCH not in asked:
            raise ArgumentError(
                "some options are of the torch backend alone",
                given=f"{', '.join(named)}; backends {', '.join(self.backends)}",
                expected="torch among the backends",
                remedy="add it, or leave these options out",
            )
        if self.specialization != AUTO and RTX not in asked:
            raise ArgumentError(
                "specialization is of the backend tensorrt-rtx alone",
                given=f"specialization {self.specialization!r}; backends {', '.join(self.backends)}",
                expected=f"{RTX} among the backends",
                remedy="add it, or leave the option out",
            )
        # Of several backends, one that obeys an option is enough; the others are timed without it.
        obeyed = [backend for backend in asked if backend not in WITHOUT_THREADS]
        check_running(
            backend="auto" if obeyed else asked[0],
            threads=self.threads,
            specialization=self.specialization,
            **self.of_torch,
        )

    def told(self, backend: str) -> dict[str, Any]:
        """Arguments of `Runtime` for one backend alone."""
        return {TORCH: self.of_torch, RTX: {"specialization": self.specialization}}.get(backend, {})

    @property
    def of_torch(self) -> dict[str, Any]:
        """Arguments of `Runtime` for the torch backend alone."""
        return {name: getattr(self, name) for name in ("kernels", "cuda_graphs", "compiled", "two_streams")}


def _refuse_repetition(name: str, values: Sequence[Any]) -> None:
    repeated = [value for place, value in enumerate(values) if value in values[:place]]
    if repeated:
        raise ArgumentError(
            f"{name} is named twice", given=repeated[0], expected="each one once", remedy="leave the second one out"
        )

"""What every part of the suite is given: a device, sizes, the time it has, and where its rows go."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from featinv_fast.backends.capture_thread import in_capture_thread
from featinv_fast.backends.cuda_launch import capture
from featinv_fast.commands.bench import append
from featinv_fast.commands.measuring import environment, rounded, summary
from featinv_fast.config import FeatureSpec, ModelConfig, Precision

Row = dict[str, Any]
DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


class RedGateError(Exception):
    """A result is wrong, and what gave it is not timed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is.

    Attributes:
        model, features: the architecture with its random weights.
        precisions: what an engine is run in, the most interesting first.
        runs: (sampler, steps, guidance) end to end, the most interesting first.
        batches: images of a call, the most interesting first.
        step_batches: of the single graphs, decoders and baselines.
        baseline_steps: of the comparison with other loops.
        product: edge of the matrices whose product tells the card's arithmetic.
        copy_bytes: of the tensor whose copy tells the card's memory.
        rounds: most of a timing; fewer where time is short.
        compile: options of `torch.compile` for the compiled baseline.
    """

    model: ModelConfig
    features: FeatureSpec
    precisions: tuple[Precision, ...]
    runs: tuple[tuple[str, int, float], ...]
    batches: tuple[int, ...]
    step_batches: tuple[int, ...]
    baseline_steps: int
    product: int
    copy_bytes: int
    rounds: int
    compile: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """A part's surroundings.

    Attributes:
        part: its name.
        device: where to compute.
        dry: a small model on any device, to try the suite; its times mean nothing.
        sizes: of what is run.
        work: a folder that the parts share.
        results: the JSONL file that rows are appended to.
        deadline: when the part has to be done, by `time.monotonic`.
        rates: what this card was measured to do: "copy" in bytes per second, "fp16" and so on in operations per second.
    """

    part: str
    device: torch.device
    dry: bool
    sizes: Sizes
    work: Path
    results: Path
    deadline: float
    rates: Mapping[str, float]

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    def emit(self, what: str, status: str = "ok", **entries: Any) -> None:
        """Append a row. It stands alone: what ran, where, with which versions."""
        row = {"benchmark": "gpu_suite", "dry": self.dry, "part": self.part, "what": what, "status": status}
        append(self.results, row | entries | environment(self.device))

    @contextlib.contextmanager
    def failures_noted(self, what: str, **entries: Any) -> Iterator[None]:
        """A failure inside becomes a row that says so, and the other measurements go on."""
        try:
            yield
        except RedGateError as error:
            self.emit(what, "red", **entries, error=str(error))
        except TimeoutError as error:
            self.emit(what, "skipped", **entries, error=str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.emit(what, "error", **entries, error=f"{type(error).__name__}: {error}"[:2000])

    @contextlib.contextmanager
    def measured(self, what: str, **entries: Any) -> Iterator[Row]:
        """One measurement, whose row is what the body adds to the dictionary."""
        with self.failures_noted(what, **entries):
            row: Row = dict(entries)
            yield row
            self.emit(what, **row)

    def interleave(
        self, contenders: Mapping[str, Callable[[], object]], *, share: float = 1.0, calls: int = 1
    ) -> dict[str, list[float]]:
        """Seconds of a call of each contender, round by round, after one round that is not timed.

        Rounds end early where `share` of the time that is left is used up, but there are at least two.

        Args:
            contenders: each does its work once.
            share: of the time left.
            calls: in a row between two looks at the clock, for contenders too short for one.

        Raises:
            TimeoutError: not even two rounds fit.
        """
        allowed = time.monotonic() + share * self.seconds_left
        start = time.monotonic()
        for contender in contenders.values():
            self._time(contender, 1)
        once = (time.monotonic() - start) * calls
        if time.monotonic() + 2 * once > self.deadline:
            raise TimeoutError(f"a round takes {once:.1f} s, {max(0.0, self.seconds_left):.1f} s are left")
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(self.sizes.rounds):
            if number >= 2 and time.monotonic() + once > allowed:
                break
            for name, contender in contenders.items():
                seconds[name].append(self._time(contender, calls) / calls)
        return seconds

    def _time(self, contender: Callable[[], object], calls: int) -> float:
        """Seconds of so many calls, from an idle device to an idle device."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            contender()
        self.wait()
        return time.perf_counter() - start

    def repeated(self, call: Callable[[], object], calls: int = 1) -> Callable[[], object]:
        """So many calls, on a GPU as one graph: what the kernels take without the launches' own time.

        By algorithms that were timed, as in the graphs of the product.
        """
        if self.device.type != "cuda":
            return lambda: [call() for _ in range(calls)]
        warming, stream, caller = torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.current_stream()

        def record() -> torch.cuda.CUDAGraph:
            warming.wait_stream(caller)
            with torch.cuda.stream(warming):  # kernels are compiled and libraries prepared outside of the capture
                for _ in range(2):
                    call()
            caller.wait_stream(warming)
            return capture(lambda: [call() for _ in range(calls)], stream)

        return in_capture_thread(record, stream.device).replay

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def timing_entries(seconds: Mapping[str, list[float]], name: str, baseline: str | None = None) -> Row:
    """A contender's entries: its seconds, and its speed-up over another one within the rounds."""
    entries: Row = {"seconds": summary(seconds[name]), "rounds": len(seconds[name]), "warm_up": 1}
    if baseline is not None and baseline != name:
        ratios = [slow / fast for slow, fast in zip(seconds[baseline], seconds[name], strict=True)]
        entries["speed_up"] = {"over": baseline, **summary(ratios)}
    return entries


def per_second(amount: float, seconds: Mapping[str, float]) -> float:
    """`amount` in the median time."""
    return rounded(amount / seconds["median"], 4)

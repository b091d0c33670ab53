"""`featinv bench`: how fast an engine inverts, by backend, sampler and batch size, once its backends agree.

The backends take turns within a round, so that a slow moment of the machine meets them all, and every speed-up is a
ratio within a round. What does not agree with the reference is not timed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from featinv_fast.backends import BACKENDS, resolve_device
from featinv_fast.checks import file_errors
from featinv_fast.checks.options import TORCH, WITHOUT_THREADS
from featinv_fast.commands.bench_options import BenchOptions
from featinv_fast.commands.measuring import PeakMemory, environment, relative_error, rounded, summary
from featinv_fast.config import FeatureLayout, Precision
from featinv_fast.engine import EngineFolder
from featinv_fast.errors import BackendUnavailableError, FeatInvError
from featinv_fast.features import FeatureStatisticsWarning
from featinv_fast.runtime import Inversion, Runtime
from featinv_fast.samplers import Sampling, Setting, resolve

# Enough for every kind of step, few enough that rounding has no time to grow.
GATE_STEPS = 2
# Images of the gate: the first rows of a batch, computed one by one by the reference.
GATE_ROWS = 2
# Norm of the difference over the norm of the reference's result in fp32. Half precision rounds at 2**-11 (fp16) and
# 2**-8 (bf16), and the networks pass that on about tenfold; so does a GPU's TF32, in which fp32 products may be.
TOLERANCES = {Precision.FP32: 1e-4, Precision.FP16: 2e-2, Precision.BF16: 1e-1}

Row = dict[str, Any]


@dataclasses.dataclass(kw_only=True)
class Contender:
    """A backend at one batch size and setting.

    Attributes:
        row: what is known so far; "error" where it cannot go on.
        seconds: of each round.
    """

    runtime: Runtime
    row: Row
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether nothing has failed yet."""
        return "error" not in self.row


class Bench:
    """An engine loaded by every backend that is to be measured.

    Attributes:
        refused: backends that cannot run, with the reasons against them.

    Raises:
        BackendUnavailableError: no backend can run.
    """

    def __init__(self, options: BenchOptions, engine: EngineFolder) -> None:
        self.options = options
        self.engine = engine
        self.device = resolve_device(options.device)
        for setting in options.settings:  # before anything is loaded
            self._sampling(setting)
        asked = options.backends or tuple(BACKENDS)
        self.refused: dict[str, list[str]] = {}
        self.runtimes: dict[str, Runtime] = {}
        for name in asked:
            try:
                self.runtimes[name] = self._open(name, options.precision, options.told(name))
            except BackendUnavailableError as error:
                self.refused[name] = error.reasons[name]
        if not self.runtimes:
            raise BackendUnavailableError(
                "no backend that was asked for can run this engine here"
                if options.backends
                else "no backend can run this engine here",
                given=f"device {self.device}, backends {', '.join(asked)}",
                reasons=self.refused,
                remedy="see `featinv doctor`",
            )
        self.maps = self._maps(max((GATE_ROWS, *options.batch_sizes)))

    def rows(self) -> Iterator[Row]:
        """Gate and time everything; rows come as they are done and are appended to the file that was asked for."""
        common = {
            "benchmark": "bench",
            "engine": self.engine.manifest.name,
            "weights_sha256": self.engine.manifest.files["weights.safetensors"].sha256,
            "feature_shape": list(self.maps.shape[1:]),
            **environment(self.device, self.options.threads),
        }
        expected = [self._reference(setting) for setting in self.options.settings]
        for setting, images in zip(self.options.settings, expected, strict=True):
            for batch in self.options.batch_sizes:
                for contender in self._compare(setting, batch, images):
                    row = common | contender.row
                    if self.options.out is not None:
                        append(self.options.out, row)
                    yield row

    def _sampling(self, setting: Setting) -> Sampling:
        manifest = self.engine.manifest
        return resolve(manifest.sampling, manifest.model, **dataclasses.asdict(setting))

    def _open(self, backend: str, precision: str, more: Mapping[str, Any]) -> Runtime:
        device, threads = str(self.device), None if backend in WITHOUT_THREADS else self.options.threads
        return Runtime(self.engine, backend=backend, device=device, precision=precision, threads=threads, **more)

    def _maps(self, count: int) -> Tensor:
        """Random feature maps [count, C, H, W]."""
        spec = self.engine.manifest.features
        channels, height, width = spec.map_shape
        edges = (1, 1) if spec.layout is FeatureLayout.POOLED else (height or 8, width or 8)
        return torch.randn(count, channels, *edges, generator=torch.Generator().manual_seed(0))

    def _invert(self, runtime: Runtime, setting: Setting, batch: int, **options: Any) -> Inversion:
        """One call of the public interface on the first `batch` maps."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FeatureStatisticsWarning)  # random maps are like no backbone's
            return runtime.invert(
                self.maps[:batch],
                sampler=setting.sampler,
                guidance_scale=setting.guidance_scale,
                layout=FeatureLayout.NCHW,
                **{"steps": setting.steps, "batch_size": batch, **options},
            )

    def _reference(self, setting: Setting) -> Tensor:
        """The first images after a few steps: torch in fp32, one by one, as plainly as it can."""
        runtime = self._open(TORCH, Precision.FP32, {"kernels": "off", "cuda_graphs": "off"})
        found = self._invert(runtime, setting, GATE_ROWS, steps=GATE_STEPS, batch_size=1, output_type="torch")
        return found.images

    def _compare(self, setting: Setting, batch: int, expected: Tensor) -> list[Contender]:
        """Gate, warm up and time every backend at one batch size."""
        sampling = self._sampling(setting)
        steps = len(sampling.table)
        what = {"sampler": sampling.sampler, "steps": steps, "batch": batch, "rounds": self.options.rounds}
        contenders = [
            Contender(runtime=runtime, row={"backend": name, **what, "warm_up": self.options.warm_up})
            for name, runtime in self.runtimes.items()
        ]
        for contender in contenders:
            with _failures_noted(contender):
                self._check(contender, setting, batch, expected)
        for contender in (c for c in contenders if c.runs):
            with _failures_noted(contender):
                self._warm_up(contender, setting, batch)
        shown = f"{sampling.sampler}:{steps}, batch {batch}"
        for _ in tqdm(range(self.options.rounds), desc=shown, leave=False, disable=not self.options.progress):
            for contender in (c for c in contenders if c.runs):
                with _failures_noted(contender):
                    contender.seconds.append(self._time(contender.runtime, setting, batch))
        running = [c for c in contenders if c.runs]
        for contender in running:
            contender.row |= _results(contender, running[0], batch)
        return contenders

    def _check(self, contender: Contender, setting: Setting, batch: int, expected: Tensor) -> None:
        """The gate: after a few steps the first images of the batch are the reference's."""
        found = self._invert(contender.runtime, setting, batch, steps=GATE_STEPS, output_type="torch")
        rows = min(batch, len(expected))
        error = relative_error(found.images[:rows], expected[:rows])
        precision = Precision(found.flags.precision)
        tolerance = TOLERANCES[precision]
        if self.device.type == "cuda":
            tolerance = max(tolerance, TOLERANCES[Precision.FP16])
        contender.row |= {
            "precision": str(precision),
            **{name: contender.runtime.info[name] for name in ("kernels", "compiled", "two_streams", "specialization")},
            "cuda_graphs": contender.runtime.info["cuda_graphs"]["mode"],
            "guidance_scale": found.flags.guidance_scale,
            "gate": {"steps": found.flags.steps, "relative": rounded(error, 3), "tolerance": tolerance},
        }
        if found.flags.batch_size < batch:
            contender.row["error"] = f"it takes at most {found.flags.batch_size} images at once"
        elif not error <= tolerance:  # NaN is not small
            contender.row["error"] = f"the gate is red: relative error {error:.2g}, tolerance {tolerance:g}"

    def _warm_up(self, contender: Contender, setting: Setting, batch: int) -> None:
        """The first call, which loads and tunes what later ones find ready, and its memory."""
        memory = PeakMemory(self.device)
        seconds = [self._time(contender.runtime, setting, batch) for _ in range(self.options.warm_up)]
        contender.row |= {"first_seconds": rounded(seconds[0]), "peak_memory": memory.read()}

    def _time(self, runtime: Runtime, setting: Setting, batch: int) -> float:
        """Seconds of a call, from maps on the CPU to uint8 images on the CPU.

        Raises:
            FeatInvError: it did something else than it was asked for, and its time says nothing.
        """
        start = time.perf_counter()
        flags = self._invert(runtime, setting, batch).flags
        seconds = time.perf_counter() - start
        if flags.batch_size < batch:
            raise FeatInvError(
                "memory ran out",
                given=f"{batch} images at once",
                expected=f"at most {flags.batch_size}, which fit",
                remedy="leave this batch size out",
            )
        if flags.recomputed:
            raise FeatInvError(
                "rows overflowed and were computed again in fp32",
                given=f"{len(flags.recomputed)} of {batch} rows, in {flags.precision}",
                expected="a precision that holds what the networks compute",
                remedy="time the engine in fp32 or bf16",
            )
        return seconds


@contextlib.contextmanager
def _failures_noted(contender: Contender) -> Iterator[None]:
    """One contender's failure is its row's, and does not end the benchmark."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - backends raise what their libraries raise
        said = error.message(command_line=True) if isinstance(error, FeatInvError) else str(error)
        contender.row["error"] = f"{type(error).__name__}: {said}"


def _results(contender: Contender, baseline: Contender, batch: int) -> Row:
    """The entries of a row that was timed."""
    seconds = summary(contender.seconds)
    results: Row = {
        "seconds": seconds,
        "seconds_per_image": rounded(seconds["median"] / batch),
        "images_per_second": rounded(batch / seconds["median"]),
    }
    if contender is not baseline:
        ratios = [slow / fast for slow, fast in zip(baseline.seconds, contender.seconds, strict=True)]
        results["speed_up"] = {"over": baseline.row["backend"], **summary(ratios)}
    return results


def append(path: Path, row: Row) -> None:
    """Append one row to a JSONL file."""
    with file_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A head and a line for each row, for people."""
    lines = [["backend", "sampler", "batch", "median s", "p20 to p80", "images/s", "speed-up", "memory GiB", "gate"]]
    for row in rows:
        first = [f"{row['backend']} {row.get('precision', '')}".strip(), f"{row['sampler']}:{row['steps']}"]
        gate = f"{row['gate']['relative']:.1e}" if "gate" in row else "-"
        if "error" in row:
            lines.append([*first, str(row["batch"]), *["-"] * 5, "red" if "red" in row["error"] else gate])
            continue
        seconds, memory = row["seconds"], row["peak_memory"]
        ratio = f"{row['speed_up']['median']:.2f}x" if "speed_up" in row else "1"
        peak = memory.get("gpu_used_gib", memory.get("process_resident_gib"))
        lines.append(
            [
                *first,
                str(row["batch"]),
                f"{seconds['median']:.4g}",
                f"{seconds['p20']:.4g} to {seconds['p80']:.4g}",
                f"{row['images_per_second']:.4g}",
                ratio,
                "-" if peak is None else f"{peak:.2f}",
                gate,
            ]
        )
    return lines

"""The same images by plain layers, by fused operations, compiled, and in CUDA graphs: what each of them gains."""

from __future__ import annotations

import time
from typing import Any

from gpu_parts import weights
from gpu_parts.context import Context, RedGateError, Row, per_second, timing_entries
from gpu_parts.end_to_end import GUIDANCE, invert

from featinv_fast import Runtime
from featinv_fast.backends import torch_compile
from featinv_fast.commands.measuring import relative_error, rounded
from featinv_fast.errors import BackendUnavailableError

PLAIN = "plain layers"
FUSED = "fused operations"
STEP = "a graph for a step"
Options = dict[str, Any]
# `Runtime`'s options, slowest first; speed-ups are over the first.
PATHS: dict[str, Options] = {
    PLAIN: {"kernels": "off", "cuda_graphs": "off"},
    FUSED: {"kernels": "auto", "cuda_graphs": "off"},
    "a graph for a step, plain layers": {"kernels": "off", "cuda_graphs": "step"},
    STEP: {"kernels": "auto", "cuda_graphs": "step"},
    "a graph for all steps": {"kernels": "auto", "cuda_graphs": "loop"},
    "a graph for a step, all by triton": {"kernels": "triton", "cuda_graphs": "step"},
    "two streams": {"kernels": "auto", "cuda_graphs": "off", "two_streams": True},
    "a graph for a step, two streams": {"kernels": "auto", "cuda_graphs": "step", "two_streams": True},
}
# The most interesting first: each of them takes minutes to compile.
COMPILED_PATHS: dict[str, Options] = {
    "a graph for a step, compiled": {"kernels": "off", "cuda_graphs": "step", "compiled": True},
    "a graph for a step, fused and compiled": {"kernels": "auto", "cuda_graphs": "step", "compiled": True},
    "compiled": {"kernels": "off", "cuda_graphs": "off", "compiled": True},
}
LCM_STEPS = 4
# Between images in half precision; a path that computes something else is off by about 1.
TOLERANCE = 0.1


def run(context: Context) -> None:
    """Compare at each batch size in the first precision: guided DDIM, then LCM."""
    runtimes = _open_all(context, PATHS)
    lcm = {"sampler": "lcm", "steps": min(LCM_STEPS, context.sizes.baseline_steps), "guidance_scale": 1.0}
    for batch in context.sizes.step_batches:
        for setting in (_ddim(context), lcm):
            _compare(context, runtimes, batch, setting)


def run_compiled(context: Context) -> None:
    """Compare each way to compile with what is fastest without, guided, for the first batch size alone."""
    if context.dry:
        torch_compile.COMPILER = "eager"  # without a compiler: the same code but for what it makes
    others = _open_all(context, {name: PATHS[name] for name in (PLAIN, STEP)})
    for name, options in COMPILED_PATHS.items():
        runtimes = _open_all(context, {name: options})
        if runtimes:
            _compare(context, others | runtimes, context.sizes.step_batches[0], _ddim(context))


def _ddim(context: Context) -> Options:
    return {"sampler": "ddim", "steps": context.sizes.baseline_steps, "guidance_scale": GUIDANCE}


def _open_all(context: Context, paths: dict[str, Options]) -> dict[str, Runtime]:
    """Those that can be served; a row says why the others cannot."""
    precision = str(context.sizes.precisions[0])
    runtimes = {}
    for name, options in paths.items():
        with context.failures_noted("launch path", contender=name, precision=precision):
            try:
                runtimes[name] = _open(context, options)
            except BackendUnavailableError as error:
                reasons = error.reasons["torch"]
                context.emit("launch path", "not served", contender=name, precision=precision, reasons=reasons)
    return runtimes


def _open(context: Context, options: Options) -> Runtime:
    # On a CPU the layers stay plain unless a provider is named.
    kernels = "reference" if context.dry and options["kernels"] == "auto" else options["kernels"]
    return Runtime(
        weights.engine(context),
        backend="torch",
        device=str(context.device),
        precision=context.sizes.precisions[0],
        **{**options, "kernels": kernels},
    )


def _compare(context: Context, runtimes: dict[str, Runtime], batch: int, setting: Options) -> None:
    common: Row = {"batch": batch, "precision": str(context.sizes.precisions[0]), **setting}
    with context.failures_noted("launch path", **common):
        _compare_paths(context, runtimes, batch, setting, common)


def _compare_paths(context: Context, runtimes: dict[str, Runtime], batch: int, setting: Options, common: Row) -> None:
    """Gate every path against plain layers, note how long its first call takes, then time those that are right."""
    _, features = weights.inputs(context, batch)
    features = features.cpu()
    expected = invert(runtimes[PLAIN], features, output_type="torch", **setting).images
    notes: dict[str, Row] = {}
    for name, runtime in runtimes.items():
        with context.failures_noted("launch path", contender=name, **common):
            start = time.perf_counter()
            images = invert(runtime, features, output_type="torch", **setting).images
            first = time.perf_counter() - start
            error = relative_error(images, expected)
            if not error <= TOLERANCE:
                raise RedGateError(f"{name} and {PLAIN} differ by {error:.2g}, tolerance {TOLERANCE}")
            graphs = runtime.info["cuda_graphs"]
            notes[name] = {"first_seconds": rounded(first), "cuda_graphs": graphs["mode"], "reasons": graphs["reasons"]}
            notes[name]["gate"] = {"relative": error, "tolerance": TOLERANCE}
    calls = {name: lambda runtime=runtimes[name]: invert(runtime, features, **setting) for name in notes}
    seconds = context.interleave(calls, share=0.4)
    for name, row in notes.items():
        entries = timing_entries(seconds, name, PLAIN)
        context.emit(
            "launch path",
            contender=name,
            **common,
            **row,
            **entries,
            images_per_second=per_second(batch, entries["seconds"]),
        )

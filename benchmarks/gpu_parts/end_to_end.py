"""From feature maps to images through `Runtime.invert`, as users call it: batch sizes, samplers, precisions."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import baseline
import torch
from gpu_parts import weights
from gpu_parts.context import DTYPES, Context, RedGateError, per_second, timing_entries
from gpu_parts.graphs import graph_operations
from torch import Tensor

from featinv_fast import Runtime
from featinv_fast.commands.measuring import PeakMemory, relative_error, rounded
from featinv_fast.config import Precision
from featinv_fast.runtime import Inversion, RunFlags
from featinv_fast.samplers import build

GATE_STEPS = 2
GATE_BATCH = 2
GUIDANCE = 1.75
# The straightforward loop's own error below which twice of it says nothing.
SMALLEST = 1e-4


def run(context: Context) -> None:
    """Gate each precision, then time everything, the most interesting first."""
    truth, usual = straightforward_images(context)
    folder = weights.engine(context)
    runtimes = {}
    for precision in context.sizes.precisions:
        with context.measured("images", precision=str(precision)) as row:
            runtime = Runtime(folder, backend="torch", device=str(context.device), precision=precision)
            latents, features = weights.inputs(context, GATE_BATCH)
            options = {"sampler": "ddim", "steps": GATE_STEPS, "guidance_scale": GUIDANCE, "output_type": "torch"}
            error = relative_error(invert(runtime, features, latents=latents, **options).images, truth)
            allowed = 2 * usual[precision] + SMALLEST
            row["gate"] = {"relative": error, "relative_of_torch": usual[precision], "tolerance": allowed}
            row["gate_is"] = f"images of {GATE_STEPS} DDIM steps against the straightforward loop in fp32"
            if not error <= allowed:
                raise RedGateError(f"relative error {error:.2g}, the straightforward loop has {usual[precision]:.2g}")
            runtimes[precision] = runtime
    runs = list(itertools.product(context.sizes.batches, context.sizes.runs))
    # Few steps first: many settings are then known before the long ones take their time.
    for precision, (batch, setting) in itertools.product(runtimes, sorted(runs, key=lambda run: run[0] * run[1][1])):
        _time(context, runtimes[precision], precision, batch, *setting)


@torch.inference_mode()
def straightforward_images(context: Context) -> tuple[Tensor, dict[Precision, float]]:
    """What the straightforward loop gives in fp32 [2, 3, H, W], and how far it is from that in other precisions."""
    # Of fp32 itself, not of the TF32 in which convolutions may compute it.
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    truth = _straightforward(context, torch.float32)
    torch.backends.cudnn.allow_tf32 = before
    found = {p: relative_error(_straightforward(context, DTYPES[p]), truth) for p in context.sizes.precisions}
    return truth, found


def _straightforward(context: Context, dtype: torch.dtype) -> Tensor:
    model, prompts = weights.plain_model(context, dtype)
    latents, features = weights.inputs(context, GATE_BATCH)
    final = baseline.sample(model, prompts, features, latents, steps=GATE_STEPS, guidance_scale=GUIDANCE)
    return model.autoencoder.decode(final).float().cpu()


def invert(runtime: Runtime, features: Tensor, **options: Any) -> Inversion:
    """One call on maps that are on the CPU, as they come from users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # random maps are like no backbone's
        return runtime.invert(features.cpu(), layout="nchw", batch_size=len(features), **options)


def _time(
    context: Context, runtime: Runtime, precision: Precision, batch: int, sampler: str, steps: int, guidance: float
) -> None:
    """Time one setting: uint8 images, from maps on the CPU to images on the CPU."""
    what = {"precision": str(precision), "batch": batch, "sampler": sampler, "steps": steps, "guidance_scale": guidance}
    with context.measured("end to end", engine="random weights", **what) as row:
        _, features = weights.inputs(context, batch)
        features = features.cpu()
        options = {"sampler": sampler, "steps": steps, "guidance_scale": guidance}
        memory = PeakMemory(context.device)
        flags: list[RunFlags] = []
        name = f"{sampler}:{steps}"
        call = {name: lambda: flags.append(invert(runtime, features, **options).flags)}
        seconds = context.interleave(call, share=0.1)
        if flags[-1].batch_size < batch:
            raise MemoryError(f"{batch} images do not fit, {flags[-1].batch_size} do")
        if flags[-1].recomputed:
            raise RedGateError(f"{len(flags[-1].recomputed)} rows overflowed and were computed again in fp32")
        row |= timing_entries(seconds, name)
        row |= {"backend": flags[-1].backend, "peak_memory": memory.read()}
        row["images_per_second"] = per_second(batch, row["seconds"])
        row["seconds_per_image"] = rounded(row["seconds"]["median"] / batch)
        graphs = graph_operations(context, batch)
        denoiser = graphs["denoiser" if guidance != 1.0 else "denoiser_unguided"]
        operations = graphs["condition_encoder"] + len(build(sampler, steps)) * denoiser + graphs["decoder"]
        row["operations"] = operations
        row["tflops"] = per_second(operations / 1e12, row["seconds"])
        if str(precision) in context.rates:
            row["share_of_product_rate"] = rounded(row["tflops"] * 1e12 / context.rates[str(precision)], 3)

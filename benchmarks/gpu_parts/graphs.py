"""The engine's graphs against the plain networks: exact in float64, as accurate as torch below that, and how fast.

Every rewrite, and every kernel that the torch backend uses here, is part of a graph and so of these comparisons.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_parts import weights
from gpu_parts.context import DTYPES, Context, RedGateError, per_second, timing_entries
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from featinv_fast.backends import Session
from featinv_fast.commands.measuring import PeakMemory, relative_error
from featinv_fast.models import FeatInv
from featinv_fast.rewrites.engine_model import EngineModel

EXACT = 1e-10
# Where torch happens to round to the truth, twice its error says nothing.
ROUNDINGS = 2.0
TIME, GUIDANCE = 481.0, 1.75
GATE_BATCH = 2
Calls = dict[str, Callable[[], Tensor]]


def run(context: Context) -> None:
    """Exactness, accuracy in each precision, then time."""
    # Truth and accuracy are of fp32 itself, not of the TF32 in which convolutions may compute it.
    torch.backends.cudnn.allow_tf32 = False
    truths = _exactness(context)
    folder = weights.engine(context)
    for precision in context.sizes.precisions:
        session = None
        with context.failures_noted("graphs", precision=str(precision)):
            session = weights.session(context, folder, precision)
            right = _accuracy(context, session, truths)
            for batch in context.sizes.step_batches:
                _time(context, session, right, batch)
        del session
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


def plain_calls(model: FeatInv, prompts: Tensor, latents: Tensor, condition: Tensor, features: Tensor) -> Calls:
    """What each graph of an engine computes, on the plain networks."""
    dtype = torch.promote_types(model.denoiser.unet.conv_out.weight.dtype, torch.float32)
    latents, condition, features = (t.to(dtype) for t in (latents, condition, features))
    time, scale = (torch.tensor(value, dtype=dtype, device=latents.device) for value in ([TIME], GUIDANCE))
    scales = torch.ones(2, model.config.control_count, dtype=dtype, device=latents.device)
    denoiser = model.denoiser
    return {
        "condition_encoder": lambda: model.condition_encoder(features),
        "denoiser": lambda: denoiser(latents, condition, time, prompts, scales, scale),
        "denoiser_unguided": lambda: denoiser(latents, condition, time, prompts[:1], scales[:1]),
        "decoder": lambda: model.autoencoder.decode(latents),
    }


def our_calls(
    run_graph: Callable[..., Tensor], controls: int, latents: Tensor, condition: Tensor, features: Tensor
) -> Calls:
    """The same, by an engine's graphs."""
    time, scale = (torch.tensor(value, dtype=latents.dtype, device=latents.device) for value in ([TIME], GUIDANCE))
    scales = torch.ones(2, controls, dtype=latents.dtype, device=latents.device)
    (row,) = run_graph("time_embedding", time)
    return {
        "condition_encoder": lambda: run_graph("condition_encoder", features),
        "denoiser": lambda: run_graph("denoiser", latents, condition, row, scale, scales),
        "denoiser_unguided": lambda: run_graph("denoiser_unguided", latents, condition, row, scales[:1]),
        "decoder": lambda: run_graph("decoder", latents),
    }


def graph_operations(context: Context, batch: int) -> dict[str, int]:
    """Multiplications and additions of each graph on the plain networks, as a counter sees them."""
    config, spec = context.sizes.model, context.sizes.features
    with torch.device("meta"):
        model = FeatInv(config)
        prompts = torch.empty(2, config.context_tokens, config.context_channels)
        latents = torch.empty(batch, config.latent_channels, config.latent_size, config.latent_size)
        condition = torch.empty(batch, config.channels, config.latent_size, config.latent_size)
        features = torch.empty(batch, config.feature_channels, spec.height, spec.width)
    found = {}
    with torch.no_grad():
        for name, call in plain_calls(model, prompts, latents, condition, features).items():
            with FlopCounterMode(display=False) as counter:
                call()
            found[name] = counter.get_total_flops()
    return found


def _gate_inputs(context: Context) -> tuple[Tensor, Tensor, Tensor]:
    latents, features = weights.inputs(context, GATE_BATCH)
    size = context.sizes.model.latent_size
    generator = torch.Generator().manual_seed(7)
    condition = torch.randn(GATE_BATCH, context.sizes.model.channels, size, size, generator=generator)
    return latents, condition.to(context.device), features


@torch.inference_mode()
def _exactness(context: Context) -> dict[str, Tensor]:
    """The rewritten networks in float64 against the plain ones; the plain ones' results are the truth from here on."""
    model, prompts = weights.plain_model(context, torch.float64)
    inputs = [tensor.double() for tensor in _gate_inputs(context)]
    truths = {name: call() for name, call in plain_calls(model, prompts, *inputs).items()}
    graphs = EngineModel(model, prompts).graphs()
    rewritten = our_calls(lambda name, *given: graphs[name](*given), model.config.control_count, *inputs)
    for name, call in rewritten.items():
        with context.measured("rewrites in float64", graph=name, dtype="float64") as row:
            error = relative_error(call(), truths[name])
            row["gate"] = {"relative": error, "tolerance": EXACT}
            if not error <= EXACT:
                raise RedGateError(f"relative error {error:.2g}, exact is {EXACT:g}")
    return truths


@torch.inference_mode()
def _accuracy(context: Context, session: Session, truths: dict[str, Tensor]) -> list[str]:
    """Our error against twice that of plain torch in the same precision; the graphs that pass are returned."""
    dtype = DTYPES[session.precision]
    inputs = _gate_inputs(context)
    model, prompts = weights.plain_model(context, dtype)
    usual = {name: relative_error(call(), truths[name]) for name, call in plain_calls(model, prompts, *inputs).items()}
    del model
    right = []
    for name, call in our_calls(session.run, context.sizes.model.control_count, *inputs).items():
        with context.measured("graph accuracy", graph=name, precision=str(session.precision)) as row:
            error = relative_error(call(), truths[name])
            allowed = 2 * usual[name] + ROUNDINGS * torch.finfo(dtype).eps
            row["gate"] = {"relative": error, "relative_of_torch": usual[name], "tolerance": allowed}
            if not error <= allowed:
                raise RedGateError(f"relative error {error:.2g}, torch has {usual[name]:.2g}")
            right.append(name)
    return right


@torch.inference_mode()
def _time(context: Context, session: Session, graphs: list[str], batch: int) -> None:
    """Time each graph that is right at one batch size."""
    latents, features = weights.inputs(context, batch)
    condition = session.run("condition_encoder", features)
    calls = our_calls(session.run, context.sizes.model.control_count, latents, condition, features)
    operations = graph_operations(context, batch)
    for name in graphs:
        with context.measured("graph time", graph=name, precision=str(session.precision), batch=batch) as row:
            memory = PeakMemory(context.device)
            contenders = {name: calls[name]}
            if context.device.type == "cuda":  # without the launches' own time, which the loop does not pay either
                contenders[name] = context.repeated(calls[name])
                contenders["launched"] = calls[name]
            seconds = context.interleave(contenders, share=0.1, calls=3)
            row |= timing_entries(seconds, name) | {"captured": context.device.type == "cuda"}
            if "launched" in seconds:
                row["seconds_launched"] = timing_entries(seconds, "launched")["seconds"]
            row |= {"peak_memory": memory.read(), "operations": operations[name]}
            row["tflops"] = per_second(operations[name] / 1e12, row["seconds"])
            if str(session.precision) in context.rates:
                row["share_of_product_rate"] = row["tflops"] * 1e12 / context.rates[str(session.precision)]

"""Our sampling loop against others that do the same work: the straightforward one, and diffusers, eager or compiled."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import baseline
import torch
from gpu_parts import weights
from gpu_parts.context import DTYPES, Context, RedGateError, Row, per_second, timing_entries
from torch import Tensor, nn

from featinv_fast.backends import Session
from featinv_fast.checkpoints.diffusers_configs import SCHEDULER, component_configs
from featinv_fast.checkpoints.diffusers_layout import LAYOUT
from featinv_fast.checkpoints.recipe import Recipe
from featinv_fast.commands.measuring import relative_error
from featinv_fast.runtime.graph_loop import CudaGraphs, GraphLoop
from featinv_fast.runtime.sampling import make_plan
from featinv_fast.samplers import build

GUIDANCE = 1.75
OURS, STRAIGHTFORWARD, EAGER, COMPILED = "ours", "straightforward torch loop", "diffusers eager", "diffusers compiled"
# Between loops in half precision; a loop that computes something else is off by about 1.
TOLERANCE = 0.1
Loop = Callable[[Tensor, Tensor], Tensor]


def run_straightforward(context: Context) -> None:
    """Ours against two sequential passes a step with the condition encoder in each."""
    model, prompts = weights.plain_model(context, DTYPES[context.sizes.precisions[0]])
    model = model.to(memory_format=torch.channels_last)

    def loop(latents: Tensor, features: Tensor) -> Tensor:
        steps = context.sizes.baseline_steps
        return baseline.sample(model, prompts, features, latents, steps=steps, guidance_scale=GUIDANCE)

    _compare(context, STRAIGHTFORWARD, loop)


def run_eager(context: Context) -> None:
    """Ours against diffusers as it is: channels last, both branches in one batch."""
    _compare_with_diffusers(context, EAGER, {})


def run_compiled(context: Context) -> None:
    """Ours against diffusers with its networks compiled."""
    _compare_with_diffusers(context, COMPILED, dict(context.sizes.compile))


def _compare_with_diffusers(context: Context, name: str, compile_options: dict[str, Any]) -> None:
    if importlib.util.find_spec("diffusers") is None:
        context.emit("loop", "not served", contender=name, reasons=["diffusers is not installed"])
        return
    _compare(context, name, diffusers_loop(context, compile_options))


def diffusers_loop(context: Context, compile_options: dict[str, Any]) -> Loop:
    """The same weights in diffusers' networks, with its DDIM scheduler; the condition encoder runs once per image.

    Args:
        context: of the part.
        compile_options: of `torch.compile`; empty for eager mode.
    """
    from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel

    dtype = DTYPES[context.sizes.precisions[0]]
    tensors = weights.plain_tensors(context)
    context_rows = tensors.pop("prompts").to(context.device, dtype)  # [2, T, D]
    theirs = Recipe.make(LAYOUT, context.sizes.model).write(tensors)
    configs = component_configs(context.sizes.model)

    def network(kind: Any, name: str) -> nn.Module:
        with torch.device("meta"):
            made = kind.from_config({key: value for key, value in configs[name].items() if key != "_class_name"})
        own = {k.removeprefix(f"{name}."): t for k, t in theirs.items() if k.startswith(f"{name}.")}
        made.load_state_dict({k: t.to(context.device, dtype) for k, t in own.items()}, assign=True)
        return made.to(memory_format=torch.channels_last).eval().requires_grad_(requires_grad=False)

    unet, controlnet = network(UNet2DConditionModel, "unet"), network(ControlNetModel, "controlnet")
    # The checkpoint layout fills it with an identity made of two convolutions, which is work that ours does not do.
    controlnet.controlnet_cond_embedding = nn.Identity()
    if compile_options:
        unet, controlnet = torch.compile(unet, **compile_options), torch.compile(controlnet, **compile_options)
    model, _ = weights.plain_model(context, dtype)
    scheduler = DDIMScheduler.from_config({k: v for k, v in SCHEDULER.items() if k != "_class_name"})

    @torch.inference_mode()
    def loop(latents: Tensor, features: Tensor) -> Tensor:
        condition = model.condition_encoder(features).to(dtype).repeat(2, 1, 1, 1)
        prompts = context_rows.repeat_interleave(len(latents), dim=0)  # [2 * B, T, D]
        scheduler.set_timesteps(context.sizes.baseline_steps, device=context.device)
        for time in scheduler.timesteps:
            torch.compiler.cudagraph_mark_step_begin()
            x = latents.to(dtype).repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
            down, middle = controlnet(x, time, prompts, controlnet_cond=condition, return_dict=False)
            (eps,) = unet(
                x,
                time,
                prompts,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )
            conditional, unconditional = eps.float().chunk(2)
            guided = unconditional + GUIDANCE * (conditional - unconditional)
            latents = scheduler.step(guided, time, latents, return_dict=False)[0]
        return latents

    return loop


def our_loop(context: Context, session: Session) -> Loop:
    """The loop of `Runtime.invert` on our torch backend."""
    table = build("ddim", context.sizes.baseline_steps)
    options = {"guidance_scale": GUIDANCE, "strength": 1.0, "guess_mode": False}
    plan = make_plan(session, context.sizes.model, table, **options)
    steps = GraphLoop(session, CudaGraphs.AUTO, max(context.sizes.step_batches))

    def loop(latents: Tensor, features: Tensor) -> Tensor:
        condition = session.run("condition_encoder", features)
        final, _ = steps(plan, condition, latents, (), lambda: None, decode=False)
        return final

    return loop


def _compare(context: Context, name: str, other: Loop) -> None:
    """Gate and time both loops in turns, at each batch size."""
    precision = context.sizes.precisions[0]
    ours = our_loop(context, weights.session(context, weights.engine(context), precision))
    for batch in context.sizes.step_batches:
        common: Row = {"batch": batch, "precision": str(precision), "steps": context.sizes.baseline_steps}
        with context.failures_noted("loop", contender=name, **common):
            latents, features = weights.inputs(context, batch)
            loops = {
                name: lambda x=latents, f=features: other(x, f),
                OURS: lambda x=latents, f=features: ours(x, f),
            }
            error = relative_error(loops[OURS](), loops[name]())
            if not error <= TOLERANCE:
                raise RedGateError(f"ours and {name} differ by {error:.2g}, tolerance {TOLERANCE}")
            seconds = context.interleave(loops, share=0.5)
            for contender in loops:
                entries = timing_entries(seconds, contender, name)
                step = entries["seconds"]["median"] / context.sizes.baseline_steps
                entries |= {"compared_with": name, "gate": {"relative": error, "tolerance": TOLERANCE}}
                rate = per_second(batch * context.sizes.baseline_steps, entries["seconds"])
                context.emit(
                    "loop",
                    contender=contender,
                    **common,
                    **entries,
                    seconds_per_step=step,
                    sample_steps_per_second=rate,
                )

"""Times a guided step and the decoder: the straightforward torch loop and our backends, interleaved in one process.

    python benchmarks/step_speed.py --ckpt FILE --engine DIR [--rounds 9] [--threads N]

Batch 1, fp32, CPU. First comes the gate: what is timed must compute the same. A step includes guidance and the
sampler's update. Ours leaves out what Runtime does once per image, the condition encoder, which the straightforward
loop repeats in each pass. Prints one JSON object for each comparison; `full_size.py` adds the machine and the memory
and writes the rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import baseline
import torch
from rows import available_cores, summary
from torch import Tensor
from tqdm import trange

from featinv_fast import Runtime
from featinv_fast.backends import Request, Session, load
from featinv_fast.checkpoints import load as load_checkpoint
from featinv_fast.engine import EngineFolder, open_engine
from featinv_fast.models import FeatInv
from featinv_fast.runtime.sampling import make_plan, sample
from featinv_fast.samplers import build

BACKENDS = ("torch", "onnxruntime")
BASELINE = "straightforward torch loop"
PLAIN_DECODER = "plain torch"
GUIDANCE = 1.75
GATE_STEPS = 4
GATE = 1e-4  # norm of the difference over the norm of the baseline's result
WARM_UP = 1


def plain_model(checkpoint_path: Path) -> tuple[FeatInv, Tensor]:
    """The plain networks and the prompts [2, T, D].

    The weights stay memory-mapped, as they are in our torch backend: a copy was measured to be no faster (1%).
    """
    checkpoint = load_checkpoint(checkpoint_path)
    with torch.device("meta"):
        model = FeatInv(checkpoint.config)
    model.load_state_dict(checkpoint.tensors, assign=True)
    prompts = torch.cat([checkpoint.prompts["cond"], checkpoint.prompts["uncond"]])
    return model.eval().requires_grad_(requires_grad=False), prompts


def relative(given: Tensor, expected: Tensor) -> float:
    """|given - expected| / |expected|, in float64; NaN is not small."""
    return ((given.double() - expected.double()).norm() / expected.double().norm()).item()


def gate(errors: Mapping[str, float], tolerance: float) -> dict[str, Any]:
    """The gate's entry in a row.

    Raises:
        SystemExit: an error is not within the tolerance; nothing is reported then.
    """
    red = {name: error for name, error in errors.items() if not error <= tolerance}
    if red:
        sys.exit(f"the gate is red, so no time is reported: relative errors {red}, tolerance {tolerance}")
    return {"tolerance": tolerance, "relative": {name: float(f"{error:.3g}") for name, error in errors.items()}}


def interleave(contenders: Mapping[str, Callable[[], Tensor]], rounds: int, what: str) -> dict[str, Any]:
    """Time the contenders in turn, round by round. Speed-ups are over the first one, within a round."""
    for contender in contenders.values():
        for _ in range(WARM_UP):
            contender()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in trange(rounds, desc=what, leave=False, disable=None):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - start)
    first, *others = contenders
    return {
        "warm_up": WARM_UP,
        "rounds": rounds,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "speed_up": {
            name: summary([slow / fast for slow, fast in zip(seconds[first], seconds[name], strict=True)])
            for name in others
        },
    }


def compare(
    engine: EngineFolder, model: FeatInv, prompts: Tensor, *, rounds: int, threads: int, tolerance: float
) -> list[dict[str, Any]]:
    """Gate and time; the rows' entries that only this process knows."""
    spec, config = engine.manifest.features, engine.manifest.model
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, spec.channels, spec.height, spec.width, generator=generator)
    latents = torch.randn(1, config.latent_channels, config.latent_size, config.latent_size, generator=generator)

    def straightforward(steps: int) -> Tensor:
        return baseline.sample(model, prompts, features, latents, steps=steps, guidance_scale=GUIDANCE)

    # The public interface over a few steps; then what is timed, the same loop and sessions without the rest.
    expected = straightforward(GATE_STEPS)
    through_runtime = {}
    for backend in BACKENDS:
        runtime = Runtime(engine, backend=backend, device="cpu", threads=threads)
        result = runtime.invert(
            features,
            steps=GATE_STEPS,
            sampler="ddim",
            guidance_scale=GUIDANCE,
            latents=latents,
            layout="nchw",
            output_type="latent",
        )
        through_runtime[backend] = relative(result.latents, expected)
        del runtime, result
        gc.collect()  # two copies of onnxruntime's packed weights would not fit beside the rest
    checked = gate(through_runtime, tolerance)

    request = Request(engine=engine, device=torch.device("cpu"), threads=threads)
    sessions = {backend: load(request, backend) for backend in BACKENDS}

    def our_step(session: Session) -> Callable[[], Tensor]:
        plan = make_plan(session, config, build("ddim", 1), guidance_scale=GUIDANCE, strength=1.0, guess_mode=False)
        condition = session.run("condition_encoder", features)
        return lambda: sample(session, plan, condition, latents, (), lambda: None)

    steps = {BASELINE: lambda: straightforward(1)}
    steps |= {backend: our_step(session) for backend, session in sessions.items()}
    gate({backend: relative(steps[backend](), straightforward(1)) for backend in BACKENDS}, tolerance)

    @torch.inference_mode()
    def decode() -> Tensor:
        return model.autoencoder.decode(latents)

    decoders = {PLAIN_DECODER: decode}
    decoders |= {backend: lambda s=session: s.run("decoder", latents) for backend, session in sessions.items()}
    decoder_errors = {backend: relative(decoders[backend](), decode()) for backend in BACKENDS}
    common = {"dtype": str(engine.manifest.precision), "batch": 1}
    return [
        {
            "what": "guided step",
            "shape": {"latents": list(latents.shape), "features": list(features.shape)},
            **common,
            "guidance_scale": GUIDANCE,
            "gate": {"steps": GATE_STEPS, **checked},
            **interleave(steps, rounds, "guided step"),
        },
        {
            "what": "decoder",
            "shape": {"latents": list(latents.shape), "images": list(decode().shape)},
            **common,
            "gate": gate(decoder_errors, tolerance),
            **interleave(decoders, rounds, "decoder"),
        },
    ]


def main() -> None:
    """Parse the command line, compare, report."""
    parser = argparse.ArgumentParser(description="Time a guided step and the decoder, interleaved.")
    parser.add_argument("--ckpt", type=Path, required=True, help="the checkpoint, with stored prompts")
    parser.add_argument("--engine", type=Path, required=True, help="the fp32 engine that was exported from it")
    parser.add_argument("--rounds", type=int, default=9, help="at least 2")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--tolerance", type=float, default=GATE, help="of the gate, relative")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("percentiles need at least 2 rounds")
    torch.set_num_threads(arguments.threads)
    model, prompts = plain_model(arguments.ckpt)
    for row in compare(
        open_engine(arguments.engine),
        model,
        prompts,
        rounds=arguments.rounds,
        threads=arguments.threads,
        tolerance=arguments.tolerance,
    ):
        print(json.dumps(row))


if __name__ == "__main__":
    main()

"""What an engine computes with its stored weights in fp32: the reference where its checkpoint is not at hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from featinv_export.parity import BATCHES, CPU, FEATURE_SIZES, Candidate, Case, random_inputs
from featinv_fast.backends.torch_ import WEIGHT_FILE, TorchSession
from featinv_fast.config import Precision
from featinv_fast.engine import GraphSpec


def stored_cases(candidate: Candidate) -> list[Case]:
    """Inputs and results of every graph at two batch sizes, computed by torch on the CPU in fp32."""
    session = TorchSession(
        candidate.config,
        candidate.folder / WEIGHT_FILE,
        device=CPU,
        precision=Precision.FP32,
        kept_fp32=candidate.kept_fp32,
    )
    generator = torch.Generator().manual_seed(0)
    cases = []
    for batch, sizes in zip(BATCHES, FEATURE_SIZES, strict=True):
        values = random_inputs(candidate.specs, batch, sizes, generator)
        branch_scales = values["control_scales"]
        for name, spec in _in_order(candidate.specs).items():
            values["control_scales"] = branch_scales if name == "denoiser" else branch_scales[:1]
            inputs = tuple(values[tensor] for tensor in spec.input_names)
            expected = session.run(name, *inputs)
            cases.append(Case(name, batch, inputs, expected))
            # What the first two graphs compute is what the denoisers take.
            values |= {"condition_encoder": {"condition": expected}, "time_embedding": {"time_bias": expected[0]}}.get(
                name, {}
            )
    return cases


def unknown_cases(specs: Mapping[str, GraphSpec]) -> list[Case]:
    """The places of all cases, for what cannot be run: without inputs and results, which would take minutes."""
    return [Case(name, batch, (), torch.empty(0)) for batch in BATCHES for name in specs]


def _in_order(specs: Mapping[str, GraphSpec]) -> dict[str, GraphSpec]:
    """The graphs, those first whose results others take."""
    return {name: specs[name] for name in sorted(specs, key=lambda name: name.startswith("denoiser"))}

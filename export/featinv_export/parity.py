"""Every graph of a new engine against the plain model, before anything is installed.

The reference is the straightforward computation in fp32 without rewrites: prompts go through every cross-attention,
timesteps through both time embeddings, and the two branches of guidance run one after the other.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.backends.base import Session
from featinv_fast.backends.torch_ import WEIGHT_FILE, TorchSession
from featinv_fast.config import ModelConfig, Precision
from featinv_fast.engine import GraphSpec, Manifest, ParityInfo, ParityStatus
from featinv_fast.errors import ParityError
from featinv_fast.models import FeatInv
from featinv_fast.models.layers import ResidualBlock

# Two batch sizes, neither of them the traced example's: a graph that took a size for a constant fails at one of them.
BATCHES = (1, 2)
# Of features of unknown size: not square, once smaller and once larger than the latent.
FEATURE_SIZES = ({"height": 9, "width": 12}, {"height": 40, "width": 36})
GUIDANCE_SCALE = 1.75

# Limits on the relative norm of the difference. In fp32 a change of summation order moves a network by 2e-6; fp16 was
# seen to move it by 3e-3, and bf16 rounds eight times as coarsely.
TOLERANCES = {Precision.FP32: 2e-5, Precision.FP16: 1e-2, Precision.BF16: 8e-2}

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of a graph, in the order of its spec, and what the plain model makes of them."""

    graph: str
    batch: int
    inputs: tuple[Tensor, ...]
    expected: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One graph on one backend at one batch size: a `ParityInfo` that may also have failed.

    Attributes:
        status: "passed", "failed" or "not run".
        reason: why it was not run, or what the backend said when it failed.
    """

    graph: str
    backend: str
    batch: int
    status: str
    max_abs: float | None = None
    relative: float | None = None
    tolerance: float | None = None
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The files of an engine that is not installed yet, and what is known of it."""

    folder: Path
    config: ModelConfig
    specs: Mapping[str, GraphSpec]
    precision: Precision
    kept_fp32: tuple[str, ...]
    storage: Precision | None = None  # of the weights, where it is not `precision`

    @classmethod
    def of_engine(cls, manifest: Manifest, folder: Path) -> Candidate:
        """Files of an engine in `folder`, some of which may be new, as its `manifest` has them."""
        return cls(
            folder=folder,
            config=manifest.model,
            specs=manifest.graph_specs(),
            precision=manifest.precision,
            kept_fp32=manifest.kept_fp32,
            storage=manifest.storage,
        )

    def tolerance(self, graph: str) -> float:
        """The limit on a graph's relative difference."""
        # The time embedding is kept in fp32 in every precision. Rounded weights cost as much as rounded products.
        if graph == "time_embedding":
            return TOLERANCES[Precision.FP32]
        return max(TOLERANCES[self.precision], TOLERANCES[self.storage or self.precision])


@torch.inference_mode()
def reference_cases(model: FeatInv, prompts: Tensor, specs: Mapping[str, GraphSpec]) -> list[Case]:
    """What the plain `model` computes with `prompts` [2, T, D], for each graph at both batch sizes."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for batch, sizes in zip(BATCHES, FEATURE_SIZES, strict=True):
        values = random_inputs(specs, batch, sizes, generator)
        branch_scales = values["control_scales"]  # [2, 13]

        condition = values["condition"] = model.condition_encoder(values["features"])
        rows = _time_rows(model, values["timesteps"], values.get("guidance"))  # [S, T]
        values["time_bias"] = rows[0]
        guidance = values["guidance"][:1] if "guidance" in values else None
        conditional, unconditional = (
            model.denoiser(
                values["latents"],
                condition,
                values["timesteps"][:1],
                prompts[i : i + 1],
                branch_scales[i : i + 1],
                guidance=guidance,
            )
            for i in range(2)
        )
        expected = {
            "condition_encoder": condition,
            "time_embedding": rows,
            "denoiser": unconditional + GUIDANCE_SCALE * (conditional - unconditional),
            "denoiser_unguided": conditional,
            "decoder": model.autoencoder.decode(values["latents"]),
        }
        for name, spec in specs.items():
            values["control_scales"] = branch_scales if name == "denoiser" else branch_scales[:1]
            inputs = tuple(values[tensor] for tensor in spec.input_names)
            cases.append(Case(name, batch, inputs, expected[name]))
    return cases


def random_inputs(
    specs: Mapping[str, GraphSpec], batch: int, sizes: Mapping[str, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Those inputs of the graphs that no other graph computes, by name; `control_scales` for two branches."""
    shapes = {
        name: shape
        for spec in specs.values()
        for name, shape in spec.input_shapes({"batch": batch, "steps": batch} | dict(sizes)).items()
    }
    values = {name: torch.randn(shapes[name], generator=generator) for name in ("features", "latents")}
    values["timesteps"] = torch.linspace(481.0, 1.0, batch)  # [S]
    if "guidance" in shapes:
        values["guidance"] = torch.full((batch,), GUIDANCE_SCALE)  # [S]
    values["guidance_scale"] = torch.tensor(GUIDANCE_SCALE)
    # All different, so that no two residuals or branches can be exchanged.
    scales = 0.5 + 0.5 * torch.rand(shapes["control_scales"][1:], generator=generator)
    values["control_scales"] = torch.stack([scales, scales.flip(0)])  # [2, 13]
    return values


def _time_rows(model: FeatInv, timesteps: Tensor, guidance: Tensor | None) -> Tensor:
    """What each residual block adds at `timesteps` [S], ControlNet first, side by side: [S, T]."""
    biases = []
    for network, scale in ((model.denoiser.controlnet, None), (model.denoiser.unet, guidance)):
        embedded = network.time_embedding(timesteps, scale)  # [S, 4 * channels]
        blocks = [block for block in network.modules() if isinstance(block, ResidualBlock)]
        biases += [block.time_projection(embedded) for block in blocks if block.time_projection is not None]
    return torch.cat(biases, dim=1)


def compare_torch(candidate: Candidate, cases: Sequence[Case]) -> list[Comparison]:
    """Run all cases on torch, with the weights as they are stored."""
    if has_kernels(candidate.precision):
        session = functools.partial(_torch_session, candidate, candidate.precision)
        return run_all(candidate, "torch", cases, session)
    # Torch would fall back to loops that are hundreds of times slower. The stored weights can still be checked.
    results = not_run("torch", cases, f"this CPU has no {candidate.precision} convolutions")
    session = functools.partial(_torch_session, candidate, Precision.FP32)
    return results + run_all(candidate, "torch in fp32", cases, session)


def require_passed(results: Sequence[Comparison], report_path: Path) -> tuple[ParityInfo, ...]:
    """The results for the manifest.

    Raises:
        ParityError: a comparison failed. All results are then written to `report_path`.
    """
    failed = [result for result in results if result.status == "failed"]
    if failed:
        rows = [{name: _json_number(value) for name, value in dataclasses.asdict(r).items()} for r in results]
        report_path.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        raise ParityError(
            f"{len(failed)} of {len(results)} comparisons with the plain model failed; nothing was installed",
            given="; ".join(_description(result) for result in failed[:10]),
            expected="differences within the tolerances",
            remedy=f"try a wider precision; where fp32 fails, please report it with {report_path}",
        )
    return tuple(
        ParityInfo(**dataclasses.asdict(result) | {"status": ParityStatus(result.status)}) for result in results
    )


def has_kernels(precision: Precision) -> bool:
    """Whether torch computes in `precision` on this CPU without emulating it."""
    supported = {
        Precision.FP16: torch.ops.mkldnn._is_mkldnn_fp16_supported,  # noqa: SLF001 -- there is no public name
        Precision.BF16: torch.ops.mkldnn._is_mkldnn_bf16_supported,  # noqa: SLF001
    }
    return precision not in supported or supported[precision]()


def _torch_session(candidate: Candidate, precision: Precision) -> Session:
    return TorchSession(
        candidate.config,
        candidate.folder / WEIGHT_FILE,
        device=CPU,
        precision=precision,
        kept_fp32=candidate.kept_fp32,
    )


def run_all(
    candidate: Candidate, backend: str, cases: Sequence[Case], make_session: Callable[[], Session]
) -> list[Comparison]:
    """Load a session, run `cases` on it, and let it go."""
    results = []
    session = None
    for case in cases:
        try:
            session = session or make_session()
            output = session.run(case.graph, *(x.to(session.device) for x in case.inputs)).cpu()
        except Exception as error:  # noqa: BLE001 -- whatever a backend raises means that the graph does not run
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            results.append(_comparison(case, backend, "failed", reason=reason))
            continue
        tolerance = candidate.tolerance(case.graph)
        max_abs, relative = _difference(output, case.expected)
        status = "passed" if relative <= tolerance else "failed"  # NaN fails
        results.append(_comparison(case, backend, status, max_abs=max_abs, relative=relative, tolerance=tolerance))
    return results


def not_run(backend: str, cases: Sequence[Case], reason: str) -> list[Comparison]:
    """The rows of cases that a backend did not run, for this reason."""
    return [_comparison(case, backend, "not run", reason=reason) for case in cases]


def _comparison(case: Case, backend: str, status: str, **values: Any) -> Comparison:
    return Comparison(graph=case.graph, backend=backend, batch=case.batch, status=status, **values)


def _difference(output: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest absolute difference, and norm of the difference over that of `expected`; infinite for other shapes."""
    if output.shape != expected.shape:
        return math.inf, math.inf
    difference = output.double() - expected.double()
    max_abs, norm = difference.abs().max().item(), difference.norm().item()
    if norm == 0.0:
        return 0.0, 0.0  # also where both are zero: the condition of a ControlNet that was not trained yet
    return max_abs, norm / expected.double().norm().item() if expected.any() else math.inf


def _description(result: Comparison) -> str:
    what = f"{result.graph} on {result.backend} with batch {result.batch}"
    if result.reason is not None:
        return f"{what}: {result.reason}"
    return f"{what}: relative difference {result.relative:.1e}, tolerance {result.tolerance:.0e}"


def _json_number(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

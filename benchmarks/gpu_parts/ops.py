"""Every op of the registry: each provider against the truth at every case, then against the clock and its roofline."""

from __future__ import annotations

from typing import Any

import torch
from gpu_parts.context import DTYPES, Context, RedGateError, Row, timing_entries
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from featinv_fast.commands.measuring import rounded
from featinv_kernels import OPS, not_supported_reasons
from featinv_kernels.spec import Case, OpSpec

# Calls that one captured graph holds, so that the time of its launch does not count.
CALLS = 20
# Cases of a dry run.
DRY_CASES = 2
PLAIN = "torch"  # the provider that is plain torch; an op without it is one that plain torch has no operation for
REFERENCE = "reference"


def run(context: Context, name: str) -> None:
    """Check all cases of one op, the full model's shapes first, and time those."""
    op = OPS[name]
    cases = op.small_cases[:DRY_CASES] if context.dry else sorted(op.cases, key=lambda case: not case.full_size)
    for case in cases:
        right = [provider.name for provider in op.providers if _check(context, op, case, provider.name)]
        if right and (case.full_size or context.dry):
            _time(context, op, case, right)


def outputs_of(op: OpSpec, inputs: dict[str, Any], provider: str) -> tuple[Tensor, ...]:
    """What the op gives."""
    outputs = op.function(**inputs, provider=provider)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def errors_of(op: OpSpec, inputs: dict[str, Any], provider: str) -> tuple[float, float]:
    """A provider's error, and the largest one that is right.

    Where torch has the operation, the truth is what it gives in float64, and the error in the largest value may be
    twice that of torch in the same dtype, and one rounding. Other ops promise the reference's very bits.

    Raises:
        RedGateError: other shapes, dtypes, or NaN and infinities in other places.
    """
    given = outputs_of(op, inputs, provider)
    exact = PLAIN not in {p.name for p in op.providers}
    plain = outputs_of(op, inputs, REFERENCE if exact else PLAIN)
    if exact:
        truth = plain
    else:
        doubled = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
        truth = outputs_of(op, doubled, PLAIN)
    error, allowed = 0.0, 0.0
    for output, usual, true in zip(given, plain, truth, strict=True):
        if (output.shape, output.dtype) != (usual.shape, usual.dtype):
            raise RedGateError(f"{output.shape} {output.dtype} where torch gives {usual.shape} {usual.dtype}")
        if not torch.equal(output.isfinite(), true.to(output.dtype).isfinite()):
            raise RedGateError("NaN or infinite values in other places than the truth has them")
        error = max(error, _largest(output, true))
        if not exact:
            allowed = max(allowed, 2 * _largest(usual, true) + torch.finfo(output.dtype).eps / 2)
    return error, allowed


def _largest(output: Tensor, truth: Tensor) -> float:
    """The largest difference among finite values, over the largest true value."""
    finite = truth.isfinite() & output.isfinite()
    if not finite.any():
        return 0.0
    true = truth[finite].double()
    return ((output[finite].double() - true).abs().max() / true.abs().max().clamp_min(1e-300)).item()


def _described(op: OpSpec, case: Case, provider: str) -> Row:
    dtype = str(case.dtype).removeprefix("torch.")
    return {
        "op": op.name,
        "case": case.label,
        "provider": provider,
        "dtype": dtype,
        "shape": list(case.shape),
        "full_size": case.full_size,
    }


def _check(context: Context, op: OpSpec, case: Case, provider: str) -> bool:
    """Compare one provider at one case; a provider that does not serve it is listed with its reasons."""
    entries = _described(op, case, provider)
    reasons = not_supported_reasons(op.name, provider, case.request(context.device))
    if reasons:
        context.emit("op correctness", "not served", **entries, reasons=reasons)
        return False
    with context.measured("op correctness", **entries) as row:
        error, allowed = errors_of(op, op.make_inputs(case, context.device), provider)
        row["gate"] = {"relative": error, "tolerance": allowed}
        if not error <= allowed:
            raise RedGateError(f"relative error {error:.2g}, allowed are {allowed:.2g}")
        return True
    return False


def _time(context: Context, op: OpSpec, case: Case, providers: list[str]) -> None:
    """Time the providers that are right, in turns."""
    with context.failures_noted("op time", op=op.name, case=case.label):
        inputs = op.make_inputs(case, context.device)
        replays = {name: context.repeated(lambda name=name: outputs_of(op, inputs, name), CALLS) for name in providers}
        taken = context.interleave(replays, share=0.2)
        seconds = {name: [value / CALLS for value in values] for name, values in taken.items()}
        limits = _limits(context, op, case, inputs)
        for name in seconds:
            entries = _described(op, case, name) | timing_entries(
                seconds, name, PLAIN if PLAIN in seconds else REFERENCE
            )
            if "roofline_seconds" in limits:
                entries["roofline_share"] = rounded(limits["roofline_seconds"] / entries["seconds"]["median"], 3)
            context.emit("op time", **entries, **limits, graph=context.device.type == "cuda")


def _limits(context: Context, op: OpSpec, case: Case, inputs: dict[str, Any]) -> Row:
    """Bytes to be moved, multiplications and additions of the plain operation, and the time they take at least."""
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    moved = sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, *outputs_of(op, inputs, REFERENCE)))
    provider = op.provider(PLAIN if PLAIN in {p.name for p in op.providers} else REFERENCE)
    counter = FlopCounterMode(display=False)
    with counter:
        provider.load()(*op.make_inputs(case, torch.device("meta")).values())
    operations = counter.get_total_flops()
    limits: Row = {"bytes": moved, "operations": operations}
    precision = next((p for p, dtype in DTYPES.items() if dtype == case.dtype), None)
    if precision is not None and {"copy", str(precision)} <= set(context.rates):
        arithmetic = operations / context.rates[str(precision)]
        limits["roofline_seconds"] = max(moved / context.rates["copy"], arithmetic)
    return limits

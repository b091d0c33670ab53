"""Which provider serves a request, and why the others do not.

The choice is made inside an opaque op, where tensors are real: neither `torch.compile` nor `torch.export` sees it, and
a graph that was exported on one machine chooses again on another.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from featinv_kernels.errors import KernelArgumentError, ProviderUnavailableError
from featinv_kernels.providers import device_reasons
from featinv_kernels.spec import OPS, OpSpec, Provider, Request

AUTO = "auto"

logger = logging.getLogger(__name__)


def not_supported_reasons(op: str, provider: str, request: Request) -> list[str]:
    """Why `provider` cannot serve a request to `op`; an empty list means that it can.

    Raises:
        KernelArgumentError: there is no such op or provider.
    """
    if op not in OPS:
        raise KernelArgumentError(
            "there is no such op", given=repr(op), expected=sorted(OPS), remedy="name one of these"
        )
    return _reasons(OPS[op].provider(provider), request)


@functools.lru_cache(maxsize=1024)
def choose(op: OpSpec, request: Request, provider: str = AUTO) -> Provider:
    """The provider that serves a request.

    Args:
        op: the op.
        request: device, dtype and shape of the call.
        provider: "auto" for the first in the op's order that can serve and has no reason to leave the request to
            another, or the name of one.

    Raises:
        KernelArgumentError: there is no provider of this name.
        ProviderUnavailableError: the provider that was asked for, or with "auto" every provider, cannot serve. An
            explicit choice is never replaced by another.
    """
    candidates = op.providers if provider == AUTO else (op.provider(provider),)
    reasons = {p.name: _reasons(p, request) for p in op.providers}
    able = [candidate for candidate in candidates if not reasons[candidate.name]]
    # A stable sort: preferred ones first, in the op's order.
    for candidate in sorted(able, key=lambda p: bool(p.not_preferred_reasons(request))):
        refused = {p.name: reasons[p.name] or p.not_preferred_reasons(request) for p in op.providers}
        refused = {name: why for name, why in refused.items() if why and name != candidate.name}
        logger.info("%s: %s serves %s; not chosen: %s", op.name, candidate.name, request, refused or "none")
        return candidate
    raise ProviderUnavailableError(
        f"{op.name} cannot be computed by {'any provider' if provider == AUTO else repr(provider)}",
        reasons=reasons,
        given=f"{request.device}, {request.dtype}, shape {request.shape}",
        remedy='use provider="auto", or change what the reasons name',
    )


def support_table() -> list[dict[str, Any]]:
    """What runs on this machine, as plain data: a row for each op, provider, device type and dtype of the op's cases.

    Returns:
        Rows with `op`, `provider`, `device`, `dtype` (strings), `cases` and `supported_cases` (counts) and `reasons` (a
        list of strings, empty when every case is supported).
    """
    rows: list[dict[str, Any]] = []
    for op in OPS.values():
        for provider in op.providers:
            for device in (torch.device("cpu"), torch.device("cuda")):
                for dtype in dict.fromkeys(case.dtype for case in op.cases):
                    reasons = [_reasons(provider, case.request(device)) for case in op.cases if case.dtype == dtype]
                    rows.append(
                        {
                            "op": op.name,
                            "provider": provider.name,
                            "device": device.type,
                            "dtype": str(dtype).removeprefix("torch."),
                            "cases": len(reasons),
                            "supported_cases": sum(not why for why in reasons),
                            "reasons": list(dict.fromkeys(reason for why in reasons for reason in why)),
                        }
                    )
    return rows


def _reasons(provider: Provider, request: Request) -> list[str]:
    return [*device_reasons(request.device), *provider.not_supported_reasons(request)]

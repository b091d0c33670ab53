"""featinv-fast: an optimized inference engine for FeatInv (arXiv 2505.21032)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featinv_fast.errors import FeatInvError
    from featinv_fast.runtime import Inversion, InversionInterrupted, Runtime

__all__ = ["FeatInvError", "Inversion", "InversionInterrupted", "Runtime"]

# Imported on first use: reading an engine's manifest, or `featinv --help`, needs no torch.
_HOMES = {
    "FeatInvError": "featinv_fast.errors",
    "Inversion": "featinv_fast.runtime",
    "InversionInterrupted": "featinv_fast.runtime",
    "Runtime": "featinv_fast.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""Training: recipes that serve full-size and small models alike, each driven by one TOML file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featinv_fast.train.reading import read_recipe
from featinv_fast.train.settings import Recipe

if TYPE_CHECKING:
    from featinv_fast.train.run_recipe import run

__all__ = ["Recipe", "read_recipe", "run"]


def __getattr__(name: str) -> Any:
    # Imported on first use: reading a recipe needs no torch.
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from featinv_fast.train.run_recipe import run

    return run

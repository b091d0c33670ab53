"""Optional packages that are wanted at the end of long work: known before it."""

from __future__ import annotations

import importlib
from typing import Any

from featinv_fast.errors import MissingPackageError


def require_matplotlib() -> Any:
    """The module `matplotlib.figure`.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingPackageError(
            "plots need matplotlib",
            given=str(error),
            remedy="pip install 'featinv-fast[evaluate]', or leave out the plot",
        ) from error

"""What torch compiles with: whether it is here, and torch without the remarks that it makes as it compiles."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch


def compiler_problems(device: torch.device) -> list[str]:
    """Why torch has nothing to compile with for `device`; empty where it has."""
    with quiet_torch():
        from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
        if device.type == "cuda":
            import triton  # noqa: F401 -- torch compiles with it
    except (exc.InvalidCxxCompiler, ImportError) as error:
        return [f"torch finds no C++ compiler (g++, or what CXX names), or no Triton for a GPU: {error}"]
    return []


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Errors alone: torch remarks on GPUs that are not there, and on a CPU that is not the one compiled for.

    We compile for less than the CPU has, and check ourselves that it suffices.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""Triton's kernels where there is no GPU: which code a launch would need, and whether it has been loaded.

Triton compiles and loads a kernel for each specialisation when it first meets it. Within a capture that is not
permitted: loading a module waits for the GPU.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from triton.backends.compiler import BaseBackend
from triton.runtime.jit import native_specialize_impl

from featinv_kernels import OPS, dispatch
from featinv_kernels.launches import Launch, record_launches


class LoadedKernels:
    """The kernels of a process.

    Attributes:
        loaded: their specialisations.
    """

    def __init__(self) -> None:
        self.loaded: set[tuple[Any, ...]] = set()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Let each operation that plain torch computes launch, on its tensors' addresses, what Triton would."""
        choose = dispatch.choose

        def chosen(op: Any, request: Any, provider: str = dispatch.AUTO) -> Any:
            found = choose(op, request, provider)
            if found.name != "reference" or request.device.type == "meta":
                return found
            return types.SimpleNamespace(
                load=lambda: self._launching(op.provider("triton").load(), found.load()), name=found.name
            )

        for op in OPS.values():
            patch.setattr(f"featinv_kernels.ops.{op.name}.op.choose", chosen)

    def _launching(self, triton: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
        def implementation(*arguments: Any, **named: Any) -> Any:
            with record_launches() as launches:
                triton(*arguments, **named)
            for launch in launches:
                self.load(launch)
            return reference(*arguments, **named)

        return implementation

    def load(self, launch: Launch) -> None:
        """Load what a launch needs, unless it is there.

        Raises:
            RuntimeError: it is not, and the current stream is being captured.
        """
        wanted = specialisation(launch)
        if wanted in self.loaded:
            return
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().capture.spoil(
                f"operation not permitted when stream is capturing: loading {wanted[0]}"
            )
        self.loaded.add(wanted)


def specialisation(launch: Launch) -> tuple[Any, ...]:
    """What Triton compiles a kernel for: types, integers that are 1 or multiples of 16, pointers to 16 bytes."""
    arguments = tuple(
        value if name.isupper() else native_specialize_impl(BaseBackend, value, False, True, True)
        for name, value in launch.arguments.items()
    )
    return (launch.kernel.__name__, arguments, tuple(sorted(launch.options.items())))

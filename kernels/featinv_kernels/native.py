"""The provider `native`: the Triton kernels as machine code from the native library. No Triton, no compiler, no pause.

An op's launcher is the same as for Triton; what it launches goes to the library instead. The library holds the kernels
for the shapes of the ops' cases and for what shares their blocks; a launch that it has no code for is refused by name
and never replaced. Which launches a call makes is known only when it makes them, so "auto" does not choose it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from featinv_kernels.errors import KernelError
from featinv_kernels.launches import Launch, sent_to
from featinv_kernels.native_library import NativeLibrary, NativeLibraryError, installed_library
from featinv_kernels.providers import compiled_kernel_reasons
from featinv_kernels.spec import OPS, Provider, Request, no_reasons

NAME = "native"


def native_provider(
    op: str, load: Callable[[], Callable[..., Any]], *, limits: Callable[[Request], list[str]] = no_reasons
) -> Provider:
    """The kernels of an op's `triton_kernel.py`, compiled ahead of time.

    Args:
        op: its name.
        load: imports the op's `triton_kernel.py` and returns its implementation.
        limits: further reasons of this kernel, e.g. from the shape.
    """

    def not_supported_reasons(request: Request) -> list[str]:
        reasons = [*_library_reasons(), *compiled_kernel_reasons(request), *limits(request)]
        return reasons or _uncompiled_reasons(op, load, request)

    def not_preferred_reasons(_: Request) -> list[str]:
        return [f'it is used on request only: provider="{NAME}"']

    return Provider(
        name=NAME,
        load=lambda: native_implementation(load()),
        not_supported_reasons=not_supported_reasons,
        not_preferred_reasons=not_preferred_reasons,
    )


def native_implementation(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """An op's implementation whose launches go to the installed library, on the tensors' device and current stream."""
    library = installed_library()
    assert library is not None, "not_supported_reasons says that there is no library"

    def run(launch: Launch) -> None:
        device = next(a for a in launch.arguments.values() if isinstance(a, Tensor)).device
        # The library refuses a thread whose context is another device's.
        with torch.cuda.device(device):
            library.launch(launch, device=device.index, stream=torch.cuda.current_stream(device).cuda_stream)

    def native(*arguments: Any) -> Any:
        with sent_to(run):
            return implementation(*arguments)

    return native


def uncompiled_launches(
    library: NativeLibrary, implementation: Callable[..., Any], inputs: dict[str, Any]
) -> list[str]:
    """Why `library` cannot serve a call, launch by launch; found on tensors of the meta device without running it."""
    reasons = []

    def look_up(launch: Launch) -> None:
        try:
            library.find(launch)
        except NativeLibraryError as error:
            reasons.append(error.problem)

    with sent_to(look_up):
        implementation(*inputs.values())
    return reasons


def _library_reasons() -> list[str]:
    try:
        library = installed_library()
    except KernelError as error:
        return [str(error)]
    if library is None:
        return ["this installation has no native library"]
    problem = library.driver_problem()
    return [] if problem is None else [problem]


def _uncompiled_reasons(op: str, load: Callable[[], Callable[..., Any]], request: Request) -> list[str]:
    """Of the requests that cases make, whose launches are known. Others are refused, if at all, when they launch."""
    library = installed_library()
    assert library is not None
    found = [
        uncompiled_launches(library, load(), OPS[op].make_inputs(case, torch.device("meta")))
        for case in OPS[op].cases
        if case.request(request.device) == request
    ]
    return min(found, key=len, default=[])

"""Options that contradict one another or would have no effect, known by their names alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from featinv_fast.checks.values import choice, count
from featinv_fast.errors import ArgumentError

# The backends, in the order in which `featinv doctor` lists them; featinv_fast.backends has what they are.
BACKENDS = (
    "torch",
    "onnxruntime",
    "onnxruntime-cuda-graphs",
    "onnxruntime-tensorrt",
    "tensorrt",
    "tensorrt-rtx",
    "aoti",
)
CUDA_GRAPHS = ("auto", "off", "step", "loop")
# When TensorRT for RTX compiles kernels for the shapes at hand.
SPECIALIZATIONS = ("auto", "eager", "lazy", "none")
AUTO, OFF = "auto", "off"
# The operations that layers call, and who provides them; featinv_kernels has what they are.
LAYER_OPS = {
    "attention": ("triton", "native", "torch", "xformers", "reference"),
    **dict.fromkeys(
        ("geglu", "group_norm_silu", "resize_conv", "upsample_conv"), ("triton", "native", "torch", "reference")
    ),
}
TORCH, RTX = "torch", "tensorrt-rtx"
# Backends without work on the CPU's threads.
WITHOUT_THREADS = ("tensorrt", RTX)


def flag(name: str) -> str:
    """An argument's name as an option of a command line."""
    return "--" + name.replace("_", "-")


def without_effect(given: Mapping[str, Any], because: str, *, expected: str) -> ArgumentError:
    """The refusal of options that would be dropped in silence.

    Args:
        given: names and values of arguments; on a command line they are options of the same names.
        because: why they would have no effect.
        expected: with what they would have one.
    """
    names = ", ".join(given)
    return ArgumentError(
        f"{names} would have no effect: {because}",
        given=", ".join(f"{name}={value!r}" for name, value in given.items()),
        expected=expected,
        remedy=f"leave out {names}",
        command_remedy=f"leave out {', '.join(map(flag, given))}",
    )


def check_running(
    *,
    backend: str,
    threads: int | None,
    kernels: str | Mapping[str, str],
    cuda_graphs: str,
    compiled: bool,
    two_streams: bool,
    specialization: str = AUTO,
) -> None:
    """Refuse what no engine and no machine could serve; see `Runtime` for the arguments.

    Raises:
        ArgumentError: an unknown name, a number out of range, options that the named backend does not obey.
    """
    choice("backend", backend, (AUTO, *BACKENDS))
    choice("cuda_graphs", cuda_graphs, CUDA_GRAPHS)
    choice("specialization", specialization, SPECIALIZATIONS)
    if specialization != AUTO and backend not in (AUTO, RTX):
        raise without_effect(
            {"specialization": specialization}, f"the backend is {backend!r}", expected=f"the backend {RTX!r}"
        )
    if threads is not None:
        count("threads", threads)
    if threads is not None and backend in WITHOUT_THREADS:
        raise without_effect(
            {"threads": threads}, f"the backend {backend!r} computes on a GPU alone", expected="another backend"
        )
    of_torch = options_of_torch(kernels=kernels, cuda_graphs=cuda_graphs, compiled=compiled, two_streams=two_streams)
    if of_torch and backend not in (AUTO, TORCH):
        raise without_effect(of_torch, f"the backend is {backend!r}", expected=f"the backend {TORCH!r}")
    if kernels != OFF:
        layer_providers(kernels)
    if compiled and two_streams:
        raise ArgumentError(
            "compiled graphs run on one stream",
            given="compiled, two_streams",
            expected="one of the two",
            remedy="leave out compiled or two_streams",
            command_remedy="leave out --compiled or --two-streams",
        )


def layer_providers(kernels: str | Mapping[str, str]) -> dict[str, str]:
    """The provider of each of `LAYER_OPS`.

    Args:
        kernels: a provider's name for all operations, or names for some, and "auto" for the others.

    Raises:
        ArgumentError: there is no such operation or provider.
    """
    named = dict.fromkeys(LAYER_OPS, kernels) if isinstance(kernels, str) else kernels
    given = {**dict.fromkeys(LAYER_OPS, AUTO), **named}
    for op, provider in given.items():
        if op not in LAYER_OPS:
            raise ArgumentError(
                "the layers call no such operation",
                given=repr(op),
                expected=list(LAYER_OPS),
                remedy="name one of these",
            )
        names = [AUTO, *LAYER_OPS[op]]
        if provider not in names:
            raise ArgumentError(
                f"{op} has no provider of this name",
                given=repr(provider),
                expected=names,
                remedy="name one of these; `featinv doctor` lists what runs here",
            )
    return given


def options_of_torch(**options: Any) -> dict[str, Any]:
    """Those of the torch backend's options that ask for something."""
    return {name: value for name, value in options.items() if value not in (AUTO, OFF, False)}


def check_device(device: str) -> None:
    """Refuse what is no device that an engine runs on.

    Raises:
        ArgumentError: another name.
    """
    if re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", device) is None:
        raise ArgumentError(
            "not a device", given=repr(device), expected="auto, cpu, cuda or cuda:N", remedy="name one of these"
        )

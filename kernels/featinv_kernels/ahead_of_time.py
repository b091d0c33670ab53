"""Compiling kernels for GPUs that are not there, and what the result needs of them.

The specialisations are those that Triton itself makes when it launches: the types of tensors and integers, which
integers are 1 (they become constants) or multiples of 16 (wider memory accesses), which tensors are absent.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_kernels.launches import Launch, record_launches
from featinv_kernels.spec import Case, OpSpec

# Ampere (A100; A10, RTX 30), Ada (L4, RTX 40), Hopper (H100), Blackwell (B200)
CAPABILITIES = (80, 86, 89, 90, 100)
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
}
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What a compiled kernel needs.

    Attributes:
        registers: for each thread.
        stack_bytes: for each thread, in local memory; registers that do not fit are spilled there.
        shared_bytes: for each block of threads.
        threads: in a block.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    threads: int


def launches_of(op: OpSpec, case: Case) -> list[Launch]:
    """What the op's Triton provider launches for `case`, found without running or compiling anything."""
    inputs = op.make_inputs(case, torch.device("meta"))
    implementation = op.provider("triton").load()
    with record_launches() as launches:
        implementation(*inputs.values())
    return launches


def specialisation(launch: Launch) -> tuple[dict[str, str], dict[str, Any], tuple[str, ...]]:
    """The types of a kernel's arguments, its compile-time values, and the arguments that are multiples of 16."""
    constants = {p.name for p in launch.kernel.params if p.is_constexpr}
    types: dict[str, str] = {}
    values: dict[str, Any] = {}
    aligned = []
    for name, value in launch.arguments.items():
        if name in constants or value is None or (isinstance(value, int) and value == 1):
            types[name], values[name] = "constexpr", value
        elif isinstance(value, Tensor):
            types[name] = _POINTERS[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                aligned.append(name)
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(name)
    return types, values, tuple(aligned)


def specialisation_key(launch: Launch) -> tuple[Any, ...]:
    """Equal for launches that run the same compiled kernel."""
    types, values, aligned = specialisation(launch)
    return (
        launch.kernel.__name__,
        tuple(types.items()),
        tuple(values.items()),
        aligned,
        tuple(sorted(launch.options.items())),
    )


def compile_launch(launch: Launch, capability: int) -> Any:
    """Compile a kernel for `capability` (90 is sm_90); this needs no GPU.

    Returns:
        Triton's CompiledKernel, with `asm["ptx"]`, `asm["cubin"]` and `metadata`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, values, aligned = specialisation(launch)
    attributes = {(launch.kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(launch.kernel, signature=types, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)


def resources_of(compiled: Any) -> Resources:
    """Registers, stack and shared memory of a compiled kernel, from its machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        command = [_cuobjdump(), "--dump-resource-usage", str(path)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own file
    found = _RESOURCES.search(report)
    assert found is not None, report
    registers, stack, _ = map(int, found.groups())
    # Triton's shared memory is requested at launch and therefore not in the machine code.
    return Resources(
        registers=registers,
        stack_bytes=stack,
        shared_bytes=compiled.metadata.shared,
        threads=32 * compiled.metadata.num_warps,
    )


@functools.cache
def _cuobjdump() -> str:
    from triton import knobs

    return str(knobs.nvidia.cuobjdump.path)

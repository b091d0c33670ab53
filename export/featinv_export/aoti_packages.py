"""One graph of an engine as an AOTInductor package: compiled code without weights, for one kind of device.

The weights stay in the engine's one weight file and are handed to the package when it is loaded. A package that holds
its own would store the denoiser's 1.2 G parameters twice, guided and unguided, and once more beside the weight file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featinv_fast.backends.aoti_ import CPU_TARGET, SUFFIX, target_problems
from featinv_fast.backends.compiler import compiler_problems, quiet_torch
from featinv_fast.engine.graphs import GraphSpec
from featinv_fast.errors import ExportError, MissingPackageError

# Sizes of the traced example. All differ from each other and from 1, so that no two dimensions are taken for one.
_EXAMPLE_SIZES = {"batch": 3, "height": 7, "width": 11, "steps": 5}

_OPTIONS: dict[str, Any] = {
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    # Not even biases of a few values, which torch would write into the code: another checkpoint must fit the package.
    "always_keep_tensor_constants": True,
    # Smaller files that do not name this machine's folders.
    "aot_inductor.enable_line_tables": False,
}
_CPU_OPTIONS: dict[str, Any] = {
    # Not for the CPU that happens to compile: the package would be an illegal instruction for the next one.
    "cpp.march": CPU_TARGET,
    "cpp.simdlen": 256,  # bits of AVX2's registers
    # The thread count of whoever runs it, not of whoever compiled it.
    "cpp.dynamic_threads": True,
}


def require_compiler(device: torch.device) -> None:
    """Refuse before any work where packages for `device` cannot be made.

    Raises:
        ExportError: there is no such device, or torch makes no packages for it.
        MissingPackageError: there is no C++ compiler, or no Triton for a GPU.
    """
    with quiet_torch():
        from torch._inductor import config

    problems = target_problems(device)
    if device.type == "cpu" and not hasattr(config.cpp, "march"):
        problems.append(f"torch {torch.__version__} can only compile for the very CPU that it runs on")
    if problems:
        raise ExportError(
            f"AOTInductor packages for the device {device.type} cannot be made here",
            given="; ".join(problems),
            expected="the device itself, and torch 2.15 for packages for CPUs",
            remedy="run the export on a machine of that kind, name another device, or leave out --aoti",
        )
    if missing := compiler_problems(device):
        raise MissingPackageError(
            "making AOTInductor packages needs a C++ compiler, and Triton for a GPU",
            given="; ".join(missing),
            expected="g++, or the compiler that the environment variable CXX names",
            remedy="apt-get install g++ (and pip install triton for a GPU), or leave out --aoti; running a finished "
            "package needs neither",
        )


def compile_graph(module: nn.Module, spec: GraphSpec, device: torch.device, path: Path) -> None:
    """Compile `module`, which is on `device` with its weights, as `spec` declares it.

    Raises:
        ExportError: torch cannot trace or compile it.
    """
    from torch._inductor.package.package import package_aoti

    with quiet_torch(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's about its own deprecated helpers
        try:
            program = _trace(module.eval(), spec, device)
            options = {**_OPTIONS, **(_CPU_OPTIONS if device.type == "cpu" else {})}
            example = program.example_inputs[0]
            files = torch._inductor.aot_compile(program.module(), example, options=options)  # noqa: SLF001 -- documented
            assert isinstance(files, list), "what `aot_inductor.package` stands for"
            # Without the sources, which list this machine's folders and are not read again.
            package_aoti(str(path), {"model": [file for file in files if not str(file).endswith(".cpp")]})
        except Exception as error:
            raise ExportError(
                f"torch cannot compile the graph {spec.name} for {device.type}",
                given=f"{type(error).__name__}: {error}",
                expected=f"torch {torch.__version__} and a C++ compiler that fit each other",
                remedy="leave out --aoti; the engine runs without it",
            ) from error


def write_packages(
    graphs: Mapping[str, nn.Module],
    specs: Mapping[str, GraphSpec],
    device: torch.device,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """Compile every graph into `folder`; `report` is told what comes next.

    Raises:
        ExportError: torch cannot trace or compile a graph.
    """
    for name, spec in specs.items():
        report(f"compiling {name}{SUFFIX}")
        compile_graph(graphs[name], spec, device, folder / (name + SUFFIX))


def _trace(module: nn.Module, spec: GraphSpec, device: torch.device) -> torch.export.ExportedProgram:
    dims = {dim.name: torch.export.Dim(dim.name, min=dim.minimum, max=dim.maximum) for dim in spec.dims}
    shapes = spec.input_shapes({name: _EXAMPLE_SIZES[name] for name in dims})
    example = tuple(torch.zeros(shape, device=device) for shape in shapes.values())
    dynamic = tuple({axis: dims[name] for axis, name in tensor.dynamic_axes.items()} for tensor in spec.inputs)
    return torch.export.export(module, example, dynamic_shapes=dynamic)

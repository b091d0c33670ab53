"""The AOTInductor backend: an engine's graphs as compiled `.pt2` packages, which need no network code and no compiler.

A package holds native code and no weights: the tensors of the engine's one weight file are handed to it, so that
all graphs, guided and unguided, share them.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from featinv_fast.backends.base import Request, Session
from featinv_fast.backends.compiler import quiet_torch
from featinv_fast.backends.memory import is_out_of_memory
from featinv_fast.backends.torch_ import WEIGHT_FILE, device_problems, limited_threads
from featinv_fast.config import Precision
from featinv_fast.engine.manifest import AOTI_SUFFIX, AotiInfo
from featinv_fast.engine.trust import distrust
from featinv_fast.errors import EngineIntegrityError
from featinv_fast.rewrites.engine_model import storage_dtype
from featinv_fast.rewrites.upsample_products import is_kernel

SUFFIX = AOTI_SUFFIX

# Every x86-64 CPU since 2013 (Intel) and 2015 (AMD) has AVX2. Half of a network's time is spent in libraries that use
# what is there beyond it; a package for the very CPU that compiled it would crash on the next machine.
CPU_TARGET = "x86-64-v3"


def target_here(device: torch.device) -> AotiInfo:
    """What a package that is compiled here for `device` runs on. There must be no `target_problems`."""
    return AotiInfo(
        device=device.type,
        platform=f"{sys.platform} {platform.machine()}",
        target=_capability(device),
        torch=torch.__version__,
    )


def target_problems(device: torch.device) -> list[str]:
    """Why AOTInductor packages can neither be made nor run on `device` here; empty when they can."""
    problems = device_problems(device)
    if device.type == "cpu":
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            problems.append(f"packages for CPUs are made for linux x86_64, not {sys.platform} {platform.machine()}")
        elif torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
            problems.append(f"this CPU is not of the level {CPU_TARGET} (AVX2), or torch was told not to use it")
    return problems


def _capability(device: torch.device) -> str:
    if device.type == "cpu":
        return CPU_TARGET
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


class AotiSession(Session):
    """An engine's AOTInductor packages, each loaded when it is first run.

    Args:
        packages: the `.pt2` file of each graph.
        weights: the engine's weight file. On a CPU it is memory-mapped and the packages read it where it is.
        device: where the packages were compiled to run.
        precision: of the packages.
        kept_fp32: tensors that stay in fp32 in any precision.
        threads: CPU threads of one operation.
        check: is told the name of a file before it is read; raises where it must not be read any more.
    """

    backend = "aoti"

    def __init__(
        self,
        packages: Mapping[str, Path],
        weights: Path,
        *,
        device: torch.device,
        precision: Precision,
        kept_fp32: tuple[str, ...] = (),
        threads: int | None = None,
        check: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.device = device
        self.precision = precision
        self.threads = threads
        self._packages = dict(packages)
        self._check = check
        # The packages keep pointers to these and not the tensors: they live as long as the session.
        self._weights = {
            name: tensor.to(storage_dtype(name, precision, kept_fp32))
            for name, tensor in load_file(weights, device=str(device)).items()
            if not is_kernel(name)
        }
        self._models: dict[str, Any] = {}

    def run(self, graph: str, *inputs: Tensor) -> Tensor:
        """Run a graph; see `Session.run`."""
        model = self._models.get(graph) or self._load(graph)
        with limited_threads(self.threads), torch.inference_mode():
            # The compiled code takes inputs for contiguous without looking.
            output: Tensor = model(*(x.detach().contiguous() for x in inputs))
        return output

    def _load(self, graph: str) -> Any:
        """Load a package and point it to the weights.

        Raises:
            EngineIntegrityError: the engine was replaced, or torch refuses the package.
        """
        self._check(self._packages[graph].name)
        path = self._packages[graph]
        index = -1 if self.device.index is None else self.device.index
        try:
            with quiet_torch():
                model = torch._inductor.aoti_load_package(str(path), device_index=index)  # noqa: SLF001 -- documented
            constants = {name: self._weights[name] for name in model.get_constant_fqns()}
            model.load_constants(constants, check_full_update=True, user_managed=True)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise EngineIntegrityError(
                f"torch refuses {path}",
                given=error,
                expected="an AOTInductor package for the weights of this engine, and a temporary folder that native "
                "code may be loaded from",
                remedy="set TMPDIR to a folder of a file system without `noexec`, or export the engine again",
            ) from error
        self._models[graph] = model
        return model


class AotiBackend:
    """Serves engines that were exported with AOTInductor packages for a device, CPU or GPU, and torch as here.

    Packages are native code: they run if they were made here, or where the request says that the engine is trusted.
    """

    name = "aoti"

    def problems_here(self, device: torch.device) -> list[str]:
        """Why no engine's packages can run on `device`."""
        return target_problems(device)

    def not_supported_reasons(self, request: Request) -> list[str]:
        """Why this engine's packages cannot run on the requested device."""
        manifest, device = request.engine.manifest, request.device
        problems = self.problems_here(device)
        missing = [name for name in manifest.graph_specs() if name + SUFFIX not in manifest.files]
        if manifest.aoti is None or missing:
            what = f" for {', '.join(missing)}" if manifest.aoti is not None else ""
            return [f"the engine has no AOTInductor packages{what}: export it with --aoti", *problems]
        reasons = []
        if manifest.aoti.device != device.type:
            reasons.append(f"the packages are for {manifest.aoti.device}: export with --aoti {device.type}")
        elif not problems:
            given, here = manifest.aoti, target_here(device)
            reasons += [
                f"the packages were compiled for {what} {theirs}, not {ours}: export with --aoti here"
                for what, theirs, ours in (
                    ("torch", given.torch, here.torch),
                    ("the platform", given.platform, here.platform),
                    ("the processor", given.target, here.target),
                )
                if theirs != ours
            ]
        if request.precision not in (None, manifest.precision):
            reasons.append(
                f"the packages are {manifest.precision}, not {request.precision}: export with --precision "
                f"{request.precision}"
            )
        if not request.trust_engine:
            reasons += distrust(request.engine, [name + SUFFIX for name in manifest.graph_specs()])
        return [*reasons, *problems]

    def load(self, request: Request) -> AotiSession:
        """Load the weights; packages are loaded when they are first run."""
        engine = request.engine
        return AotiSession(
            {name: engine.file(name + SUFFIX) for name in engine.graph_specs()},
            engine.file(WEIGHT_FILE),
            device=request.device,
            precision=engine.manifest.precision,
            kept_fp32=engine.manifest.kept_fp32,
            threads=request.threads,
            check=engine.require_unchanged,
        )

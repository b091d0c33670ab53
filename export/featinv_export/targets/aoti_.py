"""The graphs as AOTInductor packages: compiled code without weights, for one kind of device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from featinv_export.aoti_packages import require_compiler, write_packages
from featinv_export.options import ExportOptions
from featinv_export.parity import Candidate, Case, Comparison, has_kernels, run_all
from featinv_export.progress import Steps
from featinv_export.targets.base import Target
from featinv_fast.backends import resolve_device
from featinv_fast.backends.aoti_ import SUFFIX, AotiBackend, AotiSession, target_here
from featinv_fast.backends.base import Request, Session
from featinv_fast.backends.torch_ import WEIGHT_FILE, TorchSession
from featinv_fast.checks.options import OFF
from featinv_fast.config import Precision
from featinv_fast.engine import AotiInfo, EngineFolder
from featinv_fast.engine.manifest import MANIFEST_NAME, Manifest
from featinv_fast.engine.trust import note_built_here


@dataclasses.dataclass(frozen=True)
class AotiTarget(Target):
    """`--aoti`.

    Attributes:
        device: what the packages run on.
        info: what they were compiled for; `None` until they are.
        reasons: why those that an engine has do not run here.
    """

    device: torch.device
    info: AotiInfo | None = None
    reasons: tuple[str, ...] = ()

    title = "AOTInductor packages"
    suffix = SUFFIX
    backend = "aoti"

    @classmethod
    def asked(cls, options: ExportOptions) -> AotiTarget | None:
        return None if options.aoti is None else cls(resolve_device(options.aoti))

    @classmethod
    def carried(cls, engine: EngineFolder) -> AotiTarget | None:
        info = engine.manifest.aoti
        if info is None:
            return None
        device = torch.device(info.device)
        reasons = AotiBackend().not_supported_reasons(Request(engine=engine, device=device))
        return cls(device, info, tuple(reasons))

    def require(self, destination: Path) -> None:
        require_compiler(self.device)

    def problems(self, precision: Precision) -> list[str]:
        if self.reasons:
            return [*self.reasons]
        emulated = self.device.type == "cpu" and not has_kernels(precision)
        return [f"this CPU has no {precision} convolutions"] if emulated else []

    def steps(self, graphs: int) -> tuple[int, int]:
        return graphs, 1

    def make(self, candidate: Candidate, steps: Steps) -> AotiTarget:
        # As torch modules whose weights are those of the engine's file, one for one.
        session = TorchSession(
            candidate.config,
            candidate.folder / WEIGHT_FILE,
            device=self.device,
            precision=candidate.precision,
            kept_fp32=candidate.kept_fp32,
            kernels=OFF,
        )
        write_packages(session.graphs, candidate.specs, self.device, candidate.folder, steps.begin)
        return dataclasses.replace(self, info=target_here(self.device))

    def run(self, candidate: Candidate, cases: Sequence[Case], steps: Steps) -> list[Comparison]:
        steps.begin("checking the packages")
        # On a GPU torch would round the factors of fp32 convolutions to ten bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return run_all(candidate, self.backend, cases, functools.partial(_session, candidate, self.device))

    def entries(self) -> dict[str, Any]:
        return {"aoti": self.info}

    def installed(self, engine: Path) -> None:
        """The packages are native code, which its maker may run without being asked for trust."""
        files = Manifest.from_json((engine / MANIFEST_NAME).read_bytes()).files
        # A cache that cannot be written costs the flag `--trust-engine` later and not the export.
        with contextlib.suppress(OSError):
            note_built_here(info.sha256 for name, info in files.items() if name.endswith(SUFFIX))


def _session(candidate: Candidate, device: torch.device) -> Session:
    return AotiSession(
        {name: candidate.folder / (name + SUFFIX) for name in candidate.specs},
        candidate.folder / WEIGHT_FILE,
        device=device,
        precision=candidate.precision,
        kept_fp32=candidate.kept_fp32,
    )

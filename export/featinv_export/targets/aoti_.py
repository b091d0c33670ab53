"""The graphs as AOTInductor packages: compiled code without weights, for one kind of device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featinv_export.options import AOTI_DEVICES
from featinv_export.progress import Steps
from featinv_export.targets.base import Target
from featinv_fast.checks.options import OFF, flag
from featinv_fast.config import Precision
from featinv_fast.engine import AotiInfo, EngineFolder, Manifest
from featinv_fast.engine.manifest import AOTI_SUFFIX as SUFFIX
from featinv_fast.engine.manifest import MANIFEST_NAME
from featinv_fast.engine.trust import note_built_here

if TYPE_CHECKING:
    import torch

    from featinv_export.parity import Candidate, Case, Comparison
    from featinv_fast.backends import Session


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

    option = "aoti"
    help = "AOTInductor packages, for the CPU or the GPU here (default: auto, the GPU if there is one)"
    title = "AOTInductor packages"
    suffix = SUFFIX
    backend = "aoti"

    @classmethod
    def add_argument(cls, group: Any) -> None:
        devices = {"nargs": "?", "const": "auto", "choices": AOTI_DEVICES, "metavar": "DEVICE"}
        group.add_argument(flag(cls.option), help=cls.help, **devices)

    @classmethod
    def of(cls, given: str) -> AotiTarget:
        from featinv_fast.backends import resolve_device

        return cls(resolve_device(given))

    @classmethod
    def carried(cls, engine: EngineFolder) -> AotiTarget | None:
        import torch

        from featinv_fast.backends import Request
        from featinv_fast.backends.aoti_ import AotiBackend

        info = engine.manifest.aoti
        if info is None:
            return None
        device = torch.device(info.device)
        reasons = AotiBackend().not_supported_reasons(Request(engine=engine, device=device))
        return cls(device, info, tuple(reasons))

    @classmethod
    def content(cls, manifest: Manifest) -> str:
        made = manifest.aoti
        compiled = "" if made is None else f" for {made.target} with torch {made.torch}"
        return f"AOTInductor{compiled}, weights in `weights.safetensors`"

    @classmethod
    def described(cls, manifest: Manifest) -> list[str]:
        made = manifest.aoti
        return [] if made is None else [f"packages are for {made.target}, {made.platform}, torch {made.torch}"]

    def require(self, destination: Path) -> None:
        from featinv_export.aoti_packages import require_compiler

        require_compiler(self.device)

    def problems(self, precision: Precision) -> list[str]:
        from featinv_export.parity import has_kernels

        if self.reasons:
            return [*self.reasons]
        emulated = self.device.type == "cpu" and not has_kernels(precision)
        return [f"this CPU has no {precision} convolutions"] if emulated else []

    def make(self, candidate: Candidate, steps: Steps) -> AotiTarget:
        from featinv_export.aoti_packages import write_packages
        from featinv_fast.backends.aoti_ import target_here
        from featinv_fast.backends.torch_ import WEIGHT_FILE, TorchSession

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
        import torch

        from featinv_export.parity import run_all

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
    from featinv_fast.backends.aoti_ import AotiSession
    from featinv_fast.backends.torch_ import WEIGHT_FILE

    return AotiSession(
        {name: candidate.folder / (name + SUFFIX) for name in candidate.specs},
        candidate.folder / WEIGHT_FILE,
        device=device,
        precision=candidate.precision,
        kept_fp32=candidate.kept_fp32,
    )

"""`featinv doctor`: what is installed here, and which backends can run an engine and why the others cannot."""

from __future__ import annotations

import itertools
import platform
from typing import Any

import torch

from featinv_fast.backends import BACKENDS, Request, preferred, reasons_against
from featinv_fast.commands.measuring import package_versions, processor
from featinv_fast.engine import EngineFolder
from featinv_fast.engine.manifest import BUILT
from featinv_kernels import support_table


def doctor(engine: EngineFolder | None = None) -> dict[str, Any]:
    """What can run here, as plain data.

    Args:
        engine: an engine to judge the backends by; without it they are judged for any engine.

    Returns:
        "system", "packages" (name -> version or None), "gpus", "backends" (device -> backend -> reasons against it),
        "kernels" (the support table of the fused operations) and, for an engine, "engine" and "automatic" (device ->
        the backend that is taken where none is named, or None).
    """
    devices = [torch.device("cpu"), torch.device("cuda")]
    report: dict[str, Any] = {
        "system": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
        },
        "packages": package_versions(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "backends": {
            device.type: {name: backend.problems_here(device) for name, backend in BACKENDS.items()}
            for device in devices
        },
        "kernels": support_table(),
    }
    if engine is not None:
        manifest = engine.manifest
        report["engine"] = {
            "path": str(engine.path),
            "name": manifest.name,
            "precision": str(manifest.precision),
            "unchecked": list(manifest.unchecked()),
            "unexecuted": list(manifest.unexecuted()),
            "files": {name: info.size for name, info in manifest.files.items()},
        }
        report["backends"] = {device.type: reasons_against(Request(engine=engine, device=device)) for device in devices}
        report["automatic"] = {d.type: preferred(d, report["backends"][d.type]) for d in devices}
    return report


def describe(report: dict[str, Any]) -> str:
    """The report as text for people."""
    system = report["system"]
    lines = [
        f"python {system['python']} on {system['platform']}",
        f"{system['processor']}, {system['threads']} threads",
        *(report["gpus"] or ["no NVIDIA GPU"]),
        "",
        "packages",
        *(f"  {name:16} {version or '-'}" for name, version in report["packages"].items()),
    ]
    if "engine" in report:
        engine = report["engine"]
        size = sum(engine["files"].values()) / 2**20
        lines += [
            "",
            f"engine {engine['path']}",
            f"  {engine['name']}, {engine['precision']}, {size:,.0f} MiB, every byte as exported",
            *(f"  unchecked, compared with the plain model by nobody: {name}" for name in engine["unchecked"]),
            *(f"  {BUILT}: {name}" for name in engine["unexecuted"]),
        ]
    lines += ["", "backends for this engine" if "engine" in report else "backends"]
    for device, backends in report["backends"].items():
        for name, reasons in backends.items():
            taken = " (taken where none is named)" if report.get("automatic", {}).get(device) == name else ""
            lines.append(f"  {device:5} {name:12} {f'ready{taken}' if not reasons else 'no: ' + '; '.join(reasons)}")
    lines += ["", "fused operations"]
    for (op, provider, device), rows in itertools.groupby(
        report["kernels"], key=lambda row: (row["op"], row["provider"], row["device"])
    ):
        table = list(rows)
        ready = ", ".join(row["dtype"] for row in table if row["supported_cases"])
        lines.append(f"  {device:5} {op:13} {provider:10} {ready or 'no: ' + '; '.join(table[0]['reasons'])}")
    return "\n".join(lines)


def can_serve(report: dict[str, Any]) -> bool:
    """Whether any backend is ready."""
    return any(not reasons for backends in report["backends"].values() for reasons in backends.values())

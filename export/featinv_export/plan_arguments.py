"""The arguments of `featinv-export` on TensorRT plans."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from featinv_export.tensorrt_.options import PlanOptions
from featinv_fast.checks.options import flag
from featinv_fast.engine.plans import BatchProfile, HardwareCompatibility, PlanWeights
from featinv_fast.errors import ArgumentError, ConfigError

# Names of the parsed arguments, which all begin alike, and the fields of PlanOptions that they are.
PREFIX = "plan_"
# Fields that have another name as an option.
FLAGS = {
    "profiles": "--profile",
    "workspace_mib": "--workspace",
    "optimization_level": "--opt-level",
    "weights": "--refittable or --stripped",
    "hardware": "--hardware-compatible",
    "cache": "--plan-cache",
    "build": "--no-build",
}


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--trt` and what belongs to it. None of them has a value unless it is given."""
    group = parser.add_argument_group("TensorRT, on the machine with the GPU")

    def add(*names: str, field: str, **options: Any) -> None:
        group.add_argument(*names, dest=PREFIX + field, **options)

    group.add_argument(
        "--trt", action="store_const", const=True, help="also build TensorRT plans of the ONNX graphs; implies --onnx"
    )
    group.add_argument(
        "--from-onnx",
        type=Path,
        metavar="DIR",
        help="build the plans into an engine that was exported with --onnx, in place of --ckpt",
    )
    add("--min-batch", field="min_batch", type=int, metavar="N", help="smallest batch of the plans (default: 1)")
    add(
        "--profile",
        field="profiles",
        type=_profile,
        action="append",
        metavar="MIN:OPT:MAX",
        help="batch sizes of an optimisation profile; give it again for more than one",
    )
    add(
        "--workspace",
        field="workspace_mib",
        type=int,
        metavar="MIB",
        help="most scratch memory of a kernel (default: all)",
    )
    add(
        "--opt-level",
        field="optimization_level",
        type=int,
        metavar="0-5",
        help="how long TensorRT searches (default: 3)",
    )
    weights = group.add_mutually_exclusive_group()
    for name, value, text in (
        ("--refittable", PlanWeights.REFITTABLE, "plans whose weights --refit can replace"),
        ("--stripped", PlanWeights.STRIPPED, "plans without weights, which are read from the engine's weight file"),
    ):
        weights.add_argument(name, dest=PREFIX + "weights", action="store_const", const=value, help=text)
    add(
        "--hardware-compatible",
        field="hardware",
        nargs="?",
        type=HardwareCompatibility,
        const=HardwareCompatibility.AMPERE_PLUS,
        choices=[level for level in HardwareCompatibility if level is not HardwareCompatibility.NONE],
        metavar="ampere_plus|same_compute_capability",
        help="plans that run on other GPUs, too, more slowly (default: ampere_plus)",
    )
    add(
        "--version-compatible",
        field="version_compatible",
        action="store_const",
        const=True,
        help="plans that newer versions of TensorRT run, too, more slowly",
    )
    add("--timing-cache", field="timing_cache", type=Path, metavar="FILE", help="kernel times to read and extend")
    add("--plan-cache", field="cache", type=Path, metavar="DIR", help="plans made before (default: the user's cache)")
    add("--no-build", field="build", action="store_const", const=False, help="take plans from the cache or fail")


def take_plan_options(given: dict[str, Any]) -> PlanOptions | None:
    """Take the arguments on plans out of `given`; `None` where no plans are asked for.

    Raises:
        ArgumentError: there are some without `--trt`, or values out of range.
    """
    fields = {name.removeprefix(PREFIX): given.pop(name) for name in list(given) if name.startswith(PREFIX)}
    if not given.pop("trt", False):
        if fields or "from_onnx" in given:
            raise ArgumentError(
                "options on TensorRT plans without plans",
                given=", ".join(sorted(FLAGS.get(name, flag(name)) for name in fields)) or "--from-onnx",
                expected="--trt as well",
                remedy="add --trt, or leave them out",
            )
        return None
    if "from_onnx" in given:  # otherwise they are the engine's
        fields |= {name: given.pop(name) for name in ("optimal_batch", "max_batch") if name in given}
    if "profiles" in fields:
        fields["profiles"] = tuple(fields["profiles"])
    return PlanOptions(**fields)


def _profile(text: str) -> BatchProfile:
    match = re.fullmatch(r"(\d+):(\d+):(\d+)", text)
    try:
        if match is not None:
            return BatchProfile(minimum=int(match[1]), optimum=int(match[2]), maximum=int(match[3]))
    except ConfigError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} are not three ordered batch sizes such as 1:8:64")

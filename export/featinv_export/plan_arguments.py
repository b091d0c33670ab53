"""The arguments of `featinv-export` on TensorRT plans."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featinv_export.tensorrt_.options import BatchOptions, PlanOptions, RtxOptions
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
    "capabilities": "--sm",
}
# Why TensorRT for RTX does not build plans with these.
NOT_FOR_RTX = {
    "weights": "its compiler wants the GPU for plans whose weights can be replaced, and they are built without one",
    "version_compatible": "its plans are for the release that built them; without a GPU it builds no others",
    "hardware": "its plans are for the GPUs that --sm names",
    "optimization_level": "it searches when a plan first runs, on the GPU",
    "workspace_mib": "it chooses kernels when a plan first runs, on the GPU",
    "timing_cache": "it times nothing while it builds",
}


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what belongs to `--trt` and `--trt-rtx`. None of them has a value unless it is given."""
    group = parser.add_argument_group("TensorRT: on the machine with the GPU, or for RTX on any machine")

    def add(*names: str, field: str, **options: Any) -> None:
        group.add_argument(*names, dest=PREFIX + field, **options)

    add(
        "--sm",
        field="capabilities",
        type=_capabilities,
        metavar="N,N,...",
        help="GPUs that plans of TensorRT for RTX are for, by compute capability (default: the GPU here, or 86,89,120)",
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


def collect_plan_options(given: dict[str, Any]) -> None:
    """Put the arguments on plans in `given` together: one set of options for each flavour that is asked for.

    Raises:
        ArgumentError: there are some without `--trt` or `--trt-rtx`, or values out of range.
    """
    fields = {name.removeprefix(PREFIX): given.pop(name) for name in list(given) if name.startswith(PREFIX)}
    proper, rtx = "trt" in given, "trt_rtx" in given
    if not proper and not rtx:
        if fields:
            raise ArgumentError(
                "options on TensorRT plans without plans",
                given=", ".join(sorted(map(_flag, fields))),
                expected="--trt or --trt-rtx as well",
                remedy="add one, or leave them out",
            )
        return
    if not proper:
        _refuse_what_rtx_lacks(fields)
    if not rtx and "capabilities" in fields:
        raise ArgumentError(
            "a plan of TensorRT proper is for the GPU that it is built on",
            given="--sm",
            expected="--trt-rtx, whose plans are for the GPUs that are named",
            remedy="add --trt-rtx, or leave it out",
        )
    if "from_onnx" in given:  # otherwise they are the engine's
        fields |= {name: given.pop(name) for name in ("optimal_batch", "max_batch") if name in given}
    if "profiles" in fields:
        fields["profiles"] = tuple(fields["profiles"])
    kinds: dict[str, type[PlanOptions | RtxOptions]] = {"trt": PlanOptions, "trt_rtx": RtxOptions}
    for option, kind in kinds.items():
        if option in given:
            given[option] = kind(**{name: fields[name] for name in _names(kind) if name in fields})


def _refuse_what_rtx_lacks(fields: Mapping[str, Any]) -> None:
    foreign = sorted(set(fields) - _names(RtxOptions))
    if foreign:
        raise ArgumentError(
            "TensorRT for RTX builds no such plans",
            given="; ".join(f"{_flag(name)}: {NOT_FOR_RTX[name]}" for name in foreign),
            expected="--trt, on the machine with the GPU",
            remedy="leave them out, or build with --trt",
        )


def _names(kind: type[BatchOptions]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _flag(field: str) -> str:
    return FLAGS.get(field, flag(field))


def _capabilities(text: str) -> tuple[str, ...]:
    """86,89,120 as "8.6", "8.9", "12.0"."""
    names = text.split(",")
    if not all(re.fullmatch(r"[1-9]\d{1,2}", name) for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} are not compute capabilities such as 86,89,120")
    return tuple(f"{name[:-1]}.{name[-1]}" for name in names)


def _profile(text: str) -> BatchProfile:
    match = re.fullmatch(r"(\d+):(\d+):(\d+)", text)
    try:
        if match is not None:
            return BatchProfile(minimum=int(match[1]), optimum=int(match[2]), maximum=int(match[3]))
    except ConfigError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} are not three ordered batch sizes such as 1:8:64")

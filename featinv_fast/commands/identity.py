"""What must be the same for a job to go on: the engine and what computes with it, beside the job's own settings."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featinv_fast.checks import require_input
from featinv_fast.errors import ArgumentError

if TYPE_CHECKING:
    from featinv_fast.runtime import Runtime

# Other releases of these give other bits.
COMPUTING = (
    "featinv-fast",
    "torch",
    "numpy",
    "pillow",
    "timm",
    "torchvision",
    "transformers",
    "onnxruntime",
    "onnxruntime-gpu",
)


def running_identity(runtime: Runtime) -> dict[str, Any]:
    """Engine, backend and versions, as JSON types. Of the device only its kind counts, of threads nothing."""
    info = runtime.info
    return {
        "engine": {"name": info["name"], "sha256": info.get("engine_sha256")},
        "runs": {
            "backend": info.get("backend"),
            "device": str(info.get("device")).partition(":")[0],
            **{name: info.get(name) for name in ("precision", "kernels", "compiled")},
        },
        "versions": _versions(),
    }


def stated_path(path: Path | None) -> str | None:
    """A path that is the same wherever the command is started."""
    return None if path is None else os.path.realpath(path)


def stated_weights(weights: str | None) -> str | None:
    """Weights of a backbone, likewise: a path, or "random:SEED"."""
    return weights if weights is None or weights.startswith("random:") else stated_path(Path(weights))


def require_weights(weights: str | None) -> None:
    """Weights of a backbone that are there, before anything is loaded.

    Raises:
        InputNotFoundError: a path of no file.
    """
    if weights is not None and not weights.startswith("random:"):
        require_input(weights, "file")


def require_one_source(images: Path | None, features: Path | None) -> None:
    """Either images or a file of maps.

    Raises:
        ArgumentError: neither or both.
    """
    if (images is None) == (features is None):
        raise ArgumentError(
            "there is not one source of feature maps",
            given="none" if images is None else f"--images {images} and --features {features}",
            expected="images that a backbone looks at, or a file of feature maps",
            remedy="name one: --images DIR or --features FILE",
        )


def inputs_below(folder: Path, paths: list[Path], out: Path) -> list[Path]:
    """The images of `folder` without those in `out`, which are results and not inputs.

    Raises:
        ArgumentError: the two are the same folder, or nothing is left.
    """
    if not folder.is_dir():
        return paths
    top, below = Path(os.path.realpath(folder)), Path(os.path.realpath(out))
    if top == below:
        raise ArgumentError(
            "results would lie among the images that they are made of",
            given=f"{folder} for both",
            expected="another folder for the results",
            remedy="name another --out; one below the images is left out of them",
        )
    if not below.is_relative_to(top):
        return paths
    left_out = folder / below.relative_to(top)
    paths = [path for path in paths if not path.is_relative_to(left_out)]
    if not paths:
        raise ArgumentError(
            "there are no images beside the results",
            given=f"{folder} with images in {out} only",
            expected="images outside the folder of results",
            remedy="name another --out",
        )
    return paths


def _versions() -> dict[str, str]:
    installed = {}
    for package in COMPUTING:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed

"""What the package ships beside its code: two engines, the backbone whose features they take, a judge, and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featinv_fast.checks import choice
from featinv_fast.config import FeatureLayout, FeatureSpec
from featinv_fast.errors import EngineIntegrityError, InstallationError

if TYPE_CHECKING:
    import torch

    from featinv_fast.demo.scene_judge import Judge
    from featinv_fast.engine import EngineFolder
    from featinv_fast.features import Backbone

# The folder is written by `python -m featinv_export.demo_build`; its README.md is the model card.
FOLDER = Path(__file__).parent / "engine"
# "student" makes few steps and is what `Runtime()` opens; "teacher", which it learnt from, makes 50 by DDIM.
ENGINES = ("student", "teacher")
BACKBONE = "backbone.safetensors"
JUDGE = "judge.safetensors"
RESULTS = "results.json"

# Of the final map and of the stages: channels and edge in cells.
_MAPS = {"final": (256, 4), "0": (32, 16), "1": (64, 8), "2": (128, 4), "3": (256, 4)}


def load_engine(name: str = "student") -> EngineFolder:
    """A built-in engine, checked and opened: `Runtime(demo.load_engine("teacher"))`.

    Args:
        name: "student" (few steps; what `Runtime()` opens) or "teacher" (DDIM with 50 steps).

    Raises:
        ArgumentError: no engine is called so.
        InstallationError: the package was installed without it.
        EngineIntegrityError: its files were changed.
    """
    from featinv_fast.engine import open_engine

    # Installers such as uv and conda link the files of packages to their caches.
    return open_engine(engine_path(name), hard_links=True)


def engine_path(name: str = "student") -> Path:
    """The folder of a built-in engine.

    Args:
        name: see `load_engine`.

    Raises:
        ArgumentError: no engine is called so.
        InstallationError: the package was installed without it.
    """
    choice("the built-in engine", name, ENGINES)
    require_part(FOLDER / name / "manifest.json")
    return FOLDER / name


def backbone_spec(layer: str = "final") -> FeatureSpec:
    """What the built-in backbone computes, with which weights; the built-in engines take the layer "final".

    Raises:
        ArgumentError: no layer is called so.
        EngineIntegrityError: the built-in engine, which names the weights, was changed.
    """
    choice("the built-in backbone's layer", layer, _MAPS)
    channels, edge = _MAPS[layer]
    return FeatureSpec(
        backbone="featinv_convnext",
        layer=layer,
        channels=channels,
        height=edge,
        width=edge,
        layout=FeatureLayout.NCHW,
        input_size=64,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        weights_sha256=_weights_sha256(),
    )


def backbone(layer: str = "final", *, device: str | torch.device = "cpu") -> Backbone:
    """The small ConvNeXt that was trained on the world's scenes: images to feature maps and class logits.

    Args:
        layer: "final", whose map [B, 256, 4, 4] the built-in engines invert, or the number of a stage, "0" to "3".
        device: where it runs.

    Raises:
        ArgumentError: no layer is called so.
        MissingPackageError: timm is not installed.
        InstallationError: the package was installed without its weights.
    """
    from featinv_fast.features import Backbone

    spec = backbone_spec(layer)
    require_part(FOLDER / BACKBONE)
    return Backbone(spec, weights=FOLDER / BACKBONE, device=device)


def judge_spec(weights_sha256: str | None = None) -> FeatureSpec:
    """What the judge computes, with which weights."""
    return FeatureSpec(
        backbone="featinv_resnet",
        layer="final",
        channels=192,
        height=4,
        width=4,
        layout=FeatureLayout.NCHW,
        input_size=64,
        weights_sha256=weights_sha256,
    )


def judge(*, device: str | torch.device = "cpu") -> Judge:
    """The small ResNet that judges engines of the built-in world: maps [B, 192, 4, 4], class logits, concepts.

    It was trained on other scenes than it judges, from other weights than the built-in backbone, and no loss of any
    engine saw it (`recipes/judge.toml`); `results()["judge"]` says how much of the test scenes it has right. On command
    lines it is `--judge featinv_resnet`.

    Args:
        device: where it runs.

    Raises:
        MissingPackageError: timm is not installed.
        InstallationError: the package was installed without its weights.
        CheckpointMismatchError: its weights were changed.
    """
    from featinv_fast.demo.scene_judge import Judge

    require_part(FOLDER / JUDGE)
    return Judge(judge_spec(results()["judge"]["weights_sha256"]), FOLDER / JUDGE, device=device)


def results() -> dict[str, Any]:
    """The figures of the built-in engines on held-out scenes: lists of `evaluate.Row` as plain data, by table.

    Raises:
        InstallationError: the package was installed without them.
    """
    require_part(FOLDER / RESULTS)
    tables: dict[str, Any] = json.loads((FOLDER / RESULTS).read_text(encoding="utf-8"))
    return tables


def _weights_sha256() -> str | None:
    """Of the backbone, as the engine that takes its features has it; `None` where there is no engine, as in a build."""
    path = FOLDER / "student" / "manifest.json"
    if not path.is_file():
        return None
    try:
        stated: str | None = json.loads(path.read_text(encoding="utf-8"))["features"].get("weights_sha256")
    except (ValueError, LookupError, AttributeError) as error:
        raise EngineIntegrityError(
            "the built-in engine was changed",
            given=f"{path}: {error}",
            expected="the manifest that comes with featinv-fast",
            remedy="install featinv-fast again",
        ) from error
    return stated


def require_part(path: Path) -> None:
    """Refuse to go on without a file that the package ships.

    Raises:
        InstallationError: it is not there.
    """
    if not path.is_file():
        raise InstallationError(
            "this installation lacks a part of the built-in engine",
            given=f"there is no {path}",
            expected="the files that come with featinv-fast",
            remedy="install featinv-fast again, make them with `python -m featinv_export.demo_build`, or name an "
            "engine of your own, made with `featinv-export --ckpt convnext.safetensors --out convnext.engine`",
        )

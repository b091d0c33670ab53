"""`featinv invert`: images or files of feature maps in, reconstructions out, a chunk at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featinv_fast.config import FeatureLayout, FeatureSpec, to_dict
from featinv_fast.errors import ArgumentError
from featinv_fast.features import Backbone, known_spec, list_images, load_features, normalise
from featinv_fast.inversion import Inversion, InversionInterrupted
from featinv_fast.runtime import Runtime

RECORD = "inversion.json"

# Feature maps read and kept at once: far more than a batch, far less than a file of a million maps.
CHUNK = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvertOptions:
    """What to invert, and how.

    Attributes:
        out: folder for the images and `inversion.json`.
        images: a folder of images, or one image.
        features: a file of feature maps (.npy, .npz, .safetensors).
        layout: of the maps in `features`, where their shape does not tell.
        backbone: timm name, where the engine does not say or to insist on it.
        layer: "final" or the number of a stage.
        backbone_weights: local weights of the backbone, or "random:SEED" for trying the pipeline.
        sampling: arguments of `Runtime.invert`.
        progress: show bars on stderr.
        force: write into a folder that holds an earlier run.
    """

    out: Path
    images: Path | None = None
    features: Path | None = None
    layout: str | None = None
    backbone: str | None = None
    layer: str | None = None
    backbone_weights: str | None = None
    sampling: dict[str, Any]
    progress: bool = True
    force: bool = False


def invert(runtime: Runtime, options: InvertOptions) -> dict[str, Any]:
    """Invert everything and write as it goes.

    Returns:
        The record that is also written to `inversion.json`: what ran, and each image's name, seed and error.

    Raises:
        ArgumentError: neither or both sources are named, or the folder holds an earlier run.
        InversionInterrupted: Ctrl-C; what was finished is on the disk.
    """
    if (options.images is None) == (options.features is None):
        raise ArgumentError(
            "name one source of feature maps", given="none or two", expected="--images DIR or --features FILE"
        )
    if (options.out / RECORD).exists() and not options.force:
        raise ArgumentError(
            "the output folder holds an earlier run", given=options.out, remedy="name another, or pass --force"
        )
    record: dict[str, Any] = {"engine": runtime.info["name"], "flags": {}, "items": []}
    seed = options.sampling.get("seed", 0)
    samples = options.sampling.get("samples", 1)
    sampling = {key: value for key, value in options.sampling.items() if key != "seed"}
    done = 0
    for names, maps, layout in _source(runtime, options):
        rows = [f"{name}_{k}" if samples > 1 else name for name in names for k in range(samples)]
        try:
            inversion = runtime.invert(
                maps, seed=seed + done, layout=layout, errors="return", progress=options.progress, **sampling
            )
        except InversionInterrupted as interruption:
            _write(options.out, record, interruption.finished, rows)
            raise
        _write(options.out, record, inversion, rows)
        done += len(inversion)
    return record


def _source(runtime: Runtime, options: InvertOptions) -> Iterator[tuple[list[str], Any, FeatureLayout | str | None]]:
    """Chunks of (names, feature maps, layout)."""
    spec = runtime.engine.manifest.features
    if options.features is not None:
        maps, layout = load_features(options.features), options.layout
        if maps.ndim != 4:
            maps, layout = normalise(maps, spec, layout=layout), FeatureLayout.NCHW
        for start in range(0, len(maps), CHUNK):
            chunk = maps[start : start + CHUNK]
            yield [f"{row:06d}" for row in range(start, start + len(chunk))], chunk, layout
    if options.images is not None:
        spec = _backbone_spec(spec, options.backbone, options.layer)
        backbone = Backbone(spec, weights=options.backbone_weights, device=runtime.info["device"])
        paths = list_images(options.images)
        root = options.images if options.images.is_dir() else options.images.parent
        for start in range(0, len(paths), CHUNK):
            files = paths[start : start + CHUNK]
            # One flat folder of results: "cats/1.jpg" becomes "cats__1.jpg.png".
            names = ["__".join(path.relative_to(root).parts) for path in files]
            yield names, list(backbone.extract(files)), spec.layout


def _backbone_spec(engine: FeatureSpec, name: str | None, layer: str | None) -> FeatureSpec:
    """The backbone that the engine was trained on, or the one named where the engine does not say.

    Raises:
        ArgumentError: nobody says which backbone, or the one named is another than the engine's.
    """
    if engine.backbone is not None:
        if name not in (None, engine.backbone, engine.backbone.partition(".")[0]) or layer not in (None, engine.layer):
            raise ArgumentError(
                "the engine was trained on another backbone or layer",
                given=f"{name or engine.backbone}, layer {layer or engine.layer}",
                expected=f"{engine.backbone}, layer {engine.layer}",
                remedy="leave out --backbone and --layer",
            )
        return engine
    if name is None:
        raise ArgumentError(
            "the engine does not say which backbone its features come from",
            expected="the backbone that the checkpoint was trained on",
            remedy="name it: --backbone convnext_base",
        )
    return known_spec(name, layer or "final")


def _write(out: Path, record: dict[str, Any], inversion: Inversion, names: list[str]) -> None:
    """Write the images of a chunk and extend the record, which is replaced whole."""
    inversion.save_images(out, names)
    record["flags"] = to_dict(inversion.flags)
    record["items"] += inversion.items(names)
    temporary = out / f".{RECORD}"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / RECORD)

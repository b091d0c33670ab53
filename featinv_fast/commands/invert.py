"""`featinv invert`: images or files of feature maps in, reconstructions out, a chunk at a time."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from featinv_fast import demo
from featinv_fast.config import FeatureLayout, FeatureSpec, to_dict
from featinv_fast.errors import ArgumentError, FeatInvError, OutOfMemoryError
from featinv_fast.features import (
    Backbone,
    center_crop,
    known_spec,
    list_images,
    load_features,
    normalise,
    read_image,
)
from featinv_fast.runtime import Inversion, InversionInterrupted, Runtime

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

    Raises:
        ArgumentError: neither or both sources are named, or the folder holds an earlier run.
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

    def __post_init__(self) -> None:
        if (self.images is None) == (self.features is None):
            raise ArgumentError(
                "name one source of feature maps", given="none or two", expected="--images DIR or --features FILE"
            )
        if (self.out / RECORD).exists() and not self.force:
            raise ArgumentError(
                "the output folder holds an earlier run",
                given=self.out,
                expected="a folder without an inversion.json",
                remedy="name another, or pass --force",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some of the items to invert.

    Attributes:
        names: one for each item.
        errors: place among the names -> why the item has no feature map.
        maps: the feature maps of the other items, in any form that `Runtime.invert` takes.
        layout: of the maps.
    """

    names: list[str]
    errors: dict[int, FeatInvError] = dataclasses.field(default_factory=dict)
    maps: Any
    layout: FeatureLayout | str | None


def invert(runtime: Runtime, options: InvertOptions) -> dict[str, Any]:
    """Invert everything and write as it goes.

    Returns:
        The record that is also written to `inversion.json`: what ran, and each image's name, seed and error.

    Raises:
        FeatInvError: nothing can be inverted: an unknown backbone, features of another shape, ...
        InversionInterrupted, OutOfMemoryError: what was finished is on the disk.
    """
    options.out.mkdir(parents=True, exist_ok=True)  # before the work: where this fails, the work would be lost
    record: dict[str, Any] = {"engine": runtime.info["name"], "flags": {"recomputed": []}, "items": []}
    for chunk in _chunks(runtime, options):
        _invert_chunk(runtime, options, chunk, record)
    _write(options.out, record)
    return record


def _invert_chunk(runtime: Runtime, options: InvertOptions, chunk: Chunk, record: dict[str, Any]) -> None:
    """Invert a chunk, write its images and extend the record, also by what was finished when it is stopped."""
    samples = options.sampling.get("samples", 1)
    items = [
        {
            "name": f"{name}_{k}" if samples > 1 else name,
            # A row's seed depends on its place in the whole run alone, not on which other items are sound.
            "seed": options.sampling.get("seed", 0) + len(record["items"]) + place * samples + k,
            "error": str(chunk.errors[place]) if place in chunk.errors else None,
        }
        for place, name in enumerate(chunk.names)
        for k in range(samples)
    ]
    rows = [row for row in range(len(items)) if row // samples not in chunk.errors]

    def keep(inversion: Inversion) -> None:
        inversion.save_images(options.out, [items[row]["name"] for row in rows])
        for row, error in inversion.errors.items():
            items[rows[row]]["error"] = str(error)
        recomputed = [len(record["items"]) + rows[row] for row in inversion.flags.recomputed]
        record["flags"] = to_dict(inversion.flags) | {"recomputed": record["flags"]["recomputed"] + recomputed}
        record["items"] += items
        _write(options.out, record)

    sampling = options.sampling | {"seed": [items[row]["seed"] for row in rows]}
    try:
        keep(runtime.invert(chunk.maps, layout=chunk.layout, errors="return", progress=options.progress, **sampling))
    except (InversionInterrupted, OutOfMemoryError) as stop:
        if stop.finished is not None:
            keep(stop.finished)
        raise


def _chunks(runtime: Runtime, options: InvertOptions) -> Iterator[Chunk]:
    spec = runtime.engine.manifest.features
    if options.features is not None:
        maps, layout = load_features(options.features), options.layout
        if maps.ndim != 4:
            maps, layout = normalise(maps, spec, layout=layout), FeatureLayout.NCHW
        for start in range(0, len(maps), CHUNK):
            part = maps[start : start + CHUNK]
            yield Chunk(names=[f"{row:06d}" for row in range(start, start + len(part))], maps=part, layout=layout)
    if options.images is not None:
        spec = backbone_spec(spec, options.backbone, options.layer)
        paths = list_images(options.images)
        names = _names(options.images, paths)
        backbone = open_backbone(spec, options.backbone_weights, runtime.info["device"])
        for start in range(0, len(paths), CHUNK):
            images, errors = _read_images(paths[start : start + CHUNK], backbone.input_size)
            yield Chunk(
                names=names[start : start + CHUNK],
                errors=errors,
                maps=list(backbone.extract(images)),
                layout=spec.layout,
            )


def _names(root: Path, paths: list[Path]) -> list[str]:
    """Names for one flat folder of results: "cats/1.jpg" becomes "cats__1.jpg".

    Raises:
        ArgumentError: two images would get one name.
    """
    root = root if root.is_dir() else root.parent
    names = ["__".join(path.relative_to(root).parts) for path in paths]
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise ArgumentError(
            "two images would be written to one file",
            given=", ".join(str(path) for path, name in zip(paths, names, strict=True) if name == repeated[0]),
            expected="different names where folders are joined with '__'",
            remedy="rename one of them",
        )
    return names


def _read_images(paths: list[Path], size: int) -> tuple[list[Image.Image], dict[int, FeatInvError]]:
    """The images, cropped as the backbone will, and for each unreadable one its place and error."""
    images: list[Image.Image] = []
    errors: dict[int, FeatInvError] = {}
    for place, path in enumerate(paths):
        try:
            images.append(center_crop(read_image(path), size))
        except ArgumentError as error:
            errors[place] = error
    return images, errors


def backbone_spec(engine: FeatureSpec, name: str | None, layer: str | None) -> FeatureSpec:
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


def open_backbone(spec: FeatureSpec, weights: str | None, device: str) -> Backbone:
    """The network that computes the features of `spec`, on `device`.

    Args:
        spec: of `backbone_spec`.
        weights: see `Backbone`. Where none are named, those of the built-in backbone come with the package, and timm
            has those of all others.
        device: where it runs.

    Raises:
        FeatInvError: the backbone or its weights cannot be had.
    """
    if weights is None and spec.backbone == demo.backbone_spec().backbone:
        return demo.backbone(spec.layer or "final", device=device)
    return Backbone(spec, weights=weights, device=device)


def _write(out: Path, record: dict[str, Any]) -> None:
    """Write the record; it is replaced whole, so that a reader never finds half of it."""
    temporary = out / f".{RECORD}"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / RECORD)

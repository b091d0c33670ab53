"""`featinv features`: what a vision model's maps are, and files of them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from featinv_fast.checkpoints.writer import stream_safetensors
from featinv_fast.checks import file_errors, refuse_existing
from featinv_fast.config import AS_STORED, ImageReading, to_dict
from featinv_fast.features import Backbone, list_images
from featinv_fast.features.stored import IDS, SPEC

# What is shown of a spec, in this order.
SHOWN = (
    "backbone",
    "layer",
    "layout",
    "channels",
    "height",
    "width",
    "prefix_tokens",
    "input_size",
    "mean",
    "std",
    "weights_sha256",
)


def as_data(backbone: Backbone, *, layers: bool) -> dict[str, Any]:
    """The spec of a backbone's maps, and with `layers` every layer of it with the shape that it gives."""
    spec = to_dict(backbone.spec)
    data = {name: spec[name] for name in SHOWN}
    if backbone.spec.more_layers:
        data["more_layers"] = spec["more_layers"]
    if layers:
        data["layers"] = [{"layer": layer, "shape": list(shape)} for layer, shape in backbone.layers().items()]
    return data


def as_text(data: dict[str, Any]) -> str:
    """What `as_data` gives, to be read."""
    lines = [f"{name:15} {_in_words(value)}" for name, value in data.items() if not name.endswith("layers")]
    more = [f"{one['layer']}: {one['channels']}x{one['height']}x{one['width']}" for one in data.get("more_layers", ())]
    lines += [f"{'and layer':15} {one}" for one in more]
    if "layers" in data:
        width = max(len(one["layer"]) for one in data["layers"])
        lines += ["", "layers"]
        lines += [f"  {one['layer']:{width}}  {'x'.join(map(str, one['shape']))}" for one in data["layers"]]
    return "\n".join(lines)


def write_maps(
    backbone: Backbone,
    images: Path,
    out: Path,
    *,
    batch_size: int = 8,
    reading: ImageReading = AS_STORED,
    force: bool = False,
    progress: bool = False,
) -> Path:
    """Write the maps of a folder's images, a row for each in the order of `list_images`, as float32 `features`.

    The file is there when it is whole. Its metadata have the images' paths (`featinv.ids`) and the spec of the maps
    (`featinv.features`), which `featinv invert` and recipes hold against what they take.

    Args:
        backbone: makes the maps.
        images: the folder, or one image.
        out: the file, `.safetensors`.
        batch_size: how many images are looked at together.
        reading: the choices in reading images.
        force: replace the file.
        progress: show a bar on stderr.

    Raises:
        OutputExistsError: the file is there.
        ArgumentError: there are no images, or one cannot be read.
        FileError: the file cannot be written.
    """
    refuse_existing(out, force=force)
    paths = list_images(images)
    root = images if images.is_dir() else images.parent
    metadata = {
        IDS: json.dumps([path.relative_to(root).as_posix() for path in paths]),
        SPEC: json.dumps(to_dict(backbone.spec)),
    }
    batches = backbone.extract(paths, batch_size=batch_size, reading=reading)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with file_errors(out), tqdm(total=len(paths), unit="image", disable=not progress) as bar:
            first = next(batches)
            out.parent.mkdir(parents=True, exist_ok=True)
            shape = (len(paths), *first.shape[1:])
            parts = _counted(itertools.chain([first], batches), bar.update)
            stream_safetensors(partial, {"features": (torch.float32, shape)}, parts, metadata)
            refuse_existing(out, force=force)  # others may have written it meanwhile
            partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _counted(batches: Iterable[Tensor], advance: Callable[[int], object]) -> Iterator[Tensor]:
    for batch in batches:
        yield batch
        advance(len(batch))


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{one:.6g}" for one in value)
    return "-" if value is None else str(value)

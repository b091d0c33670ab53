"""What `featinv invert` is asked for. Needs no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from featinv_fast.commands.identity import require_one_source, require_weights, stated_path, stated_weights
from featinv_fast.config import AS_STORED, ImageReading, to_dict
from featinv_fast.errors import OutputExistsError
from featinv_fast.jobs.ledger import LEDGER, differences, read_job

RECORD = "inversion.json"
GO_ON = "name another folder; or pass --force, which removes what that run wrote and begins anew"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvertOptions:
    """What to invert, and how.

    Attributes:
        out: folder for the images and `inversion.json`.
        images: a folder of images, or one image. What lies in `out` is no input.
        features: a file of feature maps (.npy, .npz, .safetensors).
        layout: of the maps in `features`, where their shape does not tell.
        backbone: its name, where the engine does not say or to insist on it; see `features.Backbone`.
        layer: "final", the number of a stage or the path of a module.
        image_size: edge in pixels of what the backbone sees.
        backbone_weights: local weights of the backbone, or "random:SEED" for trying the pipeline.
        reading: the choices in reading images, which the record holds.
        sampling: arguments of `Runtime.invert`.
        progress: show a bar on stderr.
        force: remove what an earlier run wrote to the folder and begin anew, instead of going on.

    Raises:
        ArgumentError: neither or both sources are named.
        OutputExistsError: the folder holds an earlier run with other options.
    """

    out: Path
    images: Path | None = None
    features: Path | None = None
    layout: str | None = None
    backbone: str | None = None
    layer: str | None = None
    image_size: int | None = None
    backbone_weights: str | None = None
    reading: ImageReading = AS_STORED
    sampling: dict[str, Any]
    progress: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        require_one_source(self.images, self.features)
        require_weights(self.backbone_weights)
        if self.force:
            return
        earlier, _ = read_job(self.out)
        if earlier is None and (self.out / RECORD).exists() and not (self.out / LEDGER).exists():
            raise OutputExistsError(
                "the output folder holds an inversion that no ledger tells of",
                given=self.out,
                expected=f"a folder without an {RECORD}, or with the {LEDGER} of the run that wrote it",
                remedy="name another folder, or move what is in this one away",
            )
        differing = [] if earlier is None else differences(earlier.get("given"), self.given())
        if differing:  # said now, before anything is loaded
            raise OutputExistsError(
                "the output folder holds an earlier run with other options",
                given="; ".join(f"{name}: {now!r}" for name, _, now in differing),
                expected="; ".join(f"{name}: {then!r}" for name, then, _ in differing),
                remedy=GO_ON,
            )

    def given(self) -> dict[str, Any]:
        """What was asked for, as JSON types; the same for the same command, wherever it is started."""
        return {
            "images": stated_path(self.images),
            "features": stated_path(self.features),
            "layout": self.layout,
            "backbone": self.backbone,
            "layer": self.layer,
            "image_size": self.image_size,
            "backbone_weights": stated_weights(self.backbone_weights),
            "reading": None if self.images is None else to_dict(self.reading),
            "sampling": {"seed": 0, "samples": 1, "strength": 1.0, "eta": 0.0, "guess_mode": False} | self.sampling,
        }

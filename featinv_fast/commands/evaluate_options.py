"""What `featinv eval` is asked for. Needs no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from featinv_fast.checks import count, require_matplotlib
from featinv_fast.checks.options import without_effect
from featinv_fast.commands.identity import require_one_source, require_weights, stated_path, stated_weights
from featinv_fast.config import AS_STORED, ImageReading, to_dict
from featinv_fast.errors import OutputExistsError
from featinv_fast.jobs.ledger import differences, read_job
from featinv_fast.samplers import Setting

REPORT = "report.json"
NEED_IMAGES = ("judge", "checkpoint", "inception", "lpips")
# The last row of an evaluation's ledger.
FINISHED = {"finished": True}
BEGIN_ANEW = "name another folder; or pass --force, which removes what that evaluation wrote and begins anew"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """A network by the words of `featinv features`; see `features.Backbone`.

    Attributes:
        name: of the network.
        layer: whose maps are compared; "final" where nothing is said.
        image_size: edge in pixels of what it sees; its own where nothing is said.
        weights: a local file, or "random:SEED".

    Raises:
        InputNotFoundError: no such file.
    """

    name: str
    layer: str | None = None
    image_size: int | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        require_weights(self.weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to evaluate on, and how.

    Attributes:
        out: folder for `report.json`, `images.jsonl`, `plot.png`, `page.png` and `page.html`.
        images: a folder of images.
        features: instead of images, a file of maps that were made elsewhere (.npy, .npz, .safetensors).
        layout: of these maps, where nothing else tells.
        settings: samplings to compare.
        limit: take only so many images or maps, spread evenly.
        group_by_folder: make a table row of each subfolder.
        backbone: its name, where the engine does not say or to insist on it; see `features.Backbone`.
        layer: "final", the number of a stage or the path of a module.
        image_size: edge in pixels of what the backbone sees.
        backbone_weights: local weights of the backbone, or "random:SEED" for trying the pipeline.
        reading: the choices in reading images.
        labels: "folders", or a CSV file of the images' true classes; see `read_labels` and `class_numbers`.
        judge: a second network that looks at the reconstructions.
        checkpoint: the engine's checkpoint, whose autoencoder gives the ceiling.
        inception: file of Inception weights, for FID.
        lpips: network of LPIPS whose weights are present; see `evaluate.lpips`.
        seed: of the first image.
        samples: reconstructions of each image.
        batch_size: images taken at once.
        pictures: images of each group on the pages.
        plot: draw the quality curves, which needs matplotlib.
        progress: show a count on stderr.
        force: remove what an earlier evaluation wrote to the folder and begin anew, instead of going on.

    Raises:
        OutputExistsError: the folder holds an earlier evaluation that came to its end, or one of other options.
        ArgumentError: neither or both of images and features are named, what needs images is wanted without them, or a
            number is out of range.
        MissingPackageError: a plot is wanted and matplotlib is not installed.
    """

    out: Path
    images: Path | None = None
    features: Path | None = None
    layout: str | None = None
    settings: tuple[Setting, ...] = (Setting(),)
    limit: int | None = None
    group_by_folder: bool = False
    backbone: str | None = None
    layer: str | None = None
    image_size: int | None = None
    backbone_weights: str | None = None
    reading: ImageReading = AS_STORED
    labels: str | None = None
    judge: JudgeOptions | None = None
    checkpoint: Path | None = None
    inception: Path | None = None
    lpips: str | None = None
    seed: int = 0
    samples: int = 1
    batch_size: int = 32
    pictures: int = 8
    plot: bool = True
    progress: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        require_one_source(self.images, self.features)
        if self.images is None:
            self._refuse_what_needs_images()
        elif self.layout is not None:
            raise without_effect(
                {"layout": self.layout}, "the backbone makes the maps", expected="a layout of --features"
            )
        require_weights(self.backbone_weights)
        if not self.force:
            self._refuse_another()
        if self.limit is not None:
            count("the limit of images", self.limit)
        if self.plot:
            require_matplotlib()  # known now, not after hours of work

    def given(self) -> dict[str, Any]:
        """What was asked for and shapes the tables, as JSON types."""
        return {
            "images": stated_path(self.images),
            "features": stated_path(self.features),
            "layout": self.layout,
            "settings": [to_dict(setting) for setting in self.settings],
            "limit": self.limit,
            "group_by_folder": self.group_by_folder,
            "backbone": self.backbone,
            "layer": self.layer,
            "image_size": self.image_size,
            "backbone_weights": stated_weights(self.backbone_weights),
            "reading": to_dict(self.reading),
            "seed": self.seed,
            "samples": self.samples,
            "batch_size": self.batch_size,
        }

    def _refuse_what_needs_images(self) -> None:
        given = {name: value for name in NEED_IMAGES if (value := getattr(self, name)) is not None}
        if given:
            raise without_effect(given, "originals are not known by their maps alone", expected="--images for these")

    def _refuse_another(self) -> None:
        """Before anything is loaded."""
        earlier, rows = read_job(self.out)
        if FINISHED in rows or (earlier is None and (self.out / REPORT).exists()):
            raise OutputExistsError(
                "the output folder holds an earlier evaluation",
                given=self.out,
                expected=f"a folder without a {REPORT}, or with an evaluation that was stopped",
                remedy=BEGIN_ANEW,
            )
        differing = [] if earlier is None else differences(earlier.get("given"), self.given())
        if differing:
            raise OutputExistsError(
                "the output folder holds an evaluation with other options, which was stopped",
                given="; ".join(f"{name}: {now!r}" for name, _, now in differing),
                expected="; ".join(f"{name}: {then!r}" for name, then, _ in differing),
                remedy=BEGIN_ANEW,
            )

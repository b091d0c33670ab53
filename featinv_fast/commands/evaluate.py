"""`featinv eval`: a folder of images in, tables, a plot and picture pages of an engine's quality out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from featinv_fast.commands.invert import backbone_spec, open_backbone
from featinv_fast.config import FeatureLayout
from featinv_fast.errors import ArgumentError
from featinv_fast.evaluate import (
    EvaluationInterrupted,
    Example,
    FeatureSpace,
    InceptionFeatures,
    Kind,
    Pooled,
    PooledFeatures,
    Report,
    Setting,
    autoencoder_of,
    evaluate,
    html_page,
    picture_page,
    quality_plot,
    require_matplotlib,
)
from featinv_fast.features import Backbone, class_folders, list_images, read_image
from featinv_fast.runtime import Runtime

REPORT = "report.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to evaluate on, and how.

    Attributes:
        out: folder for `report.json`, `images.jsonl`, `plot.png`, `page.png` and `page.html`.
        images: a folder of images.
        settings: samplings to compare.
        limit: take only so many images, spread evenly over the folder.
        group_by_folder: make a table row of each subfolder.
        backbone: timm name, where the engine does not say or to insist on it.
        layer: "final" or the number of a stage.
        backbone_weights: local weights of the backbone, or "random:SEED" for trying the pipeline.
        checkpoint: the engine's checkpoint, whose autoencoder gives the ceiling.
        inception: file of Inception weights, for FID.
        seed: of the first image.
        batch_size: images taken at once.
        pictures: images of each group on the pages.
        plot: draw the quality curves, which needs matplotlib.
        progress: show a count on stderr.
        force: write into a folder that holds an earlier evaluation.

    Raises:
        ArgumentError: the folder holds an earlier evaluation, or a number is out of range.
        MissingPackageError: a plot is wanted and matplotlib is not installed.
    """

    out: Path
    images: Path
    settings: tuple[Setting, ...] = (Setting(),)
    limit: int | None = None
    group_by_folder: bool = False
    backbone: str | None = None
    layer: str | None = None
    backbone_weights: str | None = None
    checkpoint: Path | None = None
    inception: Path | None = None
    seed: int = 0
    batch_size: int = 32
    pictures: int = 8
    plot: bool = True
    progress: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        if (self.out / REPORT).exists() and not self.force:
            raise ArgumentError(
                "the output folder holds an earlier evaluation",
                given=self.out,
                expected=f"a folder without a {REPORT}",
                remedy="name another, or pass --force",
            )
        if self.limit is not None and self.limit < 1:
            raise ArgumentError("limit is out of range", given=self.limit, expected="at least 1")
        if self.plot:
            require_matplotlib()  # known now, not after hours of work


def evaluate_folder(runtime: Runtime, options: EvaluateOptions) -> tuple[Report, dict[str, str]]:
    """Evaluate on the images of a folder and write everything.

    Returns:
        The report, and the images that could not be read with the reasons; the others were evaluated.

    Raises:
        ArgumentError: no image can be read, or nobody says which backbone the engine's features come from.
        EvaluationInterrupted: Ctrl-C; what was measured is written.
    """
    options.out.mkdir(parents=True, exist_ok=True)  # before the work: where this fails, the work would be lost
    backbone = _backbone(runtime, options)
    # The locations are what pooling loses, so an engine of pooled features is judged by the map.
    pooled = runtime.engine.manifest.features.layout is FeatureLayout.POOLED
    paths = list_images(options.images)
    if options.limit is not None and options.limit < len(paths):
        paths = [paths[i * len(paths) // options.limit] for i in range(options.limit)]
    unreadable: dict[str, str] = {}
    device = runtime.info["device"]
    spaces: list[FeatureSpace] = [PooledFeatures(backbone, name=f"frechet_distance_{backbone.spec.backbone}")]
    if options.inception is not None:
        spaces.append(InceptionFeatures(options.inception, device=device))
    try:
        report = evaluate(
            runtime,
            Pooled(backbone) if pooled else backbone,
            _examples(paths, options, unreadable),
            options.settings,
            judge=backbone,
            autoencoder=None if options.checkpoint is None else autoencoder_of(options.checkpoint, device=device),
            spaces=spaces,
            seed=options.seed,
            batch_size=options.batch_size,
            pictures=options.pictures,
            progress=options.progress,
        )
    except EvaluationInterrupted as interruption:
        if interruption.report is not None:
            _write(interruption.report, options)
        raise
    _write(report, options)
    return report, unreadable


def _backbone(runtime: Runtime, options: EvaluateOptions) -> Backbone:
    spec = backbone_spec(runtime.engine.manifest.features, options.backbone, options.layer)
    if spec.layout is FeatureLayout.POOLED:
        # The map before pooling; an engine of pooled features does not record its size and layout.
        spec = dataclasses.replace(spec, layout=FeatureLayout.NCHW, height=None, width=None)
    return open_backbone(spec, options.backbone_weights, runtime.info["device"])


def _examples(paths: list[Path], options: EvaluateOptions, unreadable: dict[str, str]) -> Iterator[Example]:
    root = options.images if options.images.is_dir() else options.images.parent
    labels: Sequence[str | None] = class_folders(options.images, paths) or [None] * len(paths)
    for path, label in zip(paths, labels, strict=True):
        name = path.relative_to(root)
        try:
            image = read_image(path)
        except ArgumentError as error:
            unreadable[name.as_posix()] = str(error)
            continue
        group = name.parent.as_posix() if options.group_by_folder else ""
        yield Example(image=image, name=name.as_posix(), label=label, group=group)


def _write(report: Report, options: EvaluateOptions) -> None:
    report.save(options.out)
    measured = any(row.kind is Kind.ENGINE and row.cosine for row in report.rows)
    plot = quality_plot(report.rows) if options.plot and measured else None
    if plot is not None:
        plot.save(options.out / "plot.png")
    if report.pictures:
        picture_page(report.pictures).save(options.out / "page.png")
    (options.out / "page.html").write_text(html_page(report, plot=plot), encoding="utf-8")

"""`featinv eval`: a folder of images in, tables, a plot and picture pages of an engine's quality out."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from featinv_fast.commands.evaluate_options import BEGIN_ANEW, FINISHED, REPORT, EvaluateOptions
from featinv_fast.commands.identity import inputs_below, running_identity
from featinv_fast.commands.judges import open_judge
from featinv_fast.commands.labels import read_labels
from featinv_fast.commands.remembered import RememberedInverter
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
    autoencoder_of,
    class_count,
    class_numbers,
    evaluate,
    html_page,
    picture_page,
    quality_plot,
)
from featinv_fast.features import Backbone, class_folders, list_images, open_backbone, read_image
from featinv_fast.jobs.ledger import Ledger, open_ledger
from featinv_fast.jobs.names import readable
from featinv_fast.runtime import Runtime

OUTPUTS = ("images.jsonl", "plot.png", "page.png", "page.html", REPORT)

# The label of an image, and its number among the backbone's and the judge's classes.
_Class = tuple[str | None, int | None, int | None]


class EvaluateInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM inside `evaluate_folder`: the same call goes on."""


def evaluate_folder(runtime: Runtime, options: EvaluateOptions) -> tuple[Report, dict[str, str]]:
    """Evaluate on the images of a folder and write everything.

    Returns:
        The report, and the images that could not be read with the reasons; the others were evaluated.

    Raises:
        ArgumentError: no image can be read, or nobody says which backbone the engine's features come from.
        OutputExistsError: the folder holds another evaluation, or files that no evaluation wrote.
        LockedError: another process writes to the folder.
        EvaluateInterrupted: Ctrl-C or SIGTERM; what was measured is written, and the same call goes on.
    """
    paths = inputs_below(options.images, list_images(options.images), options.out)
    if options.limit is not None and options.limit < len(paths):
        paths = [paths[i * len(paths) // options.limit] for i in range(options.limit)]
    backbone = _backbone(runtime, options)
    judge = None if options.judge is None else open_judge(options.judge, backbone)
    classes = _classes(paths, options, backbone, judge)
    identity = {"given": options.given(), "inputs": _fingerprint(options.images, paths), **running_identity(runtime)}
    with open_ledger(options.out, identity, work="evaluation", remedy=BEGIN_ANEW, restart=options.force) as ledger:
        ledger.claim(OUTPUTS)
        engine = RememberedInverter(runtime, ledger)
        unreadable: dict[str, str] = {}
        try:
            report = _evaluated(
                runtime, engine, backbone, judge, _examples(paths, classes, options, unreadable), options
            )
        except EvaluationInterrupted as interruption:
            if interruption.report is not None:
                _write(interruption.report, options, ledger)
            raise EvaluateInterrupted(
                f"interrupted: what was measured is in {options.out}; the same command goes on"
            ) from interruption
        _write(report, options, ledger)
        ledger.enter([FINISHED])
        engine.forget()
    return report, unreadable


def _evaluated(
    runtime: Runtime,
    engine: RememberedInverter,
    backbone: Backbone,
    judge: Backbone | None,
    examples: Iterator[Example],
    options: EvaluateOptions,
) -> Report:
    # The locations are what pooling loses, so an engine of pooled features is judged by the map.
    pooled = runtime.engine.manifest.features.layout is FeatureLayout.POOLED
    device = runtime.info["device"]
    spaces: list[FeatureSpace] = [PooledFeatures(backbone, name=f"frechet_distance_{backbone.spec.backbone}")]
    if options.inception is not None:
        spaces.append(InceptionFeatures(options.inception, device=device))
    return evaluate(
        engine,
        Pooled(backbone) if pooled else backbone,
        examples,
        options.settings,
        judge=backbone,
        second_judge=judge,
        autoencoder=None if options.checkpoint is None else autoencoder_of(options.checkpoint, device=device),
        spaces=spaces,
        seed=options.seed,
        samples=options.samples,
        batch_size=options.batch_size,
        pictures=options.pictures,
        progress=options.progress,
        clock=engine.clock,
    )


def _backbone(runtime: Runtime, options: EvaluateOptions) -> Backbone:
    spec = runtime.engine.manifest.features
    if spec.layout is FeatureLayout.POOLED:
        # The map before pooling; an engine of pooled features does not record its size and layout.
        spec = dataclasses.replace(spec, layout=None, height=None, width=None)
    return open_backbone(
        spec,
        backbone=options.backbone,
        layer=options.layer,
        image_size=options.image_size,
        weights=options.backbone_weights,
        device=runtime.info["device"],
    )


def _classes(paths: list[Path], options: EvaluateOptions, backbone: Backbone, judge: Backbone | None) -> list[_Class]:
    if options.labels is None:
        folders: Sequence[str | None] = class_folders(options.images, paths) or [None] * len(paths)
        return [(folder, None, None) for folder in folders]
    root = options.images if options.images.is_dir() else options.images.parent
    labels = read_labels(options.labels, root, [path.relative_to(root).as_posix() for path in paths])
    second: Sequence[int | None] = [None] * len(paths)
    if judge is not None and class_count(judge) == class_count(backbone):  # else numbers would mean other classes
        second = class_numbers(judge, labels)
    return list(zip(labels, class_numbers(backbone, labels), second, strict=True))


def _examples(
    paths: list[Path], classes: Sequence[_Class], options: EvaluateOptions, unreadable: dict[str, str]
) -> Iterator[Example]:
    root = options.images if options.images.is_dir() else options.images.parent
    for path, (label, target, second) in zip(paths, classes, strict=True):
        name = path.relative_to(root)
        shown = readable(name.as_posix())
        try:
            image = read_image(path, options.reading)
        except ArgumentError as error:
            unreadable[shown] = error.message(command_line=True)
            continue
        group = readable(name.parent.as_posix()) if options.group_by_folder else ""
        yield Example(image=image, name=shown, label=label, target=target, second_target=second, group=group)


def _fingerprint(root: Path, paths: Sequence[Path]) -> str:
    """Changes when the images do: names, sizes and times of change of all files."""
    digest = hashlib.sha256()
    for path in paths:
        with contextlib.suppress(OSError):  # of a file that is gone, the name alone
            status = path.stat()
            digest.update(f"{status.st_size}:{status.st_mtime_ns}:".encode())
        digest.update(os.fsencode(path.relative_to(root)) + b"\0")
    return digest.hexdigest()


def _write(report: Report, options: EvaluateOptions, ledger: Ledger) -> None:
    """Write everything; the report comes last."""
    measured = any(row.kind is Kind.ENGINE and row.cosine for row in report.rows)
    plot = quality_plot(report.rows) if options.plot and measured else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report.save(folder)
        if plot is not None:
            plot.save(folder / "plot.png")
        if report.pictures:
            picture_page(report.pictures).save(folder / "page.png")
        (folder / "page.html").write_text(html_page(report, plot=plot), encoding="utf-8")
        for output in OUTPUTS:
            if (folder / output).exists():
                content = (folder / output).read_bytes()
                ledger.write(output, lambda file, content=content: file.write(content))  # type: ignore[misc]

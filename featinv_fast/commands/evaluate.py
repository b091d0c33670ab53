"""`featinv eval`: a folder of images in, tables, a plot and picture pages of an engine's quality out."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from featinv_fast.commands.evaluate_inputs import Inputs, Labels, examples, folder_labels, inputs_of
from featinv_fast.commands.evaluate_options import BEGIN_ANEW, FINISHED, REPORT, EvaluateOptions
from featinv_fast.commands.identity import running_identity
from featinv_fast.commands.judges import open_judge
from featinv_fast.commands.labels import read_labels
from featinv_fast.commands.remembered import RememberedInverter
from featinv_fast.config import FeatureLayout
from featinv_fast.evaluate import (
    MEASURES,
    EvaluationInterrupted,
    Example,
    FeatureSpace,
    InceptionFeatures,
    Kind,
    Measure,
    Pooled,
    PooledFeatures,
    Report,
    autoencoder_of,
    class_count,
    class_numbers,
    evaluate,
    html_page,
    lpips,
    picture_page,
    quality_plot,
)
from featinv_fast.features import Backbone, open_backbone
from featinv_fast.jobs.ledger import Ledger, open_ledger
from featinv_fast.runtime import Runtime

OUTPUTS = ("images.jsonl", "plot.png", "page.png", "page.html", REPORT)


class EvaluateInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM inside `evaluate_folder`: the same call goes on."""


def evaluate_folder(runtime: Runtime, options: EvaluateOptions) -> tuple[Report, dict[str, str]]:
    """Evaluate on the images of a folder, or on maps from a file, and write everything.

    Returns:
        The report, and the images that could not be read with the reasons; the others were evaluated.

    Raises:
        ArgumentError: nothing can be read, or nobody says which backbone the engine's features come from.
        OutputExistsError: the folder holds another evaluation, or files that no evaluation wrote.
        LockedError: another process writes to the folder.
        EvaluateInterrupted: Ctrl-C or SIGTERM; what was measured is written, and the same call goes on.
    """
    inputs = inputs_of(options, runtime.engine.manifest.features)
    backbone = _backbone(runtime, options)
    judge = None if options.judge is None else open_judge(options.judge, backbone)
    measures = _measures(options, runtime.info["device"])
    labels = _labels(inputs, options, backbone, judge)
    identity = {"given": options.given(), "inputs": inputs.fingerprint(), **running_identity(runtime)}
    with open_ledger(options.out, identity, work="evaluation", remedy=BEGIN_ANEW, restart=options.force) as ledger:
        ledger.claim(OUTPUTS)
        engine = RememberedInverter(runtime, ledger)
        unreadable: dict[str, str] = {}
        given = examples(inputs, labels, unreadable, group_by_folder=options.group_by_folder)
        try:
            report = _evaluated(runtime, engine, backbone, judge, measures, given, options)
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
    measures: Sequence[Measure],
    given: Iterator[Example],
    options: EvaluateOptions,
) -> Report:
    # The locations are what pooling loses, so an engine of pooled features is judged by the map, where that is known.
    pooled = runtime.engine.manifest.features.layout is FeatureLayout.POOLED
    source = Pooled(backbone) if pooled else backbone
    device = runtime.info["device"]
    spaces: list[FeatureSpace] = []
    if options.images is not None:
        spaces.append(PooledFeatures(backbone, name=f"frechet_distance_{backbone.spec.backbone}"))
    if options.inception is not None:
        spaces.append(InceptionFeatures(options.inception, device=device))
    return evaluate(
        engine,
        source,
        given,
        options.settings,
        judge=backbone if options.images is not None else source,
        second_judge=judge,
        autoencoder=None if options.checkpoint is None else autoencoder_of(options.checkpoint, device=device),
        spaces=spaces,
        measures=measures,
        seed=options.seed,
        samples=options.samples,
        batch_size=options.batch_size,
        pictures=options.pictures,
        progress=options.progress,
        clock=engine.clock,
    )


def _measures(options: EvaluateOptions, device: torch.device) -> list[Measure]:
    own = {} if options.lpips is None else {"lpips": lpips(options.lpips, device=device)}
    return [own.get(measure.name, measure) for measure in MEASURES]


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


def _labels(inputs: Inputs, options: EvaluateOptions, backbone: Backbone, judge: Backbone | None) -> list[Labels]:
    if options.labels is None:
        return folder_labels(inputs)
    labels = read_labels(options.labels, inputs.root, inputs.names)
    numbers: Sequence[int] = class_numbers(backbone, labels)
    second: Sequence[int | None] = [None] * len(labels)
    if judge is not None and class_count(judge) == class_count(backbone):  # else numbers would mean other classes
        second = class_numbers(judge, labels)
    return [
        Labels(label=label, target=target, second_target=other)
        for label, target, other in zip(labels, numbers, second, strict=True)
    ]


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

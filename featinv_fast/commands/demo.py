"""`featinv demo`: test scenes, what two engines make of their features, and a picture of both."""

from __future__ import annotations

from collections.abc import Sequence

from featinv_fast import demo
from featinv_fast.checks import file_errors, output_folder
from featinv_fast.commands.demo_options import DemoOptions
from featinv_fast.evaluate import Example, Kind, Picture, Report, evaluate, picture_page
from featinv_fast.runtime import Runtime

# Strips of scenes side by side, from as many scenes on.
TWO_STRIPS = 4


def show(runtimes: Sequence[Runtime], options: DemoOptions) -> Report:
    """Invert the features of test scenes with each engine's own sampler and steps, and write the picture.

    Args:
        runtimes: engines of the built-in backbone's features whose samplers or steps differ.
        options: what to show.

    Returns:
        A row and the images of each engine, and a row of unrelated images, which tells what a guess would score.

    Raises:
        ArgumentError: there are no such scenes.
        MissingPackageError: timm is not installed.
        EngineNotFoundError: the package was installed without its backbone.
    """
    with output_folder(options.out.parent):  # before the work: where this fails, the work would be lost
        report = _evaluated(runtimes, options)
        across = 1 if options.count < TWO_STRIPS else 2
        with file_errors(options.out):
            picture_page(report.pictures, across=across).save(options.out)
    return report


def _evaluated(runtimes: Sequence[Runtime], options: DemoOptions) -> Report:
    scenes = demo.load_scenes(options.count, first=options.first)
    examples = [
        Example(image=image, name=demo.CLASS_NAMES[label], label=demo.CLASS_NAMES[label])
        for image, label in zip(scenes.images, scenes.labels, strict=True)
    ]
    backbone = demo.backbone()
    reports = [
        evaluate(runtime, backbone, examples, seed=options.seed, pictures=options.count, progress=options.progress)
        for runtime in runtimes
    ]
    return _joined(reports)


def _joined(reports: Sequence[Report]) -> Report:
    """Reports on the same images as one, with a single row of unrelated images."""
    rows = [row for report in reports for row in report.rows if row.kind is Kind.ENGINE]
    floor = [row for row in reports[0].rows if row.kind is Kind.UNRELATED]
    pictures = [
        Picture(
            name=versions[0].name,
            group="",
            original=versions[0].original,
            reconstructions={label: found for one in versions for label, found in one.reconstructions.items()},
        )
        for versions in zip(*(report.pictures for report in reports), strict=True)
    ]
    items = [item for report in reports for item in report.items]
    return Report(rows=(*rows, *floor), items=tuple(items), pictures=tuple(pictures), notes=reports[0].notes)

"""`featinv eval`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featinv_fast.checks import choice, count, require_checkpoint, require_feature_file, require_input, require_writable
from featinv_fast.cli.program import say
from featinv_fast.cli.shared import (
    DONE,
    FAILED,
    PARTIAL,
    add_backbone_options,
    add_engine_option,
    add_running_options,
    check_backend_options,
    image_reading,
    named_engine,
    open_runtime,
    refuse_without_effect,
    tell_builtin,
)
from featinv_fast.config import FeatureLayout

if TYPE_CHECKING:
    from featinv_fast.commands.evaluate_options import JudgeOptions
    from featinv_fast.engine import EngineFolder
    from featinv_fast.samplers import Setting


def add_parser(commands: Any) -> None:
    """Add the subcommand to `commands`, what `ArgumentParser.add_subparsers` returns."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "eval", help="measure an engine's reconstructions of images, or of maps"
    )
    parser.set_defaults(run=run)
    add_engine_option(parser)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    parser.add_argument(
        "--features", type=Path, metavar="FILE", help="instead, maps that were made elsewhere: .npy, .npz, .safetensors"
    )
    parser.add_argument("--layout", help="of these maps where their shape does not tell: nchw, nhwc, tokens, pooled")
    parser.add_argument("--out", required=True, type=Path, help="folder for report.json, page.html and the pictures")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=[""],
        metavar="SAMPLER:STEPS:GUIDANCE",
        help="what to compare, e.g. ddim:50:1.75 lcm:4 (default: the engine's own)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only N images or maps, spread evenly")
    parser.add_argument("--group-by-folder", action="store_true", help="a table row for each subfolder")
    add_backbone_options(parser)
    parser.add_argument(
        "--labels",
        metavar="folders | FILE.csv",
        help="true classes, for the accuracy on originals and reconstructions: the images' folders, or a table with "
        "the columns name and label; labels are numbers of classes, or names that are known of the backbone",
    )
    judge = parser.add_argument_group("a second network that judges, named as for `featinv features`")
    judge.add_argument(
        "--judge", metavar="NAME", help="the network; best one that had no part in the engine's training"
    )
    judge.add_argument("--judge-layer", metavar="L", help="whose maps are compared; default: final")
    judge.add_argument("--judge-image-size", type=int, metavar="S", help="edge in pixels of what it sees")
    judge.add_argument("--judge-weights", metavar="FILE", help="its local weights, or random:SEED")
    parser.add_argument("--checkpoint", type=Path, help="the engine's checkpoint: its autoencoder gives the ceiling")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="pt_inception-2015-12-05-6726825d.pth, for FID")
    parser.add_argument(
        "--lpips",
        choices=("alex", "vgg", "squeeze"),
        help="LPIPS by this network, whose ImageNet weights must lie in torch's cache (papers report alex)",
    )
    parser.add_argument("--seed", type=int, default=0, help="image k uses SEED + k; default 0")
    parser.add_argument(
        "--samples",
        type=int,
        default=1,
        metavar="K",
        help="images of each map, to see what its features leave open: sample j of image k uses SEED + k*K + j",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images taken at once; default 32")
    parser.add_argument("--pictures", type=int, default=8, help="images of each group on the pages; default 8")
    running = add_running_options(parser)
    running.add_argument("--no-plot", action="store_true", help="draw no curves; needs no matplotlib")
    running.add_argument("--json", action="store_true", help="print the rows as JSON instead of tables")


def run(options: argparse.Namespace) -> int:
    """Evaluate and print the tables or the rows."""
    settings = _checked_settings(options)
    from featinv_fast.commands.evaluate_options import EvaluateOptions

    evaluate_options = EvaluateOptions(
        out=options.out,
        images=options.images,
        features=options.features,
        layout=options.layout,
        settings=settings,
        limit=options.limit,
        group_by_folder=options.group_by_folder,
        backbone=options.backbone,
        layer=options.layer,
        image_size=options.image_size,
        backbone_weights=options.backbone_weights,
        reading=image_reading(options),
        labels=options.labels,
        judge=_judge(options),
        checkpoint=options.checkpoint,
        inception=options.inception,
        lpips=options.lpips,
        seed=options.seed,
        samples=options.samples,
        batch_size=options.batch_size,
        pictures=options.pictures,
        plot=not options.no_plot,
        progress=not options.quiet,
        force=options.force,
    )
    engine = _engine(options, settings)
    from featinv_fast.commands.evaluate import evaluate_folder
    from featinv_fast.evaluate import FIGURES_TITLE, figure_cells, group_cells, markdown, note_lines, summary_cells

    tell_builtin(options, engine)
    report, unreadable = evaluate_folder(open_runtime(options, engine), evaluate_options)
    for name, reason in unreadable.items():
        say("featinv", f"{name}: {reason}")
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(markdown(summary_cells(report.rows)))
        print(f"\n{FIGURES_TITLE}\n{markdown(figure_cells(report.rows))}")
        groups = group_cells(report.rows)
        if len(groups) > 1:
            print(f"\nmean cosine / top-1 match\n{markdown(groups)}")
        for note in note_lines(report.notes):
            print(note, file=sys.stderr)
    rows = [row for row in report.rows if row.kind == "engine" and row.group is None]
    if not any(row.n for row in rows):
        return FAILED
    return PARTIAL if unreadable or any(row.failed for row in rows) else DONE


def _checked_settings(options: argparse.Namespace) -> tuple[Setting, ...]:
    """The settings, once everything is checked that can be before an engine is opened.

    Raises:
        FeatInvError: something is wrong.
    """
    from featinv_fast.samplers import Setting

    check_backend_options(options, options.backend)
    if options.images is not None:
        require_input(options.images, "file or folder", expected="a folder of images, or an image")
    if options.features is not None:
        require_feature_file(options.features)
    if options.layout is not None:
        choice("--layout", options.layout, FeatureLayout)
    if options.checkpoint is not None:
        require_checkpoint(options.checkpoint)
    if options.inception is not None:
        require_input(options.inception, "file", expected="pt_inception-2015-12-05-6726825d.pth")
    if options.labels not in (None, "folders"):
        require_input(options.labels, "file", expected="'folders', or a CSV file with the columns name and label")
    require_writable(options.out)
    count("batch_size", options.batch_size)
    count("pictures", options.pictures, least=0)
    count("samples", options.samples)
    if options.limit is not None:
        count("limit", options.limit)
    return tuple(Setting.parse(text) for text in options.settings)


def _judge(options: argparse.Namespace) -> JudgeOptions | None:
    """The second network.

    Raises:
        FeatInvError: it has options and no name, or they are wrong.
    """
    from featinv_fast.commands.evaluate_options import JudgeOptions

    if options.judge is None:
        names = ["judge_layer", "judge_image_size", "judge_weights"]
        refuse_without_effect(options, names, "no judge is named", expected="--judge NAME as well")
        return None
    if options.judge_image_size is not None:
        count("--judge-image-size", options.judge_image_size)
    return JudgeOptions(
        name=options.judge,
        layer=options.judge_layer,
        image_size=options.judge_image_size,
        weights=options.judge_weights,
    )


def _engine(options: argparse.Namespace, settings: Sequence[Setting]) -> EngineFolder:
    """The engine, which can sample in every setting. Needs no torch.

    Raises:
        FeatInvError: it cannot, or cannot be opened.
    """
    from featinv_fast.samplers import resolve

    engine = named_engine(options.engine)
    for setting in settings:
        resolve(engine.manifest.sampling, engine.manifest.model, **dataclasses.asdict(setting))
    return engine

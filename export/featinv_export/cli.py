"""`featinv-export`: a thin command line around `featinv_export.exporter.export`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from featinv_export.options import ExportOptions
from featinv_export.plan_arguments import add_plan_arguments, collect_plan_options
from featinv_export.progress import Progress
from featinv_export.targets import TARGETS, made_of_graphs
from featinv_fast.checks import refuse_inputs, require_checkpoint, require_input
from featinv_fast.checks.options import flag
from featinv_fast.cli.program import Parser, run_program
from featinv_fast.cli.shared import add_network_options
from featinv_fast.config import Precision
from featinv_fast.engine import open_engine
from featinv_fast.engine.folder import require_engine
from featinv_fast.engine.install import require_destination
from featinv_fast.errors import ArgumentError, ExitCode

# What a command is about.
SUBJECTS = ("checkpoint", "from_onnx", "verify", "inspect")
OPTIONS = tuple(target.option for target in TARGETS)
# What the graphs of an engine were made with, and only another export changes.
MADE_BY_EXPORT = frozenset((*OPTIONS, "precision", "storage", "max_batch", "optimal_batch"))
READ_BY_EXPORT = frozenset(("backbone", "layer", "image_size", "backbone_weights", "feature_size"))
FIXED_BY_ENGINE = MADE_BY_EXPORT | READ_BY_EXPORT
NAME_ONE = "name one thing to work on: --ckpt PATH, --from-onnx DIR, --verify DIR or --inspect DIR"
# What can be made of an engine's ONNX graphs.
OF_GRAPHS = [flag(target.option) for target in TARGETS if target.of_graphs]
USAGE_LINES = f"""featinv-export --ckpt PATH [--out DIR] {" ".join(f"[{flag(name)}]" for name in OPTIONS)} [options]
       featinv-export --ckpt PATH --refit DIR [--out DIR] [options]
       featinv-export --from-onnx DIR {"|".join(OF_GRAPHS)} [options]
       featinv-export --verify DIR | --inspect DIR [--json]"""
EPILOG = "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated; nothing is installed but by 0."
# What `ArgumentParser.add_argument_group` returns; the class has no public name.
Group = Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns an `ExitCode`."""
    return run_program("featinv-export", lambda: _work(arguments))


def _work(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    if sum(name in given for name in SUBJECTS) != 1:
        alone = "refit" in given and not any(name in given for name in SUBJECTS)
        parser.error("--refit needs the checkpoint whose weights it takes: --ckpt PATH" if alone else NAME_ONE)
    as_json = given.pop("json")
    if "inspect" in given:
        print(_inspection(given, as_json=as_json))
        return ExitCode.DONE
    try:
        engine = _run(given)
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt("interrupted, no engine was installed") from interruption
    print(json.dumps(_summary(engine)) if as_json else engine)
    return ExitCode.DONE


def _run(given: dict[str, Any]) -> Path:
    """Make what the arguments ask for. Modules that need torch are imported late: usage errors do not wait for it."""
    if "verify" in given:
        folder, unchecked = given.pop("verify"), given.pop("unchecked")
        _refuse(given, "with --verify")
        require_engine(folder)

        from featinv_export.verify import verify

        return _with_bar(lambda progress: verify(folder, progress, unchecked=unchecked))
    collect_plan_options(given)
    of_graphs = made_of_graphs(given)
    if "from_onnx" in given:
        folder = given.pop("from_onnx")
        if not of_graphs:
            raise ArgumentError(
                "nothing to make of the engine's graphs",
                given="--from-onnx",
                expected=f"{' or '.join(OF_GRAPHS)} as well",
                remedy="add one, or leave it out",
            )
        _refuse({name: value for name, value in given.items() if name not in of_graphs}, "with --from-onnx")
        require_engine(folder)

        from featinv_export.from_onnx import add_files

        for target in TARGETS:
            if target.option in of_graphs:
                _with_bar(functools.partial(add_files, folder, target.of(of_graphs[target.option])))
        return folder
    if "refit" in given:
        folder = given.pop("refit")
        fixed = {name: value for name, value in given.items() if name in FIXED_BY_ENGINE}
        _refuse(fixed, "with --refit")

        options = _options(given)
        _require_inputs(options)
        require_engine(folder)
        if options.out is not None:
            require_destination(options.out, force=options.force)
        from featinv_export.refit import refit

        return _with_bar(lambda progress: refit(folder, options, progress))
    if of_graphs:
        given["onnx"] = True
    options = _options(given)
    _require_inputs(options)
    refuse_inputs({"the engine": options.destination}, options.inputs, replaced=True)
    require_destination(options.destination, force=options.force)

    from featinv_export.exporter import export

    return _with_bar(lambda progress: export(options, progress))


def _options(given: dict[str, Any]) -> ExportOptions:
    """The options of these arguments; targets without a field among them stand in `ExportOptions.targets`."""
    fields = {field.name for field in dataclasses.fields(ExportOptions)}
    others = {name: given.pop(name) for name in list(given) if name not in fields}
    return ExportOptions(**given, targets=others)


def _require_inputs(options: ExportOptions) -> None:
    """Refuse what is not there, before torch is loaded."""
    for what, path in options.inputs.items():
        if path is not None:
            require_input(path, what)
    require_checkpoint(options.checkpoint)


def _inspection(given: dict[str, Any], *, as_json: bool) -> str:
    from featinv_export.inspect_engine import as_data, as_text

    folder = given.pop("inspect")
    _refuse(given, "with --inspect")
    engine = open_engine(folder)
    return json.dumps(as_data(engine), indent=2) if as_json else as_text(engine)


def _refuse(given: dict[str, Any], where: str) -> None:
    """Refuse options that would have no effect."""
    surplus = [name for name, value in given.items() if value is not False]
    if surplus:
        raise ArgumentError(
            f"these options have no effect {where}",
            given=", ".join(map(flag, surplus)),
            expected="options that they are for",
            remedy="leave them out, or export the checkpoint",
        )


def _with_bar(work: Callable[[Progress], Path]) -> Path:
    from tqdm import tqdm

    # Only a terminal gets the bar.
    with tqdm(unit="step", file=sys.stderr, disable=None) as bar:

        def progress(what: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(what, refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        return work(progress)


def _summary(engine: Path) -> dict[str, object]:
    """What a machine may want to know of the new engine."""
    from featinv_fast.config import to_dict
    from featinv_fast.engine.manifest import MANIFEST_NAME, Manifest

    manifest = Manifest.from_json((engine / MANIFEST_NAME).read_bytes())
    return {
        "engine": str(engine),
        "name": manifest.name,
        "precision": str(manifest.precision),
        "kept_fp32": manifest.kept_fp32,
        "adaptations": manifest.adaptations,
        "files": {name: info.size for name, info in manifest.files.items()},
        "parity": [to_dict(info) for info in manifest.parity],
    }


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="featinv-export",
        usage=USAGE_LINES,
        description="Make an engine folder of a FeatInv checkpoint, check it against the plain model and install it.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("featinv-fast"))
    _add_subjects(parser.add_argument_group("what to work on, and where"))
    _add_kinds(parser.add_argument_group("what to write beside the weights"))
    _add_features(parser.add_argument_group("what the feature maps are, where the checkpoint does not say it"))
    _add_changes(parser.add_argument_group("changes to the checkpoint's model"))
    _add_defaults(parser.add_argument_group("how the engine samples unless told otherwise"))
    add_plan_arguments(parser)
    return parser


def _add_subjects(group: Group) -> None:
    add = group.add_argument
    add(
        "--ckpt",
        dest="checkpoint",
        type=Path,
        metavar="PATH",
        help="checkpoint: .safetensors, .ckpt, or a folder in the diffusers layout",
    )
    add(
        "--refit",
        type=Path,
        metavar="DIR",
        help="put the checkpoint's weights into this engine, in place or as --out; its graphs are kept",
    )
    add(
        "--verify",
        type=Path,
        metavar="DIR",
        help="run the comparisons of an engine again, on all backends that run here",
    )
    add(
        "--from-onnx",
        type=Path,
        metavar="DIR",
        help="make plans, or what else is made of graphs, for an engine that was exported with --onnx",
    )
    add("--inspect", type=Path, metavar="DIR", help="show what is inside an engine")
    add("--out", type=Path, metavar="DIR", help="engine folder to write (default: the checkpoint's name + .engine)")
    add("--force", action="store_true", help="replace an engine that is already there")
    add(
        "--unchecked",
        action="store_true",
        help="install also what cannot be run here to check it; the engine's manifest and model card say so",
    )
    add("--name", help="name of the engine, for people (default: the checkpoint's name)")
    add("--json", action="store_true", help="print a JSON object instead of the engine's path")


def _add_kinds(group: Group) -> None:
    for target in TARGETS:
        target.add_argument(group)
    add = group.add_argument
    add(
        "--precision",
        type=Precision,
        choices=list(Precision),
        metavar="|".join(Precision),
        help="of weights and arithmetic (default: fp32)",
    )
    add(
        "--storage",
        type=Precision,
        choices=list(Precision),
        metavar="fp16|bf16",
        help="of the stored weights alone: half the size for an fp32 engine (lossy)",
    )
    add("--max-batch", type=int, metavar="N", help="largest batch of one call (default: 64)")
    add("--optimal-batch", "--opt-batch", type=int, metavar="N", help="batch that kernels are tuned for (default: 1)")


def _add_features(group: Group) -> None:
    add = group.add_argument
    add_network_options(group, "where the checkpoint does not say")
    add("--feature-size", type=_size, metavar="HxW", help="cells of a feature map, such as 9x9")


def _add_changes(group: Group) -> None:
    add = group.add_argument
    add("--prompt", metavar="TEXT", help="prompt (default: the checkpoint's, or the official one)")
    add("--negative-prompt", metavar="TEXT", help="of the unconditional branch (default: the checkpoint's or empty)")
    add("--tokenizer", type=Path, metavar="PATH", help="CLIP's tokenizer.json or its folder, for prompts of your own")
    add(
        "--lora",
        type=Path,
        metavar="PATH",
        help="LoRA to fuse into the U-Net, a file or PEFT's folder; an LCM-LoRA wants --sampler lcm --steps 4 too",
    )
    add("--lora-scale", type=float, metavar="S", help="factor on what the LoRA adds (default: 1)")
    add(
        "--lora-alpha",
        type=_alpha,
        metavar="A|rank",
        help="alpha that the LoRA was trained with, for files that do not say it",
    )
    add("--lcm-unet", type=Path, metavar="PATH", help="U-Net (diffusers layout) in place of the checkpoint's own")


def _add_defaults(group: Group) -> None:
    add = group.add_argument
    add("--sampler", metavar="NAME", help="sampler (default: the checkpoint's; lcm with --lcm-unet)")
    add("--steps", type=int, metavar="N", help="number of steps (default: the checkpoint's; 4 with --lcm-unet)")
    add("--guidance-scale", type=float, metavar="G", help="guidance scale (default: the checkpoint's)")


def _alpha(text: str) -> float | str:
    try:
        return text if text == "rank" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'rank'") from None


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a height and a width such as 9x9")
    return int(match[1]), int(match[2])

"""`featinv-export`: a thin command line around `featinv_export.exporter.export`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from featinv_export.options import ExportOptions
from featinv_fast.config import Precision
from featinv_fast.errors import ArgumentError, FeatInvError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 for done, 1 for failed, 2 for wrong usage, 130 for interrupted."""
    parsed = vars(_parser().parse_args(arguments))
    as_json = parsed.pop("json")
    try:
        options = ExportOptions(**{name: value for name, value in parsed.items() if value is not None})
        engine = _export(options)
    except KeyboardInterrupt:
        print("featinv-export: interrupted, no engine was installed", file=sys.stderr)
        return INTERRUPTED
    except FeatInvError as error:
        print(f"featinv-export: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ArgumentError) else FAILED
    print(json.dumps(_summary(engine)) if as_json else engine)
    return DONE


def _export(options: ExportOptions) -> Path:
    # Here and not above, so that --help and usage errors do not wait for torch.
    from tqdm import tqdm

    from featinv_export.exporter import export

    # Only a terminal gets the bar.
    with tqdm(unit="step", file=sys.stderr, disable=None) as bar:

        def progress(what: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(what, refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        return export(options, progress)


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
    parser = argparse.ArgumentParser(
        prog="featinv-export", description="Make an engine folder of a FeatInv checkpoint.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--ckpt",
        dest="checkpoint",
        type=Path,
        required=True,
        metavar="PATH",
        help="checkpoint: .safetensors, .ckpt, or a folder in the diffusers layout",
    )
    add("--out", type=Path, metavar="DIR", help="engine folder to write (default: the checkpoint's name + .engine)")
    add("--force", action="store_true", help="replace an engine that is already there")
    add("--name", help="name of the engine, for people (default: the checkpoint's name)")
    add("--onnx", action="store_true", help="also write ONNX graphs, for onnxruntime and others")
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
    add("--optimal-batch", type=int, metavar="N", help="batch that kernels are tuned for (default: 1)")
    add("--prompt", metavar="TEXT", help="prompt (default: the checkpoint's, or the official one)")
    add("--negative-prompt", metavar="TEXT", help="of the unconditional branch (default: the checkpoint's or empty)")
    add("--tokenizer", type=Path, metavar="PATH", help="CLIP's tokenizer.json or its folder, for prompts of your own")
    add("--backbone", metavar="NAME", help="official backbone, where the checkpoint does not state its features")
    add("--layer", metavar="L", help="layer of the backbone: final, or the number of a stage")
    add("--feature-size", type=_size, metavar="HxW", help="cells of a feature map, such as 9x9")
    add("--lora", type=Path, metavar="FILE", help="LoRA to fuse into the U-Net, such as an LCM-LoRA")
    add("--lora-scale", type=float, metavar="S", help="factor on what the LoRA adds (default: 1)")
    add("--lcm-unet", type=Path, metavar="PATH", help="U-Net (diffusers layout) in place of the checkpoint's own")
    add("--sampler", metavar="NAME", help="default sampler of the engine (default: the checkpoint's)")
    add("--steps", type=int, metavar="N", help="default number of steps of the engine")
    add("--guidance-scale", type=float, metavar="G", help="default guidance scale of the engine")
    add("--json", action="store_true", help="print a JSON object instead of the engine's path")
    return parser


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a height and a width such as 9x9")
    return int(match[1]), int(match[2])

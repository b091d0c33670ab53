"""What the subcommands have in common."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featinv_fast.engine import EngineFolder
    from featinv_fast.runtime import Runtime

DONE, FAILED, USAGE, PARTIAL, INTERRUPTED = 0, 1, 2, 3, 130


def add_running_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options on how an engine is run."""
    group = parser.add_argument_group("running")
    group.add_argument("--backend", default="auto", help="auto, or a name that `featinv doctor` lists")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16")
    group.add_argument(
        "--trust-engine",
        action="store_true",
        help="run native code of the engine that was not built here: TensorRT plans, AOTInductor packages",
    )
    group.add_argument("--threads", type=int, help="CPU threads of one operation")
    group.add_argument("--force", action="store_true", help="write into a folder that holds an earlier run")
    group.add_argument("--quiet", action="store_true", help="no progress bars")
    return group


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """Options on the network whose features are inverted."""
    parser.add_argument("--backbone", help="timm name, where the engine does not say, e.g. convnext_base")
    parser.add_argument("--layer", help="'final' or the number of a stage")
    parser.add_argument("--backbone-weights", metavar="FILE", help="local weights of the backbone, or random:SEED")


def open_runtime(options: argparse.Namespace, engine: EngineFolder | None = None) -> Runtime:
    """The runtime that `add_running_options` describes, of `engine` or of the engine that `--engine` names."""
    from featinv_fast.runtime import Runtime

    return Runtime(
        options.engine if engine is None else engine,
        backend=options.backend,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        trust_engine=options.trust_engine,
    )

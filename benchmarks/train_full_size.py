"""A few training steps of FeatInv at the official size on a CPU, with their memory.

    python benchmarks/train_full_size.py [--small] [--threads N] [--steps S] [--batch B] [--work DIR] [--results FILE]

It makes a base model of random weights in the official layout and random images, and runs the recipe of `featinv
train`: features of an untrained convnext_base, the base frozen, a ControlNet and a condition encoder that learn with
AdamW in fp32. At full size the weights take 5.5 GB, gradients and optimiser states of the 369 M that learn 4.4 GB,
and activations come on top; the files take 14 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from full_size import memory
from make_checkpoint import SMALL, random_weight
from memory import run_measured
from PIL import Image
from rows import REPOSITORY, append, available_cores, environment

from featinv_fast.checkpoints.architecture import model_shapes
from featinv_fast.checkpoints.ldm import LAYOUT
from featinv_fast.checkpoints.recipe import Recipe
from featinv_fast.checkpoints.writer import write_safetensors
from featinv_fast.config import ModelConfig
from featinv_fast.train.logs import read_log

RECIPE = """
recipe = "controlnet"
folder = "run"
out = "featinv.safetensors"
base = "base.safetensors"
condition_hidden_channels = {hidden}
[backbone]
name = "{backbone}"
weights = "random:0"
[data]
source = "images"
size = {size}
[training]
steps = {steps}
batch_size = {batch}
log_every = 1
checkpoint_every = {steps}
device = "cpu"
"""
TRAIN = """
import sys
from featinv_fast.train import run
run(sys.argv[1] + "/recipe.toml", root=sys.argv[1], progress=False)
"""
LEARNING = ("denoiser.controlnet.", "condition_encoder.")


def make_base(path: Path, config: ModelConfig) -> None:
    """A base model of random weights with stored prompts, in the official layout."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.context_tokens, config.context_channels)
    prompts = {f"featinv.prompt.{name}": torch.randn(shape, generator=generator) for name in ("cond", "uncond")}
    recipe = Recipe.make(LAYOUT, config, dict.fromkeys(prompts, shape))
    parts = {name: shape for name, shape in model_shapes(config).items() if not name.startswith(LEARNING)}
    tensors = {name: random_weight(name, shape, generator) for name, shape in parts.items()} | prompts
    named = {recipe.sources[name].name: tensor.reshape(recipe.sources[name].shape) for name, tensor in tensors.items()}
    write_safetensors(path, named, {})


def make_images(folder: Path, size: int, count: int) -> None:
    """Images of random pixels."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the training and describe it."""
    config = SMALL if arguments.small else ModelConfig()
    size = 64 if arguments.small else 288
    make_base(work / "base.safetensors", config)
    make_images(work / "images", size, arguments.batch)
    (work / "recipe.toml").write_text(
        RECIPE.format(
            hidden=config.condition_hidden_channels,
            backbone="test_convnext" if arguments.small else "convnext_base",
            size=size,
            steps=arguments.steps,
            batch=arguments.batch,
        )
    )
    measured = run_measured([sys.executable, "-c", TRAIN, str(work)], arguments.threads)
    losses = [row["loss"] for row in read_log(work / "run")]
    if len(losses) != arguments.steps or not all(map(math.isfinite, losses)):
        raise SystemExit(f"the training did not take {arguments.steps} finite steps: {losses}")
    shapes = model_shapes(config)
    return {
        "benchmark": "train_full_size",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "what": "featinv train, ControlNet recipe",
        "dtype": "fp32",
        "batch": arguments.batch,
        "steps": arguments.steps,
        "losses": losses,
        "seconds": {"all": round(measured.seconds, 1)},
        "parameters": sum(map(math.prod, shapes.values())),
        "learning": sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(LEARNING)),
        **memory(measured),
        **environment(arguments.threads),
    }


def main() -> None:
    """Measure and append a row."""
    parser = argparse.ArgumentParser(description="Training steps at the official model's size on a CPU.")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark with")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--work", type=Path, help="where the files go and stay; default: a temporary folder")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results" / "train_full_size.jsonl")
    arguments = parser.parse_args()
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
        row = measure(arguments, arguments.work)
    else:
        with tempfile.TemporaryDirectory() as work:
            row = measure(arguments, Path(work))
    append(arguments.results, row)
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()

"""Saving and converting checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from featinv_fast.checkpoints import metadata as statements
from featinv_fast.checkpoints.architecture import TEXT_ENCODER
from featinv_fast.checkpoints.diffusers_configs import SCHEDULER, component_configs, text_encoder_config
from featinv_fast.checkpoints.folder import COMPONENTS
from featinv_fast.checkpoints.layouts import named_layout
from featinv_fast.checkpoints.loading import Checkpoint, load
from featinv_fast.checkpoints.recipe import Recipe
from featinv_fast.checkpoints.values import check_finite
from featinv_fast.checkpoints.writer import refuse_existing, replacing, write_json, write_safetensors
from featinv_fast.checks import refuse_inputs, require_layout_name
from featinv_fast.checks.names import FOLDER_LAYOUT
from featinv_kernels.torch_state import neutral_torch_state


def convert(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], to: str = "featinv", *, force: bool = False
) -> Path:
    """Convert a checkpoint to another layout; the same values, bit for bit.

    Args:
        source: see `load`.
        destination: a `.safetensors` file, or a folder for "diffusers".
        to: "featinv" (our own), "ldm" (the official one) or "diffusers".
        force: replace a checkpoint that is already there.

    Returns:
        The destination.

    Raises:
        ArgumentError: an unknown layout, or a destination whose name does not suit it.
        OutputExistsError: the destination is the source, or one lies in the other.
        CheckpointError: see `load`; the destination exists or cannot be written; weights are not finite.
    """
    destination = _destination(destination, to)
    refuse_inputs({"the destination": destination}, {"the checkpoint": source}, replaced=True)
    refuse_existing(destination, force=force, replaceable=_is_checkpoint)
    checkpoint = load(source)
    check_finite(checkpoint.named_tensors())
    return save(checkpoint, destination, to, force=force)


@neutral_torch_state()
def save(checkpoint: Checkpoint, path: str | os.PathLike[str], layout: str = "featinv", *, force: bool = False) -> Path:
    """Write `checkpoint` with its metadata; see `convert` for arguments and errors."""
    path = _destination(path, layout)
    tensors = checkpoint.named_tensors()
    extras = {
        name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(("featinv.", TEXT_ENCODER))
    }
    recipe = Recipe.make(named_layout(layout), checkpoint.config, extras)
    metadata = statements.build(
        checkpoint.config, checkpoint.features, checkpoint.sampling, checkpoint.adaptations, checkpoint.metadata
    )
    with replacing(path, force=force, replaceable=_is_checkpoint) as temporary:
        if layout == FOLDER_LAYOUT:
            _write_folder(temporary, recipe, checkpoint, metadata)
        else:
            write_safetensors(temporary, recipe.write(tensors), metadata)
    return path


def _destination(path: str | os.PathLike[str], layout: str) -> Path:
    named_layout(layout)
    return require_layout_name(path, layout)


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return (path / "condition_encoder" / "config.json").is_file()
    return path.suffix == ".safetensors"


def _write_folder(path: Path, recipe: Recipe, checkpoint: Checkpoint, metadata: dict[str, str]) -> None:
    tensors = recipe.write(checkpoint.named_tensors())
    configs = component_configs(checkpoint.config)
    if checkpoint.text_encoder:
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.text_encoder.items()}
        configs["text_encoder"] = text_encoder_config(shapes)
    for component in COMPONENTS:
        if component not in configs:
            continue
        folder = path / component
        folder.mkdir(parents=True)
        own = component == "condition_encoder"
        part = {
            name.removeprefix(f"{component}."): tensor
            for name, tensor in tensors.items()
            if name.startswith((f"{component}.", "featinv.") if own else f"{component}.")
        }
        if component == "text_encoder":
            # transformers before version 5 insists on this prefix, later ones accept it.
            part = {f"text_model.{name}": tensor for name, tensor in part.items()}
        stem = "model" if component in {"text_encoder", "condition_encoder"} else "diffusion_pytorch_model"
        write_safetensors(folder / f"{stem}.safetensors", part, metadata if own else {"format": "pt"})
        write_json(folder / "config.json", configs[component])
    (path / "scheduler").mkdir()
    write_json(path / "scheduler" / "scheduler_config.json", SCHEDULER)

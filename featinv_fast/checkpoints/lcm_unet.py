"""Replacing the U-Net, for example by a latent consistency model (arXiv 2310.04378) with a guidance embedding."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from featinv_fast.checkpoints import diffusers_layout
from featinv_fast.checkpoints.diffusers_configs import check_component, component_configs
from featinv_fast.checkpoints.folder import read_component, read_scheduler
from featinv_fast.checkpoints.loading import Checkpoint
from featinv_fast.checkpoints.reader import Raw, read_file
from featinv_fast.checkpoints.recipe import Recipe
from featinv_fast.checkpoints.training import check_training
from featinv_fast.checkpoints.wrappers import unwrapped
from featinv_kernels.torch_state import neutral_torch_state

UNET = "denoiser.unet."
GUIDANCE = "unet.time_embedding.cond_proj.weight"


@neutral_torch_state()
def replace_unet(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint with the U-Net of `path` in place of its own.

    Args:
        checkpoint: it is not changed.
        path: a U-Net in the diffusers layout: its folder, the folder of a pipeline with it in `unet/`, or the file of
            its weights. With a `time_embedding.cond_proj` it takes the guidance scale as an input.

    Raises:
        CheckpointError: the file or folder cannot be read.
        CheckpointMismatchError: it is not a U-Net of the same architecture.
    """
    path = Path(path)
    raw = _read(path)
    check_training(raw)
    guidance = raw.tensors[GUIDANCE].shape[-1] if GUIDANCE in raw.tensors else 0
    config = dataclasses.replace(checkpoint.config, guidance_embedding_channels=guidance)
    check_component("unet", raw.configs.get("unet", {}), component_configs(config)["unet"])
    recipe = Recipe.make(diffusers_layout.LAYOUT, config).part(UNET)
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(UNET)}
    note = f"U-Net replaced by {path.name}" + (f" with a guidance embedding of {guidance} channels" if guidance else "")
    return dataclasses.replace(
        checkpoint,
        config=config,
        tensors=kept | recipe.read(raw.tensors),
        adaptations=(*checkpoint.adaptations, note),
    )


def _read(path: Path) -> Raw:
    if path.is_dir():
        pipeline = path if (path / "unet").is_dir() else path.parent if path.name == "unet" else None
        raw = read_component(path / "unet" if pipeline == path else path, "unet")
        configs = {} if pipeline is None else read_scheduler(pipeline)
        return dataclasses.replace(raw, configs=raw.configs | configs)
    raw = read_file(path)
    return dataclasses.replace(raw, tensors={f"unet.{name}": t for name, t in unwrapped(raw.tensors).items()})

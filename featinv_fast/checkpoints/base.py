"""Base models: what FeatInv's training starts from, a Stable-Diffusion-1.x model without ControlNet.

The same strict recipes serve them as serve whole FeatInv checkpoints, restricted to the U-Net and the autoencoder.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from featinv_fast.checkpoints import metadata as statements
from featinv_fast.checkpoints.folder import entries, read_component, read_scheduler
from featinv_fast.checkpoints.infer import FEATURES, infer_config
from featinv_fast.checkpoints.known import resemblance
from featinv_fast.checkpoints.layouts import named_layout
from featinv_fast.checkpoints.listing import listed
from featinv_fast.checkpoints.loading import check_extras, check_numbers, extra_shapes, take_extras, with_tokens
from featinv_fast.checkpoints.reader import Raw, read_file
from featinv_fast.checkpoints.recipe import Recipe
from featinv_fast.checkpoints.training import check_training
from featinv_fast.checkpoints.wrappers import unwrapped
from featinv_fast.checkpoints.writer import replacing, write_safetensors
from featinv_fast.config import FeatureSpec, ModelConfig, SamplingConfig
from featinv_fast.errors import CheckpointMismatchError, CheckpointNotFoundError
from featinv_kernels.torch_state import neutral_torch_state

# Ours, and where each layout keeps them.
PARTS = ("denoiser.unet.", "autoencoder.")
SIGNATURES = {
    "featinv": ("denoiser.unet.", "autoencoder."),
    "ldm": ("model.diffusion_model.", "first_stage_model."),
    "diffusers": ("unet.", "vae."),
}
# Tensors of a ControlNet: what has them is no base model but a FeatInv checkpoint.
CONTROL = ("control_model.", "denoiser.controlnet.", "condition_encoder.")
COMPONENTS = ("unet", "vae", "text_encoder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model as tensors under our names.

    Attributes:
        config: the architecture. What it says of feature maps and of the condition encoder are the official values:
            a base model has no part in that.
        tensors: `denoiser.unet.*` and `autoencoder.*`, in the dtypes of the file; views of the memory-mapped file.
        prompts: "cond" and "uncond", stored embeddings [1, T, D], or None.
        text_encoder: CLIP's tensors under transformers' names without the prefix `text_model.`; may be empty.
        metadata: of the file, as it stands there.
        layout: "featinv", "ldm" or "diffusers".
        path: where it was read.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    prompts: Mapping[str, Tensor | None]
    text_encoder: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    layout: str
    path: Path


@neutral_torch_state()
def load_base(path: str | os.PathLike[str]) -> BaseModel:
    """Load a base model: a file in the official (LDM) layout or ours, or a folder in the diffusers layout.

    Raises:
        CheckpointNotFoundError: there is no such file or folder.
        CheckpointError: it cannot be read.
        CheckpointCorruptError: a file is damaged.
        CheckpointUnsafeError: a file holds code.
        CheckpointMismatchError: the tensors do not make a base model of Stable Diffusion 1's family.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointNotFoundError(
            "there is no such base model",
            given=path,
            expected="a .safetensors or .ckpt file, or a folder in the diffusers layout",
            remedy="check the path",
        )
    raw = _read_folder(path) if path.is_dir() else read_file(path)
    tensors = unwrapped(raw.tensors, SIGNATURES.values())
    layout = named_layout(_recognise(tensors))
    raw = dataclasses.replace(raw, tensors=layout.renamed(tensors))
    check_training(raw)
    extras = extra_shapes(layout, raw.tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in raw.tensors.items()}
    official = ModelConfig()
    # The one landmark that a base model lacks, with the official sizes.
    landmark = layout.source_name(layout.modules(official), FEATURES)
    shapes[landmark] = (official.condition_hidden_channels, official.feature_channels, 3, 3)
    inferred = layout.complete(with_tokens(infer_config(layout, shapes), extras), raw)
    config = statements.parse(raw.metadata, inferred).config
    check_extras(config, extras)
    check_numbers(config)
    layout.check(config, raw)
    recipe = Recipe.make(layout, config, extras).part((*PARTS, *extras))
    tensors = recipe.read(raw.tensors)
    prompts, text_encoder = take_extras(tensors)
    return BaseModel(
        config=config,
        tensors=tensors,
        prompts=prompts,
        text_encoder=text_encoder,
        metadata=raw.metadata,
        layout=layout.name,
        path=path,
    )


def save_base(
    path: str | os.PathLike[str],
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    prompts: Mapping[str, Tensor],
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write a base model in our own layout, replacing an older one.

    Args:
        path: a `.safetensors` file.
        config: the architecture; what it says of the condition encoder is not stored.
        tensors: `denoiser.unet.*` and `autoencoder.*`.
        prompts: "cond" and "uncond", [1, T, D].
        notes: metadata under `featinv.info.*`.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    official = ModelConfig()
    config = dataclasses.replace(
        config,
        feature_channels=official.feature_channels,
        condition_hidden_channels=official.condition_hidden_channels,
    )
    stored = dict(tensors) | {f"featinv.prompt.{name}": prompt for name, prompt in prompts.items()}
    metadata = statements.build(
        config, FeatureSpec(channels=config.feature_channels), SamplingConfig(), (), notes or {}
    )
    with replacing(path, force=True, replaceable=lambda path: path.suffix == ".safetensors") as temporary:
        write_safetensors(
            temporary, stored, {key: metadata[key] for key in ("format", "featinv.model", *(notes or {}))}
        )
    return path


def _recognise(keys: Collection[str]) -> str:
    """The name of the layout of a base model with these tensor names."""
    matching = [
        name
        for name, prefixes in SIGNATURES.items()
        if all(any(key.startswith(prefix) for key in keys) for prefix in prefixes)
    ]
    if not matching or any(key.startswith(CONTROL) for key in keys):
        raise CheckpointMismatchError(
            f"this is not a base model but {resemblance(keys)}",
            given=f"{len(keys)} tensors: {listed(keys)}",
            expected=f"U-Net and autoencoder together, without a ControlNet, as {', '.join(SIGNATURES)}",
            remedy="give the Stable-Diffusion-1.x checkpoint that the training is to start from",
        )
    return matching[0]


def _read_folder(path: Path) -> Raw:
    """The components of a diffusers pipeline that matter here; safety checkers and tokenizers are left alone."""
    present = [name for name in COMPONENTS if (path / name).is_dir()]
    missing = [name for name in ("unet", "vae") if name not in present]
    if missing or (path / "controlnet").is_dir():
        raise CheckpointMismatchError(
            "this folder is not a base model in the diffusers layout",
            given=f"{path} with {listed(entries(path)) or 'nothing in it'}",
            expected="unet/ and vae/, perhaps text_encoder/, and no controlnet/",
            remedy="give the folder of a Stable-Diffusion-1.x pipeline",
        )
    parts = [read_component(path / name, name) for name in present]
    return Raw(
        {name: tensor for part in parts for name, tensor in part.tensors.items()},
        {},
        {name: config for part in parts for name, config in part.configs.items()} | read_scheduler(path),
    )

"""Loading a checkpoint of any known layout."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from featinv_fast.checkpoints import metadata as statements
from featinv_fast.checkpoints.architecture import PROMPTS, TEXT_ENCODER, Shape, Shapes, text_encoder_shapes
from featinv_fast.checkpoints.folder import read_folder
from featinv_fast.checkpoints.infer import as_mismatch, infer_config
from featinv_fast.checkpoints.layouts import recognise, signatures
from featinv_fast.checkpoints.reader import read_file
from featinv_fast.checkpoints.recipe import Layout, Recipe
from featinv_fast.checkpoints.training import check_training
from featinv_fast.checkpoints.wrappers import unwrapped
from featinv_fast.config import FeatureSpec, ModelConfig, SamplingConfig
from featinv_fast.errors import CheckpointMismatchError, CheckpointNotFoundError
from featinv_kernels.torch_state import neutral_torch_state

# Its shape is the length of prompts and the width of their embeddings.
POSITIONS = f"{TEXT_ENCODER}embeddings.position_embedding.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A FeatInv model as tensors under our names.

    Attributes:
        config: the architecture.
        tensors: the state dict of `featinv_fast.models.FeatInv(config)`, in the dtypes of the file; views of the
            memory-mapped file, so do not write into them.
        prompts: "cond" and "uncond", the prompts' embeddings [1, T, D], or None where the checkpoint stores none.
        text_encoder: CLIP's tensors under transformers' names without the prefix `text_model.`; may be empty.
        features: what feature maps the model takes.
        sampling: defaults of the sampler.
        metadata: of the file, as it stands there.
        adaptations: what was done to the published weights.
        layout: "featinv", "ldm" or "diffusers".
        path: where it was read.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    prompts: Mapping[str, Tensor | None]
    text_encoder: Mapping[str, Tensor]
    features: FeatureSpec
    sampling: SamplingConfig
    metadata: Mapping[str, str]
    adaptations: tuple[str, ...]
    layout: str
    path: Path

    def named_tensors(self) -> dict[str, Tensor]:
        """All tensors in one namespace: the model's, `featinv.prompt.*` and `text_encoder.*`."""
        prompts = {f"featinv.prompt.{name}": prompt for name, prompt in self.prompts.items() if prompt is not None}
        text_encoder = {TEXT_ENCODER + name: tensor for name, tensor in self.text_encoder.items()}
        return {**self.tensors, **prompts, **text_encoder}


@neutral_torch_state()
def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Load a checkpoint: a file or a folder, its layout and architecture told by its tensors.

    Files are memory-mapped: nothing is copied, and nothing is read before it is used.

    Args:
        path: `.safetensors`, `.ckpt` (or `.pt .pth .bin`, tensors only), or a folder in the diffusers layout.

    Raises:
        CheckpointNotFoundError: there is no such file or folder.
        CheckpointError: it cannot be read.
        CheckpointCorruptError: a file is damaged.
        CheckpointUnsafeError: a file holds code.
        CheckpointMismatchError: the tensors or the metadata do not make a FeatInv model.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointNotFoundError(
            "there is no such checkpoint",
            given=path,
            expected="a .safetensors or .ckpt file, or a folder in the diffusers layout",
            remedy="check the path",
        )
    raw = read_folder(path) if path.is_dir() else read_file(path)
    tensors = unwrapped(raw.tensors, signatures())
    layout = recognise(tensors)
    raw = dataclasses.replace(raw, tensors=layout.renamed(tensors))
    check_training(raw)
    extras = extra_shapes(layout, raw.tensors)
    inferred = infer_config(layout, {name: tuple(tensor.shape) for name, tensor in raw.tensors.items()})
    stated = statements.parse(raw.metadata, layout.complete(with_tokens(inferred, extras), raw))
    config = stated.config
    check_extras(config, extras)
    check_numbers(config)
    layout.check(config, raw)
    tensors = Recipe.make(layout, config, extras).read(raw.tensors)
    prompts, text_encoder = take_extras(tensors)
    return Checkpoint(
        config=config,
        tensors=tensors,
        prompts=prompts,
        text_encoder=text_encoder,
        features=stated.features,
        sampling=stated.sampling,
        metadata=raw.metadata,
        adaptations=stated.adaptations,
        layout=layout.name,
        path=path,
    )


def take_extras(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
    """Take the prompts ("cond", "uncond") and the text encoder out of `tensors`, leaving the networks in it."""
    prompts = {name.rpartition(".")[2]: tensors.pop(name, None) for name in PROMPTS}
    text_encoder = {
        name.removeprefix(TEXT_ENCODER): tensors.pop(name) for name in list(tensors) if name.startswith(TEXT_ENCODER)
    }
    return prompts, text_encoder


def extra_shapes(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Shapes of what a checkpoint may hold beside the model, under our names: prompts and a text encoder."""
    extras: dict[str, Shape] = {name: tuple(tensors[name].shape) for name in PROMPTS if name in tensors}
    shapes = {
        name.removeprefix(layout.text_encoder): tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith(layout.text_encoder)
    }
    return extras | {TEXT_ENCODER + name: shape for name, shape in _text_encoder(shapes).items()}


def _text_encoder(shapes: Shapes) -> dict[str, Shape]:
    """What a complete text encoder of the given one's size has; empty if there is none."""
    if not shapes:
        return {}
    layers = {int(match[1]) for name in shapes if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
    try:
        vocabulary, width = shapes["embeddings.token_embedding.weight"]
        tokens, _ = shapes["embeddings.position_embedding.weight"]
        hidden, _ = shapes["encoder.layers.0.mlp.fc1.weight"]
    except (KeyError, ValueError) as error:
        raise CheckpointMismatchError(
            "the checkpoint holds a part of a CLIP text encoder only",
            given=f"{len(shapes)} of its tensors, without a sound {error}",
            expected="all of its tensors, or none of them with stored prompts instead",
            remedy="save the whole text encoder, or remove it and store the prompts",
        ) from None
    return text_encoder_shapes(layers=len(layers), width=width, hidden=hidden, vocabulary=vocabulary, tokens=tokens)


def with_tokens(config: ModelConfig, extras: Shapes) -> ModelConfig:
    """`config` with the prompt length of the stored prompts or of the text encoder."""
    shapes = [extras[name] for name in (*PROMPTS, POSITIONS) if len(extras.get(name, ())) >= 2]
    with as_mismatch():
        return dataclasses.replace(config, context_tokens=shapes[0][-2]) if shapes else config


def check_extras(config: ModelConfig, extras: Shapes) -> None:
    """Refuse stored prompts and text encoders that do not fit the model.

    Raises:
        CheckpointMismatchError: another length or width than the model's.
    """
    size = (config.context_tokens, config.context_channels)
    expected: dict[str, Shape] = {**dict.fromkeys(PROMPTS, (1, *size)), POSITIONS: size}
    for name, shape in expected.items():
        if name in extras and extras[name] != shape:
            raise CheckpointMismatchError(
                f"'{name}' does not fit the model",
                given=list(extras[name]),
                expected=list(shape),
                remedy="store the embedding that the model's own text encoder gives for all its positions",
            )


def check_numbers(config: ModelConfig) -> None:
    """Refuse numbers that shapes do not tell and that fit no model of these shapes.

    Raises:
        CheckpointMismatchError: there are such numbers.
    """
    halvings = len(config.channel_multipliers) - 1
    if (
        config.heads < 1
        or any(width % config.heads for width in config.level_channels)
        or config.latent_size < 1
        or config.latent_size % 2**halvings
        or not config.autoencoder.latent_scale > 0
    ):
        raise CheckpointMismatchError(
            "the model's stated numbers do not fit its widths and levels",
            given=f"{config.heads} heads, latent size {config.latent_size}, scale {config.autoencoder.latent_scale}",
            expected=f"a number of heads that divides {config.level_channels}, a latent size that can be halved "
            f"{halvings} times, a positive scale",
            remedy="correct 'featinv.model' in the metadata, or the folder's config.json",
        )

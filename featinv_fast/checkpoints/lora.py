"""Fusing LoRA files (arXiv 2106.09685) into the U-Net: the way LCM-LoRA (arXiv 2311.05556) makes few steps suffice.

A layer's weight W becomes W + scale * factor * up @ down; `lora_names` tells the layers, `lora_strength` the factors.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from featinv_fast.checkpoints.folder import entries
from featinv_fast.checkpoints.listing import listed
from featinv_fast.checkpoints.loading import Checkpoint
from featinv_fast.checkpoints.lora_names import TEXT_ENCODER, UNET, Layer, layers_of, mismatch
from featinv_fast.checkpoints.lora_strength import PEFT_METADATA, config_beside, read_strength
from featinv_fast.checkpoints.reader import Raw, read_file, read_json
from featinv_fast.checkpoints.recipe import FLOATS
from featinv_fast.checkpoints.training import check_metadata
from featinv_fast.checkpoints.values import check_finite
from featinv_fast.checkpoints.wrappers import unwrapped
from featinv_fast.checks import finite
from featinv_fast.errors import CheckpointError
from featinv_kernels.torch_state import neutral_torch_state

logger = logging.getLogger(__name__)

# What a folder's adapter is called: by PEFT, and by diffusers.
STEMS = ("adapter_model", "pytorch_lora_weights")
SUFFIXES = (".safetensors", ".bin")


@neutral_torch_state()
def fuse_lora(
    checkpoint: Checkpoint, path: str | os.PathLike[str], *, scale: float = 1.0, alpha: float | str | None = None
) -> Checkpoint:
    """A checkpoint whose U-Net has the LoRA of `path` added to its weights, in fp32 and back to their dtype.

    The ControlNet is left as it is: LoRAs are trained on the U-Net, some on the text encoder as well. That part is
    added to the checkpoint's text encoder; stored prompts stay as they are, and the note of the adaptation says so.

    Args:
        checkpoint: it is not changed.
        path: a `.safetensors` file (or a pickle of tensors), or the folder that PEFT or diffusers saved.
        scale: factor on what the LoRA adds.
        alpha: the alpha it was trained with, where neither the file nor an `adapter_config.json` beside it says so;
            "rank" is the rank of each layer.

    Raises:
        ArgumentError: `scale` or `alpha` is not finite, or an alpha is given where the file states its own.
        CheckpointError: the file cannot be read, see `reader.read_file`.
        CheckpointCorruptError: a value is not finite, in the file or in the sum.
        CheckpointMismatchError: a tensor fits no layer of the model, a layer's tensors are not complete, nothing says
            how strong it is, or it is an adapter of another kind.
    """
    finite("the LoRA's scale", scale)
    path = Path(path)
    file = _weights(path)
    raw = read_file(file)
    check_metadata(raw.metadata)
    strength = read_strength(raw.metadata, _config(file, raw), alpha)
    layers = layers_of(checkpoint, unwrapped(raw.tensors))
    weights = {UNET: dict(checkpoint.tensors), TEXT_ENCODER: dict(checkpoint.text_encoder)}
    served = [layer for layer in layers if layer.component == UNET or checkpoint.text_encoder]
    wrong = [layer for layer in layers if not _fits(layer, weights[layer.component].get(layer.weight))]
    if wrong:
        raise mismatch([str(layer) for layer in wrong], raw.tensors)
    check_finite(raw.tensors)
    factors = dict(zip(map(id, layers), strength.factors(layers), strict=True))
    changed: dict[str, dict[str, Tensor]] = {UNET: {}, TEXT_ENCODER: {}}
    for layer in served:
        weight = weights[layer.component][layer.weight]
        changed[layer.component][layer.weight] = _fused(weight, layer.parts, scale * factors[id(layer)])
    check_finite(changed[UNET] | changed[TEXT_ENCODER])
    return dataclasses.replace(
        checkpoint,
        tensors=weights[UNET] | changed[UNET],
        text_encoder=weights[TEXT_ENCODER] | changed[TEXT_ENCODER],
        adaptations=(*checkpoint.adaptations, _note(checkpoint, path, layers, scale)),
    )


def _weights(path: Path) -> Path:
    """The file of weights: `path` itself, or the one in the folder of an adapter."""
    if not path.is_dir():
        return path
    found = [path / (stem + suffix) for stem in STEMS for suffix in SUFFIXES if (path / (stem + suffix)).is_file()]
    if not found:
        raise CheckpointError(
            "this folder holds no LoRA",
            given=f"{path} with {listed(entries(path)) or 'nothing in it'}",
            expected=f"{' or '.join(STEMS)} with the ending {' or '.join(SUFFIXES)}",
            remedy="name the file of weights itself",
        )
    return found[0]


def _config(file: Path, raw: Raw) -> dict[str, object] | None:
    """PEFT's configuration beside the weights; only files of PEFT's name or without any statement need one."""
    beside = config_beside(file)
    tells = PEFT_METADATA in raw.metadata or any(name.endswith(".alpha") for name in raw.tensors)
    if not beside.is_file() or (tells and file.stem not in STEMS):
        return None
    return read_json(beside)


def _fits(layer: Layer, weight: Tensor | None) -> bool:
    """Whether `up` [out, rank(, 1, 1)] and `down` [rank, in(, k, k)] make a weight [out, in(, k, k)]."""
    if not {"up", "down"} <= set(layer.parts) <= {"up", "down", "alpha"}:
        return False
    if any(tensor.dtype not in FLOATS for part, tensor in layer.parts.items() if part != "alpha"):
        return False
    up, down = layer.parts["up"], layer.parts["down"]
    if min(up.ndim, down.ndim) < 2 or not down.shape[0] or up.flatten(1).shape[1] != down.shape[0]:
        return False
    alpha = layer.parts.get("alpha")
    if alpha is not None and (alpha.numel() != 1 or alpha.is_complex()):
        return False
    return weight is None or (up.shape[0], down.flatten(1).shape[1]) == tuple(weight.flatten(1).shape)


def _fused(weight: Tensor, parts: Mapping[str, Tensor], factor: float) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    delta = parts["up"].to(dtype).flatten(1) @ parts["down"].to(dtype).flatten(1)  # [out, in * k * k]
    return (weight.to(dtype) + factor * delta.view_as(weight)).to(weight.dtype)


def _note(checkpoint: Checkpoint, path: Path, layers: list[Layer], scale: float) -> str:
    """What was done, for the engine's notes; what could not be done is also logged."""
    texts = sum(layer.component == TEXT_ENCODER for layer in layers)
    note = f"LoRA {path.name} fused into {len(layers) - texts} layers of the U-Net"
    if texts and checkpoint.text_encoder:
        note += f" and {texts} of the text encoder"
    note += f" with scale {scale:g}"
    stored = any(prompt is not None for prompt in checkpoint.prompts.values())
    if texts and (stored or not checkpoint.text_encoder):
        left = f"its {texts} layers of the text encoder do not reach the stored prompts"
        logger.warning("%s: %s", path.name, left)
        note += f"; {left}"
    return note

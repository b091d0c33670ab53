"""Fusing LoRA files (arXiv 2106.09685) into the U-Net: the way LCM-LoRA (arXiv 2311.05556) makes few steps suffice.

A layer's weight W becomes W + scale * alpha / rank * up @ down. Three spellings of the names are read, for example

- `lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight`, `.lora_up.weight`, `.alpha` (kohya)
- `unet.down_blocks.0.attentions.0.proj_in.lora_A.weight`, `.lora_B.weight` (diffusers, peft)
- `unet.down_blocks.0. ... .attn1.processor.to_q_lora.down.weight`, `.up.weight` (older diffusers)
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.checkpoints.diffusers_layout import unet_modules
from featinv_fast.checkpoints.known import resemblance
from featinv_fast.checkpoints.loading import Checkpoint
from featinv_fast.checkpoints.reader import read_file
from featinv_fast.checkpoints.recipe import LISTED
from featinv_fast.errors import CheckpointMismatchError

PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "alpha": "alpha",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
}
OLD_PROCESSOR = re.compile(r"(.*)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
# What tools put before the U-Net's own names.
PREFIXES = ("unet.", "base_model.model.", "lora_unet_")


def fuse_lora(checkpoint: Checkpoint, path: str | os.PathLike[str], *, scale: float = 1.0) -> Checkpoint:
    """A checkpoint whose U-Net has the LoRA of `path` added to its weights, in fp32 and back to their dtype.

    The ControlNet is left as it is: LoRAs are trained on the U-Net.

    Args:
        checkpoint: it is not changed.
        path: a `.safetensors` file (or a pickle of tensors).
        scale: factor on what the LoRA adds.

    Raises:
        CheckpointError: the file cannot be read, see `reader.read_file`.
        CheckpointMismatchError: a key of the file fits no layer of the U-Net, or a layer's tensors are not complete.
    """
    path = Path(path)
    raw = read_file(path)
    alphas = _adapter_alpha(raw.metadata)
    layers = _collect(checkpoint, raw.tensors)
    tensors = dict(checkpoint.tensors)
    wrong = []
    for module, parts in layers.items():
        name = f"{module}.weight"
        if _fits(tensors[name], parts):
            tensors[name] = _fused(tensors[name], parts, alphas, scale)
        else:
            wrong.append(f"{module} ({', '.join(f'{part} {list(t.shape)}' for part, t in sorted(parts.items()))})")
    if wrong:
        raise _mismatch(wrong, raw.tensors, "an up and a down matrix of the layer's size, and perhaps one alpha, each")
    note = f"LoRA {path.name} fused into {len(layers)} layers of the U-Net with scale {scale:g}"
    return dataclasses.replace(checkpoint, tensors=tensors, adaptations=(*checkpoint.adaptations, note))


def _collect(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The LoRA's tensors by our module names and by part ("down", "up", "alpha")."""
    modules = {}
    for ours, theirs in unet_modules(checkpoint.config).items():
        if f"{ours}.weight" in checkpoint.tensors:
            plain = theirs.removeprefix("unet.")
            modules[plain] = modules[plain.replace(".", "_")] = ours
    layers: dict[str, dict[str, Tensor]] = {}
    unused = []
    for key, tensor in tensors.items():
        module, part = _parse(key)
        if module in modules and part not in layers.setdefault(modules[module], {}):
            layers[modules[module]][part] = tensor
        else:
            unused.append(key)
    if unused or not layers:
        raise _mismatch(
            unused, tensors, "LoRA matrices of this U-Net's layers alone, under kohya's or diffusers' names"
        )
    return layers


def _parse(key: str) -> tuple[str, str]:
    """Module (in diffusers' spelling, with dots or underscores) and part of a key; empty if it is no LoRA key."""
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    if match := OLD_PROCESSOR.fullmatch(key):
        projection = "to_out.0" if match[2] == "to_out" else match[2]
        return f"{match[1]}.{projection}", match[3]
    for suffix, part in PARTS.items():
        if key.endswith(f".{suffix}"):
            return key.removesuffix(f".{suffix}"), part
    return "", ""


def _adapter_alpha(metadata: Mapping[str, str]) -> float | None:
    """The alpha of all layers from diffusers' adapter metadata; None where there is none (alpha is then the rank).

    Raises:
        CheckpointMismatchError: the adapter is of a kind whose weights do not just add up so.
    """
    try:
        options: dict[str, Any] = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        options = {key.removeprefix("unet."): value for key, value in options.items()}
        alpha = options.get("lora_alpha")
        unsupported = [key for key in ("use_dora", "use_rslora", "alpha_pattern", "lora_bias") if options.get(key)]
        if not unsupported:
            return None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError) as error:
        unsupported = [f"metadata that are not readable: {error}"]
    raise CheckpointMismatchError(
        "this kind of LoRA cannot be fused", given=", ".join(unsupported), expected="a plain LoRA with one alpha"
    )


def _fits(weight: Tensor, parts: Mapping[str, Tensor]) -> bool:
    """Whether `up` [out, rank(, 1, 1)] and `down` [rank, in(, k, k)] make a weight [out, in(, k, k)]."""
    if not {"up", "down"} <= set(parts) <= {"up", "down", "alpha"}:
        return False
    up, down = parts["up"], parts["down"]
    rank = down.shape[0]
    return (
        min(up.ndim, down.ndim) >= 2
        and up.flatten(1).shape == (weight.shape[0], rank)
        and down.flatten(1).shape == (rank, weight.flatten(1).shape[1])
        and parts.get("alpha", weight.new_zeros(())).numel() == 1
    )


def _fused(weight: Tensor, parts: Mapping[str, Tensor], alpha: float | None, scale: float) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    rank = parts["down"].shape[0]
    if "alpha" in parts:
        alpha = parts["alpha"].item()
    factor = scale * (1.0 if alpha is None else alpha / rank)
    delta = parts["up"].to(dtype).flatten(1) @ parts["down"].to(dtype).flatten(1)  # [out, in * k * k]
    return (weight.to(dtype) + factor * delta.view_as(weight)).to(weight.dtype)


def _mismatch(names: list[str], tensors: Mapping[str, Tensor], expected: str) -> CheckpointMismatchError:
    shown = ", ".join(sorted(names)[:LISTED]) + (", ..." if len(names) > LISTED else "")
    return CheckpointMismatchError(
        "the LoRA does not fit the checkpoint's U-Net",
        given=f"{len(names)} of {len(tensors)} keys or layers do not fit: {shown}; these are {resemblance(tensors)}",
        expected=expected,
        remedy="use a LoRA that was trained on Stable Diffusion 1",
    )

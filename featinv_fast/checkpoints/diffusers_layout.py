"""The diffusers layout: a folder with `unet/ controlnet/ vae/ condition_encoder/` and perhaps `text_encoder/`.

What we write there loads in diffusers (>= 0.42) with `from_pretrained` and computes the same. Two things have no
place in diffusers and stand in `condition_encoder/model.safetensors`: FeatInv's condition encoder, and the stored
prompts with our metadata.

In diffusers `ControlNetModel` insists on a condition embedding of its own, `conv_out(silu(conv_in(x)))`. Ours holds an
exact identity (up to rounding), because `silu(x) - silu(-x) = x`: conv_in has the centre taps [I; -I], conv_out the
centre taps [I, -I], and twice the model's width lies between. So `ControlNetModel(..., controlnet_cond=condition)`,
with the condition encoder's output [B, channels, h, w], is FeatInv's ControlNet.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from featinv_fast.checkpoints.architecture import TEXT_ENCODER, Shape, Shapes
from featinv_fast.checkpoints.diffusers_configs import check, complete
from featinv_fast.checkpoints.ldm import CLIP_HEAD, CONTEXT, TRANSFORMER
from featinv_fast.checkpoints.recipe import Layout, nested
from featinv_fast.config import ModelConfig

RESIDUAL = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "time_projection": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "conv_shortcut",
}
IMAGE_ATTENTION = {
    "norm": "group_norm",
    "attention.query": "to_q",
    "attention.key": "to_k",
    "attention.value": "to_v",
    "attention.out": "to_out.0",
}
TIME_EMBEDDING = {
    "linear_in": "linear_1",
    "linear_out": "linear_2",
    "guidance_projection": "cond_proj",
}


def _block(ours: str, theirs: str, index: int) -> dict[str, str]:
    return {
        **nested(f"{ours}.residual", f"{theirs}.resnets.{index}", RESIDUAL),
        **nested(f"{ours}.transformer", f"{theirs}.attentions.{index}", TRANSFORMER),
    }


def _encoder(config: ModelConfig, ours: str, theirs: str) -> dict[str, str]:
    modules = {f"{ours}.conv_in": f"{theirs}.conv_in"}
    for level in range(len(config.channel_multipliers)):
        for block in range(config.blocks_per_level):
            modules |= _block(f"{ours}.levels.{level}.blocks.{block}", f"{theirs}.down_blocks.{level}", block)
        modules[f"{ours}.levels.{level}.downsample"] = f"{theirs}.down_blocks.{level}.downsamplers.0.conv"
    modules |= _block(f"{ours}.middle.block_in", f"{theirs}.mid_block", 0)
    modules |= nested(f"{ours}.middle.block_out.residual", f"{theirs}.mid_block.resnets.1", RESIDUAL)
    return modules


def unet_modules(config: ModelConfig) -> dict[str, str]:
    """Our module names of the U-Net to diffusers', both with their component's prefix."""
    ours, theirs = "denoiser.unet", "unet"
    modules = nested(f"{ours}.time_embedding", f"{theirs}.time_embedding", TIME_EMBEDDING)
    modules |= _encoder(config, f"{ours}.encoder", theirs)
    for level in range(len(config.channel_multipliers)):
        for block in range(config.blocks_per_level + 1):
            modules |= _block(f"{ours}.decoder.levels.{level}.blocks.{block}", f"{theirs}.up_blocks.{level}", block)
        modules[f"{ours}.decoder.levels.{level}.upsample.conv"] = f"{theirs}.up_blocks.{level}.upsamplers.0.conv"
    return modules | {f"{ours}.norm_out": f"{theirs}.conv_norm_out", f"{ours}.conv_out": f"{theirs}.conv_out"}


def _controlnet(config: ModelConfig) -> dict[str, str]:
    ours, theirs = "denoiser.controlnet", "controlnet"
    last = config.control_count - 1
    return {
        **nested(f"{ours}.time_embedding", f"{theirs}.time_embedding", TIME_EMBEDDING),
        **_encoder(config, f"{ours}.encoder", theirs),
        **{f"{ours}.zero_convs.{i}": f"{theirs}.controlnet_down_blocks.{i}" for i in range(last)},
        f"{ours}.zero_convs.{last}": f"{theirs}.controlnet_mid_block",
    }


def _autoencoder(config: ModelConfig) -> dict[str, str]:
    modules = {
        "autoencoder.encoder.quant_conv": "vae.quant_conv",
        "autoencoder.decoder.post_quant_conv": "vae.post_quant_conv",
    }
    blocks = config.autoencoder.blocks_per_level
    for half, step, resampler, count in (
        ("encoder", "down_blocks", "downsamplers", blocks),
        ("decoder", "up_blocks", "upsamplers", blocks + 1),
    ):
        ours, theirs = f"autoencoder.{half}", f"vae.{half}"
        modules |= {
            f"{ours}.conv_in": f"{theirs}.conv_in",
            f"{ours}.norm_out": f"{theirs}.conv_norm_out",
            f"{ours}.conv_out": f"{theirs}.conv_out",
            **nested(f"{ours}.middle.residual_in", f"{theirs}.mid_block.resnets.0", RESIDUAL),
            **nested(f"{ours}.middle.attention", f"{theirs}.mid_block.attentions.0", IMAGE_ATTENTION),
            **nested(f"{ours}.middle.residual_out", f"{theirs}.mid_block.resnets.1", RESIDUAL),
        }
        for level in range(len(config.autoencoder.channel_multipliers)):
            for block in range(count):
                here, there = f"{ours}.levels.{level}.blocks.{block}", f"{theirs}.{step}.{level}.resnets.{block}"
                modules |= nested(here, there, RESIDUAL)
            modules[f"{ours}.levels.{level}.resample.conv"] = f"{theirs}.{step}.{level}.{resampler}.0.conv"
    return modules


def _modules(config: ModelConfig) -> dict[str, str]:
    own = {f"condition_encoder.{name}": f"condition_encoder.{name}" for name in ("conv_in", "conv_hidden", "conv_out")}
    return {**own, **_controlnet(config), **unet_modules(config), **_autoencoder(config)}


def unet_landmarks(shapes: Shapes) -> dict[str, Shape]:
    """The U-Net's tensors that tell its architecture, under our names."""
    encoder = "denoiser.unet.encoder"
    fixed = {
        "unet.conv_in.weight": f"{encoder}.conv_in.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": f"{encoder}.{CONTEXT}",
        "unet.time_embedding.cond_proj.weight": "denoiser.unet.time_embedding.guidance_projection.weight",
    }
    marks = {ours: shapes[theirs] for theirs, ours in fixed.items() if theirs in shapes}
    for key, shape in shapes.items():
        if match := re.fullmatch(r"unet\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight", key):
            marks[f"{encoder}.levels.{match[1]}.blocks.{match[2]}.residual.conv_in.weight"] = shape
        if match := re.fullmatch(r"unet\.down_blocks\.(\d+)\.attentions\.(\d+)\.proj_in\.weight", key):
            marks[f"{encoder}.levels.{match[1]}.blocks.{match[2]}.transformer.proj_in.weight"] = shape
    return marks


def _landmarks(shapes: Shapes) -> dict[str, Shape]:
    fixed = {
        "condition_encoder.conv_in.weight": "condition_encoder.conv_in.weight",
        "vae.encoder.conv_in.weight": "autoencoder.encoder.conv_in.weight",
        "vae.post_quant_conv.weight": "autoencoder.decoder.post_quant_conv.weight",
    }
    marks = unet_landmarks(shapes) | {ours: shapes[theirs] for theirs, ours in fixed.items() if theirs in shapes}
    for key, shape in shapes.items():
        if match := re.fullmatch(r"vae\.encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight", key):
            marks[f"autoencoder.encoder.levels.{match[1]}.blocks.{match[2]}.conv_in.weight"] = shape
    return marks


def identity_embedding(config: ModelConfig) -> dict[str, Tensor]:
    """The condition embedding that returns what it is given (see the module's docstring)."""
    width = config.channels
    eye = torch.eye(width)
    conv_in = torch.zeros(2 * width, width, 3, 3)
    conv_in[:, :, 1, 1] = torch.cat([eye, -eye])
    conv_out = torch.zeros(width, 2 * width, 3, 3)
    conv_out[:, :, 1, 1] = torch.cat([eye, -eye], dim=1)
    return {
        "controlnet.controlnet_cond_embedding.conv_in.weight": conv_in,
        "controlnet.controlnet_cond_embedding.conv_in.bias": torch.zeros(2 * width),
        "controlnet.controlnet_cond_embedding.conv_out.weight": conv_out,
        "controlnet.controlnet_cond_embedding.conv_out.bias": torch.zeros(width),
    }


LAYOUT = Layout(
    name="diffusers",
    signature=("unet.", "controlnet.", "condition_encoder."),
    landmarks=_landmarks,
    modules=_modules,
    text_encoder=TEXT_ENCODER,
    ignored=(
        (r"text_encoder\.embeddings\.position_ids", "positions 0, 1, 2, ..."),
        (r"text_encoder\.text_projection\.weight", CLIP_HEAD),
    ),
    constants=identity_embedding,
    complete=complete,
    check=check,
)

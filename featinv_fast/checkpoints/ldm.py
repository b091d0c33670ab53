"""The official layout: what the authors' code, built on the latent-diffusion code base, saves."""

from __future__ import annotations

import re

from featinv_fast.checkpoints.architecture import Shape, Shapes
from featinv_fast.checkpoints.recipe import Layout, nested
from featinv_fast.config import ModelConfig

CLIP_HEAD = "CLIP's comparison of texts with images, which a prompt's embedding does not pass"
# Under an encoder of ours: its width in is the prompts'.
CONTEXT = "middle.block_in.transformer.cross_attention.context.key.weight"
UNET = "model.diffusion_model"
CONTROLNET = "control_model"
AUTOENCODER = "first_stage_model"

RESIDUAL = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "time_projection": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}
# The diffusers layout kept these names.
TRANSFORMER = {
    "norm": "norm",
    "proj_in": "proj_in",
    "norm_self": "transformer_blocks.0.norm1",
    "self_attention.query": "transformer_blocks.0.attn1.to_q",
    "self_attention.key": "transformer_blocks.0.attn1.to_k",
    "self_attention.value": "transformer_blocks.0.attn1.to_v",
    "self_attention.out": "transformer_blocks.0.attn1.to_out.0",
    "norm_cross": "transformer_blocks.0.norm2",
    "cross_attention.query": "transformer_blocks.0.attn2.to_q",
    "cross_attention.context.key": "transformer_blocks.0.attn2.to_k",
    "cross_attention.context.value": "transformer_blocks.0.attn2.to_v",
    "cross_attention.out": "transformer_blocks.0.attn2.to_out.0",
    "norm_feed_forward": "transformer_blocks.0.norm3",
    "feed_forward.linear_in": "transformer_blocks.0.ff.net.0.proj",
    "feed_forward.linear_out": "transformer_blocks.0.ff.net.2",
    "proj_out": "proj_out",
}
IMAGE_RESIDUAL = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "nin_shortcut",
}
IMAGE_ATTENTION = {
    "norm": "norm",
    "attention.query": "q",
    "attention.key": "k",
    "attention.value": "v",
    "attention.out": "proj_out",
}


def _block(ours: str, theirs: str) -> dict[str, str]:
    return nested(f"{ours}.residual", f"{theirs}.0", RESIDUAL) | nested(
        f"{ours}.transformer", f"{theirs}.1", TRANSFORMER
    )


def _encoder(config: ModelConfig, ours: str, theirs: str) -> dict[str, str]:
    """Encoder and middle; `input_blocks` counts conv_in, blocks and downsamplings in one row."""
    modules = {f"{ours}.conv_in": f"{theirs}.input_blocks.0.0"}
    index = 1
    for level in range(len(config.channel_multipliers)):
        for block in range(config.blocks_per_level):
            modules |= _block(f"{ours}.levels.{level}.blocks.{block}", f"{theirs}.input_blocks.{index}")
            index += 1
        modules[f"{ours}.levels.{level}.downsample"] = f"{theirs}.input_blocks.{index}.0.op"
        index += 1
    modules |= _block(f"{ours}.middle.block_in", f"{theirs}.middle_block")
    modules |= nested(f"{ours}.middle.block_out.residual", f"{theirs}.middle_block.2", RESIDUAL)
    return modules


def _decoder(config: ModelConfig, ours: str, theirs: str) -> dict[str, str]:
    """The way up; the upsampling is the last child of a level's last block, after the transformer if there is one."""
    modules: dict[str, str] = {}
    index = 0
    for position, level in enumerate(reversed(range(len(config.channel_multipliers)))):
        for block in range(config.blocks_per_level + 1):
            modules |= _block(f"{ours}.levels.{position}.blocks.{block}", f"{theirs}.output_blocks.{index}")
            index += 1
        upsample = 2 if level in config.attention_levels else 1
        modules[f"{ours}.levels.{position}.upsample.conv"] = f"{theirs}.output_blocks.{index - 1}.{upsample}.conv"
    return modules


def _time_embedding(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}.linear_in": f"{theirs}.time_embed.0",
        f"{ours}.linear_out": f"{theirs}.time_embed.2",
        f"{ours}.guidance_projection": f"{theirs}.time_embed.cond_proj",
    }


def _image_middle(ours: str, theirs: str) -> dict[str, str]:
    return {
        **nested(f"{ours}.residual_in", f"{theirs}.mid.block_1", IMAGE_RESIDUAL),
        **nested(f"{ours}.attention", f"{theirs}.mid.attn_1", IMAGE_ATTENTION),
        **nested(f"{ours}.residual_out", f"{theirs}.mid.block_2", IMAGE_RESIDUAL),
    }


def _autoencoder(config: ModelConfig) -> dict[str, str]:
    levels, blocks = len(config.autoencoder.channel_multipliers), config.autoencoder.blocks_per_level
    modules = {
        "autoencoder.encoder.quant_conv": f"{AUTOENCODER}.quant_conv",
        "autoencoder.decoder.post_quant_conv": f"{AUTOENCODER}.post_quant_conv",
    }
    for half in ("encoder", "decoder"):
        ours, theirs = f"autoencoder.{half}", f"{AUTOENCODER}.{half}"
        modules |= {f"{ours}.{name}": f"{theirs}.{name}" for name in ("conv_in", "norm_out", "conv_out")}
        modules |= _image_middle(f"{ours}.middle", theirs)
    for level in range(levels):
        ours, theirs = f"autoencoder.encoder.levels.{level}", f"{AUTOENCODER}.encoder.down.{level}"
        for block in range(blocks):
            modules |= nested(f"{ours}.blocks.{block}", f"{theirs}.block.{block}", IMAGE_RESIDUAL)
        modules[f"{ours}.resample.conv"] = f"{theirs}.downsample.conv"
        # Our decoder's levels stand in the order in which they run; `up` counts from the finest.
        ours, theirs = f"autoencoder.decoder.levels.{levels - 1 - level}", f"{AUTOENCODER}.decoder.up.{level}"
        for block in range(blocks + 1):
            modules |= nested(f"{ours}.blocks.{block}", f"{theirs}.block.{block}", IMAGE_RESIDUAL)
        modules[f"{ours}.resample.conv"] = f"{theirs}.upsample.conv"
    return modules


def _modules(config: ModelConfig) -> dict[str, str]:
    controlnet, unet = "denoiser.controlnet", "denoiser.unet"
    last = config.control_count - 1
    zero_convs = {f"{controlnet}.zero_convs.{i}": f"{CONTROLNET}.zero_convs.{i}.0" for i in range(last)}
    return {
        "condition_encoder.conv_in": f"{CONTROLNET}.input_hint_block.block.1",
        "condition_encoder.conv_hidden": f"{CONTROLNET}.input_hint_block.block.3",
        "condition_encoder.conv_out": f"{CONTROLNET}.input_hint_block.block.5",
        **_time_embedding(f"{controlnet}.time_embedding", CONTROLNET),
        **_encoder(config, f"{controlnet}.encoder", CONTROLNET),
        **zero_convs,
        f"{controlnet}.zero_convs.{last}": f"{CONTROLNET}.middle_block_out.0",
        **_time_embedding(f"{unet}.time_embedding", UNET),
        **_encoder(config, f"{unet}.encoder", UNET),
        **_decoder(config, f"{unet}.decoder", UNET),
        f"{unet}.norm_out": f"{UNET}.out.0",
        f"{unet}.conv_out": f"{UNET}.out.2",
        **_autoencoder(config),
    }


def _landmarks(shapes: Shapes) -> dict[str, Shape]:
    encoder = "denoiser.unet.encoder"
    fixed = {
        f"{CONTROLNET}.input_hint_block.block.1.weight": "condition_encoder.conv_in.weight",
        f"{UNET}.input_blocks.0.0.weight": f"{encoder}.conv_in.weight",
        f"{UNET}.middle_block.1.transformer_blocks.0.attn2.to_k.weight": f"{encoder}.{CONTEXT}",
        f"{UNET}.time_embed.cond_proj.weight": "denoiser.unet.time_embedding.guidance_projection.weight",
        f"{AUTOENCODER}.encoder.conv_in.weight": "autoencoder.encoder.conv_in.weight",
        f"{AUTOENCODER}.post_quant_conv.weight": "autoencoder.decoder.post_quant_conv.weight",
    }
    downsamplings = sorted(
        int(match[1]) for key in shapes if (match := re.fullmatch(rf"{UNET}\.input_blocks\.(\d+)\.0\.op\.weight", key))
    )
    marks = {ours: shapes[theirs] for theirs, ours in fixed.items() if theirs in shapes}
    for key, shape in shapes.items():
        if match := re.fullmatch(rf"{UNET}\.input_blocks\.(\d+)\.(0\.in_layers\.2|1\.proj_in)\.weight", key):
            index = int(match[1])
            level = sum(i < index for i in downsamplings)
            block = index - [0, *downsamplings][level] - 1
            leaf = "residual.conv_in" if match[2].startswith("0") else "transformer.proj_in"
            marks[f"{encoder}.levels.{level}.blocks.{block}.{leaf}.weight"] = shape
        if match := re.fullmatch(rf"{AUTOENCODER}\.encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight", key):
            marks[f"autoencoder.encoder.levels.{match[1]}.blocks.{match[2]}.conv_in.weight"] = shape
    return marks


LAYOUT = Layout(
    name="ldm",
    signature=(f"{CONTROLNET}.input_hint_block.block.", f"{UNET}."),
    landmarks=_landmarks,
    modules=_modules,
    text_encoder="cond_stage_model.transformer.text_model.",
    pointwise=r"autoencoder\.\w+\.middle\.attention\.attention\.\w+\.weight",
    # transformers before version 5 puts its tensors under `text_model.`, later ones do not.
    aliases=(
        (
            r"(cond_stage_model\.transformer\.)((?:embeddings|encoder|final_layer_norm)\..*)",
            r"\1text_model.\2",
        ),
    ),
    ignored=(
        (
            r"(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|lvlb_weights|logvar)",
            "the noise schedule, which was compared and is recomputed in float64",
        ),
        (r"model_ema\..*", "exponential moving averages: the plain weights are what the official sampler uses"),
        (r"first_stage_model\.loss\..*", "the loss that the autoencoder was trained with"),
        (r"cond_stage_model\.transformer\.text_model\.embeddings\.position_ids", "positions 0, 1, 2, ..."),
        (r"cond_stage_model\.(transformer\.)?(text_projection(\.weight)?|logit_scale)", CLIP_HEAD),
    ),
)

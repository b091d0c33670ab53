"""The `config.json` files of a diffusers folder: numbers that are written, and compared when read.

The classes that they name are never looked up: a name is compared with the one class we know for a component.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from featinv_fast.checkpoints.infer import as_mismatch
from featinv_fast.checkpoints.reader import Raw
from featinv_fast.config import ModelConfig
from featinv_fast.errors import CheckpointMismatchError

Config = dict[str, Any]

# Keys that do not change what a network computes at inference.
HARMLESS = {
    "unet": {"sample_size", "dropout", "addition_embed_type_num_heads"},
    "controlnet": {"sample_size", "dropout", "addition_embed_type_num_heads"},
    "vae": {"sample_size", "force_upcast"},
}
# Published with `scheduler/`; `training` reads what it says there.
SCHEDULER: Config = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def component_configs(config: ModelConfig) -> dict[str, Config]:
    """The `config.json` of each component, as diffusers 0.42 writes it, without its defaults of None and False."""
    return {
        "unet": _unet(config),
        "controlnet": _controlnet(config),
        "vae": _vae(config),
        "condition_encoder": {
            "_class_name": "FeatInvConditionEncoder",
            "feature_channels": config.feature_channels,
            "hidden_channels": config.condition_hidden_channels,
            "channels": config.channels,
            "latent_size": config.latent_size,
        },
    }


def text_encoder_config(shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The `config.json` of a CLIP text encoder with these shapes; its heads are 64 wide in every published one."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers."))
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "num_attention_heads": max(1, width // 64),
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _encoder(config: ModelConfig) -> Config:
    attention = [level in config.attention_levels for level in range(len(config.channel_multipliers))]
    return {
        "in_channels": config.latent_channels,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "block_out_channels": list(config.level_channels),
        "layers_per_block": config.blocks_per_level,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-05,
        "cross_attention_dim": config.context_channels,
        "transformer_layers_per_block": 1,
        # The number of heads, in spite of its name.
        "attention_head_dim": config.heads,
        "resnet_time_scale_shift": "default",
    }


def _unet(config: ModelConfig) -> Config:
    attention = [level in config.attention_levels for level in reversed(range(len(config.channel_multipliers)))]
    return {
        "_class_name": "UNet2DConditionModel",
        **_encoder(config),
        "out_channels": config.latent_channels,
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in attention],
        "resnet_out_scale_factor": 1.0,
        "time_embedding_type": "positional",
        "time_cond_proj_dim": config.guidance_embedding_channels or None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "attention_type": "default",
        "sample_size": config.latent_size,
    }


def _controlnet(config: ModelConfig) -> Config:
    return {
        "_class_name": "ControlNetModel",
        **_encoder(config),
        "conditioning_channels": config.channels,
        "conditioning_embedding_out_channels": [2 * config.channels],
        "controlnet_conditioning_channel_order": "rgb",
    }


def _vae(config: ModelConfig) -> Config:
    autoencoder = config.autoencoder
    levels = len(autoencoder.channel_multipliers)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": autoencoder.image_channels,
        "out_channels": autoencoder.image_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [autoencoder.channels * m for m in autoencoder.channel_multipliers],
        "layers_per_block": autoencoder.blocks_per_level,
        "act_fn": "silu",
        "latent_channels": autoencoder.latent_channels,
        "norm_num_groups": 32,
        "scaling_factor": autoencoder.latent_scale,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
        "sample_size": config.image_size,
    }


def complete(config: ModelConfig, raw: Raw) -> ModelConfig:
    """`config` with the numbers that shapes cannot tell, from the components' `config.json`."""

    def number(component: str, key: str, default: Any) -> Any:
        value = _scalar(raw.configs.get(component, {}).get(key, default))
        if type(value) is not type(default) or not value > 0:
            raise _contradiction(component, key, value, f"a positive {type(default).__name__}")
        return value

    with as_mismatch():
        return dataclasses.replace(
            config,
            heads=number("unet", "attention_head_dim", config.heads),
            latent_size=number("condition_encoder", "latent_size", config.latent_size),
            autoencoder=dataclasses.replace(
                config.autoencoder, latent_scale=number("vae", "scaling_factor", config.autoencoder.latent_scale)
            ),
        )


def check(config: ModelConfig, raw: Raw) -> None:
    """Compare what the folder's JSON files say with the architecture.

    Raises:
        CheckpointMismatchError: another class, a number that contradicts the tensors, or an option we do not have.
    """
    for component, expected in component_configs(config).items():
        check_component(component, raw.configs.get(component, {}), expected)
    model_type = raw.configs.get("text_encoder", {}).get("model_type", "clip_text_model")
    if model_type != "clip_text_model":
        raise _contradiction("text_encoder", "model_type", model_type, "clip_text_model")


def check_component(component: str, given: Config, expected: Config) -> None:
    """Compare one component's `config.json` with the one that we would write.

    Raises:
        CheckpointMismatchError: see `check`.
    """
    for key, value in given.items():
        if key in HARMLESS.get(component, ()) or (key.startswith("_") and key != "_class_name"):
            continue
        if key in expected:
            if value != expected[key] and _scalar(value) != expected[key]:
                raise _contradiction(component, key, value, expected[key])
        elif value is not None and value is not False:
            raise _contradiction(component, key, value, "this option to be absent: we do not have it")


def _scalar(value: Any) -> Any:
    """A list of equal values, one per level, means the same as the value."""
    return value[0] if isinstance(value, list) and value and all(v == value[0] for v in value) else value


def _contradiction(component: str, key: str, given: object, expected: object) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"{component}'s configuration does not fit: '{key}'",
        given=repr(given),
        expected=repr(expected),
        remedy="use a model of Stable Diffusion 1's family; if these weights are of one, correct its config.json",
    )

"""Names and shapes of every tensor of a FeatInv model, under our own names.

The networks themselves are not built for this: a checkpoint is checked before torch allocates anything.
A test holds this table and the state dict of `featinv_fast.models.FeatInv` together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featinv_fast.config import AutoencoderConfig, ModelConfig

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
# A module is a mapping from its children's names to their shapes or to modules again.
Module = dict[str, "Shape | Module"]

PROMPTS = ("featinv.prompt.cond", "featinv.prompt.uncond")
TEXT_ENCODER = "text_encoder."


def model_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shape of each tensor of the model: the state dict of `FeatInv(config)` without its values."""
    hidden = config.condition_hidden_channels
    return _flatten(
        {
            "condition_encoder": {
                "conv_in": _conv(config.feature_channels, hidden),
                "conv_hidden": _conv(hidden, hidden),
                "conv_out": _conv(hidden, config.channels),
            },
            "denoiser": {"controlnet": _controlnet(config), "unet": _unet(config)},
            "autoencoder": {
                "encoder": _image_encoder(config.autoencoder),
                "decoder": _image_decoder(config.autoencoder),
            },
        }
    )


def text_encoder_shapes(*, layers: int, width: int, hidden: int, vocabulary: int, tokens: int) -> dict[str, Shape]:
    """Shape of each tensor of a CLIP text encoder (arXiv 2103.00020), under transformers' names."""
    layer: Module = {
        "self_attn": {name: _linear(width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
        "layer_norm1": _norm(width),
        "layer_norm2": _norm(width),
        "mlp": {"fc1": _linear(width, hidden), "fc2": _linear(hidden, width)},
    }
    return _flatten(
        {
            "embeddings": {
                "token_embedding": {"weight": (vocabulary, width)},
                "position_embedding": {"weight": (tokens, width)},
            },
            "encoder": {"layers": {str(i): layer for i in range(layers)}},
            "final_layer_norm": _norm(width),
        }
    )


def _flatten(module: Module, prefix: str = "") -> dict[str, Shape]:
    flat: dict[str, Shape] = {}
    for name, child in module.items():
        if isinstance(child, dict):
            flat |= _flatten(child, f"{prefix}{name}.")
        else:
            flat[prefix + name] = child
    return flat


def _numbered(modules: Sequence[Module]) -> Module:
    return {str(i): module for i, module in enumerate(modules)}


def _conv(in_channels: int, out_channels: int, kernel: int = 3) -> Module:
    return {"weight": (out_channels, in_channels, kernel, kernel), "bias": (out_channels,)}


def _linear(in_channels: int, out_channels: int, *, bias: bool = True) -> Module:
    weight: Module = {"weight": (out_channels, in_channels)}
    return {**weight, "bias": (out_channels,)} if bias else weight


def _norm(channels: int) -> Module:
    return {"weight": (channels,), "bias": (channels,)}


def _residual(in_channels: int, out_channels: int, time_channels: int = 0) -> Module:
    module: Module = {
        "norm_in": _norm(in_channels),
        "conv_in": _conv(in_channels, out_channels),
        "norm_out": _norm(out_channels),
        "conv_out": _conv(out_channels, out_channels),
    }
    if time_channels:
        module["time_projection"] = _linear(time_channels, out_channels)
    if in_channels != out_channels:
        module["skip"] = _conv(in_channels, out_channels, 1)
    return module


def _attention(channels: int, *, bias: bool = False) -> Module:
    projections: Module = {name: _linear(channels, channels, bias=bias) for name in ("query", "key", "value")}
    return {**projections, "out": _linear(channels, channels)}


def _transformer(channels: int, context_channels: int) -> Module:
    return {
        "norm": _norm(channels),
        "proj_in": _conv(channels, channels, 1),
        "norm_self": _norm(channels),
        "self_attention": _attention(channels),
        "norm_cross": _norm(channels),
        "cross_attention": {
            "query": _linear(channels, channels, bias=False),
            "context": {name: _linear(context_channels, channels, bias=False) for name in ("key", "value")},
            "out": _linear(channels, channels),
        },
        "norm_feed_forward": _norm(channels),
        "feed_forward": {"linear_in": _linear(channels, 8 * channels), "linear_out": _linear(4 * channels, channels)},
        "proj_out": _conv(channels, channels, 1),
    }


def _time_embedding(config: ModelConfig, guidance_channels: int = 0) -> Module:
    width = config.time_embedding_channels
    module: Module = {"linear_in": _linear(config.channels, width), "linear_out": _linear(width, width)}
    if guidance_channels:
        module["guidance_projection"] = _linear(guidance_channels, config.channels, bias=False)
    return module


def _block(config: ModelConfig, in_channels: int, out_channels: int, *, attention: bool) -> Module:
    block: Module = {"residual": _residual(in_channels, out_channels, config.time_embedding_channels)}
    if attention:
        block["transformer"] = _transformer(out_channels, config.context_channels)
    return block


def skip_channels(config: ModelConfig) -> list[int]:
    """Channels of the activations that the encoder hands to the decoder, finest first."""
    last = len(config.level_channels) - 1
    per_level = [[width] * (config.blocks_per_level + (i < last)) for i, width in enumerate(config.level_channels)]
    return [config.channels, *(width for level in per_level for width in level)]


def _encoder(config: ModelConfig) -> Module:
    levels: list[Module] = []
    channels = config.channels
    for i, width in enumerate(config.level_channels):
        widths = [channels] + [width] * (config.blocks_per_level - 1)
        attention = i in config.attention_levels
        level: Module = {"blocks": _numbered([_block(config, w, width, attention=attention) for w in widths])}
        if i < len(config.level_channels) - 1:
            level["downsample"] = _conv(width, width)
        levels.append(level)
        channels = width
    return {
        "conv_in": _conv(config.latent_channels, config.channels),
        "levels": _numbered(levels),
        "middle": {
            "block_in": _block(config, channels, channels, attention=True),
            "block_out": _block(config, channels, channels, attention=False),
        },
    }


def _controlnet(config: ModelConfig) -> Module:
    widths = [*skip_channels(config), config.level_channels[-1]]
    return {
        "time_embedding": _time_embedding(config),
        "encoder": _encoder(config),
        "zero_convs": _numbered([_conv(width, width, 1) for width in widths]),
    }


def _unet(config: ModelConfig) -> Module:
    skips = skip_channels(config)
    levels: list[Module] = []
    channels = config.level_channels[-1]
    for i, width in reversed(list(enumerate(config.level_channels))):
        blocks = []
        for _ in range(config.blocks_per_level + 1):
            blocks.append(_block(config, channels + skips.pop(), width, attention=i in config.attention_levels))
            channels = width
        upsample: Module = {"upsample": {"conv": _conv(width, width)}} if i else {}
        levels.append({"blocks": _numbered(blocks), **upsample})
    return {
        "time_embedding": _time_embedding(config, config.guidance_embedding_channels),
        "encoder": _encoder(config),
        "decoder": {"levels": _numbered(levels)},
        "norm_out": _norm(config.channels),
        "conv_out": _conv(config.channels, config.latent_channels),
    }


def _image_middle(channels: int) -> Module:
    return {
        "residual_in": _residual(channels, channels),
        "attention": {"norm": _norm(channels), "attention": _attention(channels, bias=True)},
        "residual_out": _residual(channels, channels),
    }


def _image_level(in_channels: int, out_channels: int, blocks: int, *, resample: bool) -> Module:
    widths = [in_channels] + [out_channels] * (blocks - 1)
    level: Module = {"blocks": _numbered([_residual(width, out_channels) for width in widths])}
    return {**level, "resample": {"conv": _conv(out_channels, out_channels)}} if resample else level


def _image_encoder(config: AutoencoderConfig) -> Module:
    widths = [config.channels * m for m in config.channel_multipliers]
    moments = 2 * config.latent_channels  # mean and log-variance
    levels = [
        _image_level(in_width, width, config.blocks_per_level, resample=i < len(widths) - 1)
        for i, (in_width, width) in enumerate(zip([config.channels, *widths], widths, strict=False))
    ]
    return {
        "conv_in": _conv(config.image_channels, config.channels),
        "levels": _numbered(levels),
        "middle": _image_middle(widths[-1]),
        "norm_out": _norm(widths[-1]),
        "conv_out": _conv(widths[-1], moments),
        "quant_conv": _conv(moments, moments, 1),
    }


def _image_decoder(config: AutoencoderConfig) -> Module:
    widths = [config.channels * m for m in reversed(config.channel_multipliers)]  # coarsest first
    levels = [
        _image_level(in_width, width, config.blocks_per_level + 1, resample=i < len(widths) - 1)
        for i, (in_width, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
    ]
    return {
        "post_quant_conv": _conv(config.latent_channels, config.latent_channels, 1),
        "conv_in": _conv(config.latent_channels, widths[0]),
        "middle": _image_middle(widths[0]),
        "levels": _numbered(levels),
        "norm_out": _norm(widths[-1]),
        "conv_out": _conv(widths[-1], config.image_channels),
    }

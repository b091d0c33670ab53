"""The smallest model with every kind of block, all weights zero, as files that mutants are made of."""

from __future__ import annotations

import json
from pathlib import Path

from mutate import tensors

from featinv_fast.checkpoints import load, save, save_base
from featinv_fast.checkpoints.architecture import PROMPTS, TEXT_ENCODER, model_shapes, text_encoder_shapes
from featinv_fast.config import AutoencoderConfig, ModelConfig, to_dict

CONFIG = ModelConfig(
    latent_size=8,
    channels=32,
    channel_multipliers=(1, 1),
    blocks_per_level=1,
    attention_levels=(0,),
    heads=4,
    context_channels=64,
    context_tokens=7,
    feature_channels=6,
    condition_hidden_channels=16,
    autoencoder=AutoencoderConfig(channels=32, channel_multipliers=(1, 1), blocks_per_level=1),
)
METADATA = {
    "featinv.model": json.dumps(to_dict(CONFIG)),
    "featinv.backbone": "some_backbone",
    "featinv.layer": "final",
    "featinv.layout": "nchw",
    "featinv.feature_shape": "6x5x5",
    "featinv.input_size": "288",
    "featinv.absolute_max": "7.5",
    "featinv.sampler": "ddim",
    "featinv.steps": "3",
    "featinv.guidance_scale": "1.75",
    "featinv.adaptations": '["an adaptation"]',
    "featinv.info.trained_by": "a test",
    "somebody": "else",
}


def write_checkpoint(path: Path, *, text_encoder: bool = False) -> Path:
    """A checkpoint in our own layout with stored prompts."""
    prompt = (1, CONFIG.context_tokens, CONFIG.context_channels)
    text = text_encoder_shapes(layers=1, width=64, hidden=32, vocabulary=9, tokens=7) if text_encoder else {}
    shapes = {**model_shapes(CONFIG), **dict.fromkeys(PROMPTS, prompt)}
    shapes |= {TEXT_ENCODER + name: shape for name, shape in text.items()}
    header = tensors.header_of(shapes, metadata=METADATA)
    return tensors.write(path, json.dumps(header).encode(), tensors.data_bytes(header))


def write_layouts(folder: Path) -> None:
    """The checkpoint as `ours.safetensors`, `ldm.safetensors` and `diffusers/`, and `base.safetensors` of its U-Net."""
    checkpoint = load(write_checkpoint(folder / "ours.safetensors", text_encoder=True))
    save(checkpoint, folder / "ldm.safetensors", "ldm")
    save(checkpoint, folder / "diffusers", "diffusers")
    parts = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(("denoiser.unet.", "autoencoder."))
    }
    prompts = {name: prompt for name, prompt in checkpoint.prompts.items() if prompt is not None}
    save_base(folder / "base.safetensors", CONFIG, parts, prompts)


def write_shards(source: Path, folder: Path) -> Path:
    """A checkpoint as two shards and their index; returns the index."""
    header = tensors.read_header(source)
    names = [name for name in header if name != "__metadata__"]
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        entries = tensors.laid_out({"__metadata__": METADATA} | {name: dict(header[name]) for name in part})
        tensors.write(folder / shard, json.dumps(entries).encode(), tensors.data_bytes(entries))
        weight_map |= dict.fromkeys(part, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index

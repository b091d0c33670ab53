"""Strict recipes: every tensor is accounted for, and every refusal says what was found."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from featinv_fast.checkpoints import load
from featinv_fast.checkpoints.infer import infer_config
from featinv_fast.checkpoints.layouts import LAYOUTS
from featinv_fast.checkpoints.recipe import Recipe
from featinv_fast.config import AutoencoderConfig, ModelConfig, to_dict
from featinv_fast.errors import CheckpointMismatchError

ARCHITECTURES = {
    "official": ModelConfig(),
    "official LCM": ModelConfig(guidance_embedding_channels=256),
    "one level": ModelConfig(
        channels=64,
        channel_multipliers=(1,),
        blocks_per_level=3,
        attention_levels=(),
        autoencoder=AutoencoderConfig(channels=32, channel_multipliers=(2,), blocks_per_level=1),
    ),
    "attention at the coarsest level": ModelConfig(
        latent_channels=8,
        channels=32,
        channel_multipliers=(2, 1, 3),
        blocks_per_level=1,
        attention_levels=(0, 2),
        feature_channels=7,
        condition_hidden_channels=9,
        autoencoder=AutoencoderConfig(
            channels=64, channel_multipliers=(1, 3, 2), blocks_per_level=3, image_channels=1, latent_channels=8
        ),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_architecture_is_inferred_from_shapes(layout, architecture):
    config = ARCHITECTURES[architecture]
    recipe = Recipe.make(LAYOUTS[layout], config)
    shapes = {source.name: source.shape for source in recipe.sources.values()}
    assert len(shapes) == len(recipe.shapes)  # no two of our tensors share a source
    assert infer_config(LAYOUTS[layout], shapes) == config


def test_the_golden_checkpoint(golden, golden_checkpoint):
    checkpoint = load(golden_checkpoint)
    assert checkpoint.layout == "ldm"
    assert checkpoint.config == golden.config
    assert torch.equal(torch.cat([checkpoint.prompts["cond"], checkpoint.prompts["uncond"]]), golden.prompts)
    assert checkpoint.text_encoder == {}
    assert checkpoint.features.channels == 48
    assert checkpoint.features.height is None
    assert (checkpoint.sampling.steps, checkpoint.sampling.guidance_scale) == (50, 1.75)
    sources = {tensor.data_ptr() for tensor in checkpoint.tensors.values()}
    assert len(sources) == len(golden.tensors)


def mismatch(tmp_path, tensors):
    path = tmp_path / "x.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(CheckpointMismatchError) as caught:
        load(path)
    return str(caught.value)


def test_b4_missing_tensors_are_counted_and_listed(tmp_path, tiny_tensors):
    names = [name for name in tiny_tensors if "output_blocks.1." in name]
    message = mismatch(tmp_path, {name: t for name, t in tiny_tensors.items() if name not in names})
    assert f"{len(names)} missing: {', '.join(sorted(names)[:10])}, ..." in message
    assert sorted(names)[10] not in message
    assert "'ldm'" in message


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"]
)
def test_b4_a_missing_tensor_that_tells_the_architecture_is_named(tmp_path, tiny_tensors, name):
    assert name in mismatch(tmp_path, {key: t for key, t in tiny_tensors.items() if key != name})


def test_b4_a_missing_autoencoder_is_named(tmp_path, tiny_tensors):
    rest = {name: t for name, t in tiny_tensors.items() if not name.startswith("first_stage_model.")}
    assert "first_stage_model.encoder.conv_in.weight" in mismatch(tmp_path, rest)


def test_b4_unexpected_tensors_are_counted_and_listed(tmp_path, tiny_tensors):
    extra = {f"feature_model.{i}": torch.zeros(1) for i in range(3)}
    message = mismatch(tmp_path, tiny_tensors | extra)
    assert "3 unexpected: feature_model.0, feature_model.1, feature_model.2" in message
    assert "official layout ('ldm')" in message


@pytest.mark.parametrize("change", ["shape", "rank", "integers"])
def test_b4_tensors_of_the_wrong_shape_or_kind_are_listed(tmp_path, tiny_tensors, change):
    name = "model.diffusion_model.out.2.weight"
    wrong = {"shape": torch.zeros(4, 33, 3, 3), "rank": torch.zeros(4, 32), "integers": torch.zeros(4, 32, 3, 3).int()}
    message = mismatch(tmp_path, tiny_tensors | {name: wrong[change]})
    assert f"1 wrong: {name} (given {list(wrong[change].shape)}" in message
    assert "expected [4, 32, 3, 3]" in message


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", (20, 4, 3, 3), "multiple of 32"),
        ("model.diffusion_model.input_blocks.0.0.weight", (32, 4), "rank"),
        ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight", (40, 32, 3, 3), "levels"),
        ("featinv.prompt.cond", (1, 5, 64), r"does not fit the model"),
        ("featinv.prompt.uncond", (7, 64), r"does not fit the model"),
        ("featinv.prompt.cond", (64,), r"does not fit the model"),
    ],
)
def test_b4_shapes_that_no_architecture_has(tmp_path, tiny_tensors, name, shape, reason):
    assert reason in mismatch(tmp_path, tiny_tensors | {name: torch.zeros(shape)})


def test_b4_a_part_of_a_text_encoder(tmp_path, tiny_tensors):
    prefix = "cond_stage_model.transformer.text_model."
    lost = f"{prefix}encoder.layers.1.mlp.fc2.bias"
    assert lost in mismatch(tmp_path, {name: t for name, t in tiny_tensors.items() if name != lost})
    lost = f"{prefix}embeddings.token_embedding.weight"
    message = mismatch(tmp_path, {name: t for name, t in tiny_tensors.items() if name != lost})
    assert "a part of a CLIP text encoder" in message
    assert "embeddings.token_embedding.weight" in message


def test_b4_a_text_encoder_of_another_width(tmp_path, golden, tiny_tensors):
    text = {name: t for name, t in tiny_tensors.items() if name.startswith("cond_stage_model.")}
    text = {name: t.repeat_interleave(2, -1) if "embedding" in name else t for name, t in text.items()}
    assert "position_embedding" in mismatch(tmp_path, golden.tensors | text)


@pytest.mark.parametrize(
    ("keep", "resembled"),
    [
        (r"model.diffusion_model first_stage_model cond_stage_model", "text-to-image base model in the LDM layout"),
        (r"control_model", "ControlNet in the LDM layout, without its base model"),
        (r"first_stage_model", "autoencoder in the LDM layout alone"),
    ],
)
def test_b4_parts_of_a_checkpoint_are_recognised(tmp_path, tiny_tensors, keep, resembled):
    assert resembled in mismatch(tmp_path, {n: t for n, t in tiny_tensors.items() if n.startswith(tuple(keep.split()))})


@pytest.mark.parametrize(
    ("names", "resembled"),
    [
        (["control_model.input_hint_block.0.weight", "model.diffusion_model.x"], "not FeatInv's"),
        (
            ["down_blocks.0.resnets.0.x", "up_blocks.0.resnets.0.x", "time_embedding.linear_1.x"],
            "diffusers U-Net alone",
        ),
        (["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"], "LoRA file"),
        (["text_model.embeddings.token_embedding.weight"], "CLIP text encoder alone"),
        (["encoder.down_blocks.0.x", "decoder.up_blocks.0.x"], "diffusers autoencoder alone"),
        (["stages.0.blocks.0.weight"], "no known layout"),
    ],
)
def test_b4_other_models_are_recognised(tmp_path, names, resembled):
    message = mismatch(tmp_path, {name: torch.zeros(1) for name in names})
    assert resembled in message
    assert f"{len(names)} tensors" in message


def test_tensors_that_are_not_needed_are_ignored_for_a_reason(tmp_path, tiny, tiny_tensors, caplog):
    betas = torch.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype=torch.float64) ** 2
    extra = {
        "betas": betas.float(),
        "alphas_cumprod": torch.cumprod(1 - betas, 0).float(),
        "posterior_mean_coef1": torch.zeros(1000),
        "logvar": torch.zeros(1000),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(3),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(7)[None],
    }
    path = tmp_path / "x.safetensors"
    save_file(tiny_tensors | extra, path)
    with caplog.at_level(logging.INFO, logger="featinv_fast"):
        loaded = load(path)
    assert loaded.tensors.keys() == tiny.tensors.keys()
    assert loaded.text_encoder.keys() == tiny.text_encoder.keys()
    messages = [record.getMessage() for record in caplog.records]
    assert sorted(int(m.split()[1]) for m in messages) == [1, 1, 2, 4]
    assert any("2 tensors: exponential moving averages" in m for m in messages)


@pytest.mark.parametrize("betas", [torch.linspace(0.0001, 0.02, 1000), torch.full((500,), 0.01)])
def test_another_noise_schedule_is_refused(tmp_path, tiny_tensors, betas):
    assert "noise schedule" in mismatch(tmp_path, tiny_tensors | {"betas": betas})


@pytest.mark.parametrize("change", [{"heads": 5}, {"heads": 0}, {"latent_size": 7}, {"latent_size": -8}])
def test_b6_stated_numbers_that_no_model_of_these_shapes_has(tiny, tiny_tensors, tmp_path, change):
    stated = json.dumps(to_dict(tiny.config) | change)
    save_file(tiny_tensors, tmp_path / "x.safetensors", {"featinv.model": stated})
    with pytest.raises(CheckpointMismatchError, match=rf"bad value for .*{next(iter(change))}"):
        load(tmp_path / "x.safetensors")

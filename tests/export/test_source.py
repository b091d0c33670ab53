"""What the options add to a checkpoint: prompts, features, sampler defaults, adaptations, provenance."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featinv_export import source
from featinv_export.options import ExportOptions
from featinv_fast.checkpoints import convert, save
from featinv_fast.checkpoints.architecture import text_encoder_shapes
from featinv_fast.config import FeatureLayout, FeatureSpec, SamplingConfig
from featinv_fast.errors import ArgumentError, CheckpointMismatchError, TextError
from featinv_fast.text import EMPTY_PROMPT, OFFICIAL_PROMPT, encode_prompt

NO_PROMPTS = {"cond": None, "uncond": None}


def options(**values: object) -> ExportOptions:
    return ExportOptions(checkpoint=Path("tiny.safetensors"), **values)


@pytest.fixture(scope="module")
def text_encoder() -> dict[str, torch.Tensor]:
    """A text encoder of one layer that knows CLIP's official prompts."""
    generator = torch.Generator().manual_seed(3)
    shapes = text_encoder_shapes(layers=1, width=64, hidden=64, vocabulary=49408, tokens=16)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_stored_prompts_are_used_as_they_are(tiny):
    prompts = source.embed_prompts(tiny, options())
    assert torch.equal(prompts.embeddings, torch.cat([tiny.prompts["cond"], tiny.prompts["uncond"]]))
    assert (prompts.info.cond, prompts.info.uncond, prompts.info.source) == (None, None, "checkpoint")


def test_official_prompts_are_embedded_where_none_are_stored(tiny, text_encoder):
    checkpoint = dataclasses.replace(tiny, prompts=NO_PROMPTS, text_encoder=text_encoder)
    prompts = source.embed_prompts(checkpoint, options())
    assert torch.equal(prompts.embeddings[:1], encode_prompt(OFFICIAL_PROMPT, text_encoder))
    assert torch.equal(prompts.embeddings[1:], encode_prompt(EMPTY_PROMPT, text_encoder))
    assert (prompts.info.cond, prompts.info.uncond) == (OFFICIAL_PROMPT, EMPTY_PROMPT)
    assert prompts.info.source == "text encoder"


def test_a_prompt_of_the_options_goes_before_the_stored_one(tiny, text_encoder):
    stored = {name: torch.ones(1, 16, 64) for name in ("cond", "uncond")}
    checkpoint = dataclasses.replace(tiny, prompts=stored, text_encoder=text_encoder)
    prompts = source.embed_prompts(checkpoint, options(prompt=""))
    assert torch.equal(prompts.embeddings[:1], encode_prompt("", text_encoder))
    assert torch.equal(prompts.embeddings[1:], stored["uncond"])
    assert (prompts.info.cond, prompts.info.uncond) == ("", None)
    assert prompts.info.source == "checkpoint and text encoder"


def test_a_prompt_without_a_text_encoder_is_refused(tiny):
    with pytest.raises(TextError, match="leave the prompt out"):
        source.embed_prompts(tiny, options(prompt="a dog"))


def test_a_checkpoint_without_prompts_and_text_encoder_is_refused(tiny):
    with pytest.raises(TextError, match="text encoder"):
        source.embed_prompts(dataclasses.replace(tiny, prompts=NO_PROMPTS), options())


def test_a_tokenizer_that_would_not_be_used_is_refused(tiny):
    with pytest.raises(ArgumentError, match="tokenizer"):
        source.embed_prompts(tiny, options(tokenizer=Path("tokenizer.json")))


def test_a_known_backbone_completes_the_feature_spec():
    stated = FeatureSpec(channels=1024, absolute_max=9.0)
    spec = source.feature_spec(stated, options(backbone="swinv2_base_window12to24_192to384"))
    assert spec.backbone == "swinv2_base_window12to24_192to384.ms_in22k_ft_in1k"
    assert (spec.height, spec.width, spec.input_size, spec.layout) == (12, 12, 384, FeatureLayout.NHWC)
    assert spec.absolute_max == 9.0


def test_what_the_checkpoint_states_is_kept():
    backbone = "convnext_base.fb_in22k_ft_in1k"
    stated = FeatureSpec(channels=1024, backbone=backbone, input_size=288, mean=(0.5, 0.5, 0.5), height=9)
    spec = source.feature_spec(stated, options(backbone="convnext_base"))
    assert spec == dataclasses.replace(stated, width=9, layer="final")


def test_a_layer_of_a_known_backbone():
    spec = source.feature_spec(FeatureSpec(channels=256), options(backbone="convnext_base", layer="1"))
    assert (spec.layer, spec.height, spec.width) == ("1", 36, 36)


def test_a_layer_of_the_backbone_that_the_checkpoint_states():
    stated = FeatureSpec(channels=256, backbone="convnext_base.fb_in22k_ft_in1k")
    assert source.feature_spec(stated, options(layer="1")).height == 36


@pytest.mark.parametrize(
    ("stated", "asked"),
    [
        (FeatureSpec(channels=512), {"backbone": "convnext_base"}),
        (FeatureSpec(channels=1024, backbone="resnet50"), {"backbone": "convnext_base"}),
        (FeatureSpec(channels=1024, layer="3"), {"backbone": "convnext_base", "layer": "final"}),
        (FeatureSpec(channels=1024, height=8), {"backbone": "convnext_base"}),
        (FeatureSpec(channels=1024), {"backbone": "convnext_base", "feature_size": (9, 10)}),
        (FeatureSpec(channels=7, height=4, width=5), {"feature_size": (5, 4)}),
    ],
)
def test_b6_contradictions_are_errors(stated: FeatureSpec, asked: dict[str, object]):
    with pytest.raises(ArgumentError, match="contradict"):
        source.feature_spec(stated, options(**asked))


@pytest.mark.parametrize(
    "asked",
    [
        {"layer": "1"},
        {"backbone": "no_such_net"},
        {"backbone": "test_vit", "layer": "7", "backbone_weights": "random:0"},
    ],
)
def test_backbones_and_layers_that_are_not_known(asked: dict[str, object]):
    with pytest.raises(ArgumentError):
        source.feature_spec(FeatureSpec(channels=1024), options(**asked))


def test_sampler_defaults():
    stated = SamplingConfig(steps=20, guidance_scale=1.0)
    assert source.sampling_config(stated, options()) == stated
    asked = options(sampler="lcm", steps=4, guidance_scale=0.0)
    assert source.sampling_config(stated, asked) == SamplingConfig(sampler="lcm", steps=4, guidance_scale=0.0)


@pytest.mark.parametrize("asked", [{"sampler": "euler"}, {"steps": 0}, {"sampler": "lcm", "steps": 51}])
def test_sampler_defaults_that_cannot_be(asked: dict[str, object]):
    with pytest.raises(ArgumentError):
        source.sampling_config(SamplingConfig(), options(**asked))


@pytest.mark.parametrize(
    "values",
    [
        {"max_batch": 0},
        {"optimal_batch": 0},
        {"optimal_batch": 65},
        {"feature_size": (0, 9)},
        {"lora_scale": 0.5},
        {"lora_alpha": "rank"},
        {"lora": Path("x"), "lora_scale": math.nan},
        {"guidance_scale": math.inf},
    ],
)
def test_options_out_of_range(values: dict[str, object]):
    with pytest.raises(ArgumentError):
        options(**values)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.b.safetensors", "a.b"), ("model.ckpt", "model"), ("model.safetensors.index.json", "model"), ("none", "none")],
)
def test_default_destination(name: str, stem: str):
    assert ExportOptions(checkpoint=Path("folder") / name).destination == Path(f"{stem}.engine")


def test_source_of_a_file(checkpoint_file):
    path = checkpoint_file()
    info = source.source_info(source.read_checkpoint(ExportOptions(checkpoint=path)))
    assert (info.file_name, info.layout) == ("tiny.safetensors", "featinv")
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_source_of_a_folder_changes_with_every_file(checkpoint_file, tmp_path: Path):
    folder = convert(checkpoint_file(), tmp_path / "pipeline", "diffusers")
    first = source.source_info(source.read_checkpoint(ExportOptions(checkpoint=folder)))
    assert (first.file_name, first.layout) == ("pipeline", "diffusers")
    listing = "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder).as_posix()}\n"
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    )
    assert first.sha256 == hashlib.sha256(listing.encode()).hexdigest()


def test_a_lora_is_fused_and_named(tiny, checkpoint_file, tmp_path: Path):
    lora = tmp_path / "style.safetensors"
    layer = "denoiser.unet.encoder.levels.0.blocks.0.transformer.self_attention.query.weight"
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    up, down = torch.randn(32, 2), torch.randn(2, 32)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, lora)
    checkpoint = source.read_checkpoint(
        ExportOptions(checkpoint=checkpoint_file(), lora=lora, lora_scale=0.5, lora_alpha="rank")
    )
    torch.testing.assert_close(checkpoint.tensors[layer], tiny.tensors[layer] + 0.5 * up @ down)
    (note,) = checkpoint.adaptations
    assert "style.safetensors" in note
    assert checkpoint.sampling == SamplingConfig(steps=20)


def test_an_lcm_unet_replaces_the_unet_and_changes_the_defaults(tiny, make_model, checkpoint_file, tmp_path: Path):
    config = dataclasses.replace(tiny.config, guidance_embedding_channels=8)
    other = dataclasses.replace(tiny, config=config, tensors=make_model(config, seed=1).state_dict())
    folder = save(other, tmp_path / "lcm", "diffusers")
    checkpoint = source.read_checkpoint(ExportOptions(checkpoint=checkpoint_file(), lcm_unet=folder / "unet"))
    assert checkpoint.config.guidance_embedding_channels == 8
    assert checkpoint.sampling == SamplingConfig(sampler="lcm", steps=4)
    assert len(checkpoint.adaptations) == 1
    name = "denoiser.unet.conv_out.weight"
    torch.testing.assert_close(checkpoint.tensors[name], other.tensors[name], rtol=0, atol=0)


def test_a_lora_of_another_network_is_refused(checkpoint_file):
    path = checkpoint_file()
    with pytest.raises(CheckpointMismatchError):
        source.read_checkpoint(ExportOptions(checkpoint=path, lora=path))

"""Base models without a ControlNet: the same strictness as for whole checkpoints."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from featinv_fast.checkpoints import load, load_base, save, save_base
from featinv_fast.config import ModelConfig
from featinv_fast.errors import CheckpointError, CheckpointMismatchError

CONTROL = "control_model."


@pytest.fixture
def base_tensors(tiny_tensors):
    """The tiny checkpoint in the official layout, without everything that FeatInv adds."""
    return {n: t.clone() for n, t in tiny_tensors.items() if not n.startswith((CONTROL, "featinv."))}


def assert_is_the_base(base, tiny):
    expected = {n: t for n, t in tiny.tensors.items() if n.startswith(("denoiser.unet.", "autoencoder."))}
    assert base.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(base.tensors[name], tensor), name
    for field in ("channels", "channel_multipliers", "blocks_per_level", "attention_levels", "context_channels"):
        assert getattr(base.config, field) == getattr(tiny.config, field), field
    assert base.config.feature_channels == ModelConfig().feature_channels


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_file_in_the_official_layout(tiny, base_tensors, tmp_path, suffix):
    path = tmp_path / f"sd.{suffix}"
    extras = {"model_ema.decay": torch.tensor(1.0), "betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2}
    if suffix == "ckpt":
        torch.save({"state_dict": base_tensors | extras, "global_step": 3}, path)
    else:
        save_file(base_tensors | extras, path)
    base = load_base(path)
    assert base.layout == "ldm"
    assert_is_the_base(base, tiny)
    assert base.prompts == {"cond": None, "uncond": None}
    assert base.text_encoder.keys() == tiny.text_encoder.keys()
    assert base.config.context_tokens == 7


def test_a_diffusers_pipeline(tiny, tmp_path):
    folder = save(tiny, tmp_path / "whole", "diffusers")
    for part in ("controlnet", "condition_encoder"):
        shutil.rmtree(folder / part)
    (folder / "safety_checker").mkdir()
    (folder / "model_index.json").write_text("{}")
    base = load_base(folder)
    assert base.layout == "diffusers"
    assert_is_the_base(base, tiny)
    assert base.config.heads == 4
    assert base.text_encoder.keys() == tiny.text_encoder.keys()


def test_our_own_layout_keeps_everything(tiny, tmp_path):
    tensors = {n: t for n, t in tiny.tensors.items() if n.startswith(("denoiser.unet.", "autoencoder."))}
    notes = {"featinv.info.recipe": "x"}
    path = save_base(tmp_path / "base.safetensors", tiny.config, tensors, tiny.prompts, notes)
    base = load_base(path)
    assert base.layout == "featinv"
    assert_is_the_base(base, tiny)
    assert (base.config.latent_size, base.config.heads) == (tiny.config.latent_size, 4)
    assert base.metadata["featinv.info.recipe"] == "x"
    for name in ("cond", "uncond"):
        assert torch.equal(base.prompts[name], tiny.prompts[name])
    assert not any(key.startswith("featinv.backbone") for key in base.metadata)
    save_base(path, tiny.config, tensors, tiny.prompts)
    assert "featinv.info.recipe" not in load_base(path).metadata


@pytest.mark.parametrize("layout", ["featinv", "ldm", "diffusers"])
def test_b4_a_featinv_checkpoint_is_no_base(tiny, tmp_path, layout):
    path = save(tiny, tmp_path / ("x" if layout == "diffusers" else "x.safetensors"), layout)
    with pytest.raises(CheckpointMismatchError, match="not a base model"):
        load_base(path)


def test_b4_a_base_is_no_featinv_checkpoint(base_tensors, tmp_path):
    save_file(base_tensors, tmp_path / "sd.safetensors")
    with pytest.raises(CheckpointMismatchError, match="text-to-image base model"):
        load(tmp_path / "sd.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.diffusion_model.out.2.bias"), "1 missing: model.diffusion_model.out.2.bias"),
        (lambda t: t.pop("first_stage_model.encoder.conv_in.weight"), "first_stage_model.encoder.conv_in.weight"),
        (lambda t: t.update({"something.else": torch.zeros(1)}), "1 unexpected: something.else"),
        (lambda t: t.update({"model.diffusion_model.out.2.bias": torch.zeros(9)}), "given .9. float32"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("first_stage_model")], "not a base model"),
    ],
)
def test_b4_tensors_that_do_not_fit(base_tensors, tmp_path, change, named):
    change(base_tensors)
    save_file(base_tensors, tmp_path / "sd.safetensors")
    with pytest.raises(CheckpointMismatchError, match=named):
        load_base(tmp_path / "sd.safetensors")


def test_b4_folders_of_other_kinds(tmp_path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(CheckpointMismatchError, match="not a base model in the diffusers layout"):
        load_base(tmp_path)
    with pytest.raises(CheckpointError, match="no such base model"):
        load_base(tmp_path / "missing")


def test_b6_a_pipeline_trained_on_another_schedule(tiny, tmp_path):
    folder = save(tiny, tmp_path / "whole", "diffusers")
    for part in ("controlnet", "condition_encoder"):
        shutil.rmtree(folder / part)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(CheckpointMismatchError, match="prediction_type"):
        load_base(folder)

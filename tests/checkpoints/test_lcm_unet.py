"""U-Nets of latent consistency models in place of a checkpoint's own."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_fast.checkpoints import load, replace_unet, save
from featinv_fast.checkpoints.diffusers_configs import component_configs
from featinv_fast.errors import CheckpointMismatchError
from featinv_fast.models import FeatInv


@pytest.fixture(scope="module")
def lcm(tiny, tmp_path_factory):
    """A U-Net with a guidance embedding of 16 channels, as diffusers builds and saves it."""
    from diffusers import UNet2DConditionModel

    config = dataclasses.replace(tiny.config, guidance_embedding_channels=16)
    options = {k: v for k, v in component_configs(config)["unet"].items() if not k.startswith("_")}
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**options).eval()
    path = tmp_path_factory.mktemp("lcm") / "unet"
    unet.save_pretrained(path)
    return unet, path


def unet_of(checkpoint):
    with torch.device("meta"):
        model = FeatInv(checkpoint.config)
    model.load_state_dict(checkpoint.tensors, strict=True, assign=True)
    return model.denoiser.unet.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("guidance_scale", [1.0, 1.75, 8.0])
def test_a_unet_with_a_guidance_embedding_computes_the_same(tiny, lcm, relative_norm, guidance_scale):
    from diffusers import LatentConsistencyModelPipeline

    unet, path = lcm
    checkpoint = replace_unet(tiny, path)
    assert checkpoint.config.guidance_embedding_channels == 16
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(1, 7, 64, generator=generator)
    embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor([guidance_scale - 1.0] * 2), embedding_dim=16
    )
    with torch.no_grad():
        expected = unet(x, 499, context.expand(2, -1, -1), timestep_cond=embedding).sample
    given = unet_of(checkpoint)(x, torch.tensor([499.0]), context, guidance=torch.tensor([guidance_scale]))
    assert relative_norm(given, expected) < 5e-6


def test_folders_pipelines_and_files_are_read_alike(tiny, lcm):
    _, path = lcm
    by_folder = replace_unet(tiny, path)
    for source in (path.parent, path / "diffusion_pytorch_model.safetensors"):
        other = replace_unet(tiny, source)
        assert other.config == by_folder.config
        for name, tensor in by_folder.tensors.items():
            assert torch.equal(other.tensors[name], tensor), name
    assert by_folder.adaptations == ("U-Net replaced by unet with a guidance embedding of 16 channels",)


def test_everything_else_stays(tiny, lcm):
    replaced = replace_unet(tiny, lcm[1])
    assert tiny.adaptations == ()
    assert tiny.config.guidance_embedding_channels == 0
    kept = [name for name in tiny.tensors if not name.startswith("denoiser.unet.")]
    assert len(kept) > 100
    assert all(replaced.tensors[name] is tiny.tensors[name] for name in kept)
    name = "denoiser.unet.conv_out.weight"
    assert not torch.equal(replaced.tensors[name], tiny.tensors[name])
    assert replaced.tensors.keys() - tiny.tensors.keys() == {"denoiser.unet.time_embedding.guidance_projection.weight"}


def test_a_plain_unet_takes_the_place_too(tiny, tmp_path):
    other = dataclasses.replace(tiny, tensors={name: tensor + 1 for name, tensor in tiny.tensors.items()})
    folder = save(other, tmp_path / "x", "diffusers")
    replaced = replace_unet(tiny, folder)
    assert replaced.config == tiny.config
    for name, tensor in tiny.tensors.items():
        assert torch.equal(replaced.tensors[name], tensor + (1 if name.startswith("denoiser.unet.") else 0)), name


@pytest.mark.parametrize("layout", ["featinv", "ldm", "diffusers"])
def test_the_result_is_saved_and_loaded(tiny, lcm, tmp_path, layout):
    replaced = replace_unet(tiny, lcm[1])
    loaded = load(save(replaced, tmp_path / ("x" if layout == "diffusers" else "x.safetensors"), layout))
    assert loaded.config == replaced.config
    assert loaded.adaptations == replaced.adaptations
    for name, tensor in replaced.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor), name


def test_b4_another_architecture_is_refused(golden_checkpoint, tiny, lcm, tmp_path):
    with pytest.raises(CheckpointMismatchError, match="unet's configuration does not fit"):
        replace_unet(load(golden_checkpoint), lcm[1])
    with pytest.raises(CheckpointMismatchError, match=r"\d+ missing: unet\.down_blocks"):
        replace_unet(load(golden_checkpoint), lcm[1] / "diffusion_pytorch_model.safetensors")
    tensors = load_file(lcm[1] / "diffusion_pytorch_model.safetensors")
    del tensors["conv_out.bias"]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"1 missing: unet\.conv_out\.bias"):
        replace_unet(tiny, tmp_path / "x.safetensors")


def test_b7_another_class_is_refused(tiny, lcm, tmp_path):
    save_file(
        load_file(lcm[1] / "diffusion_pytorch_model.safetensors"), tmp_path / "diffusion_pytorch_model.safetensors"
    )
    config = json.loads((lcm[1] / "config.json").read_text()) | {"_class_name": "UNet3DConditionModel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatchError, match="_class_name"):
        replace_unet(tiny, tmp_path)

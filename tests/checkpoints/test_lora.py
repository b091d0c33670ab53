"""LoRA files fused into the U-Net, against diffusers and peft."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_fast.checkpoints import fuse_lora, load, save
from featinv_fast.checkpoints.diffusers_layout import unet_modules
from featinv_fast.errors import ArgumentError, CheckpointCorruptError, CheckpointMismatchError

# What LCM-LoRA adapts.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
           "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"]  # fmt: skip
RANK, ALPHA = 3, 5.0


@pytest.fixture(scope="module")
def unet_folder(tiny, tmp_path_factory):
    return save(tiny, tmp_path_factory.mktemp("lora") / "x", "diffusers") / "unet"


def diffusers_unet(unet_folder):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(unet_folder, low_cpu_mem_usage=False)


@pytest.fixture(scope="module")
def adapter(unet_folder, tmp_path_factory):
    """A random LoRA as diffusers saves it, and the U-Net's tensors after diffusers fused it."""
    from peft import LoraConfig

    unet = diffusers_unet(unet_folder)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("adapter")
    unet.save_lora_adapter(folder)
    unet.fuse_lora()
    unet.unload_lora()
    return folder / "pytorch_lora_weights.safetensors", unet.state_dict()


def assert_fused(checkpoint, expected, *, different_from):
    modules = unet_modules(checkpoint.config)
    changed = 0
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("denoiser.unet."):
            module, _, parameter = name.rpartition(".")
            torch.testing.assert_close(tensor, expected[f"{modules[module]}.{parameter}".removeprefix("unet.")])
            changed += not torch.equal(tensor, different_from.tensors[name])
        else:
            assert tensor is different_from.tensors[name]
    assert changed > 50


def kohya(adapter):
    """The same LoRA under kohya's names."""
    renamed = {}
    for name, tensor in load_file(adapter).items():
        module, part, _ = name.removeprefix("unet.").rsplit(".", 2)
        stem = "lora_unet_" + module.replace(".", "_")
        renamed[f"{stem}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = tensor
        renamed[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return renamed


def test_a_file_that_diffusers_wrote(tiny, adapter):
    path, expected = adapter
    fused = fuse_lora(tiny, path)
    assert_fused(fused, expected, different_from=tiny)
    assert tiny.adaptations == ()
    (note,) = fused.adaptations
    assert note.startswith("LoRA pytorch_lora_weights.safetensors fused into ")


def test_kohyas_names(tiny, adapter, unet_folder, tmp_path):
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    path = tmp_path / "kohya.safetensors"
    save_file(kohya(adapter[0]), path)
    assert_fused(fuse_lora(tiny, path), adapter[1], different_from=tiny)

    # And diffusers reads this file so too.
    state, alphas = _convert_non_diffusers_lora_to_diffusers(load_file(path))
    unet = diffusers_unet(unet_folder)
    unet.load_lora_adapter(state, network_alphas=alphas, prefix="unet")
    unet.fuse_lora()
    unet.unload_lora()
    for name, tensor in unet.state_dict().items():
        torch.testing.assert_close(tensor, adapter[1][name])


def test_an_alpha_that_the_file_does_not_tell_is_asked_for(tiny, adapter, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({name: tensor for name, tensor in kohya(adapter[0]).items() if not name.endswith("alpha")}, path)
    with pytest.raises(CheckpointMismatchError, match="does not say how strong it is") as caught:
        fuse_lora(tiny, path)
    assert "alpha=" in caught.value.remedy
    assert "--lora-alpha" in caught.value.command_remedy
    assert_fused(fuse_lora(tiny, path, alpha=ALPHA), adapter[1], different_from=tiny)
    # Scaling by alpha / rank from outside gives the same.
    fused = fuse_lora(tiny, path, scale=ALPHA / RANK, alpha="rank")
    assert_fused(fused, adapter[1], different_from=tiny)
    assert "scale 1.66667" in fused.adaptations[0]
    with pytest.raises(ArgumentError, match="states its own alpha"):
        fuse_lora(tiny, adapter[0], alpha=ALPHA)


@pytest.mark.parametrize("old", [False, True])
def test_older_and_bare_names(tiny, adapter, tmp_path, old):
    renamed = {}
    for name, tensor in load_file(adapter[0]).items():
        if ".attn" not in name:
            continue
        name = name.removeprefix("unet.")
        if old:
            name = "unet." + name.replace(".to_out.0.", ".to_out.").replace(".to_", ".processor.to_")
            name = name.replace(".lora_A.", "_lora.down.").replace(".lora_B.", "_lora.up.")
        renamed[name] = tensor
    save_file(renamed, tmp_path / "x.safetensors")
    fused = fuse_lora(tiny, tmp_path / "x.safetensors", alpha=ALPHA)
    whole = fuse_lora(tiny, adapter[0])
    adapted = [name for name, tensor in fused.tensors.items() if tensor is not tiny.tensors[name]]
    assert len(adapted) == len(renamed) // 2 > 20
    for name in adapted:
        torch.testing.assert_close(fused.tensors[name], whole.tensors[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_fused_in_fp32(tiny, adapter, dtype):
    half = dataclasses.replace(tiny, tensors={name: tensor.to(dtype) for name, tensor in tiny.tensors.items()})
    whole = dataclasses.replace(half, tensors={name: tensor.float() for name, tensor in half.tensors.items()})
    fused, expected = fuse_lora(half, adapter[0]), fuse_lora(whole, adapter[0])
    for name, tensor in fused.tensors.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected.tensors[name].to(dtype)), name


def test_the_result_is_saved_and_loaded(tiny, adapter, tmp_path):
    fused = fuse_lora(fuse_lora(tiny, adapter[0]), adapter[0], scale=-1.0)
    for name, tensor in tiny.tensors.items():
        torch.testing.assert_close(fused.tensors[name], tensor)
    loaded = load(save(fused, tmp_path / "x.safetensors"))
    assert loaded.adaptations == fused.adaptations
    assert len(loaded.adaptations) == 2


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


CONV = "lora_unet_mid_block_resnets_0_conv1"
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t | {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(())}, "lora_te_text_model"),
        (lambda t: t | {"lora_unet_mid_block_resnets_7_conv1.alpha": torch.ones(())}, "resnets_7"),
        (lambda t: t | {f"{CONV}.dora_scale": torch.ones(3)}, "dora_scale"),
        (
            lambda t: t | {"unet.mid_block.resnets.0.conv1.lora_A.weight": t[f"{CONV}.lora_down.weight"]},
            "conv1.lora_A",
        ),
        (lambda t: without(t, f"{CONV}.lora_up.weight"), "mid_block_resnets_0_conv1"),
        (lambda t: without(t, f"{CONV}.lora_down.weight"), "mid_block_resnets_0_conv1"),
        (lambda t: t | {f"{TO_Q}.lora_up.weight": torch.ones(64, RANK)}, "attn1_to_q"),
        (lambda t: t | {f"{TO_Q}.lora_up.weight": torch.ones(32)}, "attn1_to_q"),
        (lambda t: t | {f"{TO_Q}.lora_down.weight": torch.ones(RANK + 1, 32)}, "attn1_to_q"),
        (lambda t: t | {f"{TO_Q}.alpha": torch.ones(2)}, "attn1_to_q"),
        (lambda _: {"a": torch.ones(2)}, "1 of 1"),
    ],
)
def test_b4_keys_and_matrices_that_do_not_fit(tiny, adapter, tmp_path, change, named):
    path = tmp_path / "x.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(kohya(adapter[0])).items()}, path)
    with pytest.raises(CheckpointMismatchError) as caught:
        fuse_lora(tiny, path)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "options", ['{"unet.use_dora": true}', '{"alpha_pattern": {"a": 2}}', "[]", "{", '{"lora_alpha": []}']
)
def test_b4_adapters_of_other_kinds(tiny, adapter, tmp_path, options):
    path = tmp_path / "x.safetensors"
    save_file(load_file(adapter[0]), path, {"lora_adapter_metadata": options})
    with pytest.raises(CheckpointMismatchError, match="cannot be fused"):
        fuse_lora(tiny, path)


def test_the_alpha_of_the_metadata_counts(adapter):
    from safetensors import safe_open

    with safe_open(adapter[0], "pt") as file:
        options = json.loads(file.metadata()["lora_adapter_metadata"])
    assert options["lora_alpha"] == ALPHA  # else the comparison with diffusers above says nothing


def test_b2_a_damaged_file(tiny, adapter, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(adapter[0].read_bytes()[:-7])
    with pytest.raises(CheckpointCorruptError, match="truncated"):
        fuse_lora(tiny, tmp_path / "x.safetensors")

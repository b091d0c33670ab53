"""Names as training tools and other versions write them: read where they mean one thing, refused otherwise."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from featinv_fast.checkpoints import fuse_lora, load, load_base, replace_unet, save
from featinv_fast.checkpoints.wrappers import unwrapped
from featinv_fast.errors import CheckpointError, CheckpointMismatchError

TEXT = "cond_stage_model.transformer.text_model."


def assert_same_model(loaded, tiny):
    assert loaded.named_tensors().keys() == tiny.named_tensors().keys()
    for name, tensor in tiny.named_tensors().items():
        assert torch.equal(loaded.named_tensors()[name], tensor), name


@pytest.mark.parametrize(
    "spell",
    [
        *(lambda name, prefix=prefix: prefix + name for prefix in
          ("module.", "_orig_mod.", "_forward_module.", "ema_model.", "ema.", "model.", "student.ema_model.module.",
           "_forward_module._orig_mod.", "net.inner.")),
        lambda name: name.replace("diffusion_model.", "diffusion_model._orig_mod."),
        lambda name: name.replace("control_model.", "control_model.module._fsdp_wrapped_module."),
        lambda name: name.replace(TEXT, "cond_stage_model.transformer."),
        lambda name: "_forward_module.model." + name.replace(TEXT, "cond_stage_model.transformer."),
    ],
)  # fmt: skip
def test_what_training_tools_put_around_names_is_left_out(tiny, tiny_tensors, tmp_path, spell):
    path = tmp_path / "x.safetensors"
    tensors = {name if name.startswith("featinv.") else spell(name): t for name, t in tiny_tensors.items()}
    save_file(tensors, path, dict(tiny.metadata))
    loaded = load(path)
    assert_same_model(loaded, tiny)
    assert loaded.config == tiny.config


@pytest.mark.parametrize("layout", ["featinv", "ldm"])
def test_prefixes_in_other_layouts_and_for_base_models(tiny, tmp_path, layout):
    tensors = load_file(save(tiny, tmp_path / "x.safetensors", layout))
    save_file({f"trainer.model.{name}": t for name, t in tensors.items()}, tmp_path / "y.safetensors", tiny.metadata)
    assert_same_model(load(tmp_path / "y.safetensors"), tiny)
    control = ("control_model.", "condition_encoder.", "denoiser.controlnet.", "featinv.")
    base = {f"_forward_module.{name}": t for name, t in tensors.items() if not name.startswith(control)}
    save_file(base, tmp_path / "base.safetensors")
    loaded = load_base(tmp_path / "base.safetensors")
    name = "denoiser.unet.conv_out.weight"
    assert torch.equal(loaded.tensors[name], tiny.tensors[name])


def test_two_models_in_one_file_are_refused(tiny_tensors, tmp_path):
    twice = tiny_tensors | {f"ema_model.{name}": t + 1 for name, t in tiny_tensors.items()}
    save_file(twice, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"several models of the same kind") as caught:
        load(tmp_path / "x.safetensors")
    assert "ema_model." in str(caught.value)


def test_a_tensor_under_two_names_is_refused(tiny_tensors, tmp_path):
    name = next(name for name in tiny_tensors if name.startswith(TEXT))
    for other in (name.replace(TEXT, "cond_stage_model.transformer."), f"module.{name}"):
        save_file(tiny_tensors | {other: tiny_tensors[name] + 1}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointMismatchError, match="stand for the same one"):
            load(tmp_path / "x.safetensors")


def test_a_prefix_before_a_part_of_the_model_is_no_prefix_of_the_model(tiny_tensors, tmp_path):
    mixed = {f"a.{n}" if n.startswith("control_model.") else f"b.{n}": t for n, t in tiny_tensors.items()}
    save_file(mixed, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointMismatchError, match="not a FeatInv checkpoint"):
        load(tmp_path / "x.safetensors")


def test_names_without_wrappers_stay():
    tensors = {"model.diffusion_model.a": 1, "modules.b": 2, "my_module.c": 3}
    assert unwrapped(tensors) == tensors


def test_clips_head_for_comparisons_is_ignored(tiny, tiny_tensors, tmp_path):
    extra = {"transformer.text_projection.weight": torch.ones(2, 2), "logit_scale": torch.ones(())}
    tensors = tiny_tensors | {f"cond_stage_model.{name}": t for name, t in extra.items()}
    save_file(tensors, tmp_path / "x.safetensors", dict(tiny.metadata))
    assert_same_model(load(tmp_path / "x.safetensors"), tiny)


@pytest.fixture(scope="module")
def diffusers_folder(tiny, tmp_path_factory):
    """The tiny checkpoint in the diffusers layout. Do not change it."""
    return save(tiny, tmp_path_factory.mktemp("variants") / "x", "diffusers")


def sharded(file, index, names):
    """Replace a component's file by two shards of these names and their index."""
    import json

    tensors = load_file(file)
    file.unlink()
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    for half, name in zip(halves, names, strict=True):
        (save_file if name.endswith(".safetensors") else torch.save)(half, file.with_name(name))
    weight_map = {key: name for half, name in zip(halves, names, strict=True) for key in half}
    file.with_name(index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors")),
        lambda file: file.rename(file.with_name("diffusion_pytorch_model.non_ema.safetensors")),
        lambda file: (
            torch.save(load_file(file), file.with_name("diffusion_pytorch_model.bin")),
            # The full precision counts, whatever its format.
            save_file({"x": torch.ones(1)}, file.with_name("diffusion_pytorch_model.fp16.safetensors")),
            file.unlink(),
        ),
        lambda file: sharded(
            file,
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            [f"diffusion_pytorch_model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)],
        ),
        lambda file: sharded(
            file,
            "model.fp16.safetensors.index.json",
            [f"model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)],
        ),
        lambda file: sharded(
            file, "pytorch_model.bin.index.json", [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        ),
    ],
    ids=["fp16", "non_ema", "bin before fp16", "fp16 shards", "fp16 shards, other spelling", "bin shards"],
)
def test_variants_and_shards_of_a_component_are_read(diffusers_folder, tiny, tmp_path, change):
    copy = shutil.copytree(diffusers_folder, tmp_path / "x")
    change(copy / "unet" / "diffusion_pytorch_model.safetensors")
    assert_same_model(load(copy), tiny)


def test_several_variants_without_the_full_precision_are_refused(diffusers_folder, tmp_path):
    copy = shutil.copytree(diffusers_folder, tmp_path / "x")
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    file.rename(file.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    with pytest.raises(CheckpointError, match="several variants of the component 'unet'"):
        load(copy)


def test_a_compiled_unet_replaces_the_unet(diffusers_folder, tiny, tmp_path):
    tensors = load_file(diffusers_folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({f"_orig_mod.{name}": t + 1 for name, t in tensors.items()}, tmp_path / "unet.safetensors")
    replaced = replace_unet(tiny, tmp_path / "unet.safetensors")
    name = "denoiser.unet.conv_out.weight"
    assert torch.equal(replaced.tensors[name], tiny.tensors[name] + 1)


def test_a_lora_of_a_compiled_unet_is_fused(tiny, tmp_path):
    stem = "base_model.model._orig_mod.mid_block.resnets.0.conv1"
    lora = {f"{stem}.lora_A.weight": torch.ones(1, 64, 3, 3), f"{stem}.lora_B.weight": torch.ones(64, 1, 1, 1)}
    save_file(lora, tmp_path / "x.safetensors")
    fused = fuse_lora(tiny, tmp_path / "x.safetensors", alpha="rank")
    name = "denoiser.unet.encoder.middle.block_in.residual.conv_in.weight"
    torch.testing.assert_close(fused.tensors[name], tiny.tensors[name] + 1)
